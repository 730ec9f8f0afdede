package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/integration/harness"
)

// Fsck runs e2fsck -fn on the guest's file system in a raw image that may be a
// view in a mount, through a loop device. It must be clean, as it is after the
// guest was powered off.
func Fsck(t testing.TB, image string, loopFlags ...string) {
	t.Helper()
	loop := attach(t, image, loopFlags...)
	defer loop.Detach()
	if r := harness.Try(t, "e2fsck", "-fn", loop.Device); r.Code != 0 {
		t.Errorf("e2fsck -fn %s: exit code %d\n%s%s", image, r.Code, r.Stdout, r.Stderr)
	}
}

// FsckCrashed does the same for a view that was frozen while the guest was
// running: on a copy, the journal is replayed first, as the next boot would.
func FsckCrashed(t testing.TB, image string) (copied string) {
	t.Helper()
	copied = filepath.Join(t.TempDir(), "copy.raw")
	harness.Run(t, "cp", "--sparse=always", image, copied)
	if err := os.Chmod(copied, 0o600); err != nil {
		t.Fatal(err)
	}
	loop := attach(t, copied)
	// 1: mended, which is what a journal is for.
	if r := harness.Try(t, "e2fsck", "-E", "journal_only", "-p", loop.Device); r.Code > 1 {
		t.Errorf("replay the journal of %s: exit code %d\n%s%s", image, r.Code, r.Stdout, r.Stderr)
	}
	loop.Detach()
	Fsck(t, copied)
	return copied
}

// Data copies the files in the guest's /data out of a raw image, whose file
// system must be clean, and gives their digests by name.
func Data(t testing.TB, image string) map[string]string {
	t.Helper()
	loop := attach(t, image, "-r")
	defer loop.Detach()
	dir := t.TempDir()
	// debugfs exits 0 whatever happens; it says what went wrong.
	if r := harness.Try(t, "debugfs", "-R", fmt.Sprintf("rdump /data %s", dir), loop.Device); r.Code != 0 || strings.Count(r.Stderr, "\n") > 1 {
		t.Fatalf("debugfs rdump of %s: %s", image, r.Stderr)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	digests := map[string]string{}
	for _, entry := range entries {
		digests[entry.Name()] = harness.Digest(t, filepath.Join(dir, "data", entry.Name()))
	}
	return digests
}

// Contains fails the test unless a view's /data has all the files.
func Contains(t testing.TB, view string, data map[string]string, files []File) {
	t.Helper()
	if len(files) == 0 {
		t.Errorf("%s: no files to look for: the test proves nothing", view)
	}
	for _, file := range files {
		switch digest, ok := data[file.Name]; {
		case !ok:
			t.Errorf("%s has no %s, which the guest had fsynced", view, file.Name)
		case digest != file.SHA256:
			t.Errorf("%s has %s with digest %s; the guest wrote %s", view, file.Name, digest, file.SHA256)
		}
	}
}

// attach attaches the partition with the guest's file system.
func attach(t testing.TB, image string, flags ...string) *harness.Loop {
	t.Helper()
	return harness.AttachLoop(t, image, append([]string{"--offset", fmt.Sprint(harness.PartitionStart)}, flags...)...)
}
