package chain

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"varve/chain/view"
)

// A layer that is shorter than what is below it hides that behind its end. When it is
// merged into a larger one, what was hidden stays so: in the middle of a region, in one
// behind it, and far away.
func TestMergeOfAShorterLayer(t *testing.T) {
	for _, grow := range []string{"when it is made", "later"} {
		t.Run(grow, func(t *testing.T) {
			const gib = int64(1) << 30
			dir := t.TempDir()
			base, short := filepath.Join(dir, "base.raw"), filepath.Join(dir, "short.qcow2")
			f, err := os.Create(base)
			must(t, err)
			must(t, f.Truncate(8*gib))
			hidden := []int64{gib, gib + 4096, gib + view.RegionSize, 3 * gib, 8*gib - 65536}
			for _, off := range append([]int64{gib - 65536}, hidden...) {
				_, err := f.WriteAt(bytes.Repeat([]byte("base"), 1024), off)
				must(t, err)
			}
			must(t, f.Close())
			qemuTool(t, "qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", base, short, "1G")
			qemuTool(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 512M 64k", short)
			path := filepath.Join(dir, "vm.varve")
			o := CreateOptions{Base: short, Format: "qcow2", Size: 20 * gib}
			if grow == "later" {
				o.Size = 0
			}
			_, err = Create(path, o)
			must(t, err)
			d := openDisk(t, path)
			if grow == "later" {
				must(t, d.Resize(20*gib))
			}
			put(t, d, 1, 10*gib, 4096)
			places := append([]int64{0, 512 << 20, gib - 65536, 10 * gib}, hidden...)
			want := readAll(t, d, places...)
			_, err = d.Delete("adopted")
			must(t, err)
			waitJobs(t, d)
			sameBytes(t, "after the merge", readAll(t, d, places...), want)
			must(t, d.Flush())
			checkDisk(t, d)
		})
	}
}
