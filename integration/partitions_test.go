package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"varve/integration/harness"
)

// TestPartitions: the tools that look at a file system take a partition in the mount
// as they take a partition, without offsets, of MBR disks with logical partitions and
// of GPT disks.
func TestPartitions(t *testing.T) {
	const start, length = 2 << 20, 16 << 20 // bytes, of the one with a file system
	for _, c := range []struct {
		label, script, part string
		files               []string
	}{
		{"MBR", "label: dos\nstart=40960,size=2048\nstart=2048,size=36864,type=5\nstart=4096,size=32768\n", "p5.raw", nil},
		{"GPT", "label: gpt\n2: start=4096,size=32768\n9: start=40960,size=2048\n", "p2.raw", []string{"p2.raw", "p9.raw"}},
	} {
		t.Run(c.label, func(t *testing.T) {
			dir := t.TempDir()
			base, tree := filepath.Join(dir, "vm.raw"), sampleTree(t)
			harness.Run(t, "truncate", "-s", "64M", base)
			harness.Shell(t, fmt.Sprintf("printf '%s' | sfdisk -q '%s'", strings.ReplaceAll(c.script, "\n", `\n`), base))
			harness.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, "-E", fmt.Sprintf("offset=%d", start), base, fmt.Sprintf("%dk", length>>10))
			harness.Guard(t, base)
			m := harness.MountDisk(t, base)
			m.Do("snapshot", "one")
			if c.files != nil {
				entries, err := os.ReadDir(m.Path("layers", "one.d"))
				var names []string
				for _, e := range entries {
					names = append(names, e.Name())
				}
				if err != nil || !slices.Equal(names, c.files) {
					t.Errorf("one.d has %v, %v", names, err)
				}
			}
			for _, part := range []string{m.Path("layers", "base.d", c.part), m.Path("layers", "one.d", c.part), m.Path("disk.d", c.part)} {
				harness.Shell(t, fmt.Sprintf("dd if='%s' bs=1M skip=2 count=16 status=none | cmp - '%s'", base, part))
				harness.Run(t, "e2fsck", "-fn", part)
				if out := harness.Run(t, "blkid", "-p", part); !strings.Contains(out, `TYPE="ext4"`) {
					t.Errorf("blkid: %s", out)
				}
				if out := harness.Run(t, "file", part); !strings.Contains(out, "ext4 filesystem") {
					t.Errorf("file: %s", out)
				}
				point := t.TempDir()
				harness.Run(t, "mount", "-o", "ro,loop", part, point)
				harness.Run(t, "cmp", filepath.Join(tree, "file7"), filepath.Join(point, "file7"))
				harness.Run(t, "umount", point)
			}
		})
	}
}
