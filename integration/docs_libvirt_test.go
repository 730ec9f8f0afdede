package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"varve/integration/guest"
	"varve/integration/harness"
	"varve/integration/libvirt"
	"varve/integration/patience"
)

// libvirtScenes are the scenes of the guide that TestGuideLibvirt runs; TestGuideTakeover
// runs the one of the takeover.
var libvirtScenes = []string{"libvirt", "uefi", "full"}

const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// newcomer goes through the guide with the VMs that a real libvirtd has of his: in its
// mount namespace, as on a host where libvirtd simply runs.
type newcomer struct {
	*testing.T
	d   *libvirt.Daemon
	p   *guest.Prepared
	dir string // with his images; the VMs' user is let in
	mnt string // what the guide calls /mnt
	bin string // varve and the editor
}

// as puts a text of the guide, which says /mnt, in his place.
func (n *newcomer) as(text string) string { return strings.ReplaceAll(text, "/mnt/", n.mnt+"/") }

// try runs shell commands, each of which has to succeed.
func (n *newcomer) try(script string) harness.Result {
	n.Helper()
	return n.d.Inside("sh", "-ec", fmt.Sprintf("cd '%s'; PATH='%s':$PATH; EDITOR='%s/editor'; export EDITOR; set -x\n%s", n.dir, n.bin, n.bin, n.as(script)))
}

func (n *newcomer) run(script string) string {
	n.Helper()
	r := n.try(script)
	if r.Code != 0 {
		n.Fatalf("exit code %d\n%s\n%s", r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// scene runs the guide's commands of a scene.
func (n *newcomer) scene(name string, least int, shows ...string) {
	n.Helper()
	script, commands, _ := pageScript(n.T, "docs/guide.md", name)
	if commands < least {
		n.Errorf("the guide has only %d lines of commands for %s", commands, name)
	}
	r := n.try(script)
	for _, want := range shows {
		if !strings.Contains(r.Stdout, want) || r.Code != 0 {
			n.Fatalf("the guide's commands for %s: exit code %d, or no %q:\n%s\n%s", name, r.Code, want, r.Stdout, r.Stderr)
		}
	}
}

// edits makes what "virsh edit" does to a domain from now on: sed.
func (n *newcomer) edits(sed string) {
	n.Helper()
	if err := os.WriteFile(filepath.Join(n.bin, "editor"), []byte("#!/bin/sh\nexec sed -i -e '"+n.as(sed)+"' \"$1\"\n"), 0o755); err != nil {
		n.Fatal(err)
	}
}

// TestGuideLibvirt gets two VMs of a real libvirtd onto varve by the commands of the
// guide: one on a raw image, which runs, and one with UEFI and two external snapshots of
// virsh's. They are snapshotted, reverted, cloned, backed up and restored; the host gets
// full under one, and has room again; and the disks are unmounted, with what other mount
// namespaces have of them. No command fails.
func TestGuideLibvirt(t *testing.T) {
	dir, err := os.MkdirTemp("", "home-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n := &newcomer{T: t, dir: filepath.Join(dir, "images"), mnt: filepath.Join(dir, "mnt"), bin: filepath.Join(dir, "bin")}
	for _, d := range []string{dir, n.dir, n.mnt, n.bin} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(harness.Varve(), filepath.Join(n.bin, "varve")); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(n.dir, "ubuntu.raw")
	guest.Image(t, image, guestDisk)
	harness.Run(t, "qemu-img", "convert", "-O", "qcow2", image, filepath.Join(n.dir, "vm2.qcow2"))
	harness.Run(t, "cp", ovmfVars, filepath.Join(n.dir, "vm2_VARS.fd"))
	n.d, n.p = libvirt.Start(t), guest.Prepare(t)
	n.run("mount --make-rshared /") // as systemd does

	n.raw(image)
	n.uefi()
	n.fullHost(image)
}

// raw is the VM vm1, which runs on its image.
func (n *newcomer) raw(image string) {
	n.d.Define("vm1", n.p, libvirt.Disk(image, ""))
	n.d.Run("start", "vm1")
	n.p.Wait() // until it knows of its power button
	n.run("mkdir /mnt/early")
	r := n.try("varve mount ubuntu.raw /mnt/early")
	if r.Code != 1 || !strings.Contains(r.Stderr, "ubuntu.raw is open for writing in pid ") || !strings.Contains(r.Stderr, " of VM vm1: image is in use; stop that first") {
		n.Errorf("a mount while the VM runs: exit code %d, %s", r.Code, r.Stderr)
	}
	disk := ""
	for _, b := range pageBlocks(n.T, "docs/guide.md") {
		if b.info == "xml" && b.scene == "libvirt" {
			disk = b.text
		}
	}
	if !strings.Contains(disk, "'/mnt/vm1/disk.raw'") {
		n.Fatalf("the guide has no disk on /mnt/vm1 in\n%s", disk)
	}
	n.edits(`/<disk/,/<\/disk>/c ` + strings.ReplaceAll(strings.ReplaceAll(strings.TrimSpace(disk), "'", "\""), "\n", "\\\n"))
	n.scene("libvirt", 40, "Domain 'vm1' started", "disk.raw", "no trouble found", "Block device 'vda' is resized",
		"Disk attached successfully", "Domain 'vm1' saved to ", "Domain restored from ", "Pool vm1 has been undefined")
}

// uefi is the VM vm2.
func (n *newcomer) uefi() {
	n.d.DefineUEFI("vm2", n.p, libvirt.Qcow2(filepath.Join(n.dir, "vm2.qcow2")), ovmfCode, filepath.Join(n.dir, "vm2_VARS.fd"))
	n.run(`
chmod 777 .
virsh snapshot-create-as vm2 s1 --disk-only
virsh snapshot-create-as vm2 s2 --disk-only
virsh domblklist vm2 | grep 'vm2\.s2$'
mkdir /mnt/vm2
varve mount --format qcow2 --allow-other --umask 066 vm2.s2 /mnt/vm2
virsh snapshot-delete vm2 s2 --metadata
virsh snapshot-delete vm2 s1 --metadata`)
	n.edits(`/<backingStore/,/^      <\/backingStore>/d; s|type="qcow2"|type="raw"|; s|type='"'qcow2'"'|type="raw"|; s|` + n.dir + `/vm2\.s2|/mnt/vm2/disk.raw|; s|` + n.dir + `/vm2_VARS\.fd|/mnt/vm2-nvram/disk.raw|`)
	n.scene("uefi", 6, "Domain 'vm2' started", "Domain 'vm2' resumed")
	n.run(`
varve doctor /mnt/vm2
varve snapshot /mnt/vm2 backup
varve export /mnt/vm2 backup vm2-backup.qcow2 --format qcow2 --compress
virsh destroy vm2
varve revert /mnt/vm2 both
varve revert /mnt/vm2-nvram both
cmp /mnt/vm2/disk.raw /mnt/vm2/layers/both.raw
printf changed | dd of=/mnt/vm2/disk.raw bs=1M seek=40 conv=notrunc,fsync status=none
varve import vm2-backup.qcow2 /mnt/vm2
qemu-img compare -f qcow2 -F raw vm2-backup.qcow2 /mnt/vm2/disk.raw
varve clone /mnt/vm2 backup vm3.varve
mkdir /mnt/vm3
varve mount --allow-other --umask 066 vm3.varve /mnt/vm3
cmp /mnt/vm2/layers/backup.raw /mnt/vm3/disk.raw
varve umount /mnt/vm3
rm -r vm3.varve
varve release /mnt/vm2 backup
varve delete /mnt/vm2 backup`)

	// Another mount namespace has a copy of the mounts, and a file of one open.
	other := exec.Command("nsenter", "--target", fmt.Sprint(n.d.PID()), "--mount", "unshare", "--mount", "--propagation", "private",
		"sh", "-ec", "exec 9<'"+n.mnt+"/vm2/disk.raw'; echo ready; read line; exec 9<&-; exec sleep 1000")
	end := harness.Keep(n.T, other)
	r := n.try("varve umount /mnt/vm2")
	if r.Code != 1 || !strings.Contains(r.Stderr, "it is in use: disk.raw is open (a process that cannot be seen from here)") {
		n.Errorf("umount, with disk.raw open in another mount namespace: exit code %d, %s", r.Code, r.Stderr)
	}
	end()
	n.run(`
varve umount /mnt/vm2
varve umount /mnt/vm2-nvram
varve check vm2.s2.varve
varve check vm2_VARS.fd.varve
virsh undefine vm2 --keep-nvram`)
}

// fullHost has the host become full under vm1, of which there is a snapshot that can go.
func (n *newcomer) fullHost(image string) {
	n.p = guest.Prepare(n.T) // earlier VMs have left connections to the serial line behind
	host := harness.SmallHost(n.T, "ext4", 160<<20)
	n.run(fmt.Sprintf("varve mount --disk '%s/full.varve' --allow-other --umask 066 '%s' /mnt/vm1", host, image))
	n.d.Define("vm1", n.p, libvirt.Disk(filepath.Join(n.mnt, "vm1/disk.raw"), "cache='none' io='native' discard='unmap'"))
	n.d.Run("start", "vm1")
	g := n.p.Wait()
	g.Run("dd if=/dev/urandom of=/data/old bs=1M count=20 conv=fsync 2>/dev/null")
	n.run("varve snapshot /mnt/vm1 before-upgrade")
	g.Run("dd if=/dev/urandom of=/data/old bs=1M count=20 conv=notrunc,fsync 2>/dev/null")
	n.run("varve snapshot /mnt/vm1 after-upgrade")
	filler := harness.NewFiller(n.T, host)
	filler.Fill(3 << 20)
	g.StartWriter("w")
	harness.Eventually(n.T, patience.Hang, func() error {
		if state := n.d.Run("domstate", "vm1", "--reason"); !strings.Contains(state, "paused (I/O error)") {
			return fmt.Errorf("the domain is %s", state)
		}
		return nil
	})
	n.scene("full", 4, "paused (I/O error)", "vda: no space", "Domain 'vm1' resumed")
	g.WaitFsynced(3)
	g.StopWriter()
	g.Verify()
	n.run(`
virsh destroy vm1
virsh undefine vm1
varve umount /mnt/vm1
varve check '` + host + `/full.varve'`)
}

// TestGuideTakeover takes over, by the guide's commands alone, a domain of which virsh has
// taken two snapshots: each has its name, and going back to it gives that state.
func TestGuideTakeover(t *testing.T) {
	const page, images, mountpoint = "docs/guide.md", "/var/lib/libvirt/images", "/mnt/vm2"
	bin, dir, point := t.TempDir(), openDir(t, "images-"), openDir(t, "mnt-")
	if err := os.Symlink(harness.Varve(), filepath.Join(bin, "varve")); err != nil {
		t.Fatal(err)
	}
	d := libvirt.Start(t)
	p := guest.Prepare(t)
	raw, base := filepath.Join(t.TempDir(), "vm2.raw"), filepath.Join(dir, "vm2.qcow2")
	guest.Image(t, raw, guestDisk)
	harness.Convert(t, raw, "raw", base, "qcow2")
	d.Define("vm2", p, strings.Replace(libvirt.Disk(base, "cache='none'"), "type='raw'", "type='qcow2'", 1))
	files := []string{base}
	for _, name := range []string{"s1", "s2"} {
		d.Run("snapshot-create-as", "vm2", name, "--disk-only")
		file := filepath.Join(dir, "vm2."+name)
		harness.Run(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P 0x5%s %d 64k", name[1:], guestDisk-1<<16), file)
		files = append(files, file)
	}
	harness.Guard(t, files...)

	script, commands, _ := pageScript(t, page, "takeover")
	if commands < 12 {
		t.Errorf("only %d lines of commands are run", commands)
	}
	shell := func(script string) string {
		t.Helper()
		r := d.Inside("sh", "-euc", fmt.Sprintf("PATH='%s':$PATH; LIBVIRT_DEFAULT_URI='%s'; export LIBVIRT_DEFAULT_URI; set -x\n%s", bin, d.URI,
			strings.NewReplacer(images, dir, mountpoint, point).Replace(script)))
		if r.Code != 0 {
			t.Fatalf("exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
		return r.Stdout + r.Stderr
	}
	out := shell(script)
	for _, want := range []string{
		dir + "/vm2.s1 (qcow2, as s2: libvirt's snapshot s2 of domain vm2)", "Device updated successfully",
		"Domain snapshot s1 deleted", "Domain snapshot s2 deleted", "Domain 'vm2' started",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the guide's commands do not show %q:\n%s", want, out)
		}
	}
	if xml := d.Run("dumpxml", "--inactive", "vm2"); strings.Contains(xml, "backingStore") || !strings.Contains(xml, "<source file='"+point+"/disk.raw'/>") {
		t.Errorf("the domain is\n%s", xml)
	}
	// By qemu-img's word: disk.raw at s1 is what the VM had when virsh took s1.
	shell(`varve mount /var/lib/libvirt/images/vm2.s2.varve /mnt/vm2
cd /var/lib/libvirt/images
for pair in s1=vm2.qcow2 s2=vm2.s1 adopted=vm2.s2; do
	varve revert /mnt/vm2 ${pair%=*}
	qemu-img compare -f raw -F qcow2 /mnt/vm2/disk.raw ${pair#*=}
	qemu-img compare -f raw -F qcow2 /mnt/vm2/layers/${pair%=*}.raw ${pair#*=}
done
cd /
varve umount /mnt/vm2
varve check /var/lib/libvirt/images/vm2.s2.varve`)
}

// openDir makes a directory that QEMU's user can pass through.
func openDir(t *testing.T, name string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
