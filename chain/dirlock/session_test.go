package dirlock

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/overlay/hostfs"
)

// session locks a directory and gives the session as somebody else sees it.
func session(t *testing.T, dir string) (*Lock, *Session) {
	t.Helper()
	l, err := Take(hostfs.OS(), dir, Options{Exclusive: true, Mountpoint: "/mnt/vm1"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := SessionOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if ended, err := s.Ended(); ended || err != nil || s.PID() != os.Getpid() {
		t.Fatalf("a session that goes on has ended: %v, %v", ended, err)
	}
	return l, s
}

func (l *Lock) mustUnlock(t *testing.T) {
	t.Helper()
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
}

// ended expects a session to have ended in a way.
func (s *Session) ended(t *testing.T, when string, want End, words string) {
	t.Helper()
	ended, err := s.Ended()
	if !ended || err != nil {
		t.Errorf("%s: it goes on, %v", when, err)
	}
	if end, reason := s.End(); end != want || reason != words {
		t.Errorf("%s: end %d %q, want %d %q", when, end, reason, want, words)
	}
}

// How a session ended is found while nobody has the disk, and while and after the next
// ones have it.
func TestEndOfASession(t *testing.T) {
	failed := errors.New("write: no luck")
	for _, c := range []struct {
		name  string
		end   func(*Lock)
		want  End
		words string
	}{
		{"in order", func(l *Lock) { l.mustUnlock(t) }, EndInOrder, ""},
		{"failed", func(l *Lock) { l.Failed = failed; l.mustUnlock(t) }, EndFailed, failed.Error()},
		{"killed", func(l *Lock) { l.f.Close() }, EndDied, ""},
	} {
		dir := t.TempDir()
		l, s := session(t, dir)
		at, err := SessionAt(dir)
		if err != nil {
			t.Fatal(err)
		}
		c.end(l)
		for _, s := range []*Session{s, at} {
			s.ended(t, c.name, c.want, c.words)
		}
		for next := range 3 {
			l, _ := session(t, dir)
			s.ended(t, c.name+", with the next one", c.want, c.words)
			if next == 1 {
				l.f.Close() // killed
				continue
			}
			l.mustUnlock(t)
			s.ended(t, c.name+", after the next one", c.want, c.words)
		}
		for range mostEnded {
			l, _ := session(t, dir)
			l.mustUnlock(t)
		}
		s.ended(t, c.name+", long ago", EndUnknown, "")
		at.Close()
	}
	if s, err := SessionAt(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of nobody: %+v, %v", s, err)
	}
	if s, err := SessionOf(os.Getpid()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of a process without a lock: %+v, %v", s, err)
	}
}

// The end is found wherever the directory is by then, and whatever is in its place.
func TestEndOfASessionInAMovedDirectory(t *testing.T) {
	parent := t.TempDir()
	dir, moved := filepath.Join(parent, "vm1.varve"), filepath.Join(parent, "moved")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, s := session(t, dir)
	for _, step := range []func() error{
		func() error { return os.Rename(dir, moved) },
		func() error { return os.Mkdir(dir, 0o700) },
		func() error { return os.WriteFile(filepath.Join(dir, Name), []byte(`{"pid":1}`), 0o600) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Dir(); got != moved {
		t.Errorf("it is in %q", got)
	}
	l.Failed = errors.New("no luck")
	l.mustUnlock(t)
	s.ended(t, "moved", EndFailed, "no luck")
	if err := os.RemoveAll(moved); err != nil {
		t.Fatal(err)
	}
	if got := s.Dir(); got != "" {
		t.Errorf("removed, it is in %q", got)
	}
}

// A holder of an earlier version has no name for its session, empties the file in the end
// and leaves its words when it could not close.
func TestEndOfAnOlderSession(t *testing.T) {
	for words, want := range map[string]End{"": EndInOrder, `{"pid":12,"mountpoint":"/m"}`: EndFailed, "{": EndUnknown, `{"pid":13,"session":"next"}`: EndUnknown} {
		path := filepath.Join(t.TempDir(), Name)
		if err := os.WriteFile(path, []byte(words), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		s := &Session{f: f, pid: 12, words: lockWords{PID: 12, Mountpoint: "/m"}}
		s.ended(t, words, want, "")
	}
}

// What a stranger has put into the lock file is cut, and does no harm.
func TestHostileLockFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, Name)
	for _, words := range []string{
		`{"pid":`, "\x00", `[]`, `{"ended":"x"}`,
		`{"session":"x","ended":[` + strings.Repeat(`{"session":"y"},`, 1000) + `{}]}`,
		`{"session":"` + strings.Repeat("x", mostWords) + `"}`,
	} {
		if err := os.WriteFile(path, []byte(words), 0o600); err != nil {
			t.Fatal(err)
		}
		l, s := session(t, dir)
		if info, err := os.Stat(path); err != nil || info.Size() > 4096 {
			t.Errorf("%.40q: the lock file has %d bytes (%v)", words, info.Size(), err)
		}
		l.mustUnlock(t)
		s.ended(t, words[:min(len(words), 40)], EndInOrder, "")
	}
	if err := os.Truncate(path, 10<<30); err != nil {
		t.Fatal(err)
	}
	l, s := session(t, dir)
	l.mustUnlock(t)
	s.ended(t, "10 GiB", EndInOrder, "")
}
