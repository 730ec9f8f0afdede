package integration

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/integration/guest"
	"varve/integration/harness"
)

// damageEntry makes the offset in the L2 entry of a guest offset one that is not aligned,
// in a layer that varve wrote (QEMU's docs/interop/qcow2.rst: cluster_bits at byte 20 of the
// header, l1_table_offset at 40, incompatible_features at 72, of which bit 4 makes an entry
// 16 bytes long instead of 8).
func damageEntry(t *testing.T, layer string, guestOffset int64) {
	t.Helper()
	f, err := os.OpenFile(layer, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	word := func(at int64) int64 {
		var p [8]byte
		if _, err := f.ReadAt(p[:], at); err != nil {
			t.Fatal(err)
		}
		return int64(binary.BigEndian.Uint64(p[:]))
	}
	clusterBits, entryBits := word(16)&0xffffffff, 3
	if word(72)&(1<<4) != 0 {
		entryBits = 4
	}
	perTable := int64(1) << (int(clusterBits) - entryBits)
	cluster := guestOffset >> clusterBits
	at := word(word(40)+cluster/perTable*8)&0x00fffffffffffe00 + cluster%perTable<<entryBits
	entry := word(at)
	if entry == 0 {
		t.Fatalf("%s has nothing at 0x%x", layer, guestOffset)
	}
	if _, err := f.WriteAt(binary.BigEndian.AppendUint64(nil, uint64(entry)^1<<12), at); err != nil {
		t.Fatal(err)
	}
}

// TestGuestOfADamagedDisk boots a guest from a disk of which one cluster's place is not
// known any more: it boots, reads and writes everything else, and has an I/O error there.
func TestGuestOfADamagedDisk(t *testing.T) {
	const bad = guestDisk + 8<<20 // behind the guest's file system
	raw := filepath.Join(t.TempDir(), "vm.raw")
	guest.Image(t, raw, guestDisk)
	m := harness.MountDisk(t, raw)
	harness.Run(t, harness.Varve(), "resize", m.Point, fmt.Sprint(guestDisk+32<<20))
	harness.Run(t, "dd", "if=/dev/urandom", "of="+m.Raw(), "bs=64k", fmt.Sprintf("seek=%d", bad>>16), "count=64", "conv=notrunc,fsync", "status=none")
	m.Do("snapshot", "s1")
	layer := ""
	for _, l := range m.Status().Layers {
		if l.Name == "s1" {
			layer = l.File
		}
	}
	m.Unmount()
	damageEntry(t, layer, bad)
	harness.Run(t, harness.Varve(), "accept", m.Disk, "s1")

	m = harness.MountDisk(t, m.Disk)
	g := guest.Boot(t, guest.Options{Disk: m.Raw(), Drive: "cache=none,aio=native"})
	g.Run("put one 64")
	g.StartWriter("w")
	g.WaitFsynced(5)
	g.StopWriter()
	g.Verify()
	// The cluster, and what lies beside it.
	read := func(off int64) string {
		return fmt.Sprintf("dd if=/dev/vda of=/dev/null bs=65536 count=1 skip=%d 2>&1", off>>16)
	}
	g.Run(read(bad + 2<<20))
	g.Run(read(bad - 64<<10))
	if said := g.Run("! " + read(bad)); !strings.Contains(said, "I/O error") && !strings.Contains(said, "Input/output error") {
		t.Errorf("the damaged cluster reads in the guest: %s", said)
	}
	files := g.Fsynced()
	g.PowerOff()

	named := 0
	for _, l := range m.Status().Layers {
		named += len(l.Damage)
	}
	if named == 0 {
		t.Error("status.json names no damage")
	}
	saved := filepath.Join(t.TempDir(), "saved.raw")
	m.Unmount()
	if r := harness.Try(t, harness.Varve(), "export", "--skip-damaged", m.Disk, "leaf", saved); r.Code != 4 || !strings.Contains(r.Stderr, "0x") {
		t.Errorf("export --skip-damaged: exit code %d, %s", r.Code, r.Stderr)
	}
	guest.Fsck(t, saved)
	guest.Contains(t, saved, guest.Data(t, saved), files)
}
