package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"varve/integration/guest"
	"varve/integration/harness"
	"varve/integration/libvirt"
	"varve/integration/turn"
)

// libvirtMounts are the two ways to mount a disk for the user as whom libvirt
// runs QEMU, and how the domain opens it.
var libvirtMounts = []struct {
	name   string
	flags  []string
	driver string
	owner  uint32 // of disk.raw while no VM runs
}{
	{"libvirt changes the owner", []string{"--allow-other", "--umask", "066", "--uid", "1000", "--gid", "1000"},
		"cache='none' io='native' discard='unmap'", 1000},
	{"mounted for QEMU's user", []string{"--allow-other", "--uid", fmt.Sprint(libvirt.User), "--gid", fmt.Sprint(libvirt.User)},
		"cache='none' io='io_uring' discard='unmap'", libvirt.User},
}

// TestLibvirt has a real libvirtd run virtual machines on disk.raw: start, stop,
// pull the plug, start again, grow, with snapshots and reverts by varve between.
// Nothing is ever redefined. The guest goes through all of it on the mount whose turn it
// is, and reads a layer; on the other one QEMU opens the disk, and a snapshot is taken, while
// no guest runs.
func TestLibvirt(t *testing.T) {
	d := libvirt.Start(t)
	p := guest.Prepare(t)
	for i, way := range libvirtMounts {
		t.Run(way.name, func(t *testing.T) {
			raw := filepath.Join(t.TempDir(), "vm.raw")
			guest.Image(t, raw, guestDisk)
			harness.Guard(t, raw)
			m := harness.MountDisk(t, raw, way.flags...)
			l := &libvirtScenario{T: t, d: d, p: p, m: m, name: fmt.Sprintf("vm%d", i), owner: way.owner}
			l.ownedBy(way.owner)
			d.Define(l.name, p, libvirt.Disk(m.Raw(), way.driver))
			defined := d.Run("dumpxml", "--inactive", l.name)

			whole := harness.Long() || i == turn.Of(0, len(libvirtMounts))
			if whole {
				l.snapshotAndRevert()
			} else {
				l.snapshotOfAPaused()
			}
			if i == 0 {
				l.growAndRefuse()
			}
			if again := d.Run("dumpxml", "--inactive", l.name); again != defined {
				t.Errorf("the domain was\n%s\nand is\n%s", defined, again)
			}
			d.Run("undefine", l.name)
			if whole {
				l.readLayer(way.driver, i == 0)
			}

			views := m.SaveViews()
			m.Unmount() // also from under libvirtd, which still runs
			harness.Judge(t, m.Disk, views)
			harness.Run(t, harness.Varve(), "check", m.Disk)
		})
	}
}

// libvirtScenario is what the steps of TestLibvirt share.
type libvirtScenario struct {
	*testing.T
	d    *libvirt.Daemon
	p    *guest.Prepared
	m    *harness.Mount
	name string // of the domain

	owner uint32 // see libvirtMounts
}

func (l *libvirtScenario) start() *guest.Guest {
	l.Helper()
	if r := l.d.Try("start", l.name); r.Code != 0 {
		l.Fatalf("virsh start: %s\n%s", r.Stderr, l.d.Log(l.name))
	}
	g := l.p.Wait()
	l.ownedBy(libvirt.User)
	return g
}

// destroy pulls the plug.
func (l *libvirtScenario) destroy(g *guest.Guest) {
	l.Helper()
	l.d.Run("destroy", l.name)
	g.WaitGone()
	l.ownedBy(l.owner) // libvirt gives files back to whom it took them from
}

// snapshotOfAPaused takes a snapshot under a QEMU that has the disk, without a guest that
// boots.
func (l *libvirtScenario) snapshotOfAPaused() {
	if r := l.d.Try("start", "--paused", l.name); r.Code != 0 {
		l.Fatalf("virsh start: %s\n%s", r.Stderr, l.d.Log(l.name))
	}
	l.p.Skip()
	l.ownedBy(libvirt.User)
	harness.Run(l.T, harness.Varve(), "snapshot", l.m.Point, "one")
	r := harness.Try(l.T, harness.Varve(), "umount", l.m.Point)
	if r.Code != 1 || !strings.Contains(r.Stderr, "qemu-system-x86") {
		l.Errorf("umount under a paused domain: exit code %d, %s", r.Code, r.Stderr)
	}
	l.d.Run("destroy", l.name)
	l.ownedBy(l.owner)
}

// ownedBy fails the test unless disk.raw belongs to a user.
func (l *libvirtScenario) ownedBy(uid uint32) {
	l.Helper()
	info, err := os.Stat(l.m.Raw())
	if err != nil {
		l.Fatal(err)
	}
	if is := info.Sys().(*syscall.Stat_t).Uid; is != uid {
		l.Errorf("disk.raw belongs to uid %d, not %d", is, uid)
	}
}

// snapshotAndRevert: a snapshot of the running domain, more writes, the plug
// pulled, everything there again; and after a revert only what was there then.
func (l *libvirtScenario) snapshotAndRevert() {
	g := l.start()
	if out := l.d.Run("domblklist", l.name); !strings.Contains(out, l.m.Raw()) {
		l.Errorf("virsh domblklist does not show %s:\n%s", l.m.Raw(), out)
	}
	g.StartWriter("a")
	g.WaitFsynced(3)
	first := g.Fsynced()
	harness.Run(l.T, harness.Varve(), "snapshot", l.m.Point, "one")
	g.Run("true") // what was reported so far has arrived
	taken := g.Fsynced()
	g.WaitFsynced(3)
	g.StopWriter()
	g.Verify()
	all := g.Fsynced()
	later := without(all, taken)[1:] // the first may have been under way

	r := harness.Try(l.T, harness.Varve(), "revert", l.m.Point, "one")
	if r.Code != 1 || !strings.Contains(r.Stderr, "disk.raw is open (pid ") || !strings.Contains(r.Stderr, "qemu-system-x86") {
		l.Errorf("revert under a running domain: exit code %d, %s", r.Code, r.Stderr)
	}
	if r = harness.Try(l.T, harness.Varve(), "umount", l.m.Point); r.Code != 1 || !strings.Contains(r.Stderr, "qemu-system-x86") {
		l.Errorf("umount under a running domain: exit code %d, %s", r.Code, r.Stderr)
	}
	l.destroy(g)

	g = l.start()
	for _, f := range all {
		g.Run("[ -e /data/" + f.Name + " ]")
	}
	g.Verify()
	l.destroy(g)

	harness.Run(l.T, harness.Varve(), "revert", l.m.Point, "one")
	g = l.start()
	for _, f := range first {
		g.Run("[ -e /data/" + f.Name + " ]")
	}
	for _, f := range later {
		g.Run("[ ! -e /data/" + f.Name + " ]")
	}
	g.Verify()
	g.PowerOff()
	harness.Eventually(l.T, time.Minute, func() error {
		if state := strings.TrimSpace(l.d.Run("domstate", l.name)); state != "shut off" {
			return fmt.Errorf("the domain is %q", state)
		}
		return nil
	})
	l.ownedBy(l.owner)
	guest.Fsck(l.T, l.m.Raw(), "-r")
}

// growAndRefuse: the disk grows under the domain, and virsh's own external
// snapshot, which would repoint it, cannot be made.
func (l *libvirtScenario) growAndRefuse() {
	const size = 256 << 20
	g := l.start()
	harness.Run(l.T, harness.Varve(), "resize", l.m.Point, fmt.Sprint(size))
	l.d.Run("blockresize", l.name, "vda", fmt.Sprintf("%dB", size))
	if sectors := strings.TrimSpace(g.Run("cat /sys/block/vda/size")); sectors != fmt.Sprint(size/512) {
		l.Errorf("the guest's disk has %s sectors after the resize", sectors)
	}
	r := l.d.Try("snapshot-create-as", l.name, "by-virsh", "--disk-only")
	if r.Code == 0 {
		l.Errorf("virsh made an external snapshot of disk.raw: %s", r.Stdout)
	}
	l.Logf("virsh snapshot-create-as --disk-only: %s", strings.TrimSpace(r.Stderr))
	if out := l.d.Run("domblklist", l.name); !strings.Contains(out, l.m.Raw()) {
		l.Errorf("the domain was repointed:\n%s", out)
	}
	g.Verify()
	l.overlayAndSavedMemory(g)
}

// overlayAndSavedMemory: while an image of libvirt's stands on disk.raw, and while libvirt
// keeps the domain's memory, no revert makes disk.raw something else; doctor says both,
// and how to come back.
func (l *libvirtScenario) overlayAndSavedMemory(g *guest.Guest) {
	says := func(r harness.Result, code int, words ...string) {
		l.Helper()
		for _, w := range words {
			if r.Code != code || !strings.Contains(r.Stdout+r.Stderr, w) {
				l.Errorf("exit code %d, no %q in\n%s%s", r.Code, w, r.Stdout, r.Stderr)
			}
		}
	}
	overlay := filepath.Join(filepath.Dir(l.m.Point), l.name+".x1") // where QEMU's user gets
	l.d.Run("snapshot-create-as", l.name, "x1", "--disk-only", "--no-metadata", "--diskspec", "vda,file="+overlay)
	g.Run("echo in the overlay >/data/overlay && sync")
	pivot := "virsh blockcommit " + l.name + " " + overlay + " --active --pivot"
	says(l.d.Inside(harness.Varve(), "snapshot", l.m.Point, "beside"), 0,
		overlay+", which stands on disk.raw, takes the writes of VM "+l.name, "what the guest wrote there is not in the snapshot", pivot)
	says(l.d.Inside(harness.Varve(), "revert", l.m.Point, "one"), 1, overlay+", which stands on disk.raw", pivot)
	says(l.d.Inside(harness.Varve(), "doctor", "--json", l.m.Point), 1, "vm-overlay", overlay, pivot)
	l.d.Run("blockcommit", l.name, overlay, "--active", "--pivot")
	if err := os.Remove(overlay); err != nil {
		l.Fatal(err)
	}
	if out := g.Run("cat /data/overlay"); out != "in the overlay\n" {
		l.Errorf("after the commit the guest reads %q", out)
	}
	if out := l.d.Run("domblklist", l.name); !strings.Contains(out, l.m.Raw()) {
		l.Errorf("after the commit the domain has\n%s", out)
	}

	l.d.Run("managedsave", l.name)
	g.WaitGone()
	remove := "virsh -c qemu:///system managedsave-remove " + l.name
	for _, command := range [][]string{{"revert", l.m.Point, "one"}, {"undo", l.m.Point}, {"resize", l.m.Point, "1G"}, {"import", l.m.Layer("one"), l.m.Point}} {
		says(l.d.Inside(harness.Varve(), command...), 1, "keeps the memory of ", "of domain "+l.name, "destroy the guest's file systems", remove, "--discard-saved-state")
	}
	says(l.d.Inside(harness.Varve(), "doctor", "--json", l.m.Point), 1, "vm-saved", "of domain "+l.name, remove)
	says(l.d.Inside(harness.Varve(), "revert", l.m.Point, "one", "--discard-saved-state"), 0, "gave up saved memory")
	if out := l.d.Run("dominfo", l.name); !strings.Contains(out, "Managed save:   no") {
		l.Errorf("the domain is\n%s", out)
	}
	says(l.d.Inside(harness.Varve(), "doctor", l.m.Point), 0)
	g = l.start()
	g.Run("[ ! -e /data/overlay ]")
	l.destroy(g)
}

// readLayer gives the domain a snapshot as a second disk, read-only: from the start, or
// plugged in while it runs.
func (l *libvirtScenario) readLayer(driver string, plugIn bool) {
	const begin = "bs=1M count=8"
	layer := l.m.Layer("one")
	disks := libvirt.Disk(l.m.Raw(), driver)
	if !plugIn {
		disks += libvirt.ReadOnlyDisk(layer, driver)
	}
	l.d.Define(l.name, l.p, disks)
	g := l.start()
	if plugIn {
		device := filepath.Join(l.TempDir(), "layer.xml")
		if err := os.WriteFile(device, []byte(libvirt.ReadOnlyDisk(layer, driver)), 0o644); err != nil {
			l.Fatal(err)
		}
		l.d.Run("attach-device", l.name, device, "--live")
		g.Run("until [ -b /dev/vdb ]; do sleep 0.1; done")
	}
	want, _, _ := strings.Cut(harness.Shell(l.T, "dd if='"+layer+"' "+begin+" status=none | sha256sum"), " ")
	if got, _, _ := strings.Cut(g.Run("dd if=/dev/vdb "+begin+" 2>/dev/null | sha256sum"), " "); got != want {
		l.Errorf("the guest reads other bytes from layers/one.raw than the host: %s, %s", got, want)
	}
	if out := g.Run("cat /sys/block/vdb/ro"); strings.TrimSpace(out) != "1" {
		l.Errorf("the guest's second disk is not read-only: %q", out)
	}
	l.doctor("disk.raw is open: pid ", "layers/one.raw is open: pid ")
	r := harness.Try(l.T, harness.Varve(), "delete", l.m.Point, "one")
	if r.Code != 1 || !strings.Contains(r.Stderr, "layers/one.raw is open (pid ") {
		l.Errorf("delete of a snapshot that a domain reads: exit code %d, %s", r.Code, r.Stderr)
	}
	l.destroy(g)
	l.d.Run("undefine", l.name)
}

// doctor asks what is wrong with the disk and who has what open. There may be a word
// about the room on this host and about the leaf that was set aside, and no other.
func (l *libvirtScenario) doctor(open ...string) {
	l.Helper()
	var report struct {
		Findings []struct{ Severity, Check, What, Fix string }
	}
	if err := json.Unmarshal([]byte(harness.Run(l.T, harness.Varve(), "doctor", l.m.Point, "--json")), &report); err != nil {
		l.Fatal(err)
	}
	for _, f := range report.Findings {
		known := f.Check == "host-space" || f.Check == "set-aside"
		if f.Check == "open-files" && f.Severity == "note" {
			known = slices.ContainsFunc(open, func(begin string) bool { return strings.HasPrefix(f.What, begin) })
			open = slices.DeleteFunc(open, func(begin string) bool { return strings.HasPrefix(f.What, begin) })
		}
		if !known {
			l.Errorf("varve doctor says: %s: %s; %s", f.Severity, f.What, f.Fix)
		}
	}
	if len(open) > 0 {
		l.Errorf("varve doctor does not say %q", open)
	}
}

// TestLibvirtPool makes the mountpoint a storage pool, and has libvirt try to
// remove all that is in it.
func TestLibvirtPool(t *testing.T) {
	d := libvirt.Start(t)
	p := guest.Prepare(t)
	raw := filepath.Join(t.TempDir(), "vm.raw")
	guest.Image(t, raw, guestDisk)
	harness.Guard(t, raw)
	m := harness.MountDisk(t, raw, "--allow-other", "--umask", "066")
	harness.Run(t, harness.Varve(), "snapshot", m.Point, "one")
	views := m.SaveViews()
	chain := harness.Digest(t, filepath.Join(m.Disk, "chain.json"))

	d.Run("pool-define-as", "vm", "dir", "--target", m.Point)
	d.Run("pool-start", "vm")
	d.Run("pool-refresh", "vm")
	if out := d.Run("vol-list", "vm"); !strings.Contains(out, m.Raw()) {
		t.Errorf("virsh vol-list does not show %s:\n%s", m.Raw(), out)
	}
	if out := d.Run("vol-info", "disk.raw", "vm", "--bytes"); !strings.Contains(out, fmt.Sprint(guestDisk)) {
		t.Errorf("virsh vol-info does not show a capacity of %d bytes:\n%s", guestDisk, out)
	}
	refused := func(args ...string) {
		t.Helper()
		r := d.Try(args...)
		if r.Code == 0 || !strings.Contains(r.Stderr, "Operation not permitted") {
			t.Errorf("virsh %s: exit code %d, %s", strings.Join(args, " "), r.Code, r.Stderr)
		}
		t.Logf("virsh %s: %s", strings.Join(args, " "), strings.TrimSpace(r.Stderr))
	}
	refused("vol-delete", "disk.raw", "vm")
	refused("vol-create-as", "vm", "new.raw", "1M")

	d.Define("vm", p, libvirt.Disk(m.Raw(), "cache='none' io='native'"))
	refused("undefine", "vm", "--remove-all-storage")

	if is := harness.Digest(t, filepath.Join(m.Disk, "chain.json")); is != chain {
		t.Errorf("chain.json was changed: sha256 %s, now %s", chain, is)
	}
	m2 := m.SaveViews()
	for id, view := range views {
		harness.Run(t, "cmp", view, m2[id])
	}
	d.Run("pool-destroy", "vm")
	d.Run("pool-undefine", "vm")
	m.Unmount()
	harness.Judge(t, m.Disk, views)
	harness.Run(t, harness.Varve(), "check", m.Disk)
}

// TestUnmountBesideAVM: on a host whose mounts do not propagate every virtual machine has a
// copy of all of them. A disk that no machine uses is unmounted at once all the same; the
// one that is used is refused, by the name of who uses it.
func TestUnmountBesideAVM(t *testing.T) {
	var disks []*harness.Mount
	for range 2 {
		disk := filepath.Join(t.TempDir(), "vm.varve")
		harness.Run(t, harness.Varve(), "create", disk, "--size", "64M")
		disks = append(disks, harness.MountDisk(t, disk, "--allow-other", "--uid", fmt.Sprint(libvirt.User), "--gid", fmt.Sprint(libvirt.User)))
	}
	d := libvirt.StartApart(t)
	d.Define("vm", guest.Prepare(t), libvirt.Disk(disks[0].Raw(), "cache='none' io='native'"))
	if r := d.Try("start", "--paused", "vm"); r.Code != 0 {
		t.Fatalf("virsh start: %s\n%s", r.Stderr, d.Log("vm"))
	}

	copies := disks[1].Point + " can also be seen: all of it at " + disks[1].Point + " in the mount namespace of pid "
	if list := harness.Run(t, harness.Varve(), "list"); !strings.Contains(list, copies) {
		t.Errorf("no copies of the mount:\n%s", list)
	}
	disks[1].Unmount()
	r := harness.Try(t, harness.Varve(), "umount", disks[0].Point)
	if r.Code != 1 || !strings.Contains(r.Stderr, "it is in use: disk.raw is open (pid ") {
		t.Errorf("umount of the disk that is used: exit code %d, says %q", r.Code, r.Stderr)
	}
	d.Run("destroy", "vm")
	disks[0].Unmount() // libvirtd has its copies still
	for _, m := range disks {
		harness.Run(t, harness.Varve(), "check", m.Disk)
	}
}
