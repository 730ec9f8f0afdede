package chain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"varve/integration/imagetest"

	"golang.org/x/sys/unix"
)

// smallHost mounts an ext4 of some MiB from a loop device.
func smallHost(t *testing.T, mib int) string {
	t.Helper()
	dir := t.TempDir()
	image, point := filepath.Join(dir, "host.img"), filepath.Join(dir, "host")
	must(t, os.Mkdir(point, 0o700))
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, int64(mib)<<20))
	qemuTool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", image)
	qemuTool(t, "mount", "-o", "loop", image, point)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", point).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v\n%s", point, err, out)
		}
	})
	return point
}

// fillUp takes all room of a file system and gives the function that returns it.
func fillUp(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	must(t, err)
	defer f.Close()
	for size := 1 << 20; size >= 4096; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return func() { must(t, os.Remove(path)) }
}

// On a full host the guest's writes fail with ENOSPC and nothing else does; a
// job fails, and its end is recorded; a snapshot leaves the chain as it was; the
// disk closes in order; after room was made everything goes on, with all that
// was acknowledged.
func TestFullHost(t *testing.T) {
	host := smallHost(t, 48)
	base := filepath.Join(filepath.Dir(host), "base.raw")
	rawImage(t, base, 64<<20)
	for off := int64(0); off < 64<<20; off += 1 << 20 {
		imagetest.PatchUnseen(t, base, off, []byte(strings.Repeat("base", 1<<18)))
	}
	dir := filepath.Join(host, "vm.varve")
	if _, err := Create(dir, CreateOptions{Base: base}); err != nil {
		t.Fatal(err)
	}
	d := openDisk(t, dir)
	written := map[int64]byte{}
	write := func(i int64) error {
		off := i * (300 << 10)
		p := []byte(strings.Repeat(string(rune('A'+i%26)), 4096))
		err := d.WriteAt(p, off)
		if err == nil {
			written[off] = p[0]
		}
		return err
	}
	verify := func() {
		t.Helper()
		for off, want := range written {
			if got := at(t, d, off+5); got != want {
				t.Fatalf("got %q at %d, want %q", got, off, want)
			}
		}
	}
	for i := range int64(40) {
		must(t, write(i))
	}
	must(t, d.Snapshot("one"))
	must(t, write(41))
	must(t, d.Flush())

	free := fillUp(t, host)
	var full error
	for i := int64(42); i < 200 && full == nil; i++ {
		full = write(i)
	}
	if !errors.Is(full, unix.ENOSPC) {
		t.Fatalf("writing to a full host: %v", full)
	}
	verify()
	if err := d.Snapshot("two"); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("snapshot on a full host: %v", err)
	}
	if s := states(d); s != "base base, frozen one, leaf" {
		t.Fatal(s)
	}
	must(t, d.WriteAt([]byte{written[41*300<<10]}, 41*300<<10)) // in place
	must(t, d.Flush())
	id, err := d.Flatten("leaf")
	if err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if err == nil {
		s, err := d.WaitJob(context.Background(), id)
		must(t, err)
		if s.State != JobFailed || !strings.Contains(s.Error, "no space left") {
			t.Errorf("job: %+v", s)
		}
		if err := d.jobBusy(); err != nil {
			t.Error(err)
		}
	}
	verify()
	must(t, d.Close())

	free()
	d = openDisk(t, dir)
	verify()
	if j := d.lastJob(); j != nil {
		t.Errorf("the failed job is still recorded: %+v", j.status())
	}
	must(t, write(100))
	must(t, d.Snapshot("two"))
	verify()
	must(t, d.Close())
	m, _ := d.tree()
	for _, l := range m.Layers {
		if !l.Foreign {
			if out, err := exec.Command("qemu-img", "check", l.Path(dir)).CombinedOutput(); err != nil {
				t.Error(fmt.Sprint(err), string(out))
			}
		}
	}
}
