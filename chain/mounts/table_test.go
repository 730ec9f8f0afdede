package mounts

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// words tells all that a table says of varve's mounts, a line each.
func words(t Table) string {
	var b strings.Builder
	for _, m := range t.List() {
		fmt.Fprintf(&b, "%s of %s", m.Mountpoint, m.Source)
		if !m.Reachable() {
			fmt.Fprintf(&b, ", under %s at %s", m.Over, m.OverAt)
		}
		for _, bind := range m.Binds {
			fmt.Fprintf(&b, "; %s", bind)
			if !bind.Reachable() {
				fmt.Fprintf(&b, ", under %s at %s", bind.Over, bind.OverAt)
			}
		}
		b.WriteString("\n")
	}
	for _, m := range t.Loose() {
		fmt.Fprintf(&b, "only %s of %s\n", m, m.Source)
	}
	return b.String()
}

// TestTable judges tables that Linux 6.18 showed (with other paths).
func TestTable(t *testing.T) {
	const root = "26 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n"
	line := func(id, parent int, device, root, at, disk string) string {
		return fmt.Sprintf("%d %d %s %s %s rw,nosuid,nodev,relatime - fuse.varve /srv/%s.varve rw,user_id=0,group_id=0,default_permissions,max_read=1048576\n", id, parent, device, root, at, disk)
	}
	for _, c := range []struct{ name, table, want string }{
		{"nothing", root, ""},
		{"a file, a directory and all of it bound",
			root + line(45, 26, "0:40", "/", "/srv/m", "d") + line(46, 26, "0:40", "/disk.raw", "/srv/f.raw", "d") +
				line(47, 26, "0:40", "/layers", "/srv/l", "d") + line(48, 26, "0:40", "/", "/srv/w", "d"),
			"/srv/m of /srv/d.varve; disk.raw at /srv/f.raw; layers at /srv/l; all of it at /srv/w\n"},
		{"the first mountpoint gone",
			root + line(46, 26, "0:40", "/disk.raw", "/srv/f.raw", "d") + line(48, 26, "0:40", "/", "/srv/w", "d"),
			"/srv/w of /srv/d.varve; disk.raw at /srv/f.raw\n"},
		{"bound back: the kernel used the number of the first mount again",
			root + line(48, 26, "0:40", "/", "/srv/w", "d") + line(45, 26, "0:40", "/", "/srv/m", "d"),
			"/srv/w of /srv/d.varve; all of it at /srv/m\n"},
		{"moved", root + line(45, 26, "0:40", "/", "/srv/n", "d"), "/srv/n of /srv/d.varve\n"},
		{"only parts",
			root + line(46, 26, "0:40", "/disk.raw", "/srv/only.raw", "d") + line(47, 26, "0:41", "/layers//deleted", "/srv/gone", "e"),
			"only disk.raw at /srv/only.raw of /srv/d.varve\nonly layers at /srv/gone of /srv/e.varve\n"},
		{"two disks with a bind each",
			root + line(45, 26, "0:40", "/", "/srv/m", "d") + line(46, 26, "0:41", "/", "/srv/n", "e") +
				line(47, 26, "0:40", "/disk.raw", "/srv/d.raw", "d") + line(48, 26, "0:41", "/disk.raw", "/srv/e.raw", "e"),
			"/srv/m of /srv/d.varve; disk.raw at /srv/d.raw\n/srv/n of /srv/e.varve; disk.raw at /srv/e.raw\n"},
		{"something over the mountpoint",
			root + line(45, 26, "0:40", "/", "/srv/n", "d") + "46 45 0:41 / /srv/n rw,relatime - tmpfs tmpfs rw\n",
			"/srv/n of /srv/d.varve, under tmpfs (tmpfs) at /srv/n\n"},
		{"something over a directory above",
			root + line(45, 26, "0:40", "/", "/srv/h/m", "d") + "46 26 0:41 / /srv/h rw,relatime - tmpfs hides rw\n",
			"/srv/h/m of /srv/d.varve, under hides (tmpfs) at /srv/h\n"},
		{"the directory above bound over itself",
			root + line(45, 26, "0:40", "/", "/srv/h/m", "d") + "46 26 254:0 /srv/h /srv/h rw,relatime - ext4 /dev/vda rw\n",
			"/srv/h/m of /srv/d.varve, under /dev/vda (ext4) at /srv/h\n"},
		{"mounted below what was bound over itself",
			root + "45 26 254:0 /srv/h /srv/h rw,relatime - ext4 /dev/vda rw\n" + line(46, 45, "0:40", "/", "/srv/h/m", "d"),
			"/srv/h/m of /srv/d.varve\n"},
		{"a neighbour whose name begins alike",
			root + line(45, 26, "0:40", "/", "/srv/mm", "d") + "46 26 0:41 / /srv/m rw,relatime - tmpfs tmpfs rw\n",
			"/srv/mm of /srv/d.varve\n"},
		{"something mounted inside", // of a bind of a directory, say
			root + line(45, 26, "0:40", "/", "/srv/m", "d") + "46 45 0:41 / /srv/m/layers rw,relatime - tmpfs tmpfs rw\n",
			"/srv/m of /srv/d.varve\n"},
		{"another disk's bind over it",
			root + line(45, 26, "0:40", "/", "/srv/m", "d") + line(46, 26, "0:41", "/", "/srv/m2", "e") + line(47, 45, "0:41", "/", "/srv/m", "e"),
			"/srv/m of /srv/d.varve, under /srv/e.varve (fuse.varve) at /srv/m\n/srv/m2 of /srv/e.varve; all of it at /srv/m\n"},
		{"the first place hidden, a bind not",
			root + line(45, 26, "0:40", "/", "/srv/m", "d") + "46 45 0:41 / /srv/m rw - tmpfs tmpfs rw\n" + line(47, 26, "0:40", "/", "/srv/w", "d"),
			"/srv/w of /srv/d.varve; all of it at /srv/m, under tmpfs (tmpfs) at /srv/m\n"},
		{"in a chroot, whose root has no parent there",
			"45 26 0:40 / /m rw,relatime - fuse.varve /srv/d.varve rw,user_id=0\n46 26 0:40 /disk.raw /f.raw rw - fuse.varve /srv/d.varve rw,user_id=0\n",
			"/m of /srv/d.varve; disk.raw at /f.raw\n"},
		{"a root that is its own parent", // of a container
			"26 26 254:0 / / rw - ext4 /dev/vda rw\n" + line(45, 26, "0:40", "/", "/m", "d"),
			"/m of /srv/d.varve\n"},
		{"another type of FUSE", root + "45 26 0:40 / /srv/m rw - fuse.other /srv/d.varve rw,user_id=0\n", ""},
	} {
		table, err := parse(strings.NewReader(c.table))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if got := words(table); got != c.want {
			t.Errorf("%s:\n got %s want %s", c.name, got, c.want)
		}
	}
}

// TestInside: a path below any place of a mount is one in the mount.
func TestInside(t *testing.T) {
	m := Mount{Mountpoint: "/srv/m", Root: "/", Binds: []Mount{{Mountpoint: "/srv/f.raw", Root: "/disk.raw"}, {Mountpoint: "/srv/l", Root: "/layers"}}}
	for path, want := range map[string]string{
		"/srv/m": ".", "/srv/m/disk.raw": "disk.raw", "/srv/f.raw": "disk.raw", "/srv/l": "layers", "/srv/l/a.raw": "layers/a.raw",
		"/srv/f.raw2": "", "/srv": "", "/other": "",
	} {
		if got, ok := m.Inside(path); got != want || ok != (want != "") {
			t.Errorf("%s: got %q, %v", path, got, ok)
		}
	}
}

// TestElsewhere: each place of another namespace is told once, with a process that sees
// the whole of it where there is one, and with one that is confined to a directory where
// there is not.
func TestElsewhere(t *testing.T) {
	proc := t.TempDir()
	const root = "26 1 254:0 / / rw - ext4 /dev/vda rw\n"
	place := func(id int, root, at string) string {
		return fmt.Sprintf("%d 26 0:40 %s %s rw - fuse.varve /srv/d.varve rw,user_id=0\n", id, root, at)
	}
	for _, p := range []struct{ pid, namespace, root, table string }{
		{"self", "mnt:[1]", "/", ""},
		{"100", "mnt:[1]", "/", "never read\n"},
		{"201", "mnt:[2]", "/jail", place(62, "/disk.raw", "/f.raw")},
		{"202", "mnt:[2]", "/", root + place(60, "/", "/srv/m") + place(61, "/disk.raw", "/f.raw")},
		{"203", "mnt:[2]", "/", "never read\n"},
		{"301", "mnt:[1]", "/jail", place(45, "/", "/m") + place(70, "/layers", "/l")},
		{"401", "", "", root + place(60, "/", "/srv/m") + place(80, "/", "/v")}, // another user's
		{"501", "mnt:[5]", "/", "cut o"},
	} {
		dir := filepath.Join(proc, p.pid)
		if err := os.MkdirAll(filepath.Join(dir, "ns"), 0o700); err != nil {
			t.Fatal(err)
		}
		if p.namespace != "" {
			for name, target := range map[string]string{"ns/mnt": p.namespace, "root": p.root} {
				if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "mountinfo"), []byte(p.table), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	own, err := parse(strings.NewReader(root + place(45, "/", "/srv/m")))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range elsewhere(proc, own) {
		got = append(got, fmt.Sprintf("%v, rooted %v", m, m.Rooted))
	}
	want := []string{
		"all of it at /srv/m in the mount namespace of pid 202, rooted false",
		"disk.raw at /f.raw in the mount namespace of pid 202, rooted false",
		"all of it at /v in the mount namespace of pid 401, rooted false",
		"disk.raw at /f.raw in the mount namespace of pid 201, rooted true",
		"layers at /l in the mount namespace of pid 301, rooted true",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// FuzzTable: whatever the kernel shows, every place of a mount is told exactly once.
func FuzzTable(f *testing.F) {
	f.Add("26 1 254:0 / / rw - ext4 /dev/vda rw\n45 26 0:40 / /m rw - fuse.varve /d rw\n46 45 0:40 /disk.raw /m rw - fuse.varve /d rw\n")
	f.Add("1 2 0:1 / /a rw - fuse.varve x rw\n2 1 0:1 / /a/b rw - fuse.varve x rw\n")
	f.Fuzz(func(t *testing.T, text string) {
		table, err := parse(strings.NewReader(text))
		if err != nil {
			return
		}
		places := 0
		for _, m := range table.List() {
			places += 1 + len(m.Binds)
		}
		if places += len(table.Loose()); places != len(table.places()) {
			t.Errorf("%d places, of %d", places, len(table.places()))
		}
	})
}
