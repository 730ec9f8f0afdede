package fs

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/chain"
)

// countingDisk counts the reads of views that arrive.
type countingDisk struct {
	chainDisk
	reads atomic.Int64
}

type countingView struct {
	view
	reads *atomic.Int64
}

func (d *countingDisk) OpenView(ctx context.Context, id string, who chain.Opener) (view, error) {
	v, err := d.chainDisk.OpenView(ctx, id, who)
	return &countingView{v, &d.reads}, err
}

func (v *countingView) ReadAt(p []byte, off int64) error {
	v.reads.Add(1)
	return v.view.ReadAt(p, off)
}

// The kernel reads a raw base from its file, for root; a snapshot's view, and
// everything where the kernel or the user's rights do not allow it, is read
// through us, with the same content.
func TestBaseIsReadByTheKernel(t *testing.T) {
	tmp := t.TempDir()
	base := make([]byte, 3*mib+512)
	random := rand.NewChaCha8([32]byte{7})
	_, _ = random.Read(base)
	image := filepath.Join(tmp, "base.raw")
	if err := os.WriteFile(image, base, 0o600); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(tmp, "disk")
	if _, err := chain.Create(disk, chain.CreateOptions{Base: image}); err != nil {
		t.Fatal(err)
	}
	inner, err := chain.Open(disk, chain.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	d := &countingDisk{chainDisk: chainDisk{inner}}
	dir := filepath.Join(tmp, "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := mount(d, dir, Options{Umask: 0o077, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Wait()
	defer s.Unmount()
	if err := inner.Snapshot("one"); err != nil {
		t.Fatal(err)
	}
	through := os.Geteuid() == 0 && s.kernel.Can(fuse.CAP_PASSTHROUGH)
	t.Log("read by the kernel:", through)

	// Two opens, overlapping, and one after both are closed.
	path := filepath.Join(dir, nameLayers, "base.raw")
	first, second := open(t, path, os.O_RDONLY), open(t, path, os.O_RDONLY|unix.O_DIRECT)
	for range 2 {
		got := make([]byte, len(base))
		if n, err := first.ReadAt(got, 0); err != nil || n != len(base) || !bytes.Equal(got, base) {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	first.Close()
	second.Close()
	if got := content(t, path); !bytes.Equal(got, base) {
		t.Error("the base reads wrong when it is opened anew")
	}
	if n := d.reads.Load(); through && n != 0 {
		t.Errorf("%d reads of the base came through us", n)
	} else if !through && n == 0 {
		t.Error("no read of the base came through us")
	}
	d.reads.Store(0)
	if got := content(t, filepath.Join(dir, nameLayers, "one.raw")); !bytes.Equal(got, base) {
		t.Error("the snapshot reads wrong")
	}
	if d.reads.Load() == 0 {
		t.Error("no read of the snapshot came through us")
	}
}
