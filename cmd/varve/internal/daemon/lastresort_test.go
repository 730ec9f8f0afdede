package daemon

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

// logPlace is where a log goes, or fails to.
type logPlace struct {
	bytes.Buffer
	err    error
	closed bool
}

func (p *logPlace) Write(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	return p.Buffer.Write(b)
}

func (p *logPlace) Close() error { p.closed = true; return nil }

// TestLogGoesElsewhere: what a log has to tell of a full host does not fit into it.
func TestLogGoesElsewhere(t *testing.T) {
	file, elsewhere := &logPlace{}, &logPlace{}
	opened := 0
	refused := errors.New("no syslog here")
	log := &lastResort{file: file, open: func() (io.WriteCloser, error) {
		if opened++; opened == 1 {
			return nil, refused
		}
		return elsewhere, nil
	}}
	for _, s := range []struct {
		text string
		file error
		want error
	}{
		{"one\n", nil, nil},
		{"lost\n", unix.EROFS, unix.EROFS},
		{"two\n", unix.ENOSPC, nil},
		{"three\n", unix.EROFS, nil},
		{"four\n", nil, nil},
	} {
		file.err = s.file
		if n, err := log.Write([]byte(s.text)); !errors.Is(err, s.want) || err == nil && n != len(s.text) {
			t.Errorf("%q: %d, %v", s.text, n, err)
		}
	}
	if err := log.Close(); err != nil || !file.closed || !elsewhere.closed {
		t.Errorf("closed %v and %v: %v", file.closed, elsewhere.closed, err)
	}
	if file.String() != "one\nfour\n" || elsewhere.String() != "two\nthree\n" || opened != 2 {
		t.Errorf("the file has %q, and elsewhere is %q, opened %d times", file.String(), elsewhere.String(), opened)
	}
}
