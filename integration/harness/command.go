package harness

import (
	"bytes"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"varve/integration/patience"
)

// Result is what a command left.
type Result struct {
	Stdout, Stderr string
	Code           int // exit code; -1 when it did not exit by itself
}

// commandLimit ends a command that hangs, so that the test says which it was.
var commandLimit = patience.Hang

// Try runs a command to its end. It fails the test only when the command
// cannot be started or does not end.
func Try(t testing.TB, name string, args ...string) Result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	timer := time.AfterFunc(commandLimit, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if !timer.Stop() {
		t.Fatalf("%s %s: killed after %v\n%s%s", name, strings.Join(args, " "), commandLimit, stdout.String(), stderr.String())
	}
	if err != nil && cmd.ProcessState == nil {
		t.Fatalf("%s: %v", name, err)
	}
	return Result{Stdout: stdout.String(), Stderr: notices.ReplaceAllString(stderr.String(), ""), Code: cmd.ProcessState.ExitCode()}
}

// notices are lines of varve's when it waits for longer than a second, as on a busy host.
var notices = regexp.MustCompile(`(?m)^varve: (waiting for|interrupted, ending) .*\n`)

// Run runs a command that must exit 0 and gives its standard output.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	r := Try(t, name, args...)
	if r.Code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s", name, strings.Join(args, " "), r.Code, indent(r.Stdout+r.Stderr))
	}
	return r.Stdout
}

// Shell runs a script with sh -e; it must exit 0.
func Shell(t testing.TB, script string) string {
	t.Helper()
	return Run(t, "sh", "-ec", script)
}

// Eventually calls f until it returns nil, and fails the test with its last
// error when that takes longer than limit.
func Eventually(t testing.TB, limit time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", limit, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func indent(s string) string {
	return fmt.Sprintf("    %s", strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n    "))
}
