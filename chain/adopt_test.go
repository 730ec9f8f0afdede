package chain

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/chain/dirlock"
	"varve/chain/manifest"
	"varve/integration/imagetest"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// qcow2On makes a qcow2 on a backing file, with some bytes of its own.
func qcow2On(t testing.TB, path, backing, format string, pattern byte) {
	t.Helper()
	args := []string{"create", "-q", "-f", "qcow2"}
	if backing != "" {
		args = append(args, "-b", backing, "-F", format, path)
	} else {
		args = append(args, path, "4M")
	}
	qemuTool(t, "qemu-img", args...)
	qemuTool(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d %dk 4k", pattern, pattern), path)
}

func TestAdopt(t *testing.T) {
	fs := hostfs.OS()
	images, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(images, name) }
	rawImage(t, at("ubuntu.raw"), 4<<20+512)
	rawImage(t, at("disk"), 1<<20)
	qcow2On(t, at("single.qcow2"), "", "", 1)
	qcow2On(t, at("vm.snap1"), "ubuntu.raw", "raw", 2)
	qcow2On(t, at("base.qcow2"), at("vm.snap1"), "qcow2", 3)
	qcow2On(t, at("top.qcow2"), "./base.qcow2", "qcow2", 4)
	qcow2On(t, at("short.qcow2"), "ubuntu.raw", "raw", 5)
	qemuTool(t, "qemu-img", "resize", "-q", "--shrink", at("short.qcow2"), "1M")

	tests := []struct {
		base, format string
		size         int64
		files        []ForeignFile // top first
		want         int64         // guest bytes of the disk
	}{
		{"ubuntu.raw", "", 0, []ForeignFile{{Layer: "base", Path: at("ubuntu.raw"), Format: "raw"}}, 4<<20 + 512},
		{"ubuntu.raw", "raw", 1 << 30, []ForeignFile{{Layer: "base", Path: at("ubuntu.raw"), Format: "raw"}}, 1 << 30},
		{"disk", "", 0, []ForeignFile{{Layer: "base", Path: at("disk"), Format: "raw"}}, 1 << 20},
		{"single.qcow2", "", 0, []ForeignFile{{Layer: "base", Path: at("single.qcow2"), Format: "qcow2"}}, 4 << 20},
		{"single.qcow2", "raw", 0, []ForeignFile{{Layer: "base", Path: at("single.qcow2"), Format: "raw"}}, 0},
		{"vm.snap1", "qcow2", 0, []ForeignFile{{Layer: "adopted", Path: at("vm.snap1"), Format: "qcow2"}, {Layer: "base", Path: at("ubuntu.raw"), Format: "raw"}}, 4<<20 + 512},
		{"top.qcow2", "", 0, []ForeignFile{
			{Layer: "adopted", Path: at("top.qcow2"), Format: "qcow2"}, {Layer: "layer-2", Path: at("base.qcow2"), Format: "qcow2"},
			{Layer: "layer-1", Path: at("vm.snap1"), Format: "qcow2"}, {Layer: "base", Path: at("ubuntu.raw"), Format: "raw"},
		}, 4<<20 + 512},
		{"short.qcow2", "", 0, []ForeignFile{{Layer: "adopted", Path: at("short.qcow2"), Format: "qcow2"}, {Layer: "base", Path: at("ubuntu.raw"), Format: "raw"}}, 1 << 20},
	}
	for _, test := range tests {
		t.Run(test.base+test.format, func(t *testing.T) {
			states := map[string]string{}
			for _, f := range test.files {
				states[f.Path] = fileState(t, f.Path)
			}
			dir := filepath.Join(t.TempDir(), "vm1.varve")
			created, err := Create(dir, CreateOptions{Base: at(test.base), Format: test.format, Size: test.size})
			if err != nil {
				t.Fatal(err)
			}
			for i := range created.Files {
				created.Files[i].About = ""
			}
			if !reflect.DeepEqual(created.Files, test.files) {
				t.Errorf("files %+v", created.Files)
			}
			m := mustLoad(t, dir)
			n := len(test.files)
			if m.Leaf != manifest.LayerID(n+1) || m.Base != "000001" || m.Next != n+2 || len(m.Layers) != n+1 {
				t.Errorf("%+v", m)
			}
			wantFiles := []string{m.Layer(m.Leaf).Path(dir)}
			for _, f := range test.files {
				wantFiles = append(wantFiles, f.Path)
			}
			got := backingFiles(t, wantFiles[0])
			for i, file := range got {
				got[i] = filepath.Clean(file)
			}
			if !reflect.DeepEqual(got, wantFiles) {
				t.Errorf("qemu-img sees %q\nwant %q", got, wantFiles)
			}
			image, err := qcow2.OpenImage(fs, wantFiles[0], formatQcow2, hostfs.LockNone)
			if err != nil {
				t.Fatal(err)
			}
			defer image.Close()
			want := test.want
			if want == 0 {
				info, err := os.Stat(at(test.base))
				if err != nil {
					t.Fatal(err)
				}
				want = info.Size()
			}
			if image.Size() != want {
				t.Errorf("the disk has %d bytes, not %d", image.Size(), want)
			}
			qemuTool(t, "qemu-img", "check", "-q", wantFiles[0])
			// Larger disks read zeros past the end of the base: compare agrees.
			qemuTool(t, "qemu-img", "compare", "-F", test.files[0].Format, wantFiles[0], test.files[0].Path)
			for path, state := range states {
				if now := fileState(t, path); now != state {
					t.Errorf("%s changed: %s → %s", path, state, now)
				}
			}
			for i, l := range m.Chain(m.Leaf)[1:] {
				info, err := os.Stat(l.File)
				if err != nil {
					t.Fatal(err)
				}
				if l.Name != test.files[i].Layer || !l.Foreign || !l.Frozen.Equal(info.ModTime()) {
					t.Errorf("layer %+v", l)
				}
				if changes, noted := l.Fingerprint.Compare(fingerprintAt(t, l.File, l.Format)); len(changes)+len(noted) != 0 {
					t.Errorf("%s: %q %q", l.Name, changes, noted)
				}
			}
		})
	}
}

// TestAdoptThroughLinks: a relative backing name is looked for beside the path
// as given, as QEMU does; without one the link is resolved, and may be turned
// elsewhere later.
func TestAdoptThroughLinks(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(root, name) }
	for _, dir := range []string{"real", "links"} {
		if err := os.Mkdir(at(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	rawImage(t, at("real/below.raw"), 4<<20)
	rawImage(t, at("links/below.raw"), 4<<20)
	qcow2On(t, at("real/top.qcow2"), "below.raw", "raw", 9)
	for link, target := range map[string]string{"links/top.qcow2": "../real/top.qcow2", "links/disk.raw": "../real/below.raw", "elsewhere": "real"} {
		if err := os.Symlink(target, at(link)); err != nil {
			t.Fatal(err)
		}
	}
	for i, test := range []struct {
		base  string
		files []string
	}{
		{at("links/top.qcow2"), []string{at("links/top.qcow2"), at("links/below.raw")}},
		{at("links/disk.raw"), []string{at("real/below.raw")}},
		{root + "/elsewhere/../real/./top.qcow2", []string{root + "/elsewhere/../real/./top.qcow2", root + "/elsewhere/../real/./below.raw"}},
		{root + "/links//./top.qcow2", []string{at("links/top.qcow2"), at("links/below.raw")}},
	} {
		created, err := Create(at(fmt.Sprint("disk", i)), CreateOptions{Base: test.base})
		if err != nil {
			t.Errorf("%s: %v", test.base, err)
			continue
		}
		var files []string
		for _, f := range created.Files {
			files = append(files, f.Path)
		}
		if !reflect.DeepEqual(files, test.files) {
			t.Errorf("%s: %q", test.base, files)
		}
		m := mustLoad(t, created.Dir)
		if got := backingFiles(t, m.Layer(m.Leaf).Path(created.Dir)); !reflect.DeepEqual(got[1:], files) {
			t.Errorf("%s: qemu-img sees %q, varve %q", test.base, got[1:], files)
		}
	}
	t.Chdir(at("real"))
	created, err := Create(at("relative"), CreateOptions{Base: "top.qcow2"})
	if err != nil || created.Files[0].Path != at("real/top.qcow2") {
		t.Errorf("relative: %+v, %v", created, err)
	}
}

// replace changes bytes of a file that occur once.
func replace(t testing.TB, path, old, with string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Count(data, []byte(old)) != 1 || len(old) != len(with) {
		t.Fatalf("%q is %d times in %s", old, bytes.Count(data, []byte(old)), path)
	}
	if err := os.WriteFile(path, bytes.Replace(data, []byte(old), []byte(with), 1), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAdoptRefuses(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(root, name) }
	unsafe := func(name, backing, format string) {
		t.Helper()
		qemuTool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", format, at(name), "1M")
	}
	rawImage(t, at("ok.raw"), 1<<20)
	imagetest.Sparse(t, at("empty.raw"), 0)
	imagetest.Sparse(t, at("fake.qcow2"), 1<<20)
	qemuTool(t, "qemu-img", "create", "-q", "-f", "qcow2", at("disguised.raw"), "1M")
	qemuTool(t, "qemu-img", "create", "-q", "-f", "qcow2", at("zero.qcow2"), "0")
	unsafe("onzero.qcow2", "zero.qcow2", "qcow2")
	unsafe("missing.qcow2", "gone.raw", "raw")
	unsafe("self.qcow2", "self.qcow2", "qcow2")
	unsafe("loop1.qcow2", "loop2.qcow2", "qcow2")
	unsafe("loop2.qcow2", at("loop3.qcow2"), "qcow2")
	if err := os.Symlink("loop1.qcow2", at("loop3.qcow2")); err != nil {
		t.Fatal(err)
	}
	unsafe("json.qcow2", `json:{"driver":"raw","file":{"filename":"/etc/passwd"}}`, "raw")
	unsafe("nbd.qcow2", "nbd://localhost/x", "raw")
	unsafe("file.qcow2", "file:ok.raw", "raw")
	unsafe("vmdk.qcow2", "ok.raw", "vmdk")
	unsafe("ondir.qcow2", ".", "raw")
	unsafe("lie.qcow2", "ok.raw", "qcow2")
	unsafe("null.qcow2", "/dev/null", "raw")
	unsafe("line.qcow2", "aXok.raw", "raw")
	replace(t, at("line.qcow2"), "aXok.raw", "a\nok.raw")
	unsafe("bytes.qcow2", "aXok.raw", "raw")
	replace(t, at("bytes.qcow2"), "aXok.raw", "a\xffok.raw")
	unsafe("noformat.qcow2", "ok.raw", "raw")
	replace(t, at("noformat.qcow2"), "\xe2\x79\x2a\xca", "\x12\x34\x56\x78")
	qemuTool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+at("data.bin"), at("external.qcow2"), "1M")
	qemuTool(t, "qemu-img", "create", "-q", "-f", "qcow2", at("secret.qcow2"), "1M")
	imagetest.PatchUnseen(t, at("secret.qcow2"), 32, []byte{0, 0, 0, 2}) // crypt_method: LUKS, whose making takes seconds
	qemuTool(t, "qemu-img", "create", "-q", "-f", "qcow2", at("cut.qcow2"), "1M")
	if err := os.Truncate(at("cut.qcow2"), 60); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(at("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	unsafe("onfifo.qcow2", "fifo", "raw")
	if _, err := Create(at("disk.varve"), CreateOptions{Base: at("ok.raw")}); err != nil {
		t.Fatal(err)
	}
	leaf := at("disk.varve/layers/000002.qcow2")
	unsafe("onleaf.qcow2", leaf, "qcow2")
	if err := os.Symlink(leaf, at("leaf-link.qcow2")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(at("broken/layers"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("broken/chain.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	qemuTool(t, "qemu-img", "create", "-q", "-f", "qcow2", at("broken/layers/000001.qcow2"), "1M")

	before := names(t, root)
	for _, test := range []struct {
		base string
		want error
		line string
	}{
		{"gone.raw", os.ErrNotExist, "gone.raw"},
		{"empty.raw", ErrInvalid, "is empty"},
		{"fake.qcow2", ErrInvalid, "--format raw"},
		{"disguised.raw", ErrInvalid, "--format qcow2"},
		{"zero.qcow2", ErrInvalid, "is empty"},
		{"onzero.qcow2", ErrInvalid, "zero.qcow2 is empty"},
		{"missing.qcow2", os.ErrNotExist, "the backing file of " + at("missing.qcow2") + " is missing"},
		{"self.qcow2", ErrInvalid, "loop"},
		{"loop1.qcow2", ErrInvalid, "loop"},
		{"json.qcow2", ErrInvalid, "json:"},
		{"nbd.qcow2", ErrInvalid, "nbd://"},
		{"file.qcow2", ErrInvalid, "file:"},
		{"vmdk.qcow2", ErrInvalid, `"vmdk"`},
		{"ondir.qcow2", ErrInvalid, "is a directory"},
		{"lie.qcow2", qcow2.ErrCorrupt, "ok.raw"},
		{"null.qcow2", ErrInvalid, "neither a file nor a block device"},
		{"line.qcow2", ErrInvalid, "line break"},
		{"bytes.qcow2", ErrInvalid, "not UTF-8"},
		{"noformat.qcow2", ErrInvalid, "without its format"},
		{"external.qcow2", qcow2.ErrUnsupported, "data file"},
		{"secret.qcow2", qcow2.ErrUnsupported, "encrypt"},
		{"cut.qcow2", qcow2.ErrCorrupt, "cut.qcow2"},
		{"fifo", ErrInvalid, "neither a file"},
		{"onfifo.qcow2", ErrInvalid, "neither a file"},
		{"disk.varve", ErrInvalid, "is a disk directory"},
		{".", ErrInvalid, "is a directory"},
		{"disk.varve/layers/000002.qcow2", ErrInvalid, "is layer 000002 of the varve disk " + at("disk.varve")},
		{"leaf-link.qcow2", ErrInvalid, "of the varve disk"},
		{"onleaf.qcow2", ErrInvalid, "of the varve disk"},
		{"broken/layers/000001.qcow2", ErrInvalid, "looks like a layer"},
		{strings.Repeat("d/", 600) + "x.raw", ErrInvalid, "1023"},
	} {
		_, err := Create(at("new.varve"), CreateOptions{Base: root + "/" + test.base})
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.line) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.60s: %v", test.base, err)
		}
	}
	if got := names(t, root); !reflect.DeepEqual(got, before) {
		t.Errorf("left behind: %q", got)
	}
	// Two disks may share a base.
	if _, err := Create(at("second.varve"), CreateOptions{Base: at("ok.raw")}); err != nil {
		t.Errorf("a second disk on one base: %v", err)
	}
}

func TestAdoptDepth(t *testing.T) {
	root := t.TempDir()
	path := func(i int) string { return filepath.Join(root, fmt.Sprintf("%04d.qcow2", i)) }
	// One image is copied with another backing name: 2,001 runs of qemu-img
	// would take a minute.
	qemuTool(t, "qemu-img", "create", "-q", "-f", "qcow2", path(0), "1M")
	model := filepath.Join(root, "model.qcow2")
	qemuTool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-o", "cluster_size=512", "-b", "NNNN.qcow2", "-F", "qcow2", model, "1M")
	data, err := os.ReadFile(model)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= maxAdopted; i++ {
		link := bytes.Replace(data, []byte("NNNN"), fmt.Appendf(nil, "%04d", i-1), 1)
		if err := os.WriteFile(path(i), link, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err = Create(filepath.Join(root, "a.varve"), CreateOptions{Base: path(maxAdopted)})
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "more than 2000") {
		t.Errorf("%d files: %v", maxAdopted+1, err)
	}
	created, err := Create(filepath.Join(root, "a.varve"), CreateOptions{Base: path(maxAdopted - 1)})
	if err != nil || len(created.Files) != maxAdopted {
		t.Errorf("%d files: %d, %v", maxAdopted, len(created.Files), err)
	}
}

// holdOpen keeps an image open for writing in a qemu-io.
func holdOpen(t *testing.T, path, format string) *exec.Cmd {
	t.Helper()
	command := exec.Command("qemu-io", "-f", format, path)
	stdin, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, err := io.WriteString(stdin, "quit\n")
		if err := errors.Join(err, stdin.Close(), command.Wait()); err != nil {
			t.Error(err)
		}
	})
	// Its answer says that it is open.
	if _, err := io.WriteString(stdin, "length\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('B'); err != nil {
		t.Fatalf("qemu-io: %q, %v", line, err)
	}
	return command
}

func TestAdoptRefusesWhatIsOpenForWriting(t *testing.T) {
	for _, format := range []string{formatRaw, formatQcow2} {
		root := t.TempDir()
		base, top := filepath.Join(root, "base"), filepath.Join(root, "top.qcow2")
		qemuTool(t, "qemu-img", "create", "-q", "-f", format, base, "1M")
		qemuTool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", format, top)
		holder := holdOpen(t, base, format)
		for image, said := range map[string]string{base: format, top: formatQcow2} {
			_, err := Create(filepath.Join(root, "a.varve"), CreateOptions{Base: image, Format: said})
			if !errors.Is(err, hostfs.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d qemu-io", holder.Process.Pid)) ||
				!strings.Contains(err.Error(), base) {
				t.Errorf("%s on %s: %v", image, format, err)
			}
		}
	}
}

// asNobody runs f with the file rights of an unprivileged user.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	const nobody = 65534
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The thread is not given back: it ends with this goroutine.
		runtime.LockOSThread()
		if os.Geteuid() == 0 {
			if err := unix.Setfsuid(nobody); err != nil {
				t.Error(err)
				return
			}
		}
		f()
	}()
	<-done
}

func TestCreateWithoutRights(t *testing.T) {
	root := t.TempDir()
	open, private := filepath.Join(root, "open.raw"), filepath.Join(root, "private.raw")
	top := filepath.Join(root, "top.qcow2")
	for _, path := range []string{open, private} {
		rawImage(t, path, 1<<20)
	}
	qemuTool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", private, "-F", "raw", top)
	home := filepath.Join(root, "home")
	if err := errors.Join(os.Mkdir(home, 0o755), os.Chmod(open, 0o444), os.Chmod(top, 0o444), os.Chmod(private, 0),
		os.Chmod(root, 0o755), os.Chmod(filepath.Dir(root), 0o755)); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(root, "disk.varve")
	if _, err := Create(disk, CreateOptions{Base: open}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root, 0o555); err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() {
		for _, test := range []struct{ dir, base, line string }{
			{filepath.Join(home, "x.varve"), private, private},
			{filepath.Join(home, "x.varve"), top, private},
			{filepath.Join(root, "x.varve"), open, "x.varve"},
		} {
			_, err := Create(test.dir, CreateOptions{Base: test.base})
			if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), test.line) {
				t.Errorf("%s on %s: %v", test.dir, test.base, err)
			}
		}
		if os.Geteuid() != 0 {
			return // our own disk is no secret to us
		}
		if _, err := lockDir(hostfs.OS(), disk, false, "", 0); !errors.Is(err, os.ErrPermission) {
			t.Errorf("another one's disk was locked: %v", err)
		}
		if _, _, _, err := dirlock.Holder(disk); !errors.Is(err, os.ErrPermission) {
			t.Errorf("another one's disk was looked into: %v", err)
		}
	})
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if left := names(t, home); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
	// The owner may read the base only: that is enough.
	if os.Geteuid() == 0 {
		if err := os.Chown(home, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	asNobody(t, func() {
		if _, err := Create(filepath.Join(home, "x.varve"), CreateOptions{Base: open}); err != nil {
			t.Errorf("on a base that may only be read: %v", err)
		}
	})
}
