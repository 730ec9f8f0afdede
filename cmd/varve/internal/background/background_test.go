package background

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain plays the daemon when Start has run this test program again.
func TestMain(m *testing.M) {
	p, ok, err := Inherited()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	if !ok {
		os.Exit(m.Run())
	}
	os.Exit(daemon(p, os.Args[1]))
}

func daemon(p *Pipe, role string) int {
	switch role {
	case "ready":
		fmt.Fprintln(os.Stderr, "said before")
		if err := p.Ready(false); err != nil {
			return 1
		}
		fmt.Fprintln(os.Stderr, "said after")
		if _, set := os.LookupEnv(environment); set {
			return 1
		}
		return 0
	case "fails":
		fmt.Fprintln(os.Stderr, "no such disk")
		return 2
	case "killed":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "silent":
		return 0
	case "no thread":
		fmt.Fprint(os.Stderr, "said before\nruntime: failed to create new OS thread (have 2 already; errno=11)\n"+
			"runtime: may need to increase max user processes (ulimit -u)\nfatal error: newosproc\n\ngoroutine 1 [running]:\n")
		return 2
	case "no memory":
		fmt.Fprint(os.Stderr, "fatal error: runtime: out of memory\n\nruntime stack:\n")
		return 2
	case "bug":
		fmt.Fprint(os.Stderr, "fatal error: concurrent map writes\n\ngoroutine 1 [running]:\nend")
		return 2
	case "early": // the signal comes before anybody would take it
		fmt.Fprintln(os.Stderr, "waiting")
		time.Sleep(time.Hour)
	case "session":
		sid, err := syscall.Getpgid(0)
		if err != nil || sid != os.Getpid() {
			return 9
		}
		return 5
	case "patient":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Fprintln(os.Stderr, "waiting")
		<-c
		return 4
	}
	return 3
}

// start runs Start and gives what the daemon said while somebody waited.
func start(t *testing.T, ctx context.Context, role string) (code int, said string, err error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	code, err = Start(ctx, []string{role}, w)
	w.Close()
	// That this ends shows that the daemon let go of stderr.
	b, readErr := io.ReadAll(r)
	if readErr != nil {
		t.Fatal(readErr)
	}
	return code, string(b), err
}

func TestStart(t *testing.T) {
	for _, c := range []struct {
		role, said, err string
		code            int
	}{
		{role: "ready", said: "said before\n"},
		{role: "fails", said: "no such disk\n", code: 2},
		{role: "killed", err: "the daemon was ended by a signal (killed) before the disk was mounted"},
		{role: "silent", err: "the daemon ended before the disk was mounted, and did not say why"},
		{role: "session", code: 5},
		{role: "no thread", said: "said before\n", err: errNoThread.Error()},
		{role: "no memory", err: errNoMemory.Error()},
		{role: "bug", said: "fatal error: concurrent map writes\n\ngoroutine 1 [running]:\nend", code: 2},
	} {
		t.Run(c.role, func(t *testing.T) {
			code, said, err := start(t, t.Context(), c.role)
			if code != c.code || said != c.said || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
				t.Errorf("code %d, said %q, error %v", code, said, err)
			}
		})
	}
}

func TestInterruptedStart(t *testing.T) {
	for _, c := range []struct {
		role string
		code int
		err  error
	}{{"patient", 4, nil}, {"early", 0, ErrInterrupted}} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		said := make(chan string, 1)
		go func() {
			p := make([]byte, len("waiting\n"))
			n, _ := io.ReadFull(r, p) // what is missing shows below
			cancel()
			said <- string(p[:n])
		}()
		code, err := Start(ctx, []string{c.role}, w)
		w.Close()
		if words := <-said; code != c.code || words != "waiting\n" || err != c.err {
			t.Errorf("%s: code %d, said %q, error %v", c.role, code, words, err)
		}
	}
}

func TestReadyWithNobodyWaiting(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if err := (&Pipe{w}).Ready(true); err == nil {
		t.Error("no error")
	}
}

func TestInheritedRefusesNonsense(t *testing.T) {
	for _, v := range []string{"", "x", "-1", "2", strconv.Itoa(1 << 20)} {
		t.Setenv(environment, v)
		if _, ok, err := Inherited(); ok || err == nil || !strings.Contains(err.Error(), environment) {
			t.Errorf("%q: ok %v, error %v", v, ok, err)
		}
	}
}

func TestStderrIsJournal(t *testing.T) {
	info, err := os.Stderr.Stat()
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", st.Dev, st.Ino))
	if !StderrIsJournal() {
		t.Error("not seen")
	}
	t.Setenv("JOURNAL_STREAM", "8:1")
	if StderrIsJournal() {
		t.Error("an inherited variable was believed")
	}
}
