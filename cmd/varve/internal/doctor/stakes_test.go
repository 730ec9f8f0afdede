package doctor

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// savedImageFile is a saved image as libvirt writes one.
func savedImageFile(order binary.AppendByteOrder, xml string) []byte {
	b := []byte(savedMagic)
	for _, n := range []uint32{2, uint32(len(xml) + 1), 1, 0, uint32(savedHeaderSize + len(xml) + 1)} {
		b = order.AppendUint32(b, n)
	}
	b = append(b, make([]byte, 14*4)...)
	return append(append(b, xml...), "\x00<cookie/>\x00QEVM"...)
}

func domainText(name, disks string) string {
	return "<domain type='qemu'><name>" + name + "</name><devices>" + disks + "</devices></domain>"
}

func domainDisk(format, file, more string) string {
	return fmt.Sprintf("<disk type='file' device='disk'><driver name='qemu' type='%s'/><source file='%s'/>%s<target dev='vda'/></disk>", format, file, more)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Memory that libvirt keeps is found, of the system and of users, in either byte order,
// for the disk that it was saved with and for no other.
func TestSavedImages(t *testing.T) {
	s := fakeDisk(t)
	root := t.TempDir()
	s.machine = newMachine(root)
	s.machine.slow = func() []string { return nil }
	raw := filepath.Join(s.Mounts[0].Mountpoint, "disk.raw")
	const system, session = "/var/lib/libvirt/qemu/save/", "/home/ann/.config/libvirt/qemu/save/"
	write(t, root+"/etc/passwd", "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\nann:x:1000:1000::/home/ann:/bin/sh\n")
	write(t, root+system+"vm6.save", string(savedImageFile(binary.LittleEndian, domainText("vm6", domainDisk("raw", raw, "")))))
	write(t, root+system+"other.save", string(savedImageFile(binary.LittleEndian, domainText("other", domainDisk("raw", "/elsewhere/disk.raw", "")))))
	write(t, root+system+"part.save", "LibvirtQemudPart")
	// A copy of an image under another name is never resumed.
	write(t, root+system+"copy.save", string(savedImageFile(binary.LittleEndian, domainText("vm6", domainDisk("raw", raw, "")))))
	write(t, root+system+"notes.txt", raw)
	write(t, root+session+"mine.save", string(savedImageFile(binary.BigEndian, domainText("mine",
		domainDisk("qcow2", "/x1.qcow2", "<backingStore type='file'><format type='raw'/><source file='"+raw+"'/><backingStore/></backingStore>")))))

	write(t, root+"/root/.config/libvirt/qemu/save/root's.save", string(savedImageFile(binary.LittleEndian, domainText("root's", domainDisk("raw", raw, "")))))

	s.Mounts[0].UID = 61001
	if list := s.saved(); len(list) != 1 || list[0].image.Name != "vm6" {
		t.Errorf("a user whom the mount does not let in: %+v", list)
	}
	s.Mounts[0].AllowOther = true
	if err := unix.Mkfifo(root+session+"waits.save", 0o600); err != nil { // nobody writes into it
		t.Fatal(err)
	}
	got := ""
	for _, k := range s.saved() {
		command, user := k.Discard()
		got += k.What + "; " + k.Fix + "; " + user + ": " + strings.Join(command, " ") + "\n"
	}
	for _, want := range []string{
		"of domain vm6, in " + system + "vm6.save, and its next start goes on with that; start the domain and shut it down in order, or give its memory up: virsh -c qemu:///system managedsave-remove vm6; : virsh",
		"ann's libvirt keeps the memory of ", "of domain mine, in " + session + "mine.save", "give its memory up: runuser -u ann -- virsh -c qemu:///session managedsave-remove mine; ann: virsh -c qemu:///session managedsave-remove mine\n",
		`give its memory up: virsh -c qemu:///session managedsave-remove 'root'\''s'; : virsh -c qemu:///session managedsave-remove root's` + "\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Count(got, "\n") != 3 {
		t.Errorf("found\n%s", got)
	}

	// Where the disk was mounted last counts, for one that is not mounted. There is no
	// chain.json here that tells.
	s.Mounts = nil
	if list := s.saved(); len(list) != 0 {
		t.Errorf("without a mount: %+v", list)
	}
}

// A saved image is not trusted.
func TestBadSavedImages(t *testing.T) {
	good := savedImageFile(binary.LittleEndian, domainText("vm", ""))
	long := bytes.Clone(good)
	binary.LittleEndian.PutUint32(long[len(savedMagic)+4:], 1<<31)
	for name, b := range map[string][]byte{
		"empty": nil, "cut in the header": good[:40], "cut in the domain": good[:savedHeaderSize+5], "another magic": append([]byte("LibvirtQemudPart"), good[16:]...),
		"a long domain": long, "no XML": savedImageFile(binary.LittleEndian, "no"),
	} {
		if v, err := parseSavedImage(bytes.NewReader(b), "x.save"); err == nil || !strings.Contains(err.Error(), "x.save") {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
	if v, err := parseSavedImage(bytes.NewReader(good), "x.save"); err != nil || v.Name != "vm" {
		t.Errorf("%+v, %v", v, err)
	}
}

// FuzzSavedImage: no saved image crashes, or takes memory for what it only claims.
func FuzzSavedImage(f *testing.F) {
	f.Add(savedImageFile(binary.LittleEndian, domainText("vm", domainDisk("raw", "/a", ""))))
	f.Add(savedImageFile(binary.BigEndian, "<domain>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := parseSavedImage(bytes.NewReader(b), "x.save"); err == nil && v.Name == "" {
			t.Error("a domain without a name")
		}
	})
}

// An image that stands on disk.raw is found by its header, with whoever has it.
func TestOverlays(t *testing.T) {
	s := fakeDisk(t)
	root := t.TempDir()
	mnt := s.Mounts[0].Mountpoint
	raw := filepath.Join(mnt, "disk.raw")
	create := func(file string, args ...string) string {
		t.Helper()
		args = append(append([]string{"create", "-q", "-f", "qcow2"}, args...), file, "1M")
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img: %v\n%s", err, out)
		}
		return file
	}
	found := func(want ...string) {
		t.Helper()
		got := s.overlays()
		if len(got) != len(want) {
			t.Errorf("found %+v, want %q", got, want)
			return
		}
		for i, k := range got {
			if !strings.HasPrefix(k.What+"; "+k.Fix, want[i]) {
				t.Errorf("found %q, want %q", k.What+"; "+k.Fix, want[i])
			}
		}
	}
	found()

	// Beside it; one below another, with a relative name; and one of another disk.
	x1 := create(filepath.Join(filepath.Dir(mnt), "x1.qcow2"), "-b", "mnt/disk.raw", "-F", "raw")
	create(filepath.Join(filepath.Dir(mnt), "alone.qcow2"))
	write(t, filepath.Join(filepath.Dir(mnt), "notes"), "x")
	elsewhere := t.TempDir()
	x2 := create(filepath.Join(elsewhere, "vm.x2"), "-b", x1, "-F", "qcow2")
	found(x1 + ", which stands on disk.raw, lies beside the disk; with no VM running: qemu-img commit ")

	// A domain has it: by its header, or by what libvirt has noted.
	look := func(root string) {
		s.machine = newMachine(root)
		s.machine.slow = func() []string { return nil }
	}
	look(root)
	write(t, root+"/etc/libvirt/qemu/vm.xml", domainText("vm", domainDisk("qcow2", x2, "")))
	write(t, root+"/etc/libvirt/qemu/right.xml", domainText("right", domainDisk("raw", raw, "")))
	found(x2+", which stands on disk.raw, is the disk of libvirt's domain vm; start it, then put its writes into disk.raw: virsh blockcommit vm "+x2+" --active --pivot",
		x1+", which stands on disk.raw, lies beside")
	write(t, root+"/etc/libvirt/qemu/vm.xml", domainText("vm", domainDisk("qcow2", "/gone", "<backingStore><source file='"+raw+"'/></backingStore>")))
	look(root)
	found("/gone, which stands on disk.raw, is the disk of libvirt's domain vm", x1)

	// What a user defines holds up nothing of a disk that does not let that user in.
	write(t, root+"/etc/libvirt/qemu/vm.xml", domainText("vm", domainDisk("raw", raw, "")))
	write(t, root+"/etc/passwd", "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n")
	write(t, root+"/home/ann/.config/libvirt/qemu/hers.xml", domainText("hers", domainDisk("qcow2", "/gone", "<backingStore><source file='"+raw+"'/></backingStore>")))
	s.Mounts[0].AllowOther = false
	look(root)
	found(x1)
	s.Mounts[0].AllowOther = true
	look(root)
	found("/gone, which stands on disk.raw, is the disk of libvirt's domain hers; start it, then put its writes into disk.raw: runuser -u ann -- virsh -c qemu:///session blockcommit hers /gone", x1)

	// A VM runs on it, which the command line need not say.
	look("/")
	pid := startQEMU(t, elsewhere, "-name", "guest=web", "-drive", "file="+x2+",format=qcow2,if=virtio")
	found(fmt.Sprintf("%s, which stands on disk.raw, takes the writes of VM web (pid %d qemu-system-x86); put its writes into disk.raw and go on there: virsh blockcommit web %s --active --pivot", x2, pid, x2),
		x1)
}
