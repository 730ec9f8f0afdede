package chain

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"varve/overlay/qcow2"
)

// A layer's entry that breaks a rule fails the reads that need it, and none
// where an upper layer hides it.
func TestHiddenBadEntryHurtsNobody(t *testing.T) {
	const bad = 1 << 20
	d, _ := testDisk(t, 64<<20)
	put(t, d, 1, 0, 4<<20)
	must(t, d.Snapshot("one"))
	put(t, d, 2, bad, 512<<10) // covers the cluster, whatever its size
	must(t, d.Snapshot("two"))
	spoilEntry(t, filepath.Join(d.Dir(), readManifest(t, d.Dir()).ByName("one").File), bad)
	// The read needs both layers: there is a hole on either side of what hides it.
	p := make([]byte, 4<<20)
	must(t, d.ReadAt(p, 0))
	for at, want := range map[int]byte{0: 1, bad: 2, 3 << 20: 1} {
		if p[at] != want {
			t.Errorf("at %d is %d, not %d", at, p[at], want)
		}
	}
	_, nodes := d.tree()
	one := nodes[readManifest(t, d.Dir()).ByName("one").ID]
	if err := one.ReadAt(p[:4096], bad); !errors.Is(err, qcow2.ErrCorrupt) {
		t.Errorf("the spoilt place itself: %v", err)
	}
}

// spoilEntry sets a reserved bit in the L2 entry of a guest offset below what
// the first L2 table maps.
func spoilEntry(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	var p [48]byte
	_, err = f.ReadAt(p[:], 0)
	must(t, err)
	clusterBits, l1 := binary.BigEndian.Uint32(p[20:]), int64(binary.BigEndian.Uint64(p[40:]))
	_, err = f.ReadAt(p[:8], l1)
	must(t, err)
	at := int64(binary.BigEndian.Uint64(p[:])&0x00fffffffffffe00) + off>>clusterBits*16
	_, err = f.ReadAt(p[:8], at)
	must(t, err)
	p[7] |= 2
	_, err = f.WriteAt(p[:8], at)
	must(t, err)
}
