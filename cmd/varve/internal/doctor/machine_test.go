package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"varve/chain/mounts"
	"varve/cmd/varve/internal/libvirt"
	"varve/integration/harness"
)

// tree makes a directory of files, for parts of /proc, /sys and /etc.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// on has a disk looked at on another machine.
func on(root string, uid int, s Scope) *Scope {
	s.machine = newMachine(root)
	s.machine.uid = uid
	s.machine.slow = func() []string { return []string{"/mnt/vm1", "/mnt/private"} }
	return &s
}

const passwd = "root:x:0:0::/root:/bin/sh\nlibvirt-qemu:x:64055:64055::/:/usr/sbin/nologin\n"

// domainXML is a domain as libvirt 9 keeps it in /etc/libvirt/qemu.
const domainXML = `<!--
WARNING: THIS IS AN AUTO-GENERATED FILE. CHANGES TO IT ARE LIKELY TO BE
OVERWRITTEN AND LOST. Changes to this xml configuration should be made using:
  virsh edit vm1
or other application using the libvirt API.
-->

<domain type='kvm'>
  <name>vm1</name>
  <uuid>0f5ab9ee-6ec9-4b1a-9d0d-4c0c3a1b4c11</uuid>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='FORMAT' cache='none' io='native' discard='unmap'/>
      <source file='PATH'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
  </devices>
</domain>
`

func domainOf(path, format string) string {
	return strings.NewReplacer("PATH", path, "FORMAT", format).Replace(domainXML)
}

// TestDomains: what libvirt would start is judged as what runs.
func TestDomains(t *testing.T) {
	disk := Scope{Subject: "/srv/d.varve", Directory: "/srv/d.varve", Layers: []Layer{
		{ID: "000000", Name: "base", State: "base", File: "/srv/base.raw"},
		{ID: "000001", Name: "one", State: "frozen", File: "/srv/d.varve/layers/000001.qcow2"},
		{ID: "000002", State: "leaf", File: "/srv/d.varve/layers/000002.qcow2"},
	}, Mounts: []mounts.Mount{{Mountpoint: "/mnt/vm1", UID: 64055, AllowOther: true}}}
	private := disk
	private.Mounts = []mounts.Mount{{Mountpoint: "/mnt/private", UID: 1000}}
	tests := []struct {
		name, path, format string
		disk               Scope
		want, fix          string // one finding, or none; words of its way out
	}{
		{"right", "/mnt/vm1/disk.raw", "raw", disk, "", ""},
		{"another disk", "/mnt/vm10/disk.raw", "qcow2", disk, "", ""},
		{"the base", "/srv/base.raw", "raw", disk,
			"problem vm-layer: libvirt's domain vm1 has the base, /srv/base.raw, to write: every write changes what the layers above show",
			"virsh edit vm1, then give it /mnt/vm1/disk.raw (format raw) instead"},
		{"a snapshot", "/srv/d.varve/layers/000001.qcow2", "qcow2", disk,
			"problem vm-layer: libvirt's domain vm1 has the file of the snapshot one, /srv/d.varve/layers/000001.qcow2, to write: every write changes what the layers above show", "virsh edit"},
		{"the leaf", "/srv/d.varve/layers/000002.qcow2", "qcow2", disk,
			"problem vm-layer: libvirt's domain vm1 has the leaf's file, /srv/d.varve/layers/000002.qcow2, to write, past the mount: two writers destroy it", "virsh edit"},
		{"another format", "/mnt/vm1/disk.raw", "qcow2", disk, "problem vm-options: libvirt's domain vm1 has disk.raw as qcow2, but it is raw: with that it does not start", "virsh edit vm1, and write type='raw' into the disk's <driver>"},
		{"the chain of before", "/mnt/vm1/disk.raw'/><backingStore type='file'><format type='qcow2'/><source file='/srv/vm1.s1'/><backingStore/></backingStore><address type='x", "raw", disk,
			"problem vm-options: libvirt's domain vm1 has disk.raw on /srv/vm1.s1, by the <backingStore> that libvirt has kept: with that it does not start", "virsh edit vm1, and take out the disk's <backingStore>"},
		{"the base with a chain of before", "/srv/base.raw'/><backingStore type='file'><source file='/srv/older.raw'/></backingStore><address type='x", "raw", disk,
			"problem vm-layer: libvirt's domain vm1 has the base, /srv/base.raw, to write: every write changes what the layers above show",
			"virsh edit vm1, then give it /mnt/vm1/disk.raw (format raw) instead; take out the disk's <backingStore> with all that is in it, too"},
		{"a layer to write", "/mnt/vm1/layers/one.raw", "raw", disk,
			"warning vm-options: libvirt's domain vm1 has layers/one.raw to write, which cannot be written: it does not start with that", "<readonly/>"},
		{"a private mount", "/mnt/private/disk.raw", "raw", private,
			"problem vm-access: libvirt's domain vm1 would run as uid 64055, and this mount lets in uid 1000 only", "user_allow_other"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			root := tree(t, map[string]string{"etc/passwd": passwd, "etc/libvirt/qemu/vm1.xml": domainOf(test.path, test.format), "etc/libvirt/qemu/broken.xml": "<domain><na"})
			found := hostChecks(t, on(root, 0, test.disk))
			if test.want == "" {
				if len(found) != 0 {
					t.Errorf("got %q", summary(found))
				}
				return
			}
			if got := summary(found); !slices.Equal(got, []string{test.want}) {
				t.Fatalf("got %q\nwant %q", got, test.want)
			}
			if !strings.Contains(found[0].Fix, test.fix) {
				t.Errorf("the way out: %q", found[0].Fix)
			}
		})
	}
}

func TestLibvirtUser(t *testing.T) {
	for conf, want := range map[string]int{
		"": 64055, "#user = \"root\"\n": 64055, "user = \"root\"\n": 0, "user = \"+107\"\n": 107, "user=\"nobody\"": -1, "group = \"x\"\nusers = \"root\"\n": 64055,
	} {
		m := newMachine(tree(t, map[string]string{"etc/passwd": passwd, "etc/libvirt/qemu.conf": conf}))
		if q := m.libvirt().QEMU(libvirt.Domain{}); q.UID != want {
			t.Errorf("%q: %d, not %d", conf, q.UID, want)
		}
	}
}

// TestModes: whether QEMU's user gets to disk.raw is tried as that user, from the root
// down, also by its groups; and the file itself where libvirt does not give it away.
func TestModes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it tries as another user")
	}
	outer := t.TempDir()
	dir := filepath.Join(outer, "vms/vm1")
	raw := filepath.Join(dir, "disk.raw")
	for _, err := range []error{os.MkdirAll(dir, 0o755), os.WriteFile(raw, nil, 0o600), os.Chmod(filepath.Dir(outer), 0o755), os.Chmod(outer, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	const group, user, keeps = "kvm:x:106:libvirt-qemu\n", "", "dynamic_ownership = 0\n"
	s := Scope{Subject: "d", Mounts: []mounts.Mount{{Mountpoint: dir, UID: 0, AllowOther: true}}}
	for _, test := range []struct {
		name      string
		vms, mode os.FileMode // of the directory above the mountpoint, and of that
		file      os.FileMode
		conf      string
		want, fix string
	}{
		{"a private mount", 0o755, 0o700, 0o600, user, "the mount's modes (drwx------) do not let it pass", "--umask 066"},
		{"as libvirt wants it", 0o755, 0o711, 0o600, user, "", ""},
		{"a private directory above", 0o700, 0o711, 0o600, user, "may not pass the directory " + filepath.Dir(dir) + " (drwx------)", "setfacl -m u:64055:x " + filepath.Dir(dir)},
		{"a directory of its group", 0o710, 0o711, 0o600, user, "", ""},
		{"libvirt keeps owners", 0o755, 0o711, 0o600, keeps, "may not read and write disk.raw (-rw-------)", "--allow-other --uid 64055 --gid 64055"},
		{"libvirt keeps owners, and that is right", 0o755, 0o711, 0o666, keeps, "", ""},
		{"another user", 0o755, 0o711, 0o600, "user = \"root\"\n" + keeps, "", ""},
	} {
		for _, err := range []error{os.Chmod(filepath.Dir(dir), test.vms), os.Chown(filepath.Dir(dir), 0, 106), os.Chmod(dir, test.mode), os.Chmod(raw, test.file)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		root := tree(t, map[string]string{"etc/passwd": passwd, "etc/group": group, "etc/libvirt/qemu.conf": test.conf, "etc/libvirt/qemu/vm1.xml": domainOf(raw, "raw")})
		found := hostChecks(t, on(root, 0, s))
		switch {
		case test.want == "" && len(found) == 0:
		case len(found) != 1 || test.want == "" || !strings.HasSuffix(found[0].What, ", and "+test.want) || !strings.Contains(found[0].Fix, test.fix):
			t.Errorf("%s: %+v", test.name, found)
		}
	}
	// Who is not root goes by the modes.
	if err := os.Chmod(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	m := on(tree(t, map[string]string{"etc/passwd": passwd}), 1000, s).machine
	if at, _ := m.refusedAt(libvirt.QEMU{UID: 64055, GID: 64055}, passErrand, raw); at != filepath.Dir(dir) {
		t.Errorf("by the modes: refused at %q", at)
	}
}

// TestRedefinition: the command that doctor gives puts disk.raw into the domain, with what
// else the domain has of that disk.
func TestRedefinition(t *testing.T) {
	s := Scope{Subject: "/srv/d.varve", Directory: "/srv/d.varve", Layers: []Layer{{ID: "000001", Name: "adopted", State: "frozen", File: "/srv/vm1.s2", Foreign: true}},
		Mounts: []mounts.Mount{{Mountpoint: "/mnt/vm1", UID: 64055, AllowOther: true}}}
	const want = `virsh update-device vm1 /dev/stdin --config <<'END'
<disk type='file' device='disk'>
  <driver name='qemu' type='raw' cache='none' io='native' discard='unmap'/>
  <source file='/mnt/vm1/disk.raw'/>
  <target dev='vda' bus='virtio'/>
</disk>
END
`
	chain := "'/><backingStore type='file'><format type='qcow2'/><source file='/srv/vm1.s1'/></backingStore><address type='x"
	for _, path := range []string{"/srv/vm1.s2", "/srv/vm1.s2" + chain, "/mnt/vm1/disk.raw", "/mnt/vm1/disk.raw" + chain} {
		found := hostChecks(t, on(tree(t, map[string]string{"etc/passwd": passwd, "etc/libvirt/qemu/vm1.xml": domainOf(path, "qcow2")}), 0, s))
		if len(found) != 1 || found[0].Severity != Problem || strings.Replace(found[0].Commands, "  <address type='x'/>\n", "", 1) != want {
			t.Errorf("%s: %+v", path, found)
		}
	}
}

// TestSnapshotsOfLibvirt: libvirt's list of snapshots whose files are layers now is worth
// a word.
func TestSnapshotsOfLibvirt(t *testing.T) {
	const snapshot = `<domainsnapshot><name>NAME</name><disks><disk name='vda' snapshot='external'><source file='/srv/vm1.NAME'/></disk></disks></domainsnapshot>`
	files := map[string]string{"etc/passwd": passwd}
	for _, name := range []string{"s1", "s2", "other"} {
		files["var/lib/libvirt/qemu/snapshot/vm1/"+name+".xml"] = strings.ReplaceAll(snapshot, "NAME", name)
	}
	s := on(tree(t, files), 0, Scope{Subject: "d", Directory: "/srv/d.varve", Layers: []Layer{{File: "/srv/vm1.s1", Format: "qcow2", Foreign: true}, {File: "/srv/vm1.s2", Format: "qcow2", Foreign: true}, {File: "/srv/d.varve/layers/000003.qcow2", Format: "qcow2"}}})
	found := lookAtSnapshots(s)
	if len(found) != 1 || !strings.HasPrefix(found[0].What, "libvirt still lists s1, s2 as snapshots of domain vm1") ||
		found[0].Commands != "virsh snapshot-delete vm1 s1 --metadata\nvirsh snapshot-delete vm1 s2 --metadata\n" {
		t.Errorf("%+v", found)
	}
}

// TestSecurity: AppArmor and SELinux as their files in /sys show them.
func TestSecurity(t *testing.T) {
	s := Scope{Subject: "d", Mounts: []mounts.Mount{{Mountpoint: "/mnt/vm1", UID: 0, AllowOther: true}}}
	apparmor := map[string]string{"sys/module/apparmor/parameters/enabled": "Y\n", "etc/apparmor.d/abstractions/libvirt-qemu": ""}
	selinux := map[string]string{"sys/fs/selinux/enforce": "1", "sys/fs/selinux/booleans/virt_use_fusefs": "0 0", "etc/libvirt/qemu.conf": ""}
	with := func(files map[string]string, more ...string) map[string]string {
		all := map[string]string{}
		for name, text := range files {
			all[name] = text
		}
		for i := 0; i < len(more); i += 2 {
			all[more[i]] = more[i+1]
		}
		return all
	}
	running := []string{
		"proc/77/cmdline", "qemu-system-x86_64\x00-name\x00guest=vm1\x00-drive\x00file=/mnt/vm1/disk.raw,format=raw\x00",
		"proc/77/comm", "qemu-system-x86\n", "proc/77/status", "Name:\tqemu\nUid:\t64055\t64055\t64055\t64055\nGid:\t64055\t64055\t64055\t64055\n",
	}
	typed := s
	typed.Mounts = []mounts.Mount{{Mountpoint: "/mnt/vm1", UID: 0, Context: true}}
	tests := []struct {
		name  string
		files map[string]string
		scope Scope
		want  Severity // "" for nothing
		words string   // in the way out
	}{
		{"neither", nil, s, "", ""},
		{"AppArmor off", map[string]string{"sys/module/apparmor/parameters/enabled": "N\n"}, s, "", ""},
		{"AppArmor", apparmor, s, Note, `"/mnt/vm1/disk.raw rwk," and "/mnt/vm1/layers/*.raw rk,"`},
		{"AppArmor, no libvirt", map[string]string{"sys/module/apparmor/parameters/enabled": "Y\n"}, s, "", ""},
		{"AppArmor, a VM", with(map[string]string{"sys/module/apparmor/parameters/enabled": "Y\n"}, running...), s, Note, "DENIED"},
		{"SELinux, no libvirt", map[string]string{"sys/fs/selinux/enforce": "1", "sys/fs/selinux/booleans/virt_use_fusefs": "0 0"}, s, "", ""},
		{"SELinux, a VM", with(map[string]string{"sys/fs/selinux/enforce": "1"}, running...), s, Warning, "setsebool"},
		{"AppArmor with the rule", with(apparmor, "etc/apparmor.d/local/abstractions/libvirt-qemu", "/mnt/vm1/disk.raw rwk,\n"), s, "", ""},
		{"AppArmor with another's rule", with(apparmor, "etc/apparmor.d/local/abstractions/libvirt-qemu", "/mnt/vm10/disk.raw rwk,\n"), s, Note, "vm1"},
		{"AppArmor, and a VM runs with it", with(apparmor, append(running, "proc/77/attr/current", "libvirt-0f5ab9ee-6ec9-4b1a-9d0d-4c0c3a1b4c11 (enforce)\n")...), s, "", ""},
		{"AppArmor, and a VM runs without", with(apparmor, append(running, "proc/77/attr/current", "unconfined\n")...), s, Note, "DENIED"},
		{"SELinux", selinux, s, Warning, "setsebool -P virt_use_fusefs on"},
		{"SELinux, for a VM", with(selinux, "etc/libvirt/qemu/vm1.xml", domainOf("/mnt/vm1/disk.raw", "raw")), s, Problem, "setsebool"},
		{"SELinux permissive", with(selinux, "sys/fs/selinux/enforce", "0"), s, "", ""},
		{"SELinux allows it", with(selinux, "sys/fs/selinux/booleans/virt_use_fusefs", "1 1"), s, "", ""},
		{"SELinux, a mount with a type", selinux, typed, "", ""},
	}
	for _, test := range tests {
		s := on(tree(t, test.files), 0, test.scope)
		found := append(lookAtAppArmor(context.Background(), s), lookAtSELinux(context.Background(), s)...)
		switch {
		case test.want == "" && len(found) == 0:
		case len(found) != 1 || found[0].Severity != test.want || !strings.Contains(found[0].Fix, test.words):
			t.Errorf("%s: got %+v", test.name, found)
		}
	}
}

func TestHost(t *testing.T) {
	host := Scope{Subject: "host", Host: true}
	look := func(root string, uid int) []string {
		s := on(root, uid, host)
		var list []Finding
		list = append(list, lookAtFUSE(context.Background(), s)...)
		list = append(list, lookAtAllowOther(context.Background(), s)...)
		return summary(append(list, lookAtLostDisks(context.Background(), s)...))
	}
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "fusermount3"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	fuse := map[string]string{"dev/fuse": ""}
	if got := look(tree(t, fuse), 0); got != nil {
		t.Errorf("root: %q", got)
	}
	if got := look(tree(t, nil), 0); len(got) != 1 || !strings.Contains(got[0], "/dev/fuse is not there") {
		t.Errorf("no device: %q", got)
	}
	want := []string{"warning", "note"} // fusermount3 without setuid, fuse.conf
	for _, conf := range []string{"", "# user_allow_other\n", "user_allow_others\n"} {
		if got := look(tree(t, map[string]string{"dev/fuse": "", "etc/fuse.conf": conf}), 1000); len(got) != 1 {
			t.Errorf("fuse.conf %q, no libvirt: %q", conf, got)
		}
		got := look(tree(t, map[string]string{"dev/fuse": "", "etc/fuse.conf": conf, "etc/libvirt/qemu.conf": ""}), 1000)
		if len(got) != 2 || !strings.HasPrefix(got[0], want[0]) || !strings.HasPrefix(got[1], want[1]) {
			t.Errorf("fuse.conf %q: %q", conf, got)
		}
	}
	if err := os.Chmod(filepath.Join(bin, "fusermount3"), 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	if got := look(tree(t, map[string]string{"dev/fuse": "", "etc/fuse.conf": "#x\n user_allow_other \n"}), 1000); got != nil {
		t.Errorf("all there: %q", got)
	}
	t.Setenv("PATH", t.TempDir())
	if got := look(tree(t, map[string]string{"dev/fuse": "", "etc/fuse.conf": "user_allow_other\n"}), 1000); len(got) != 1 || !strings.HasPrefix(got[0], "problem") {
		t.Errorf("no fusermount3: %q", got)
	}

	gone := filepath.Join(t.TempDir(), "disk.raw")
	fuse["proc/77/cmdline"] = "/usr/libexec/qemu-kvm\x00-drive\x00file=" + gone + ",format=raw\x00"
	fuse["proc/77/comm"] = "qemu-kvm\n"
	in := func(namespace string) string {
		root := tree(t, fuse)
		for pid, link := range map[string]string{"self": "mnt:[1]", "77": namespace} {
			if err := os.MkdirAll(filepath.Join(root, "proc", pid, "ns"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(link, filepath.Join(root, "proc", pid, "ns/mnt")); err != nil {
				t.Fatal(err)
			}
		}
		return root
	}
	if got := look(in("mnt:[1]"), 0); len(got) != 1 || !strings.HasPrefix(got[0], "problem : pid 77 qemu-kvm has "+gone+", where no disk is mounted") {
		t.Errorf("no mount: %q", got)
	}
	if got := look(in("mnt:[2]"), 0); got != nil {
		t.Errorf("in a mount namespace of its own: %q", got)
	}
	if got := look(tree(t, fuse), 0); got != nil {
		t.Errorf("in a mount namespace that cannot be told: %q", got)
	}
}

// TestResolveStops: links are followed up to a file system that may not answer.
func TestResolveStops(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"abs": dir + "/mnt", "rel": "./x/../mnt", "loop": "loop", "mnt/inner": "/etc"} {
		if err := os.MkdirAll(filepath.Join(dir, "mnt"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	m := newMachine("/")
	m.slow = func() []string { return []string{dir + "/mnt"} }
	for path, want := range map[string]string{
		dir + "/abs/disk.raw":     dir + "/mnt/disk.raw",
		dir + "/rel/disk.raw":     dir + "/mnt/disk.raw",
		dir + "/abs/inner/x":      dir + "/mnt/inner/x",
		dir + "/none/../x":        dir + "/x",
		dir + "/loop/disk.raw":    dir + "/loop/disk.raw",
		"/":                       "/",
		dir + "/mnt/../abs/x.raw": dir + "/mnt/../abs/x.raw",
	} {
		if got := m.resolve(path); got != want && got != filepath.Clean(want) {
			t.Errorf("%s: %s, not %s", path, got, want)
		}
	}
}

// TestOpenFiles: others than VMs too, with how they have a file open.
func TestOpenFiles(t *testing.T) {
	s := fakeDisk(t)
	base, disk := s.Layers[0].File, filepath.Join(s.Mounts[0].Mountpoint, "disk.raw")
	reader := harness.KeepShell(t, "exec 7<"+base+" 8<"+disk)
	writer := harness.KeepShell(t, "exec 7<>"+base)
	got := summary(hostChecks(t, s))
	want := []string{
		fmt.Sprintf("problem open-files: pid %d sh has the base, %s, open to write: every write changes what the layers above show", writer, base),
		fmt.Sprintf("note open-files: the base, %s, is open: pid %d sh read only", base, reader),
		fmt.Sprintf("note open-files: disk.raw is open: pid %d sh read only", reader),
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
