package fs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBlocksBeforeTheyAreCounted: GNU tar --sparse does not read a file of which stat
// says that it has no blocks, and stores zeros. So a figure that is not known is not 0.
func TestBlocksBeforeTheyAreCounted(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{})
	file := open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
	if _, err := file.WriteAt([]byte("data"), 300<<10); err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	d.uncounted = true
	d.mu.Unlock()
	for _, name := range []string{nameDisk, "layers/base.raw"} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil || st.Blocks == 0 {
			t.Errorf("%s has %d blocks, %v", name, st.Blocks, err)
		}
		to := t.TempDir()
		archive := filepath.Join(to, "a.tar")
		for _, args := range [][]string{{"--sparse", "-cf", archive, "-C", dir, name}, {"-xf", archive, "-C", to}} {
			if out, err := exec.Command("tar", args...).CombinedOutput(); err != nil {
				t.Fatalf("tar %v: %v\n%s", args, err, out)
			}
		}
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("tar --sparse stored something else of %s: %v", name, err)
		}
	}
}
