package daemon

import (
	"io"
	"log/syslog"
	"os"
	"sync"
)

// lastResort is a log that goes elsewhere where its file cannot be written: that the host
// is full, or went read-only, is what the log would have to tell. It is safe for
// concurrent use where file is.
type lastResort struct {
	file io.WriteCloser                 // nil until it is opened, before there is anything to write
	open func() (io.WriteCloser, error) // of what is elsewhere, when it is first needed

	mu        sync.Mutex // guards what follows
	elsewhere io.WriteCloser
}

// systemLog is syslog, which is the journal where systemd is.
func systemLog() (io.WriteCloser, error) {
	return syslog.New(syslog.LOG_DAEMON|syslog.LOG_NOTICE, "varve")
}

// Write writes one entry, whole, to the file or elsewhere.
func (l *lastResort) Write(p []byte) (int, error) {
	n, err := 0, error(os.ErrClosed)
	if l.file != nil {
		if n, err = l.file.Write(p); err == nil {
			return n, nil
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.elsewhere == nil {
		w, openErr := l.open()
		if openErr != nil {
			return n, err
		}
		l.elsewhere = w
	}
	return l.elsewhere.Write(p)
}

// Close closes both.
func (l *lastResort) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.elsewhere != nil {
		_ = l.elsewhere.Close() // nothing is kept back in it
	}
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}
