// Command varve mounts a virtual disk's layers.
//
// It turns words into calls of the packages below internal: where finds the disk that an
// argument means, and client is that disk, mounted or not. Below main
// nothing ends the process; an error comes back and report makes an exit code
// of it.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/daemon"
	"varve/cmd/varve/internal/doctor"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/waiting"
)

// Exit codes. Scripts tell them apart.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitLeaks  = 3 // of check: nothing but lost space
	// exitSkipped is of an export with --skip-damaged that had something to skip.
	exitSkipped = 4
)

func main() {
	keepOwnersRights()
	if code, ok := aside.Serve(os.Args, doctor.Errands()); ok {
		os.Exit(code)
	}
	if code, ok := daemon.Children(os.Args); ok {
		os.Exit(code)
	}
	if code, ok := asHelper(os.Args, os.Stdout, os.Stderr); ok {
		os.Exit(code)
	}
	os.Exit(waiting.Main(
		func() int { return run(os.Args[1:], os.Stdout, os.Stderr) },
		func(text string) { tell.Line(os.Stderr, "%s", text) },
		exitFailed,
	))
}

// keepOwnersRights clears those bits of the umask that would take rights from the
// owner of a file: the next command, or the mount, could not open what this one made.
func keepOwnersRights() {
	unix.Umask(unix.Umask(0o077) &^ 0o700)
}

// run is varve with its arguments, as a test can call it.
func run(args []string, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return report(stderr, root.Execute())
}

// usageError is a wrong use of the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// usagef makes a usageError.
func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// reportedError is an outcome that is in words already: by the daemon, or on
// standard output.
type reportedError struct{ code int }

func (e reportedError) Error() string { return fmt.Sprintf("failed with exit code %d", e.code) }

// report says an error on one line and gives the exit code for it.
func report(stderr io.Writer, err error) int {
	var said reportedError
	var usage usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &said):
		return said.code
	case errors.As(err, &usage):
		tell.Line(stderr, "%v", err)
		return exitUsage
	default:
		tell.Line(stderr, "%v", err)
		return exitFailed
	}
}
