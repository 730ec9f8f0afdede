package fs

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/fs/control"
)

// realMount mounts a disk directory and gives the mountpoint and what
// unmounts and closes it.
func realMount(t *testing.T, disk string) (dir string, done func()) {
	t.Helper()
	d, err := chain.Open(disk, chain.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(filepath.Dir(disk), "mnt")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := Mount(d, dir, Options{Umask: 0o077, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())})
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	done = func() {
		t.Helper()
		if closed {
			return
		}
		closed = true
		if err := s.Unmount(); err != nil {
			t.Errorf("unmount: %v", err)
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
		s.Wait()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(done)
	return dir, done
}

func content(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestRealChain goes through a disk's life over the real chain: what each file
// of the mount shows must follow.
func TestRealChain(t *testing.T) {
	const size = 8 * mib
	top := t.TempDir()
	base := filepath.Join(top, "base.raw")
	seed := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	if _, err := random.Read(seed[:size/2]); err != nil { // the rest stays a hole
		t.Fatal(err)
	}
	file, err := os.Create(base)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(seed[:size/2]); err != nil {
		t.Fatal(err)
	}
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(top, "vm.varve")
	if _, err := chain.Create(disk, chain.CreateOptions{Base: base, Format: "raw"}); err != nil {
		t.Fatal(err)
	}
	dir, done := realMount(t, disk)
	at := func(name string) string { return filepath.Join(dir, name) }
	do := func(name, line string) {
		t.Helper()
		if err := write(t, at("control/"+name), line+"\n"); err != nil {
			text, _ := os.ReadFile(at("control/" + name))
			t.Fatalf("%s %s: %v\n%s", name, line, err, text)
		}
	}
	same := func(name string, want []byte) {
		t.Helper()
		if !bytes.Equal(content(t, at(name)), want) {
			t.Errorf("%s reads otherwise than it should", name)
		}
	}

	same(nameDisk, seed)
	if blocks := stat(t, at(nameDisk)).Blocks * 512; blocks != size/2 {
		t.Errorf("%d bytes allocated, want %d", blocks, size/2)
	}
	out := open(t, at(nameDisk), os.O_RDWR|unix.O_DSYNC)
	if n, err := unix.Seek(int(out.Fd()), 0, unix.SEEK_HOLE); n != size/2 || err != nil {
		t.Errorf("SEEK_HOLE %d, %v", n, err)
	}
	if _, err := unix.Seek(int(out.Fd()), size/2, unix.SEEK_DATA); err != unix.ENXIO {
		t.Errorf("SEEK_DATA: %v, want ENXIO", err)
	}
	one := bytes.Clone(seed)
	put := func(view []byte, off int, text string) {
		t.Helper()
		copy(view[off:], text)
		if _, err := out.WriteAt([]byte(text), int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	put(one, 5000, "first")
	put(one, size-5, "last!")
	do("snapshot", "one")
	two := bytes.Clone(one)
	put(two, 5002, "second")
	if err := unix.Fallocate(int(out.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, mib, mib); err != nil {
		t.Fatal(err)
	}
	clear(two[mib : 2*mib])
	same(nameDisk, two)
	same("layers/one.raw", one)
	same("layers/base.raw", seed)
	if err := unix.Fallocate(int(out.Fd()), 0, size-4096, 4096); err != nil {
		t.Errorf("reserve: %v", err)
	}
	same(nameDisk, two)

	if err := write(t, at("control/revert"), "one"); !errors.Is(err, unix.EBUSY) {
		t.Errorf("revert while disk.raw is open: %v, want EBUSY", err)
	}
	if o, ok := control.ParseOutcome(string(content(t, at("control/revert")))); !ok || o.Errno != unix.EBUSY || o.Reason == "" {
		t.Errorf("%+v", o)
	}
	do("snapshot", "two")
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	do("revert", "one")
	same(nameDisk, one)
	same("layers/two.raw", two)
	if got := runHelper(t, "mmap", at("layers/two.raw")); len(got) != 65 {
		t.Errorf("mmap of a layer: %s", got)
	}

	if err := os.Rename(at("layers/two.raw"), at("layers/one.raw")); !errors.Is(err, unix.EEXIST) {
		t.Errorf("rename onto a layer: %v, want EEXIST", err)
	}
	if err := os.Rename(at("layers/base.raw"), at("layers/other.raw")); err == nil {
		t.Error("the base was renamed")
	}
	if err := os.Rename(at("layers/two.raw"), at("layers/branch.raw")); err != nil {
		t.Error(err)
	}
	if err := os.Truncate(at(nameDisk), size+mib); err != nil {
		t.Fatal(err)
	}
	grown := append(bytes.Clone(one), make([]byte, mib)...)
	same(nameDisk, grown)
	if err := os.Truncate(at(nameDisk), size); !errors.Is(err, unix.EPERM) {
		t.Errorf("shrink: %v, want EPERM", err)
	}

	var st chain.Status
	waitFor(t, "the last close to be told", func() bool {
		st = chain.Status{}
		if err := json.Unmarshal(content(t, at(nameStatusJSON)), &st); err != nil {
			t.Fatal(err)
		}
		return len(st.Open) == 0
	})
	if st.Disk != disk || st.Size != size+mib || st.Job != nil {
		t.Errorf("%+v", st)
	}
	attribute := func(name, key string) string {
		t.Helper()
		buf := make([]byte, 4096)
		n, err := unix.Getxattr(at(name), "user.varve."+key, buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	if attribute(nameDisk, "id") != st.Leaf || attribute("layers/base.raw", "file") != base ||
		attribute("layers/branch.raw", "own_bytes") == "0" {
		t.Error("the extended attributes do not say what status.json says")
	}

	for _, c := range []struct{ command, line string }{{"flatten", "leaf"}, {"delete", "branch"}} {
		do(c.command, c.line)
		o, ok := control.ParseOutcome(string(content(t, at("control/"+c.command))))
		if !ok {
			t.Fatal("no outcome")
		}
		waitFor(t, c.command, func() bool {
			st = chain.Status{}
			if err := json.Unmarshal(content(t, at(nameStatusJSON)), &st); err != nil {
				t.Fatal(err)
			}
			return o.Job == "" || st.Job != nil && st.Job.ID == o.Job && st.Job.State != chain.JobRunning
		})
		if o.Job != "" && st.Job.State != chain.JobDone {
			t.Errorf("%s: %+v", c.command, st.Job)
		}
	}
	same(nameDisk, grown)
	if got := names(t, at("layers")); !slices.Equal(got, []string{"base.raw", "one.raw"}) {
		t.Errorf("layers: %v", got)
	}
	before := map[string]unix.Stat_t{}
	for _, name := range []string{nameDisk, "layers/one.raw", "layers/base.raw"} {
		before[name] = stat(t, at(name))
	}
	done()
	time.Sleep(10 * time.Millisecond)
	dir, _ = realMount(t, disk)
	for name, was := range before {
		is := stat(t, at(name))
		if is.Ino != was.Ino || is.Mtim != was.Mtim || is.Size != was.Size || is.Blocks != was.Blocks {
			t.Errorf("%s is %+v in the next mount, was %+v", name, is, was)
		}
	}
	same(nameDisk, grown)
	same("layers/one.raw", one)
}

// TestRealChainOpensAtOnce reads and writes from many open files while
// snapshots are taken: each snapshot holds a moment.
func TestRealChainOpensAtOnce(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "vm.varve")
	if _, err := chain.Create(disk, chain.CreateOptions{Size: 4 * mib}); err != nil {
		t.Fatal(err)
	}
	dir, _ := realMount(t, disk)
	stop := make(chan struct{})
	failed := make(chan error, 4)
	for worker := range cap(failed) {
		go func() {
			failed <- func() error {
				file, err := os.OpenFile(filepath.Join(dir, nameDisk), os.O_RDWR, 0)
				if err != nil {
					return err
				}
				defer file.Close()
				// Two places get the same number, the first one first.
				buf := make([]byte, 4096)
				for n := byte(1); ; n++ {
					select {
					case <-stop:
						return nil
					default:
					}
					for _, off := range []int64{int64(worker) * mib, int64(worker)*mib + mib/2} {
						for i := range buf {
							buf[i] = n
						}
						if _, err := file.WriteAt(buf, off); err != nil {
							return err
						}
						if _, err := file.ReadAt(buf, off); err != nil && err != io.EOF {
							return err
						}
						if buf[0] != n || buf[4095] != n {
							return errors.New("read back otherwise")
						}
					}
				}
			}()
		}()
	}
	for i := range 10 {
		name := string(rune('a' + i))
		if err := write(t, filepath.Join(dir, "control/snapshot"), name); err != nil {
			t.Fatal(err)
		}
		view := content(t, filepath.Join(dir, "layers", name+".raw"))
		for worker := range cap(failed) {
			first, second := view[worker*mib], view[worker*mib+mib/2]
			if d := first - second; d > 1 {
				t.Errorf("snapshot %s: worker %d wrote %d, then %d", name, worker, first, second)
			}
			for _, off := range []int{worker * mib, worker*mib + mib/2} {
				if view[off] != view[off+4095] {
					t.Errorf("snapshot %s holds half a write", name)
				}
			}
		}
	}
	close(stop)
	for range cap(failed) {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}

// TestRealPartitions: a partition of a snapshot is an open of that snapshot, in
// words and by what it forbids, and the real list of differences can be read.
func TestRealPartitions(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "vm.varve")
	if _, err := chain.Create(disk, chain.CreateOptions{Size: 8 * mib}); err != nil {
		t.Fatal(err)
	}
	dir, _ := realMount(t, disk)
	at := func(name string) string { return filepath.Join(dir, name) }
	data := partitioned(t, 8*mib, gptScript)
	out := open(t, at(nameDisk), os.O_RDWR)
	if _, err := out.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := out.WriteAt([]byte("one"), 2*mib+100); err != nil {
		t.Fatal(err)
	}
	if err := write(t, at("control/snapshot"), "one"); err != nil {
		t.Fatal(err)
	}
	if _, err := out.WriteAt([]byte("two"), 2*mib+100); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"layers/one.d/p3.raw": "one", "disk.d/p3.raw": "two"} {
		if got := content(t, at(file))[100:103]; string(got) != want {
			t.Errorf("%s has %q, want %q", file, got, want)
		}
	}
	if err := write(t, at("control/snapshot"), "two"); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	frozen, live := open(t, at("layers/one.d/p3.raw"), os.O_RDONLY), open(t, at("disk.d/p1.raw"), os.O_RDONLY)
	if err := os.Rename(at("layers/one.raw"), at("layers/uno.raw")); err != nil {
		t.Fatal(err)
	}
	var st chain.Status
	waitFor(t, "the other closes to be told", func() bool {
		st = chain.Status{}
		if err := json.Unmarshal(content(t, at(nameStatusJSON)), &st); err != nil {
			t.Fatal(err)
		}
		return len(st.Open) == 2
	})
	if st.Open[0].File != "disk.d/p1.raw" || st.Open[1].File != "layers/uno.d/p3.raw" || st.Open[1].PID != os.Getpid() || st.Open[1].Write {
		t.Errorf("open: %+v", st.Open)
	}
	for command, line := range map[string]string{"delete": "uno", "revert": "two"} {
		if err := write(t, at("control/"+command), line); !errors.Is(err, unix.EBUSY) {
			t.Errorf("%s while a partition is open: %v, want EBUSY", command, err)
		}
		if o, _ := control.ParseOutcome(string(content(t, at("control/"+command)))); !strings.Contains(o.Reason, "its partition p") {
			t.Errorf("%s says %q", command, o.Reason)
		}
	}
	diff := open(t, at("control/diff"), os.O_RDWR)
	if _, err := diff.WriteString("uno two\n"); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(diff)
	if want := "\n2097152 4096 000001 000002\n# end: 1 differences, 4096 bytes\n"; err != nil || !strings.HasSuffix(string(text), want) {
		t.Errorf("%v\n%s", err, text)
	}
	for _, f := range []*os.File{frozen, live} {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := write(t, at("control/delete"), "uno"); err != nil {
		t.Errorf("delete when it is closed: %v", err)
	}
}
