package chain

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/dirlock"
	"varve/chain/manifest"
	"varve/integration/faulty"
	"varve/integration/imagetest"
	"varve/overlay/hostfs"
)

// qemuTool runs one of QEMU's tools, which judge what varve writes.
func qemuTool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// rawImage makes a raw image whose bytes differ from place to place, with
// holes.
func rawImage(t testing.TB, path string, size int64) {
	t.Helper()
	imagetest.Sparse(t, path, size)
	qemuTool(t, "qemu-io", "-f", "raw", "-c", "write -P 0x11 0 64k", "-c", fmt.Sprintf("write -P 0x22 %d 512", size/1024*512), path)
}

// fileState is what varve may never change of a foreign file.
func fileState(t testing.TB, path string) string {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x %v %v %d", sha256.Sum256(data), info.ModTime(), info.Mode(), info.Size())
}

// backingFiles are the files of a chain as qemu-img sees it, top first.
func backingFiles(t testing.TB, path string) []string {
	t.Helper()
	var infos []struct {
		Filename string `json:"filename"`
	}
	out := qemuTool(t, "qemu-img", "info", "--backing-chain", "--output=json", path)
	if err := json.Unmarshal([]byte(out), &infos); err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, info := range infos {
		files = append(files, info.Filename)
	}
	return files
}

func fingerprintAt(t testing.TB, path, format string) *manifest.Fingerprint {
	t.Helper()
	taken, err := manifest.FingerprintFile(hostfs.OS(), path, format)
	if err != nil {
		t.Fatal(err)
	}
	return taken
}

func mustLoad(t testing.TB, dir string) *manifest.Manifest {
	t.Helper()
	m, err := manifest.Load(hostfs.OS(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	names, err := hostfs.OS().ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestCreateBlank(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "vm1.varve")
	before := time.Now()
	created, err := Create(dir, CreateOptions{Size: 1<<30 + 512})
	if err != nil {
		t.Fatal(err)
	}
	if created.Dir != dir || len(created.Files) != 0 {
		t.Errorf("created %+v", created)
	}
	if got := names(t, parent); !reflect.DeepEqual(got, []string{"vm1.varve"}) {
		t.Errorf("beside it: %q", got)
	}
	if got := names(t, dir); !reflect.DeepEqual(got, []string{"README", "chain.json", "layers", "lock"}) {
		t.Errorf("in it: %q", got)
	}
	m := mustLoad(t, dir)
	leaf := m.Layer(m.Leaf)
	if m.BlankSize != 1<<30+512 || m.Base != "" || m.Next != 2 || leaf.ID != "000001" || leaf.File != "layers/000001.qcow2" ||
		leaf.Parent != "" || leaf.Created.Before(before.Truncate(0)) || !leaf.Frozen.IsZero() || leaf.Size != 0 {
		t.Errorf("%+v, leaf %+v", m, leaf)
	}
	path := leaf.Path(dir)
	if info := qemuTool(t, "qemu-img", "info", path); !strings.Contains(info, "(1073742336 bytes)") || strings.Contains(info, "backing") {
		t.Error(info)
	}
	qemuTool(t, "qemu-img", "check", "-q", path)
	if changes, noted := leaf.Fingerprint.Compare(fingerprintAt(t, path, formatQcow2)); len(changes)+len(noted) != 0 {
		t.Errorf("the leaf's fingerprint: %q, %q", changes, noted)
	}
	if text, err := os.ReadFile(filepath.Join(dir, readmeName)); err != nil || !strings.Contains(string(text), "ONLY COPY") {
		t.Errorf("README: %v\n%s", err, text)
	}
	if _, _, held, err := dirlock.Holder(dir); held || err != nil {
		t.Errorf("still locked: %v, %v", held, err)
	}
}

func TestCreateModes(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	for _, umask := range []int{0, 0o022, 0o777} {
		dir := filepath.Join(t.TempDir(), "vm1.varve")
		unix.Umask(umask)
		_, err := Create(dir, CreateOptions{Size: 1 << 20})
		unix.Umask(0)
		if err != nil {
			t.Fatal(err)
		}
		err = filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := entry.Info()
			want := os.FileMode(0o600)
			if entry.IsDir() {
				want = os.ModeDir | 0o700
			}
			if err == nil && info.Mode() != want {
				t.Errorf("umask %03o: %s has mode %v", umask, path, info.Mode())
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestCreateRefuses(t *testing.T) {
	parent := t.TempDir()
	base := filepath.Join(parent, "base.raw")
	rawImage(t, base, 1<<20)
	there, file := filepath.Join(parent, "there"), filepath.Join(parent, "file")
	if err := errors.Join(os.Mkdir(there, 0o700), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	before := names(t, parent)
	tests := []struct {
		dir  string
		o    CreateOptions
		want error
		line string
	}{
		{there, CreateOptions{Size: 1 << 20}, ErrExist, there},
		{file, CreateOptions{Size: 1 << 20}, ErrExist, file},
		{filepath.Join(file, "x"), CreateOptions{Size: 1 << 20}, unix.ENOTDIR, "not a directory"},
		{filepath.Join(parent, "no", "x"), CreateOptions{Size: 1 << 20}, os.ErrNotExist, filepath.Join(parent, "no") + ":"},
		{filepath.Join(parent, "a\nb"), CreateOptions{Size: 1 << 20}, ErrInvalid, "line break"},
		{filepath.Join(parent, "\xff"), CreateOptions{Size: 1 << 20}, ErrInvalid, "not UTF-8"},
		{filepath.Join(parent, "x"), CreateOptions{}, ErrInvalid, "needs a size"},
		{filepath.Join(parent, "x"), CreateOptions{Size: -1}, ErrInvalid, "-1 bytes"},
		{filepath.Join(parent, "x"), CreateOptions{Size: maxDiskBytes + 1}, ErrInvalid, "a size of"},
		{filepath.Join(parent, "x"), CreateOptions{Size: 1 << 20, Format: "raw"}, ErrInvalid, "a blank disk has none"},
		{filepath.Join(parent, "x"), CreateOptions{Base: base, Size: 1<<20 - 512}, ErrInvalid, "less than the 1048576"},
		{filepath.Join(parent, "x"), CreateOptions{Base: base, Format: "vmdk"}, ErrInvalid, `"vmdk"`},
	}
	for _, test := range tests {
		_, err := Create(test.dir, test.o)
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.line) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q %+v: %v", test.dir, test.o, err)
		}
	}
	if got := names(t, parent); !reflect.DeepEqual(got, before) {
		t.Errorf("left behind: %q", got)
	}
}

// TestCreateFaults fails each host call in turn: nothing is left, and the
// images are let go.
func TestCreateFaults(t *testing.T) {
	images := t.TempDir()
	base, top := filepath.Join(images, "base.raw"), filepath.Join(images, "top.qcow2")
	rawImage(t, base, 1<<20)
	qemuTool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", top)
	for at := 1; ; at++ {
		parent := t.TempDir()
		dir := filepath.Join(parent, "vm1.varve")
		fs := &faulty.FS{FS: hostfs.OS(), FailAt: at}
		_, err := Create(dir, CreateOptions{FS: fs, Base: top, Witness: witness{states: map[string]string{base: "s1"}}})
		if fs.Failed == "" {
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d calls", at-1)
			break
		}
		if err == nil {
			switch fs.Failed {
			case "close": // of what was only read: it loses nothing
			case "read": // it was tried again, and what is recorded is right
				d, err := Open(dir, OpenOptions{})
				if err != nil {
					t.Errorf("call %d, a failed read: %v", at, err)
					continue
				}
				must(t, d.Close())
			default:
				t.Errorf("call %d: a failed %s was swallowed", at, fs.Failed)
			}
			continue
		}
		if !errors.Is(err, unix.EIO) {
			t.Errorf("call %d: a failed %s gives %v", at, fs.Failed, err)
		}
		// A removal that fails itself is the one that may leave something, for
		// the next Create to remove.
		if left := names(t, parent); len(left) != 0 && fs.Failed != "remove" {
			t.Errorf("call %d: a failed %s leaves %q", at, fs.Failed, left)
		}
		if fs.Failed == "read" {
			continue // most of them, and none has made anything
		}
		if _, err := Create(dir, CreateOptions{Base: top}); err != nil {
			t.Errorf("after a failed %s: %v", fs.Failed, err)
		}
	}
	// Nobody holds the images any more.
	qemuTool(t, "qemu-io", "-f", "qcow2", "-c", "write 0 512", top)
	qemuTool(t, "qemu-io", "-f", "raw", "-c", "write 0 512", base)
}

func TestCreateAfterCrash(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "vm1.varve")
	temp := filepath.Join(parent, ".vm1.varve.creating")
	if err := os.MkdirAll(filepath.Join(temp, manifest.LayersDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"layers/000001.qcow2", "layers/000007.qcow2", manifest.FileName, manifest.TempName, readmeName} {
		if err := os.WriteFile(filepath.Join(temp, name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	lock, err := lockDir(hostfs.OS(), temp, true, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(dir, CreateOptions{Size: 1 << 20}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("while another one makes it: %v", err)
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(dir, CreateOptions{Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if got := names(t, filepath.Join(dir, manifest.LayersDir)); !reflect.DeepEqual(got, []string{"000001.qcow2"}) {
		t.Errorf("layers: %q", got)
	}
	if got := names(t, parent); !reflect.DeepEqual(got, []string{"vm1.varve"}) {
		t.Errorf("beside it: %q", got)
	}
	qemuTool(t, "qemu-img", "check", "-q", filepath.Join(dir, "layers/000001.qcow2"))
}

// TestCreateAtOnce: of several that create the same directory one does, the
// others say why not, and the result is whole.
func TestCreateAtOnce(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "vm1.varve")
	results := make(chan error)
	const creators = 8
	for range creators {
		go func() {
			_, err := Create(dir, CreateOptions{Size: 1 << 20})
			results <- err
		}()
	}
	made := 0
	for range creators {
		switch err := <-results; {
		case err == nil:
			made++
		case !errors.Is(err, ErrExist) && !errors.Is(err, ErrInUse):
			t.Errorf("neither there nor in use: %v", err)
		}
	}
	if made != 1 {
		t.Errorf("%d creators think that they made it", made)
	}
	mustLoad(t, dir)
	for _, name := range names(t, parent) {
		if name != "vm1.varve" {
			t.Errorf("left: %s", name)
		}
	}
}

// TestCreateLeavesWhatWasMade: who waited for another to make a disk, and has its directory
// open under the name that it had until then, takes that disk for nothing unfinished.
func TestCreateLeavesWhatWasMade(t *testing.T) {
	parent := t.TempDir()
	temp, dir := filepath.Join(parent, ".vm1.varve.creating"), filepath.Join(parent, "vm1.varve")
	if err := os.Mkdir(temp, 0o700); err != nil {
		t.Fatal(err)
	}
	inside, leave, err := enter(hostfs.OS(), temp)
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	if err := os.Rename(temp, dir); err != nil {
		t.Fatal(err)
	}
	for _, again := range []bool{false, true} { // another one makes a disk there meanwhile
		if again {
			if err := os.Mkdir(temp, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if lock, err := lockInPlace(inside, temp); !errors.Is(err, ErrChanged) {
			t.Errorf("%v, %v", lock, err)
		}
		if _, _, held, err := dirlock.Holder(dir); held || err != nil {
			t.Errorf("held: %v, %v", held, err)
		}
	}
}

func TestDirFor(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	image, link := filepath.Join(dir, "ubuntu.raw"), filepath.Join(t.TempDir(), "current.raw")
	imagetest.Sparse(t, image, 1<<20)
	fifo := filepath.Join(dir, "fifo")
	if err := errors.Join(os.Symlink(image, link), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, given := range []string{image, link} {
		if got, err := DirFor(given); got != image+".varve" || err != nil {
			t.Errorf("%s: %q, %v", given, got, err)
		}
	}
	t.Chdir(dir)
	if got, err := DirFor("ubuntu.raw"); got != image+".varve" || err != nil {
		t.Errorf("relative: %q, %v", got, err)
	}
	shm, err := os.CreateTemp("/dev/shm", "varve-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(shm.Name()) })
	if err := shm.Close(); err != nil {
		t.Fatal(err)
	}
	for given, want := range map[string]error{
		"/dev/null": ErrInvalid, fifo: ErrInvalid, dir: ErrInvalid, "": ErrInvalid,
		shm.Name(): ErrInvalid, filepath.Join(dir, "none"): os.ErrNotExist,
	} {
		if got, err := DirFor(given); !errors.Is(err, want) {
			t.Errorf("%q: %q, %v", given, got, err)
		}
	}
	// Where the user says so, a disk may live in memory.
	disk := shm.Name() + ".varve"
	t.Cleanup(func() { os.RemoveAll(disk) })
	if _, err := Create(disk, CreateOptions{Size: 1 << 20}); err != nil {
		t.Error(err)
	}
}
