// Package aside asks file systems that may hang in a process of its own.
//
// Who waits for a FUSE daemon that has taken the request and is stuck itself, or for
// a disk that is gone, cannot even be killed, and a process does not end before its
// threads do. A child that waits can be left behind: it ends when it gets its
// answer, and nobody waits for it.
package aside

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrNoAnswer is that there was none within the limit.
var ErrNoAnswer = errors.New("no answer")

// called is what a child is called as, the first word of its command line.
const called = "varve-aside"

// IsChild says whether a process is a child of Ask, of this process or of another one.
func IsChild(pid int) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.HasPrefix(string(line), called+"\x00")
}

// began is what a child writes before it looks at the path; JSON skips it. On a busy
// host it can take seconds until a program runs, and no file system hangs meanwhile.
const began = "\n"

// startTime is how long the start of a child may take.
const startTime = time.Minute

// Errand is what a child can be sent for: what it reads of a path.
type Errand func(path string) ([]byte, error)

// answer is what a child writes to its parent.
type answer struct {
	Text  []byte
	Error string // "" for none
	Errno syscall.Errno
}

// failure is a child's error; errors.Is knows its errno.
type failure struct {
	words string
	errno syscall.Errno
}

func (f failure) Error() string { return f.words }

func (f failure) Unwrap() error {
	if f.errno == 0 {
		return nil
	}
	return f.errno
}

// Serve does an errand where the program was called as a child of Ask; ok is false
// where it was not.
func Serve(args []string, errands map[string]Errand) (code int, ok bool) {
	if len(args) != 4 || args[0] != called {
		return 0, false
	}
	errand, known := errands[args[1]]
	limit, err := time.ParseDuration(args[2])
	if err != nil || !known {
		return 2, true
	}
	// The parent may be killed before it can end its child.
	time.AfterFunc(limit+time.Second, func() { os.Exit(1) })
	if _, err := os.Stdout.WriteString(began); err != nil {
		return 1, true
	}
	var a answer
	if a.Text, err = errand(args[3]); err != nil {
		a.Error = err.Error()
		switch {
		case errors.As(err, &a.Errno):
		case errors.Is(err, os.ErrNotExist):
			a.Errno = syscall.ENOENT
		case errors.Is(err, os.ErrPermission):
			a.Errno = syscall.EACCES
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
		return 1, true
	}
	return 0, true
}

// Ask has a child do an errand. The error has the errno of what went wrong there, or
// is ErrNoAnswer when the errand took longer than limit, or ctx's. A child of the same user
// that was left behind with the same errand is waited for first, so that who asks
// again and again does not leave more and more behind. It is safe for concurrent use.
func Ask(ctx context.Context, errand, path string, limit time.Duration) ([]byte, error) {
	return AskAs(ctx, nil, errand, path, limit)
}

// AskAs is Ask of a child that runs as another user, which only root can have; as nil is
// the caller. A child of another user that was left behind is not waited for.
func AskAs(ctx context.Context, as *syscall.Credential, errand, path string, limit time.Duration) ([]byte, error) {
	end := time.Now().Add(limit)
	for leftBehind(errand, path) {
		if time.Now().After(end) {
			return nil, ErrNoAnswer
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("ask for %s: %w", path, err)
	}
	defer r.Close()
	// It has nothing of ours but the pipe, and keeps no directory busy.
	child := exec.Cmd{Path: "/proc/self/exe", Args: []string{called, errand, limit.String(), path}, Dir: "/", Stdout: w}
	if as != nil {
		// That user can trace the child: it has no terminal of ours to type into, and no
		// environment to read, in which there may be passwords.
		child.SysProcAttr = &syscall.SysProcAttr{Credential: as, Setsid: true}
		child.Env = []string{}
	}
	err = child.Start()
	w.Close()
	if err != nil {
		return nil, fmt.Errorf("ask for %s: %w", path, err)
	}
	defer func() {
		child.Process.Kill() // it may have ended
		go child.Wait()      // which can take for ever
	}()
	read := func(from func() ([]byte, error), limit time.Duration) ([]byte, error) {
		if err := r.SetReadDeadline(time.Now().Add(limit)); err != nil {
			return nil, err
		}
		defer context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })()
		return from()
	}
	_, err = read(func() ([]byte, error) { return io.ReadAll(io.LimitReader(r, int64(len(began)))) }, startTime)
	hasBegun := err == nil
	var text []byte
	if hasBegun {
		text, err = read(func() ([]byte, error) { return io.ReadAll(io.LimitReader(r, most(as))) }, limit)
	}
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded) && !hasBegun:
		return nil, fmt.Errorf("ask for %s: the process that was to look has not begun within %s: this host is too busy", path, startTime)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, ErrNoAnswer
	case err != nil:
		return nil, fmt.Errorf("ask for %s: %w", path, err)
	}
	var a answer
	if err := json.Unmarshal(text, &a); err != nil {
		return nil, fmt.Errorf("ask for %s: the process that was to look ended early", path)
	}
	if a.Error != "" {
		return nil, failure{a.Error, a.Errno}
	}
	return a.Text, nil
}

// most is how many bytes of an answer are read. A child that runs as another user can be
// that user's, who may trace it, by the time it answers.
func most(as *syscall.Credential) int64 {
	if as != nil {
		return 64 << 10
	}
	return 128 << 20
}

// leftBehind says whether a child of this user is on the same errand.
func leftBehind(errand, path string) bool {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		if comm, err := os.ReadFile(filepath.Join(dir, "comm")); err != nil || string(comm) != "exe\n" {
			continue
		}
		info, err := os.Stat(dir)
		if err != nil {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
			continue
		}
		// Of one that was killed the thread that waits is left, and the command line
		// belongs to that.
		lines, err := filepath.Glob(filepath.Join(dir, "task/*/cmdline"))
		if err != nil {
			continue
		}
		for _, line := range lines {
			text, err := os.ReadFile(line)
			words := strings.Split(string(text), "\x00") // each word ends with one
			if err == nil && len(words) == 5 && words[0] == called && words[1] == errand && words[3] == path {
				return true
			}
		}
	}
	return false
}
