// Package libvirt runs a libvirtd of the tests' own: Debian's program with the
// driver for QEMU, in a mount namespace where its directories are scratch ones,
// so that it neither sees nor touches a libvirt that the machine uses.
package libvirt

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/integration/harness"
	"varve/integration/patience"
)

// User is the uid and gid as which virtual machines run: those of Debian's
// libvirt-qemu, whom this machine need not have.
const User = 64055

// The configuration. Owners are changed as by default (dynamic_ownership), and
// QEMU gets a mount namespace of its own, as by default.
const (
	daemonConfiguration = `auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0777"
host_uuid = "76617276-6500-4000-8000-000000000001"
log_outputs = "3:stderr"
`
	qemuConfiguration = `user = "+%d"
group = "+%d"
dynamic_ownership = 1
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = [ ]
`
)

// script is the first process of a PID namespace, which takes in the ends of what
// libvirtd daemonizes: where init is slow in that, as in some containers, libvirtd
// waits ten seconds for each QEMU that it asked for what it can do. It makes the scratch directories the daemon's own and starts it. Slave: what
// is unmounted outside must not stay mounted inside.
const script = `
for d in etc lib cache log run; do
	case $d in
	etc) at=/etc/libvirt ;;
	run) at=/run ;;
	*) at=/var/$d ;;
	esac
	mount --bind "$1/$d" "$at"
done
# libvirtd wants its user by name before it reads which one to take.
for f in passwd group; do
	grep -q ^libvirt-qemu: /etc/$f || mount --bind "$1/$f" /etc/$f
done
libvirtd --config "$1/libvirtd.conf" --pid-file "$1/libvirtd.pid"
exit $?
`

// Daemon is a libvirtd that runs.
type Daemon struct {
	URI string // for virsh
	t   testing.TB
	dir string
	cmd *exec.Cmd
	out *bytes.Buffer // valid when done is closed

	done chan struct{}
}

// Start starts a libvirtd. The end of the test ends it and every virtual machine
// of it.
func Start(t testing.TB) *Daemon {
	t.Helper()
	shareMounts(t)
	return start(t, "slave")
}

// StartApart is Start on a host whose mounts do not propagate, as in a container or
// without systemd: the daemon, and so each virtual machine, keeps a copy of every mount
// that there is by now, and gets none that is made later.
func StartApart(t testing.TB) *Daemon {
	t.Helper()
	return start(t, "private")
}

func start(t testing.TB, propagation string) *Daemon {
	t.Helper()
	// Not t.TempDir: the path of a socket holds at most 107 bytes.
	dir, err := os.MkdirTemp("", "libvirt-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"etc", "lib", "cache", "log", "run"} {
		if err := os.MkdirAll(filepath.Join(dir, d, "libvirt"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"libvirtd.conf": daemonConfiguration,
		"etc/qemu.conf": fmt.Sprintf(qemuConfiguration, User, User),
		"passwd":        withLine(t, "/etc/passwd", fmt.Sprintf("libvirt-qemu:x:%d:%d::/:/usr/sbin/nologin", User, User)),
		"group":         withLine(t, "/etc/group", fmt.Sprintf("libvirt-qemu:x:%d:", User)),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d := &Daemon{
		URI: "qemu:///system?socket=" + filepath.Join(dir, "run/libvirt/libvirt-sock"),
		t:   t, dir: dir, out: new(bytes.Buffer), done: make(chan struct{}),
	}
	d.cmd = exec.Command("unshare", "--mount", "--propagation", propagation,
		"--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-euc", script, "libvirtd", dir)
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	d.cmd.WaitDelay = 5 * time.Second // a child of it may hold the pipe
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.stop)
	go func() {
		_ = d.cmd.Wait()
		close(d.done)
	}()
	harness.Eventually(t, patience.Hang, func() error {
		select {
		case <-d.done:
			t.Fatalf("libvirtd ended:\n%s", d.out)
		default:
		}
		if r := d.Try("version"); r.Code != 0 {
			return fmt.Errorf("virsh version: %s", r.Stderr)
		}
		return nil
	})
	return d
}

// shareMounts makes what is mounted below the tests' directory from now on appear in
// other mount namespaces, as systemd does for the whole machine.
func shareMounts(t testing.TB) {
	t.Helper()
	dir := os.Getenv("TMPDIR")
	if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		t.Fatalf("bind %s: %v", dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		t.Fatalf("share %s: %v", dir, err)
	}
}

// withLine is a file's text with one more line.
func withLine(t testing.TB, file, line string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(string(text), "\n") + "\n" + line + "\n"
}

// stop ends the virtual machines and then the daemon: with its first process the
// whole PID namespace goes.
func (d *Daemon) stop() {
	for _, name := range strings.Fields(d.Try("list", "--name").Stdout) {
		_ = d.Try("destroy", name)
	}
	_ = d.cmd.Process.Kill()
	select {
	case <-d.done:
	case <-time.After(patience.Hang):
		d.t.Errorf("libvirtd (pid %d) did not end", d.cmd.Process.Pid)
		return
	}
	if d.t.Failed() {
		d.t.Logf("libvirtd said:\n%s", d.out)
	}
}

// Try runs virsh to its end.
func (d *Daemon) Try(args ...string) harness.Result {
	d.t.Helper()
	return harness.Try(d.t, "virsh", append([]string{"--quiet", "--connect", d.URI}, args...)...)
}

// Run runs virsh, which must succeed, and gives what it prints.
func (d *Daemon) Run(args ...string) string {
	d.t.Helper()
	return harness.Run(d.t, "virsh", append([]string{"--quiet", "--connect", d.URI}, args...)...)
}

// Log is what QEMU said of a domain.
func (d *Daemon) Log(domain string) string {
	text, _ := os.ReadFile(filepath.Join(d.dir, "log/libvirt/qemu", domain+".log"))
	return string(text)
}

// PID is a process in the daemon's namespaces: the first of its PID namespace.
func (d *Daemon) PID() int {
	d.t.Helper()
	parent := d.cmd.Process.Pid
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
	if err != nil {
		d.t.Fatal(err)
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(children)), " ")
	pid, err := strconv.Atoi(first)
	if err != nil {
		d.t.Fatalf("the children of libvirtd's parent are %q", children)
	}
	return pid
}

// Inside runs a program where the daemon runs: it sees the daemon's directories as those
// of the host, and the virtual machines among the processes.
func (d *Daemon) Inside(name string, args ...string) harness.Result {
	d.t.Helper()
	return harness.Try(d.t, "nsenter", append([]string{"--target", strconv.Itoa(d.PID()), "--mount", "--pid", "--", name}, args...)...)
}
