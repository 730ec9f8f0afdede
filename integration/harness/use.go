package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Use is what a daemon uses.
type Use struct {
	RSS        int64 // bytes resident
	Live, Heap int64 // bytes of Go's heap: live at the last collection; with what waits for the next
	Goroutines int
	Threads    int
	Files      int // open
}

// Use asks the daemon and /proc what the daemon uses.
func (m *Mount) Use() Use {
	m.t.Helper()
	var u Use
	u.RSS = m.proc("VmRSS") << 10
	u.Threads = int(m.proc("Threads"))
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.PID))
	if err != nil {
		m.t.Fatal(err)
	}
	u.Files = len(files)

	asked := time.Now().Truncate(time.Millisecond) // as precise as the log is
	if err := syscall.Kill(m.PID, syscall.SIGUSR1); err != nil {
		m.t.Fatalf("ask the daemon (pid %d): %v", m.PID, err)
	}
	Eventually(m.t, time.Minute, func() error {
		log, err := os.ReadFile(filepath.Join(m.Disk, "varve.log"))
		if err != nil {
			return err
		}
		text := string(log)
		i := strings.LastIndex(text, `msg="in use"`)
		if i < 0 || !strings.HasSuffix(text, "\n") {
			return fmt.Errorf("the log has no answer to SIGUSR1")
		}
		line := text[strings.LastIndex(text[:i], "\n")+1:]
		line, _, _ = strings.Cut(line, "\n")
		at, err := time.Parse("2006-01-02T15:04:05.999Z07:00", field(line, "time"))
		if err != nil || at.Before(asked) {
			return fmt.Errorf("the log has no new answer to SIGUSR1: %q, %v", line, err)
		}
		u.Goroutines = int(number(line, "goroutines"))
		u.Live, u.Heap = number(line, "live_bytes"), number(line, "heap_bytes")
		return nil
	})
	return u
}

// PeakRSS is the most bytes that were resident since it was last asked for.
func (m *Mount) PeakRSS() int64 {
	m.t.Helper()
	peak := m.proc("VmHWM") << 10
	// proc_pid_clear_refs(5): 5 resets the peak.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", m.PID), []byte("5"), 0); err != nil {
		m.t.Fatal(err)
	}
	return peak
}

// proc is a number in /proc/PID/status.
func (m *Mount) proc(name string) int64 {
	m.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.PID))
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			if n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64); err == nil {
				return n
			}
		}
	}
	m.t.Fatalf("/proc/%d/status has no %s:\n%s", m.PID, name, text)
	return 0
}

// field is the value of name in a line of the log, "" for none.
func field(line, name string) string {
	for _, word := range strings.Fields(line) {
		if value, ok := strings.CutPrefix(word, name+"="); ok {
			return value
		}
	}
	return ""
}

func number(line, name string) int64 {
	n, _ := strconv.ParseInt(field(line, name), 10, 64)
	return n
}
