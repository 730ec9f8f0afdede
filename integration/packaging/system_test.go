package packaging

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/integration/harness"
)

// system is a copy of this machine's system in which programs can be installed:
// an overlay on a file system of its own above /, in a mount namespace of its own.
// dpkg, its database, mount(8) and systemd's tools are the real ones, and nothing
// of the machine is changed.
type system struct {
	t     testing.TB
	root  string // its / as this process sees it, only inside the namespace
	image string
	pid   string // of the process that keeps the namespace
}

// newSystem makes one; it is gone at the end of the test.
func newSystem(t testing.TB) *system {
	t.Helper()
	dir := t.TempDir()
	s := &system{t: t, root: filepath.Join(dir, "root"), image: filepath.Join(dir, "upper.ext4")}
	if err := os.Mkdir(s.root, 0o755); err != nil {
		t.Fatal(err)
	}
	// An overlay's upper layer must be on a real file system, and varve wants one too.
	harness.Shell(t, fmt.Sprintf("truncate -s 4G '%s' && mke2fs -q -F -t ext4 '%s'", s.image, s.image))
	loop := harness.AttachLoop(t, s.image)
	upper := filepath.Join(dir, "upper")
	keeper := harness.Shell(t, fmt.Sprintf(`
mkdir '%[2]s'
setsid unshare --mount --propagation private sh -ec '
	mount -t ext4 %[1]s "%[2]s"
	mkdir "%[2]s/files" "%[2]s/work"
	mount -t overlay overlay -o "lowerdir=/,upperdir=%[2]s/files,workdir=%[2]s/work" "%[3]s"
	for d in dev proc sys; do mount --rbind /$d "%[3]s/$d"; done
	mount -t tmpfs tmpfs "%[3]s/run"
	: >"%[2]s/ready"
	: >"%[3]s/../ready"
	exec sleep 600
' >/dev/null 2>'%[4]s' </dev/null &
echo $!
`, loop.Device, upper, s.root, filepath.Join(dir, "words")))
	s.pid = strings.TrimSpace(keeper)
	t.Cleanup(func() { harness.Try(t, "kill", s.pid) })
	harness.Eventually(t, limit, func() error {
		_, err := os.Stat(filepath.Join(dir, "ready"))
		if err != nil {
			words, _ := os.ReadFile(filepath.Join(dir, "words"))
			return fmt.Errorf("the system is not ready: %s", words)
		}
		return nil
	})
	return s
}

// try runs a script in the system, with its / as root directory.
func (s *system) try(script string) harness.Result {
	s.t.Helper()
	return harness.Try(s.t, "nsenter", "--target", s.pid, "--mount", "chroot", s.root, "sh", "-ec", script)
}

// run runs a script that must succeed.
func (s *system) run(script string) string {
	s.t.Helper()
	r := s.try(script)
	if r.Code != 0 {
		s.t.Fatalf("%s\nexit code %d\n%s%s", script, r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// copyIn puts a file of the machine into the system.
func (s *system) copyIn(source, destination string) {
	s.t.Helper()
	harness.Run(s.t, "nsenter", "--target", s.pid, "--mount", "cp", source, s.root+destination)
}
