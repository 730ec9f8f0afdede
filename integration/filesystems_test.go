package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"varve/integration/harness"
)

// mountOptions are those of the guide's table for a file system whose journal was not
// replayed.
func mountOptions(t *testing.T, kind string) string {
	t.Helper()
	row := regexp.MustCompile("(?m)^\\| " + kind + " \\| `(ro,[a-z,=]+)` \\|").FindStringSubmatch(readPage(t, "docs/guide.md"))
	if row == nil {
		t.Fatalf("the guide has no options of mount for %s", kind)
	}
	return row[1]
}

// TestMountLayers mounts two snapshots of a mounted file system at the same time, with
// the options that the guide gives, without which the kernel refuses.
func TestMountLayers(t *testing.T) {
	for kind, size := range map[string]int64{"ext4": 32 << 20, "xfs": 300 << 20, "btrfs": 128 << 20} {
		t.Run(kind, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "vm.raw")
			if f, err := os.Create(image); err != nil {
				t.Fatal(err)
			} else if err := f.Truncate(size); err != nil || f.Close() != nil {
				t.Fatal(err)
			}
			harness.Run(t, "mkfs."+kind, "-q", image)
			m := harness.MountDisk(t, image)
			at := func(options, file string) string {
				t.Helper()
				dir, err := os.MkdirTemp("", "at-")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = os.Remove(dir) })
				harness.Run(t, "mount", "-o", options, file, dir)
				t.Cleanup(func() {
					if r := harness.Try(t, "umount", dir); r.Code != 0 && r.Code != 32 { // 32: it was unmounted already
						t.Errorf("umount %s: %s", dir, r.Stderr)
					}
				})
				return dir
			}
			live := at("loop", m.Raw())
			put := func(name string) {
				t.Helper()
				if err := os.WriteFile(filepath.Join(live, name), []byte(name), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			put("first")
			harness.Run(t, "umount", live) // into its place, out of the journal
			harness.Run(t, "mount", "-o", "loop", m.Raw(), live)
			put("second")
			harness.Run(t, "sync", filepath.Join(live, "second")) // into the journal alone
			m.Do("snapshot", "one")
			m.Do("snapshot", "two")
			harness.Run(t, "umount", live)

			if r := harness.Try(t, "mount", "-o", "ro,loop", m.Layer("one"), live); r.Code == 0 {
				harness.Run(t, "umount", live)
				t.Error("the journal was empty, or could be replayed: this test shows nothing")
			}
			options := mountOptions(t, kind)
			for _, name := range []string{"one", "two"} {
				dir := at(options+",loop", m.Layer(name))
				if got, err := os.ReadFile(filepath.Join(dir, "first")); string(got) != "first" {
					t.Errorf("in %s the file has %q, %v", name, got, err)
				}
				defer harness.Run(t, "umount", dir)
			}
		})
	}
}
