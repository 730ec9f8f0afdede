package diskdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/overlay/hostfs"
)

// stranger and member are users that the tests act for; neither has an entry on the host.
const (
	member   = 61001
	stranger = 61002
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// disk makes a directory as a disk's and enters it.
func disk(t *testing.T) (d *Dir, dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "vm.varve")
	must(t, os.MkdirAll(filepath.Join(dir, "layers"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "chain.json"), []byte("text"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "layers/1"), []byte("layer"), 0o600))
	return enterDir(t, dir), dir
}

func enterDir(t *testing.T, dir string) *Dir {
	t.Helper()
	d, err := Open(dir)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

func read(t *testing.T, d *Dir, path string) string {
	t.Helper()
	f, err := d.Open(path, os.O_RDONLY, 0)
	must(t, err)
	defer f.Close()
	p := make([]byte, 100)
	n, _ := f.ReadAt(p, 0)
	return string(p[:n])
}

// What is in the directory is reached as by its path.
func TestInside(t *testing.T) {
	d, dir := disk(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	if got := read(t, d, in("layers/1")); got != "layer" {
		t.Errorf("%q", got)
	}
	must(t, d.Mkdir(in("made"), 0o700))
	f, err := d.Open(in("made/file"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
	must(t, err)
	if f.Name() != in("made/file") {
		t.Errorf("its name is %s", f.Name())
	}
	_, err = f.WriteAt([]byte("new"), 0)
	must(t, err)
	must(t, f.Close())
	if _, err := d.Open(in("made/file"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made twice: %v", err)
	}
	must(t, d.Chmod(in("made/file"), 0o600))
	must(t, d.Rename(in("made/file"), in("layers/2")))
	must(t, d.Link(in("layers/2"), in("layers/3")))
	must(t, d.SyncDir(in("layers")))
	must(t, d.SyncDir(dir))
	must(t, d.Remove(in("layers/2")))
	must(t, d.Remove(in("made")))
	if err := d.Remove(in("layers")); !errors.Is(err, unix.ENOTEMPTY) {
		t.Errorf("a directory that is not empty: %v", err)
	}
	names, err := d.ReadDir(in("layers"))
	if err != nil || !slices.Equal(names, []string{"1", "3"}) {
		t.Errorf("%v, %v", names, err)
	}
	if got := read(t, d, in("layers/3")); got != "new" {
		t.Errorf("%q", got)
	}
	for _, path := range []string{dir, in("layers"), in("layers/3"), in("chain.json")} {
		want, err := hostfs.OS().Stat(path)
		must(t, err)
		if got, err := d.Stat(path); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", path, got, err, want)
		}
	}
	if _, err := d.Stat(in("absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	want, err := hostfs.OS().Free(dir)
	must(t, err)
	if got, err := d.Free(in("layers")); err != nil || got == 0 || want == 0 {
		t.Errorf("free: %d, %v; by its path %d", got, err, want)
	}
}

// Whatever a hostile owner puts into the directory, nothing outside it is read, written,
// extended, renamed over or unlinked, and nothing waits.
func TestHostileDirectory(t *testing.T) {
	for _, at := range []string{"chain.json", "layers/1", "layers"} {
		for kind, plant := range map[string]func(t *testing.T, path, victim string){
			"link":     func(t *testing.T, path, victim string) { must(t, os.Symlink(victim, path)) },
			"dangling": func(t *testing.T, path, victim string) { must(t, os.Symlink(victim+"-none", path)) },
			"FIFO":     func(t *testing.T, path, _ string) { must(t, unix.Mkfifo(path, 0o600)) },
			"socket":   func(t *testing.T, path, _ string) { must(t, unix.Mknod(path, unix.S_IFSOCK|0o600, 0)) },
			"device": func(t *testing.T, path, _ string) {
				if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil && !errors.Is(err, unix.EPERM) {
					t.Fatal(err)
				} else if err != nil {
					must(t, unix.Mkfifo(path, 0o600)) // who may make no device
				}
			},
		} {
			t.Run(at+", "+kind, func(t *testing.T) {
				d, dir := disk(t)
				outside := t.TempDir()
				victim := filepath.Join(outside, "victim")
				if at == "layers" {
					must(t, os.Mkdir(victim, 0o700))
					must(t, os.WriteFile(filepath.Join(victim, "1"), []byte("secret"), 0o600))
				} else {
					must(t, os.WriteFile(victim, []byte("secret"), 0o600))
				}
				path := filepath.Join(dir, at)
				must(t, os.RemoveAll(path))
				plant(t, path, victim)
				file := path
				if at == "layers" {
					file = filepath.Join(path, "1")
				}
				for _, flag := range []int{os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREATE, os.O_WRONLY | os.O_CREATE | os.O_EXCL} {
					f, err := d.Open(file, flag, 0o600)
					if err == nil {
						f.Close()
						t.Errorf("%s was opened with %#x", file, flag)
					}
				}
				if at == "layers" {
					if _, err := d.ReadDir(path); err == nil {
						t.Error("it was listed")
					}
					if err := d.Remove(file); err == nil {
						t.Error("something in it was removed")
					}
					if err := d.Rename(filepath.Join(dir, "chain.json"), file); err == nil {
						t.Error("something was renamed into it")
					}
					if err := d.Mkdir(filepath.Join(path, "new"), 0o700); err == nil {
						t.Error("something was made in it")
					}
				}
				if strings.HasPrefix(kind, "link") || kind == "dangling" {
					if _, err := d.Stat(path); !errors.Is(err, ErrForeign) {
						t.Errorf("its Stat says %v", err)
					}
				}
				if at == "layers" {
					file = filepath.Join(victim, "1")
				} else {
					file = victim
				}
				if text, err := os.ReadFile(file); err != nil || string(text) != "secret" {
					t.Errorf("what it led to is %q now, %v", text, err)
				}
				if names, err := os.ReadDir(outside); err != nil || len(names) != 1 {
					t.Errorf("beside it there is %v now, %v", names, err)
				}
			})
		}
	}
}

// Whoever moves the directory takes the disk along, and what is put in its place is not
// touched.
func TestMovedDirectory(t *testing.T) {
	d, dir := disk(t)
	must(t, d.Moved())
	moved := dir + ".moved"
	must(t, os.Rename(dir, moved))
	if err := d.Moved(); err == nil || !strings.Contains(err.Error(), "move it back") {
		t.Errorf("%v", err)
	}
	must(t, os.Mkdir(dir, 0o700))
	if err := d.Moved(); err == nil || !strings.Contains(err.Error(), "another directory is in its place") {
		t.Errorf("%v", err)
	}
	f, err := d.Open(filepath.Join(dir, "new"), os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	must(t, f.Close())
	must(t, d.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "chain.json")))
	must(t, d.SyncDir(dir))
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("in its place there is %v, %v", names, err)
	}
	if info, err := os.Stat(filepath.Join(moved, "chain.json")); err != nil || info.Size() != 0 {
		t.Errorf("%v, %v", info, err)
	}
}

// Root gives what it makes to the directory's owner, takes nothing of strangers, and
// opens what is elsewhere with no more rights than the owner has.
func TestRootInAnothersDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root; make test runs it so")
	}
	_, dir := disk(t)
	for _, name := range []string{"", "layers", "chain.json", "layers/1"} {
		must(t, os.Chown(filepath.Join(dir, name), member, member))
	}
	for top := filepath.Dir(dir); top != "/" && top != os.TempDir(); top = filepath.Dir(top) {
		must(t, os.Chmod(top, 0o755))
	}
	d := enterDir(t, dir)
	in := func(name string) string { return filepath.Join(dir, name) }
	owned := func(name string) {
		t.Helper()
		var st unix.Stat_t
		must(t, unix.Stat(in(name), &st))
		if st.Uid != member || st.Gid != member {
			t.Errorf("%s is %d:%d's", name, st.Uid, st.Gid)
		}
	}
	f, err := d.Open(in("new"), os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	must(t, f.Close())
	owned("new")
	must(t, d.Mkdir(in("folder"), 0o700))
	owned("folder")

	refused := func(path string, words string) {
		t.Helper()
		f, err := d.Open(path, os.O_RDONLY, 0)
		if err == nil {
			f.Close()
		}
		if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", path, err, words)
		}
	}
	must(t, os.Chown(in("new"), stranger, stranger))
	refused(in("new"), "belongs to uid 61002, and the directory to uid 61001")
	must(t, os.Chown(in("new"), 0, 0)) // moved there by the owner, who can do that
	refused(in("new"), "belongs to uid 0, and the directory to uid 61001")
	outside := filepath.Dir(dir)
	secret, public, group := filepath.Join(outside, "secret"), filepath.Join(outside, "public"), filepath.Join(outside, "group")
	must(t, os.WriteFile(secret, []byte("secret"), 0o600))
	must(t, os.WriteFile(public, []byte("public"), 0o644))
	must(t, os.WriteFile(group, []byte("group"), 0o640)) // of root's group
	must(t, os.Link(secret, in("link")))
	refused(in("link"), "belongs to uid 0, and the directory to uid 61001")
	refused(secret, "uid 61001, who owns "+dir+", may not read it")
	refused(group, "may not read it")
	if got := read(t, d, public); got != "public" {
		t.Errorf("%q", got)
	}
	// This thread, and every other, is root's as before.
	for range 50 {
		if text, err := os.ReadFile(secret); err != nil || string(text) != "secret" {
			t.Fatalf("%q, %v", text, err)
		}
	}
	fifo := filepath.Join(outside, "fifo")
	must(t, unix.Mkfifo(fifo, 0o666))
	must(t, os.Chmod(fifo, 0o666))
	if f, err := d.Open(fifo, os.O_RDONLY, 0); err == nil { // it did not wait
		f.Close()
	}
}

// What root could not give to the directory's owner is not left there: it would be in the
// way of the next mount.
func TestRootCannotGive(t *testing.T) {
	_, dir := disk(t)
	d := enterDir(t, dir)
	d.owner = owner{uid: member, gid: member}
	fchown = func(int, int, int) error { return unix.EPERM }
	t.Cleanup(func() { fchown = unix.Fchown })
	for what, make := range map[string]func(path string) error{
		"a file": func(path string) error {
			f, err := d.Open(path, os.O_RDWR|os.O_CREATE, 0o600)
			if err == nil {
				f.Close()
			}
			return err
		},
		"a folder": func(path string) error { return d.Mkdir(path, 0o700) },
	} {
		path := filepath.Join(dir, "new")
		if err := make(path); err == nil || !strings.Contains(err.Error(), "do it as that user, or chown -R the directory to root") {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", what, err)
		}
	}
}

// A file of the caller's in a directory of somebody else counts with one name only: the
// owner may have made the second one.
func TestSecondName(t *testing.T) {
	other := owner{uid: member, gid: member}
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root; make test runs it so")
	}
	var st unix.Stat_t
	st.Uid, st.Nlink = stranger, 1
	// accepts asks who calls; a thread of another user shows it.
	ended := make(chan error, 4)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this function
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), stranger, ^uintptr(0)); errno != 0 {
			ended <- errno
			return
		}
		ended <- nil
		ended <- other.accepts(st)
		st.Nlink = 2
		ended <- other.accepts(st)
		st.Uid, st.Nlink = 0, 1
		ended <- other.accepts(st)
	}()
	must(t, <-ended)
	if err := <-ended; err != nil {
		t.Errorf("the caller's own file: %v", err)
	}
	if err := <-ended; !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "second name") {
		t.Errorf("a second name of it: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("a file of root's: %v", err)
	}
}

// No path in a user's chain.json leads root through a link of /proc, which goes past the
// modes of everything above a file.
func TestNoMagicLinks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root; make test runs it so")
	}
	_, dir := disk(t)
	must(t, os.Chown(dir, member, member))
	d := enterDir(t, dir)
	closed := filepath.Join(t.TempDir(), "closed")
	must(t, os.Mkdir(closed, 0o700))
	file := filepath.Join(closed, "file")
	must(t, os.WriteFile(file, []byte("anybody's, behind a door"), 0o666))
	must(t, os.Chmod(file, 0o666))
	open, err := os.Open(file)
	must(t, err)
	defer open.Close()
	for _, path := range []string{fmt.Sprintf("/proc/self/fd/%d", open.Fd()), "/proc/self/root" + file, fmt.Sprintf("/proc/%d/cwd/diskdir_test.go", os.Getpid())} {
		f, err := d.Open(path, os.O_RDONLY, 0)
		if err == nil {
			f.Close()
		}
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// A directory that is put in the place of one that root has just made stays whose it is.
func TestMkdirTakesItsOwnOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root; make test runs it so")
	}
	_, dir := disk(t)
	must(t, os.Chown(dir, member, member))
	d := enterDir(t, dir)
	for name, plant := range map[string]func(string){
		"full":      func(path string) { must(t, os.WriteFile(filepath.Join(path, "x"), nil, 0o600)) },
		"another's": func(path string) { must(t, os.Chown(path, stranger, stranger)) },
	} {
		path := filepath.Join(t.TempDir(), name)
		must(t, os.Mkdir(path, 0o700))
		plant(path)
		f, err := os.Open(path)
		must(t, err)
		if err := d.takeFolder(f); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v", name, err)
		}
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		if st.Uid == member {
			t.Errorf("%s was given away", name)
		}
		f.Close()
	}
}
