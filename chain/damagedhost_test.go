package chain

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"varve/overlay/hostfs"
)

// A table that the host can read again is looked up again.
func TestUnreadableTableComesBack(t *testing.T) {
	for _, layer := range []string{"s1", ""} {
		dir, want := damagedWorld(t)
		host := newBadDisk()
		path := fileOf(t, dir, layer)
		_, _, _, l2 := tablesAt(t, path)
		host.spoil(path, l2, 4096)
		d, err := Open(dir, OpenOptions{FS: host})
		must(t, err)
		defer d.Close()
		off := int64(7 << 20) // of the leaf
		if layer == "s1" {
			off = 1 << 20
		}
		p := make([]byte, 4096)
		for range 2 {
			if err := d.ReadAt(p, off); !errors.Is(err, hostfs.ErrUnreadable) {
				t.Fatalf("%q: a read where the table cannot be read: %v", layer, err)
			}
		}
		host.mend()
		for end := time.Now().Add(hangLimit); ; { // a disk is not asked again at once
			err := d.ReadAt(p, off)
			if err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		if !bytes.Equal(p, want[off:off+4096]) {
			t.Errorf("%q: another content", layer)
		}
		judgeDamage(t, d, d.ReadAt, want)
		if got := damageOf(t, d, layer); got != nil {
			t.Errorf("%q: status lists %v", layer, got)
		}
	}
}

// Data that the host can read again is no damage any more, without another mount.
func TestUnreadableDataComesBack(t *testing.T) {
	dir, want := damagedWorld(t)
	host := newBadDisk()
	d, err := Open(dir, OpenOptions{FS: host})
	must(t, err)
	defer d.Close()
	const off = 1 << 20 // of s1
	extents, err := d.nodes[readManifest(t, dir).ByName("s1").ID].Layer().Extents(nil, off, 4096)
	must(t, err)
	host.spoil(fileOf(t, dir, "s1"), extents[0].Host, 512)
	p := make([]byte, 8192)
	if err := d.ReadAt(p, off); !errors.Is(err, hostfs.ErrUnreadable) {
		t.Fatalf("a read of what cannot be read: %v", err)
	}
	if got := damageOf(t, d, "s1"); !slices.Equal(got, [][2]int64{{off, off + 8192}}) {
		t.Errorf("status lists %v", got)
	}
	// A read beside it tells the place better.
	must(t, d.ReadAt(p[:4096], off+4096))
	if got := damageOf(t, d, "s1"); !slices.Equal(got, [][2]int64{{off, off + 4096}}) {
		t.Errorf("status lists %v after a read beside it", got)
	}
	host.mend()
	must(t, d.ReadAt(p, off))
	if !bytes.Equal(p, want[off:off+8192]) {
		t.Error("another content")
	}
	if got := damageOf(t, d, "s1"); got != nil {
		t.Errorf("status lists %v when all can be read", got)
	}
}
