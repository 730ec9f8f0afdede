package fs

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var ns []string
	for _, e := range es {
		ns = append(ns, e.Name())
	}
	return ns
}

func TestTree(t *testing.T) {
	dir, _, s := mounted(t, mib, Options{UID: 5, GID: 6, Umask: 0o022})
	for sub, want := range map[string][]string{
		".":       {"control", "disk.raw", "layers", "map.svg", "metrics", "status", "status.json"},
		"control": {"cancel", "clone", "delete", "diff", "flatten", "hold", "plan", "rate", "release", "rename", "resize", "revert", "snapshot", "undo"},
		"layers":  {"base.raw"},
	} {
		if got := names(t, filepath.Join(dir, sub)); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", sub, got, want)
		}
	}
	type node struct {
		mode     uint32
		uid, gid uint32
		ino      uint64
	}
	me, group := uint32(os.Getuid()), uint32(os.Getgid())
	want := map[string]node{
		".":               {unix.S_IFDIR | 0o755, 5, 6, 1},
		"disk.raw":        {unix.S_IFREG | 0o644, 5, 6, 2},
		"layers":          {unix.S_IFDIR | 0o755, 5, 6, 3},
		"layers/base.raw": {unix.S_IFREG | 0o444, 5, 6, 1<<20 + 1},
		"control":         {unix.S_IFDIR | 0o700, me, group, 4},
		"status":          {unix.S_IFREG | 0o444, 5, 6, 5},
		"status.json":     {unix.S_IFREG | 0o444, 5, 6, 6},
		"map.svg":         {unix.S_IFREG | 0o444, 5, 6, 7},
		"metrics":         {unix.S_IFREG | 0o444, 5, 6, 8},
	}
	for i, name := range []string{"snapshot", "revert", "delete", "flatten", "rename", "resize", "cancel", "rate", "undo", "hold", "release", "clone", "plan", "diff"} {
		want["control/"+name] = node{unix.S_IFREG | 0o600, me, group, uint64(16 + i)}
	}
	for name, n := range want {
		st := stat(t, filepath.Join(dir, name))
		if got := (node{st.Mode, st.Uid, st.Gid, st.Ino}); got != n {
			t.Errorf("%s: %+v, want %+v", name, got, n)
		}
	}
	if err := s.Unmount(); err != nil {
		t.Fatal(err)
	}
	s.Wait()
	serve(t, s.fs.disk, dir, Options{UID: 5, GID: 6, Umask: 0o022})
	for name, n := range want {
		if st := stat(t, filepath.Join(dir, name)); st.Ino != n.ino {
			t.Errorf("%s has inode %d in the next mount, %d before", name, st.Ino, n.ino)
		}
	}
}

func TestMountTable(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(top, "a, b\\c.varve")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	serve(t, newFakeDisk(disk, mib), dir, Options{MountOptions: []string{"noexec", "noatime", "suid", "nofail", "x-gvfs-hide"}})
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var line string
	for l := range strings.Lines(string(table)) {
		if strings.Contains(l, " "+dir+" ") {
			line = l
		}
	}
	for _, want := range []string{
		" fuse.varve " + strings.NewReplacer(`\`, `\134`, " ", `\040`).Replace(disk) + " ",
		"default_permissions", "nodev", "noexec", "noatime", "max_read=1048576",
	} {
		if !strings.Contains(line, want) {
			t.Errorf("no %q in %q", want, line)
		}
	}
	if strings.Contains(line, "nosuid") || strings.Contains(line, "allow_other") {
		t.Error(line)
	}
	var fsStat, hostStat unix.Statfs_t
	if err := unix.Statfs(dir, &fsStat); err != nil {
		t.Fatal(err)
	}
	if err := unix.Statfs(disk, &hostStat); err != nil {
		t.Fatal(err)
	}
	if fsStat.Blocks != hostStat.Blocks || fsStat.Bsize != hostStat.Bsize || fsStat.Namelen != 255 {
		t.Errorf("statfs %+v, the host's %+v", fsStat, hostStat)
	}
}

// rm -r, and every other way to change the tree, loses nothing.
func TestNothingCanBeRemovedOrMade(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{})
	if err := d.Snapshot("one"); err != nil {
		t.Fatal(err)
	}
	if out, err := shell(t, dir, "rm -rf * layers/*"); err == nil {
		t.Errorf("rm -rf succeeded: %s", out)
	}
	if got := names(t, filepath.Join(dir, "layers")); !slices.Equal(got, []string{"base.raw", "one.raw"}) {
		t.Errorf("left: %v", got)
	}
	if got := names(t, dir); len(got) != 7 {
		t.Errorf("left: %v", got)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for what, err := range map[string]error{
		"unlink a layer":       os.Remove(at("layers/one.raw")),
		"unlink disk.raw":      os.Remove(at(nameDisk)),
		"unlink a control":     os.Remove(at("control/snapshot")),
		"rmdir":                unix.Rmdir(at("layers")),
		"create in the root":   os.WriteFile(at("new"), nil, 0o600),
		"create a layer":       os.WriteFile(at("layers/new.raw"), nil, 0o600),
		"mkdir":                os.Mkdir(at("layers/new"), 0o700),
		"mknod":                unix.Mknod(at("layers/fifo"), unix.S_IFIFO|0o600, 0),
		"symlink":              os.Symlink("x", at("link")),
		"link":                 os.Link(at(nameDisk), at("link")),
		"rename disk.raw":      os.Rename(at(nameDisk), at("old.raw")),
		"rename a control":     os.Rename(at("control/snapshot"), at("control/x")),
		"move a layer out":     os.Rename(at("layers/one.raw"), at("one.raw")),
		"move disk.raw in":     os.Rename(at(nameDisk), at("layers/disk.raw")),
		"touch a layer":        os.Chtimes(at("layers/one.raw"), time.Now(), time.Now()),
		"chmod a control":      os.Chmod(at("control/snapshot"), 0o666),
		"chmod a directory":    os.Chmod(at("layers"), 0o777),
		"set our attribute":    unix.Setxattr(at(nameDisk), "user.varve.id", []byte("x"), 0),
		"remove our attribute": unix.Removexattr(at(nameDisk), "user.varve.id"),
	} {
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: %v, want EPERM", what, err)
		}
	}
	if fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o600); err == nil {
		t.Error("O_TMPFILE made a file")
		unix.Close(fd)
	}
	if err := unix.Setxattr(at("layers/one.raw"), "trusted.libvirt.security.dac", []byte("+0:+0"), 0); err != unix.EOPNOTSUPP {
		t.Errorf("a foreign attribute: %v, want EOPNOTSUPP", err)
	}
	// libvirt asks first, and with ENODATA would take the refusal for a failure.
	if _, err := unix.Getxattr(at("layers/one.raw"), "trusted.libvirt.security.dac", make([]byte, 64)); err != unix.EOPNOTSUPP {
		t.Errorf("asking for a foreign attribute: %v, want EOPNOTSUPP", err)
	}
}

func TestLayers(t *testing.T) {
	dir, d, _ := mounted(t, 4*mib, Options{})
	disk := open(t, filepath.Join(dir, nameDisk), os.O_RDWR)
	if _, err := disk.WriteAt([]byte("before"), 8192); err != nil {
		t.Fatal(err)
	}
	if err := write(t, filepath.Join(dir, "control/snapshot"), "one\n"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "layers/one.raw")
	st := stat(t, path)
	frozen := d.layer(1).status.Frozen
	if st.Size != 4*mib || st.Blocks != 8 || !time.Unix(st.Mtim.Unix()).Equal(frozen) || st.Ino != 1<<20+2 {
		t.Errorf("%+v", st)
	}
	if _, err := disk.WriteAt([]byte("after!"), 8192); err != nil {
		t.Fatal(err)
	}
	want := d.layer(1).data
	for range 2 { // from the chain, then from the page cache
		got, err := os.ReadFile(path)
		if err != nil || sha256.Sum256(got) != sha256.Sum256(want) {
			t.Errorf("the layer reads otherwise: %v", err)
		}
	}
	if got, want := runHelper(t, "mmap", path), fmt.Sprintf("%x\n", sha256.Sum256(want)); got != want {
		t.Errorf("mapped: %s, want %s", got, want)
	}
	// The host may take pages back at any time, but not each time.
	more := 1
	for try := 0; try < 10 && more > 0; try++ {
		reads := d.count("View.ReadAt")
		if _, err := os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		more = d.count("View.ReadAt") - reads
	}
	if more > 0 {
		t.Errorf("another open read %d times more; its pages should have been kept", more)
	}
	direct := open(t, path, os.O_RDONLY|unix.O_DIRECT)
	buf := aligned(make([]byte, 4096))
	if n, err := unix.Pread(int(direct.Fd()), buf, 8192); n != 4096 || err != nil || string(buf[:6]) != "before" {
		t.Errorf("O_DIRECT: %d, %v, %q", n, err, buf[:6])
	}
	if pos, err := unix.Seek(int(direct.Fd()), 0, unix.SEEK_DATA); pos != 8192 || err != nil {
		t.Errorf("SEEK_DATA %d, %v", pos, err)
	}
	if pos, err := unix.Seek(int(direct.Fd()), 8192, unix.SEEK_HOLE); pos != 12288 || err != nil {
		t.Errorf("SEEK_HOLE %d, %v", pos, err)
	}
	if _, err := unix.Seek(int(direct.Fd()), 12288, unix.SEEK_DATA); err != unix.ENXIO {
		t.Errorf("SEEK_DATA at the last hole: %v, want ENXIO", err)
	}
	// Root has no rights here either: the mode bits do not stop root, we do.
	for _, flag := range []int{os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_APPEND} {
		if file, err := os.OpenFile(path, flag, 0); !errors.Is(err, unix.EACCES) {
			t.Errorf("open with flags %#x: %v, want EACCES", flag, err)
			file.Close()
		}
	}
	if err := os.Truncate(path, 0); !errors.Is(err, unix.EACCES) {
		t.Errorf("truncate: %v, want EACCES", err)
	}
}

func TestRenameInLayers(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{})
	for _, name := range []string{"one", "two"} {
		if err := d.Snapshot(name); err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, "layers", name) }
	for _, c := range []struct {
		old, new string
		flags    uint
		want     error
	}{
		{"one.raw", "two.raw", 0, unix.EEXIST},
		{"one.raw", "two.raw", unix.RENAME_NOREPLACE, unix.EEXIST},
		{"one.raw", "two.raw", unix.RENAME_EXCHANGE, unix.EINVAL},
		{"one.raw", "one.bak", 0, unix.EPERM},
		{"one.raw", "-x.raw", 0, unix.EPERM},
		{"one.raw", "leaf.raw", 0, unix.EPERM},
		{"one.raw", ".raw", 0, unix.EPERM},
		{"base.raw", "other.raw", 0, unix.EPERM},
		{"none.raw", "other.raw", 0, unix.ENOENT},
		{"one.raw", "three.raw", unix.RENAME_NOREPLACE, nil},
		{"three.raw", "four.raw", 0, nil},
	} {
		if err := unix.Renameat2(unix.AT_FDCWD, at(c.old), unix.AT_FDCWD, at(c.new), c.flags); err != c.want {
			t.Errorf("rename %s %s: %v, want %v", c.old, c.new, err, c.want)
		}
	}
	if got := names(t, filepath.Join(dir, "layers")); !slices.Equal(got, []string{"base.raw", "four.raw", "two.raw"}) {
		t.Errorf("left: %v", got)
	}
	// By the control file, behind the kernel's back.
	before := stat(t, at("four.raw"))
	if err := write(t, filepath.Join(dir, "control/rename"), "four five"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(at("four.raw")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old name: %v", err)
	}
	if after := stat(t, at("five.raw")); after.Ino != before.Ino {
		t.Errorf("the inode changed from %d to %d", before.Ino, after.Ino)
	}
}

func TestListingOfManyLayers(t *testing.T) {
	dir, d, _ := mounted(t, 4096, Options{})
	want := []string{"base.raw"}
	for i := range 500 {
		name := fmt.Sprintf("snapshot-with-a-rather-long-name-%04d", i)
		if err := d.Snapshot(name); err != nil {
			t.Fatal(err)
		}
		want = append(want, name+".raw")
	}
	if got := names(t, filepath.Join(dir, "layers")); !slices.Equal(got, want) {
		t.Errorf("%d names, want %d", len(got), len(want))
	}
	// The names read on after a change are the ones that stood there when
	// the directory was opened; rewound, the new ones.
	file := open(t, filepath.Join(dir, "layers"), os.O_RDONLY)
	first, err := file.Readdirnames(10)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Snapshot("late"); err != nil {
		t.Fatal(err)
	}
	rest, err := file.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	if got := append(first, rest...); !slices.Equal(got, want) {
		t.Errorf("%d names after a change, want %d", len(got), len(want))
	}
	if _, err := file.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	if again, err := file.Readdirnames(-1); err != nil || !slices.Contains(again, "late.raw") {
		t.Errorf("rewound: %d names, %v", len(again), err)
	}
}

func TestOtherUsers(t *testing.T) {
	attempts := []string{
		"cat mnt/disk.raw", "cat mnt/layers/base.raw", "cat mnt/status", "cat mnt/status.json", "ls mnt/layers",
		"ls mnt/control", "cat mnt/control/snapshot", "echo x > mnt/control/snapshot",
		"dd if=/dev/zero of=mnt/disk.raw count=1 conv=notrunc",
	}
	t.Run("without allow_other", func(t *testing.T) {
		dir, _, _ := mounted(t, mib, Options{Umask: 0})
		for _, script := range append(attempts, "ls mnt") {
			if out, err := asNobody(t, filepath.Dir(dir), script); err == nil || !strings.Contains(out, "denied") {
				t.Errorf("%s: %v, %s", script, err, out)
			}
		}
	})
	t.Run("with allow_other", func(t *testing.T) {
		dir, d, _ := mounted(t, mib, Options{AllowOther: true, Umask: 0o077})
		for _, script := range attempts {
			if out, err := asNobody(t, filepath.Dir(dir), script); err == nil || !strings.Contains(out, "denied") {
				t.Errorf("%s: %v, %s", script, err, out)
			}
		}
		if d.count("OpenDisk")+d.count("OpenView")+d.count("Snapshot") != 0 {
			t.Error("a refused request reached the chain")
		}
	})
	t.Run("with allow_other and modes that let in", func(t *testing.T) {
		dir, _, _ := mounted(t, mib, Options{AllowOther: true, Umask: 0o022})
		if out, err := asNobody(t, filepath.Dir(dir), "cmp mnt/disk.raw mnt/layers/base.raw && cat mnt/status.json"); err != nil {
			t.Errorf("%v, %s", err, out)
		}
		for _, script := range attempts[5:] {
			if out, err := asNobody(t, filepath.Dir(dir), script); err == nil || !strings.Contains(out, "denied") {
				t.Errorf("%s: %v, %s", script, err, out)
			}
		}
		// As libvirt does before it starts a QEMU of its own user.
		if err := os.Chown(filepath.Join(dir, nameDisk), 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if out, err := asNobody(t, filepath.Dir(dir), attempts[len(attempts)-1]); err != nil {
			t.Errorf("after a chown: %v, %s", err, out)
		}
	})
}

func TestExtendedAttributes(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{})
	if err := d.Snapshot("one"); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]map[string]string{
		"layers/one.raw": {
			"id": "000002", "name": "one", "state": "frozen", "foreign": "false", "parent": "000001", "children": "",
			"format": "qcow2", "file": d.dir + "/layers/one", "created": "2026-11-01T08:30:00Z", "size": "1048576",
			"own_bytes": "8192", "host_bytes": "12288", "depth": "2",
		},
		"layers/base.raw": {"id": "000001", "name": "base", "state": "base", "foreign": "true", "parent": "", "format": "raw"},
		"disk.raw":        {"id": "000100", "name": "", "state": "leaf", "parent": "000002"},
	} {
		path := filepath.Join(dir, file)
		for name, value := range want {
			buf := make([]byte, 200)
			n, err := unix.Getxattr(path, "user.varve."+name, buf)
			if err != nil || string(buf[:n]) != value {
				t.Errorf("%s %s: %q, %v; want %q", file, name, buf[:max(n, 0)], err, value)
			}
		}
		list := make([]byte, 1000)
		n, err := unix.Listxattr(path, list)
		if err != nil || strings.Count(string(list[:n]), "\x00") != 13 || !strings.HasPrefix(string(list), "user.varve.id\x00") {
			t.Errorf("%s list: %q, %v", file, list[:max(n, 0)], err)
		}
		if need, err := unix.Listxattr(path, nil); need != n || err != nil {
			t.Errorf("%s list needs %d, %v; it has %d", file, need, err, n)
		}
		if _, err := unix.Listxattr(path, make([]byte, 5)); err != unix.ERANGE {
			t.Errorf("%s list into 5 bytes: %v, want ERANGE", file, err)
		}
		if _, err := unix.Getxattr(path, "user.varve.state", make([]byte, 1)); err != unix.ERANGE {
			t.Errorf("%s value into 1 byte: %v, want ERANGE", file, err)
		}
		if n, err := unix.Getxattr(path, "user.varve.state", nil); n != len(want["state"]) || err != nil {
			t.Errorf("%s value needs %d, %v", file, n, err)
		}
		for _, name := range []string{"user.varve.none", "user.other", "security.capability"} {
			if _, err := unix.Getxattr(path, name, make([]byte, 10)); err != unix.ENODATA {
				t.Errorf("%s %s: %v, want ENODATA", file, name, err)
			}
		}
	}
	if n, err := unix.Listxattr(filepath.Join(dir, nameStatus), make([]byte, 10)); n != 0 || err != nil {
		t.Errorf("status: %d, %v; want none", n, err)
	}
}
