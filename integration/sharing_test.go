package integration

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/integration/harness"
)

// TestJobsShareBlocks runs every job and an export on host file systems that share
// blocks between files: every view stays what it was, the files are right for
// qemu-img, and the copies take next to no space.
func TestJobsShareBlocks(t *testing.T) {
	for kind, size := range map[string]int64{"xfs": 640 << 20, "btrfs": 512 << 20} {
		t.Run(kind, func(t *testing.T) {
			const disk = 96 << 20
			host := harness.SmallHost(t, kind, size)
			raw := filepath.Join(host, "vm.raw")
			random(t, raw, 0, disk, os.O_CREATE)
			m := harness.MountDisk(t, raw)
			random(t, m.Raw(), 1<<20+512, 24<<20, 0)
			m.Do("snapshot", "one")
			random(t, m.Raw(), 8<<20, 40<<20, 0)
			m.Do("snapshot", "two")
			random(t, m.Raw(), 60<<20, 3<<20+4096, 0)
			m.Do("snapshot", "three")
			random(t, m.Raw(), 62<<20, 1<<20, 0)
			views, ids := m.SaveViews(), map[string]string{}
			for _, layer := range m.Status().Layers {
				ids[layer.Name] = layer.ID
			}

			job := func(name, line string, most int64) {
				t.Helper()
				before := used(t, host)
				m.Do(name, line)
				m.FinishJob(time.Minute)
				if grown := used(t, host) - before; grown > most {
					t.Errorf("%s %s took %d KiB of the host, more than %d", name, line, grown>>10, most>>10)
				}
				if name == "delete" {
					delete(views, ids[line])
				}
			}
			job("flatten", "leaf", 24<<20)
			job("delete", "one", 24<<20)
			job("flatten", "three", 24<<20)
			job("delete", "two", 24<<20)
			m.Unmount()
			harness.Judge(t, m.Disk, views)

			before := used(t, host)
			out := filepath.Join(host, "out.raw")
			harness.Run(t, harness.Varve(), "export", m.Disk, "three", out, "--format", "raw")
			harness.SameContent(t, out, "raw", views[ids["three"]], "raw")
			if grown := used(t, host) - before; grown > 24<<20 {
				t.Errorf("the export took %d KiB of the host", grown>>10)
			}
			// Blocks that two files share are written apart from then on.
			m = harness.MountDisk(t, raw)
			random(t, m.Raw(), 0, disk, 0)
			leaf := m.Status().Leaf
			views[leaf] = m.SaveViews()[leaf]
			m.Unmount()
			harness.Judge(t, m.Disk, views)
			harness.SameContent(t, out, "raw", views[ids["three"]], "raw")
		})
	}
}

// random writes n random bytes to a file.
func random(t *testing.T, file string, off, n int64, flags int) {
	t.Helper()
	p := make([]byte, n)
	_, _ = rand.Read(p)
	f, err := os.OpenFile(file, os.O_WRONLY|flags, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// used is how much of a file system is taken, in bytes.
func used(t *testing.T, dir string) int64 {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Syncfs(fd); err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}
