package powercut

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"varve/overlay/check"
	"varve/overlay/hostfs"
)

// CheckImage says what check.Run, whose own judge is qemu-img, finds in a
// qcow2: an error, or a leak where none may be.
func CheckImage(fs hostfs.FS, path string, leaks bool) error {
	f, err := fs.Open(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := check.Run(context.Background(), f, "qcow2", check.Options{})
	if err != nil {
		return err
	}
	if r.Errors > 0 || r.Leaks > 0 && !leaks {
		return fmt.Errorf("%d errors and %d leaks: %+v", r.Errors, r.Leaks, r.Problems)
	}
	return nil
}

// QemuCheck has qemu-img check a qcow2 on the real host, alone, without what it
// stands on. Leaks are what a power cut may leave.
func QemuCheck(path string) error {
	out, err := exec.Command("qemu-img", "check", "--image-opts",
		"driver=qcow2,backing=,file.driver=file,file.filename="+strings.ReplaceAll(path, ",", ",,")).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 3) {
		return fmt.Errorf("qemu-img check: %w\n%s", err, out)
	}
	return nil
}

// LogJudge is a slog.Handler that looks for messages that must never come.
type LogJudge struct {
	Never []string

	mu  sync.Mutex
	bad error
}

// Err is the first message that should not have come.
func (l *LogJudge) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bad
}

func (l *LogJudge) Enabled(context.Context, slog.Level) bool { return true }
func (l *LogJudge) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *LogJudge) WithGroup(string) slog.Handler            { return l }
func (l *LogJudge) Handle(_ context.Context, r slog.Record) error {
	if slices.Contains(l.Never, r.Message) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.bad == nil {
			l.bad = fmt.Errorf("the log says: %s", RecordText(r))
		}
	}
	return nil
}

// RecordText is a log record in one line.
func RecordText(r slog.Record) string {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	return text
}

// Story gives the entries of the record before this place, at most n, a line
// each.
func (p *Player) Story(n int) string {
	var lines []string
	for _, op := range p.log[max(0, p.at-n):p.at] {
		lines = append(lines, op.String())
	}
	return strings.Join(lines, "\n")
}
