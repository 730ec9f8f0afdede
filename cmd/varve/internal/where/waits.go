package where

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"varve/chain/dirlock"
	"varve/cmd/varve/internal/waiting"
)

// mayStillBeDone is what becomes of a request to a daemon whose answer was not waited for.
const mayStillBeDone = "the daemon may still carry out the request"

// ReadWait is a wait for an answer of the mount's daemon to something that changes nothing.
func (t Target) ReadWait() waiting.Subject {
	return waiting.Subject{Name: "the daemon of " + t.Mountpoint, Details: func() string {
		dir := t.Dir
		if dir == "" && IsDiskDirectory(t.Mount.Source) {
			dir = t.Mount.Source
		}
		if dir == "" {
			return "" // the lock tells who serves it
		}
		pid, _, held, err := dirlock.Holder(dir)
		if err != nil || !held {
			return ""
		}
		return processDetails(pid)
	}}
}

// ChangeWait is a wait for the mount's daemon to do something.
func (t Target) ChangeWait() waiting.Subject {
	s := t.ReadWait()
	s.Left = mayStillBeDone
	return s
}

// PathWait is a wait for the file system of a path, and for whoever has a disk there.
func PathWait(path string) waiting.Subject {
	return waiting.Subject{Name: path, Details: func() string {
		dir := path
		if !IsDiskDirectory(dir) {
			dir += ".varve" // of an image, where there is one
		}
		if pid, _, held, err := dirlock.Holder(dir); err == nil && held {
			return "held by " + processDetails(pid)
		}
		return ""
	}}
}

// processDetails says which process it is, and whether it can answer.
func processDetails(pid int) string {
	words := fmt.Sprintf("pid %d", pid)
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return words
	}
	stopped, stuck := 0, false
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue
		}
		// proc_pid_stat(5): the state follows the command's name in brackets, in which
		// there may be brackets.
		_, fields, _ := cutLast(string(text), ") ")
		switch {
		case strings.HasPrefix(fields, "T"), strings.HasPrefix(fields, "t"):
			stopped++
		case strings.HasPrefix(fields, "D"):
			stuck = true
		}
	}
	switch {
	case stopped > 0 && stopped == len(tasks):
		words += fmt.Sprintf(", stopped: \"kill -CONT %d\" resumes it", pid)
	case stuck:
		words += ", itself waiting for a file system of this host"
	}
	return words
}

// cutLast is strings.Cut at the last separator.
func cutLast(text, separator string) (before, after string, found bool) {
	if i := strings.LastIndex(text, separator); i >= 0 {
		return text[:i], text[i+len(separator):], true
	}
	return text, "", false
}
