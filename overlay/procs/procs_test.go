package procs

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"varve/integration/patience"
)

// run starts a process that calls itself args[0] and has the other arguments too. The end
// of the test ends it.
func run(t *testing.T, args ...string) int {
	t.Helper()
	// A shell, which makes of what follows -c and its script words that nobody reads.
	stdin, keep, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh")
	cmd.Args = append([]string{args[0], "-c", "read line", "sh"}, args[1:]...)
	cmd.Stdin = stdin
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = stdin.Close()
	t.Cleanup(func() {
		_ = keep.Close()
		_ = cmd.Wait()
	})
	// The kernel tells the parent of an exec a moment before /proc shows the arguments.
	for {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if len(text) > 0 {
			return cmd.Process.Pid
		}
	}
}

func TestVM(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"/usr/bin/qemu-system-x86_64", "-name", "guest=vm1,debug-threads=on"}, "vm1"},
		{[]string{"/usr/bin/qemu-system-x86_64", "-name", "vm1"}, "vm1"},
		{[]string{"qemu-system-aarch64", "-m", "2G", "-name", "vm1,process=web"}, "vm1"},
		{[]string{"/usr/libexec/qemu-kvm", "-name", "debug-threads=on,guest=a,,b=c"}, "a,b=c"},
		{[]string{"kvm", "--name", "red\x1b[31m"}, "red?[31m"},
		{[]string{"qemu-system-x86_64", "-name", "debug-threads=on"}, ""},
		{[]string{"qemu-system-x86_64", "-name", strings.Repeat("long", 1000)}, strings.Repeat("long", 16)[:63] + "…"},
		{[]string{"qemu-system-x86_64", "-m", "2G"}, ""},
		{[]string{"qemu-system-x86_64", "-name"}, ""},
		{[]string{"find", "-name", "vm1"}, ""},
	} {
		pid := run(t, c.args...)
		if got := VM(pid); got != c.want {
			t.Errorf("%q is VM %q, want %q", c.args, got, c.want)
		}
		want := fmt.Sprintf("pid %d qemu", pid)
		if c.want != "" {
			want += " of VM " + c.want
		}
		if got := Title(pid, "qemu"); got != want {
			t.Errorf("%q is %q, want %q", c.args, got, want)
		}
	}
	if got := VM(os.Getpid()); got != "" {
		t.Errorf("the test is VM %q", got)
	}
	if got := Title(0, ""); got != "a process that cannot be seen from here" {
		t.Errorf("a process of another PID namespace is %q", got)
	}
	if got := Command(-1) + VM(-1); got != "" {
		t.Errorf("no process is %q", got)
	}
}

// A process whose arguments cannot be read for now holds up who asks first for a moment,
// and nobody for longer.
func TestWhatHangsIsNotWaitedFor(t *testing.T) {
	asked, goOn := make(turn, 1), make(chan struct{})
	hangs := func() string { <-goOn; return "late" }
	if got := asked.ask(10*time.Millisecond, hangs); got != "" {
		t.Errorf("%q", got)
	}
	if got := asked.ask(10*time.Millisecond, func() string { return "beside it" }); got != "" {
		t.Errorf("%q", got)
	}
	close(goOn)
	if got := asked.ask(patience.Hang, func() string { return "afterwards" }); got != "afterwards" {
		t.Errorf("%q", got)
	}
}
