package harness

import (
	"bufio"
	"io"
	"os/exec"
	"sync"
	"testing"
)

// Keep starts a program that says "ready" when it has done what it is to do, and then
// reads its standard input. end, or the end of the test, closes that and waits for it.
func Keep(t testing.TB, c *exec.Cmd) (end func()) {
	t.Helper()
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		_ = in.Close()
		_ = c.Wait()
	})
	t.Cleanup(end)
	if line, err := bufio.NewReader(io.LimitReader(out, 6)).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the program says %q, %v", line, err)
	}
	return end
}

// KeepShell is Keep for lines of a shell; it gives the shell's pid.
func KeepShell(t testing.TB, script string) (pid int) {
	t.Helper()
	c := exec.Command("sh", "-c", script+"; echo ready; read line")
	Keep(t, c)
	return c.Process.Pid
}
