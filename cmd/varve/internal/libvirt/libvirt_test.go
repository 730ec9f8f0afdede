package libvirt

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/chain"
)

// What libvirt 9.0 has written: a domain vm2 on a qcow2, of which virsh took s1 and s2 with
// --disk-only while it ran.
const (
	domainFile = "libvirt-9.0-domain.xml"
	s1File     = "libvirt-9.0-s1.xml"
	s2File     = "libvirt-9.0-s2.xml"
)

const passwd = "root:x:0:0::/root:/bin/sh\nlibvirt-qemu:x:64055:64055::/:/usr/sbin/nologin\nann:x:1000:1000::/home/ann:/bin/sh\n"

// fixture is a file of testdata with its images in a directory.
func fixture(t *testing.T, name, dir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(text), "DIR", dir)
}

// host is a machine with some files.
func host(t *testing.T, files map[string]string) *Host {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return &Host{Root: root, UID: os.Geteuid(), Resolve: filepath.Clean, Answers: func(string) bool { return true }}
}

func TestStates(t *testing.T) {
	s1, s2 := fixture(t, s1File, "/img"), fixture(t, s2File, "/img")
	internal := strings.NewReplacer("snapshot='external' type='file'", "snapshot='internal'", "<source file='/img/vm2.s2'/>\n    </disk>\n  </disks>", "</disk>\n  </disks>").Replace(s2)
	of := func(name string) chain.SnapshotState {
		return chain.SnapshotState{Name: name, By: "libvirt's snapshot " + name + " of domain vm2"}
	}
	for _, test := range []struct {
		name   string
		s2     string
		chain  []string // top first
		states []chain.SnapshotState
		note   string
	}{
		{"as virsh made it", s2, []string{"/img/vm2.s2", "/img/vm2.s1", "/img/vm2.qcow2"}, []chain.SnapshotState{{}, of("s2"), of("s1")}, ""},
		{"on the first overlay", s2, []string{"/img/vm2.s1", "/img/vm2.qcow2"}, []chain.SnapshotState{{}, of("s1")}, "no layer shows s2"},
		// virsh blockpull --base vm2.qcow2: the overlay of s2 stands on the state of s1.
		{"after blockpull", s2, []string{"/img/vm2.s2", "/img/vm2.qcow2"}, []chain.SnapshotState{{}, {}}, "no layer shows s1, s2"},
		{"another chain", s2, []string{"/img/vm3.s2", "/img/vm3.qcow2"}, []chain.SnapshotState{{}, {}}, ""},
		{"an internal one", internal, []string{"/img/vm2.s1", "/img/vm2.qcow2"}, []chain.SnapshotState{{}, of("s1")}, "no layer shows s2"},
		{"excluded from s2", strings.Replace(s2, "snapshot='external'", "snapshot='no'", 1), []string{"/img/vm2.s1", "/img/vm2.qcow2"}, []chain.SnapshotState{{}, of("s1")}, ""},
		{"what was before is not known", strings.ReplaceAll(s2, "/img/vm2.s1", ""), []string{"/img/vm2.s2", "/img/vm2.s1", "/img/vm2.qcow2"}, []chain.SnapshotState{{}, {}, of("s1")}, "no layer shows s2"},
		{"taken again under another name", strings.NewReplacer("<name>s2<", "<name>a<", "vm2.s2", "vm2.s1", "vm2.s1", "vm2.qcow2", "<creationTime>1", "<creationTime>2").Replace(s2),
			[]string{"/img/vm2.s1", "/img/vm2.qcow2"}, []chain.SnapshotState{{}, of("s1")}, "snapshot a of domain vm2 is the same state as s1"},
		{"broken", s2[:len(s2)/2], []string{"/img/vm2.s2", "/img/vm2.s1", "/img/vm2.qcow2"}, []chain.SnapshotState{{}, {}, of("s1")}, ""},
	} {
		h := host(t, map[string]string{"etc/passwd": passwd, "var/lib/libvirt/qemu/snapshot/vm2/s1.xml": s1, "var/lib/libvirt/qemu/snapshot/vm2/0.xml": test.s2})
		states, notes := h.States(test.chain)
		if !reflect.DeepEqual(states, test.states) || !strings.Contains(strings.Join(notes, "\n"), test.note) || test.note == "" && len(notes) > 0 {
			t.Errorf("%s: %+v, %q", test.name, states, notes)
		}
	}
}

// TestFormats: a definition says what a file is when nobody but root and the user can have
// written it.
func TestFormats(t *testing.T) {
	definition := fixture(t, domainFile, "/img")
	const system, own = "etc/libvirt/qemu/vm2.xml", "root/.config/libvirt/qemu/vm2.xml"
	qcow2 := []chain.Claim{{Format: "qcow2", By: "libvirt's domain vm2"}}
	for _, test := range []struct {
		name, at string
		change   func(path string) error
		want     []chain.Claim
	}{
		{"the system's", system, nil, qcow2},
		{"one's own", own, nil, qcow2},
		{"another user's", "home/ann/.config/libvirt/qemu/vm2.xml", nil, nil},
		{"written by another user", system, func(path string) error { return os.Chown(path, 1000, 1000) }, nil},
		{"that others may write", system, func(path string) error { return os.Chmod(path, 0o666) }, nil},
		{"in a directory that others may write", system, func(path string) error { return os.Chmod(filepath.Dir(path), 0o777) }, nil},
		{"in a directory of another user", system, func(path string) error { return os.Chown(filepath.Dir(path), 1000, 0) }, nil},
		{"behind a link", system, func(path string) error {
			return errors.Join(os.Rename(path, path+".real"), os.Symlink(path+".real", path))
		}, nil},
		{"a FIFO", system, func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) }, nil},
	} {
		h := host(t, map[string]string{"etc/passwd": passwd, test.at: definition})
		if test.change != nil {
			if err := test.change(filepath.Join(h.Root, test.at)); err != nil {
				t.Fatal(err)
			}
		}
		if got := h.Formats("/img/vm2.s2"); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v", test.name, got)
		}
		// What is below is told by the headers.
		if got := h.Formats("/img/vm2.s1"); got != nil {
			t.Errorf("%s: of a backing file %+v", test.name, got)
		}
	}
}

// TestOn: a disk keeps all that is its own, and nothing of the file that it had.
func TestOn(t *testing.T) {
	definition := strings.NewReplacer(
		"<driver name='qemu' type='qcow2' cache='none'/>", "<driver name='qemu' type='qcow2' cache='none' discard_no_unref='on' iothread='1'><metadata_cache><max_size unit='bytes'>1</max_size></metadata_cache></driver>",
		"<boot order='1'/>", "<boot order='1'/><serial>a&lt;&apos;!&#10;END&#10;b</serial><iotune><read_iops_sec>9</read_iops_sec></iotune>",
	).Replace(fixture(t, domainFile, "/img"))
	d, ok := ParseDomain([]byte(definition))
	if !ok || len(d.Disks) != 1 || !reflect.DeepEqual(d.Disks[0].Below, []string{"/img/vm2.s1", "/img/vm2.qcow2"}) {
		t.Fatalf("%+v, %v", d, ok)
	}
	const want = `<disk type='file' device='disk'>
  <driver name='qemu' type='raw' cache='none' iothread='1'/>
  <source file='/mnt/o&#39;clock/disk.raw'/>
  <target dev='vda' bus='virtio'/>
  <boot order='1'/>
  <serial>a&#60;&#39;&#33;&#10;END&#10;b</serial>
  <iotune>
    <read_iops_sec>9</read_iops_sec>
  </iotune>
  <address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0'/>
</disk>
`
	if got := d.Disks[0].On("/mnt/o'clock/disk.raw"); got != want {
		t.Errorf("got\n%s", got)
	}
	if d.Disks[0].Format != "qcow2" || !strings.Contains(d.Disks[0].On("/x"), "'/x'") {
		t.Error("the definition was changed")
	}
}

func TestQEMU(t *testing.T) {
	const group = "libvirt-qemu:x:64055:\nkvm:x:106:ann,libvirt-qemu\nstaff:x:50:ann\n"
	for _, test := range []struct {
		conf string
		d    Domain
		want QEMU
	}{
		{"", Domain{}, QEMU{UID: 64055, GID: 64055, Groups: []int{106}, Owns: true}},
		{"user = \"root\" # as the tests\ngroup=\"kvm\"\n#group=\"x\"\n", Domain{}, QEMU{UID: 0, GID: 106, Owns: true}},
		{"user = \"+1000\"\ndynamic_ownership = 0\n", Domain{}, QEMU{UID: 1000, GID: 64055, Groups: []int{106, 50}}},
		{"", Domain{Label: "+1000:+50"}, QEMU{UID: 1000, GID: 50, Groups: []int{106, 50}, Owns: true}},
		{"user = \"root\"", Domain{User: "ann", Of: 1000}, QEMU{UID: 1000, GID: 1000, Groups: []int{106, 50}}},
		{"user = \"nobody\"\n", Domain{}, QEMU{UID: -1, GID: 64055, Owns: true}},
	} {
		h := host(t, map[string]string{"etc/passwd": passwd, "etc/group": group, "etc/libvirt/qemu.conf": test.conf})
		if got := h.QEMU(test.d); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%q, %+v: %+v", test.conf, test.d, got)
		}
	}
}

// TestUpdateOfAnothers: virsh, which runs as the user whose domain it is, can read what
// the command of root's gives it.
func TestUpdateOfAnothers(t *testing.T) {
	as, command := virsh("nobody", 65534, 0)
	d := Domain{Name: "it's", as: as, virsh: command}
	bin := t.TempDir()
	for dir := bin; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// As virsh does, it opens the file that it is given.
	if err := os.WriteFile(filepath.Join(bin, "virsh"), []byte("#!/bin/sh\necho \"$(id -un) $*\"; cat \"$5\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	shell := exec.Command("sh")
	shell.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH")}
	shell.Stdin = strings.NewReader(d.Update("<disk/>\n"))
	out, err := shell.CombinedOutput()
	if want := "nobody -c qemu:///session update-device it's /dev/stdin --config\n<disk/>\n"; err != nil || string(out) != want {
		t.Errorf("%v, %q", err, out)
	}
}

// FuzzDomain: a definition that another user has written gives one command, whatever is
// in it.
func FuzzDomain(f *testing.F) {
	for _, name := range []string{domainFile, s1File} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		parseSnapshot(text)
		d, ok := ParseDomain(text)
		if !ok {
			return
		}
		for _, disk := range d.Disks {
			xml := disk.On("/mnt/disk.raw")
			if strings.Contains("\n"+xml, "\nEND\n") || strings.ContainsRune(xml, '!') || !strings.HasPrefix(xml, "<disk") {
				t.Errorf("the command's input is\n%s", xml)
			}
			again, ok := ParseDomain([]byte("<domain><name>x</name><devices>" + xml + "</devices></domain>"))
			if !ok || len(again.Disks) != 1 || again.Disks[0].Path != "/mnt/disk.raw" || again.Disks[0].Format != "raw" || again.Disks[0].Below != nil {
				t.Errorf("read again: %+v\n%s", again, xml)
			}
		}
	})
}
