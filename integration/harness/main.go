// Package harness is what the integration tests stand on: the varve binary,
// mounts, loop devices and test images that are gone when a test ends, however
// it ends, and the judges, which are qemu-img and e2fsck and not our own code.
//
// A package of tests calls Main from its TestMain. Everything that a run makes
// lies under one directory and every process that it starts carries the run's
// name in its environment, so that what is left over is found by name and
// removed, also when the test binary was killed.
package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Environment variables. runVariable marks every process of a run.
const (
	runVariable    = "VARVE_TEST_RUN"
	reaperVariable = "VARVE_TEST_REAPER"
	longVariable   = "VARVE_LONG"
	raceVariable   = "VARVE_RACE"
	binaryVariable = "VARVE_BIN"
)

// Long tells whether the long tests are asked for (VARVE_LONG is set).
func Long() bool { return os.Getenv(longVariable) != "" }

// Raced tells whether varve is built with the race detector, which has memory of
// its own (VARVE_RACE is set).
func Raced() bool { return os.Getenv(raceVariable) != "" }

// Main runs the tests of a package and gives the exit code for os.Exit. It
// fails when this machine lacks a tool, when the tests are not run as root,
// and when a test left a mount, a loop device or a process behind.
//
// VARVE_BIN names a varve binary to test; without it one is built, with the
// race detector when VARVE_RACE is set.
func Main(m *testing.M) int {
	if dir := os.Getenv(reaperVariable); dir != "" {
		return reap(dir)
	}
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		return 1
	}
	dir := os.Getenv(runVariable)
	stopReaper, err := startReaper(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		return 1
	}
	code := m.Run()

	left := sweep(dir)
	races, _ := filepath.Glob(filepath.Join(dir, "race.*"))
	for _, file := range races {
		report, _ := os.ReadFile(file)
		left = append(left, "a data race in varve:\n"+string(report))
	}
	stopReaper()
	for _, line := range left {
		fmt.Fprintln(os.Stderr, "integration: left behind:", line)
	}
	if len(left) > 0 && code == 0 {
		code = 1
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		code = 1
	}
	return code
}

// prepare checks the machine, makes the run's directory and the binary.
func prepare() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("these tests mount, attach loop devices and become other users: run them as root (make test uses sudo)")
	}
	root, err := repository()
	if err != nil {
		return err
	}
	check := exec.Command(filepath.Join(root, "packaging", "install-deps.sh"), "--check")
	if out, err := check.CombinedOutput(); err != nil {
		return fmt.Errorf("this machine lacks what the tests need: %s", strings.TrimSpace(string(out)))
	}

	// Not os.TempDir: /tmp is a tmpfs on many hosts, and varve refuses one.
	dir, err := os.MkdirTemp("/var/tmp", "varve-test-")
	if err != nil {
		return err
	}
	// Other users must reach the mounts of the tests that are about them.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for key, value := range map[string]string{
		runVariable: dir,
		"TMPDIR":    dir,
		"LC_ALL":    "C",
		"TZ":        "UTC",
		"GORACE":    "log_path=" + filepath.Join(dir, "race"),
		"PATH":      os.Getenv("PATH") + ":/usr/sbin:/sbin",
	} {
		if err := os.Setenv(key, value); err != nil {
			return err
		}
	}
	if os.Getenv(binaryVariable) != "" {
		return nil
	}
	binary := filepath.Join(dir, "varve")
	args := []string{"build", "-buildvcs=false", "-o", binary}
	if os.Getenv(raceVariable) != "" {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "./cmd/varve")...)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build varve: %w\n%s", err, out)
	}
	return os.Setenv(binaryVariable, binary)
}

// Varve is the path of the varve binary under test.
func Varve() string { return os.Getenv(binaryVariable) }

// Checkout is the top of the checkout that the tests were built from.
func Checkout(t testing.TB) string {
	t.Helper()
	root, err := repository()
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// GuestFiles is the directory with the test guest's vmlinuz, modules and
// busybox, as packaging/install-deps.sh leaves it.
func GuestFiles(t testing.TB) string {
	t.Helper()
	return filepath.Join(Checkout(t), ".cache", "guest")
}

// repository is the top of the checkout, found from this file's own path.
func repository() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", fmt.Errorf("no caller information: cannot find the checkout")
	}
	root := filepath.Join(filepath.Dir(file), "..", "..")
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		return "", fmt.Errorf("find the checkout (built with -trimpath?): %w", err)
	}
	return root, nil
}
