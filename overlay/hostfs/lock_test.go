package hostfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/integration/imagetest"
)

func openHost(t *testing.T, path string, flag int) File {
	t.Helper()
	f, err := OS().Open(path, flag, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return f
}

// tries are what others may want to do with an image that we hold.
var tries = []struct {
	name     string
	command  string // FILE stands for the image
	frozen   bool   // works on an image held LockFrozen
	writable bool   // … held LockWritable
	none     bool
}{
	{"info", "qemu-img info FILE", true, false, true},
	{"info -U", "qemu-img info -U FILE", true, true, true},
	{"check", "qemu-img check FILE", true, false, true},
	{"convert", "qemu-img convert -f qcow2 -O raw FILE OUT", true, false, true},
	{"map", "qemu-img map FILE", true, false, true},
	{"read", "qemu-io -r -c quit FILE", true, false, true},
	{"use as a backing file", "qemu-io -c quit OVERLAY", true, false, true},
	{"open for writing", "qemu-io -c quit FILE", false, false, true},
	{"check -r", "qemu-img check -r all FILE", false, false, true},
	{"resize", "qemu-img resize FILE +1M", false, false, true},
	{"rebase", "qemu-img rebase -u -b OTHER -F qcow2 FILE", false, false, true},
	{"commit into it", "qemu-img commit OVERLAY", false, false, true},
	{"commit it", "qemu-img commit FILE", false, false, true},
}

func TestLockAgainstQEMU(t *testing.T) {
	for _, mode := range []LockMode{LockFrozen, LockWritable, LockNone} {
		for _, try := range tries {
			want := map[LockMode]bool{LockFrozen: try.frozen, LockWritable: try.writable, LockNone: try.none}[mode]
			t.Run(fmt.Sprintf("mode %d %s", mode, try.name), func(t *testing.T) {
				dir := t.TempDir()
				path := func(name string) string { return filepath.Join(dir, name) }
				for _, create := range [][]string{
					{"-f", "qcow2", path("OTHER"), "4M"},
					{"-f", "qcow2", "-b", path("OTHER"), "-F", "qcow2", path("FILE")},
					{"-f", "qcow2", "-b", path("FILE"), "-F", "qcow2", path("OVERLAY")},
				} {
					imagetest.QemuImg(t, append([]string{"create", "-q"}, create...)...)
				}
				f := openHost(t, path("FILE"), os.O_RDWR)
				if err := f.Lock(mode); err != nil {
					t.Fatal(err)
				}
				args := strings.Fields(try.command)
				for i, a := range args {
					if strings.ToUpper(a) == a && a[0] >= 'A' {
						args[i] = path(a)
					}
				}
				out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
				if got := err == nil; got != want {
					t.Errorf("%s: works %v, want %v\n%s", try.command, got, want, out)
				}
				if err != nil && !strings.Contains(string(out), "lock") {
					t.Errorf("%s was refused for another reason:\n%s", try.command, out)
				}
			})
		}
	}
}

func TestLockRefused(t *testing.T) {
	tests := []struct {
		name  string
		hold  []string // arguments of the qemu-io that has the image open
		flag  int
		mode  LockMode
		works bool
		says  string
	}{
		{"frozen, written by QEMU", []string{"-f", "qcow2"}, os.O_RDONLY, LockFrozen, false, "open for writing in pid "},
		{"frozen, raw, written by QEMU", []string{"-f", "raw"}, os.O_RDONLY, LockFrozen, false, "open for writing in pid "},
		{"frozen, read by QEMU", []string{"-r", "-f", "qcow2"}, os.O_RDONLY, LockFrozen, true, ""},
		{"frozen, raw, read by QEMU", []string{"-r", "-f", "raw"}, os.O_RDONLY, LockFrozen, true, ""},
		{"writable, written by QEMU", []string{"-f", "qcow2"}, os.O_RDWR, LockWritable, false, "open for writing in pid "},
		{"writable, read by QEMU", []string{"-r", "-f", "qcow2"}, os.O_RDWR, LockWritable, false, "which lets nobody write it"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := imagetest.New(t, "", "4M")
			holder := imagetest.KeepOpen(t, path, test.hold...)
			f := openHost(t, path, test.flag)
			err := f.Lock(test.mode)
			if test.works {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, ErrLocked) {
				t.Fatalf("error %v, want ErrLocked", err)
			}
			who := fmt.Sprintf("pid %d qemu-io", holder.Pid())
			if !strings.Contains(err.Error(), who) || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %q, want it to name %q, %q and the file", err, who, test.says)
			}
			// What the failed attempt took it has given back: QEMU can stop
			// and start again.
			holder.Stop()
			imagetest.KeepOpen(t, path, "-f", "qcow2").Stop()
			if err := f.Lock(test.mode); err != nil {
				t.Errorf("after the holder has gone: %v", err)
			}
		})
	}
}

// TestLockBetweenVarves uses descriptions of one process, which exclude each
// other as those of two processes do.
func TestLockBetweenVarves(t *testing.T) {
	path := imagetest.New(t, "", "4M")
	a, b := openHost(t, path, os.O_RDWR), openHost(t, path, os.O_RDWR)
	c := openHost(t, path, os.O_RDONLY)
	lock := func(f File, mode LockMode, want error) {
		t.Helper()
		if err := f.Lock(mode); !errors.Is(err, want) {
			t.Fatalf("lock mode %d: %v, want %v", mode, err, want)
		}
	}
	lock(a, LockFrozen, nil)
	lock(b, LockFrozen, nil)
	lock(c, LockFrozen, nil) // many may share a base, through read-only descriptors
	lock(a, LockFrozen, nil) // again changes nothing
	lock(a, LockWritable, ErrLocked)
	lock(b, LockNone, nil)
	lock(a, LockWritable, ErrLocked) // the failure left a's and c's read locks
	lock(c, LockNone, nil)
	lock(a, LockWritable, nil)
	lock(b, LockFrozen, ErrLocked)
	lock(b, LockWritable, ErrLocked)
	lock(a, LockFrozen, nil)
	lock(b, LockFrozen, nil)
	lock(a, LockNone, nil)
	lock(b, LockWritable, nil)
	err := a.Lock(LockFrozen)
	if want := fmt.Sprintf("this process (pid %d)", os.Getpid()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want it to name %s", err, want)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	lock(a, LockWritable, nil)
}

// TestLockChangeLeavesNoGap changes the mode back and forth while QEMU tries
// to open the image for writing.
func TestLockChangeLeavesNoGap(t *testing.T) {
	path := imagetest.New(t, "", "4M")
	f := openHost(t, path, os.O_RDWR)
	if err := f.Lock(LockFrozen); err != nil {
		t.Fatal(err)
	}
	watcher := openHost(t, path, os.O_RDONLY).(*hostFile)
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		tests := 0
		for {
			select {
			case <-stop:
				done <- tests
				return
			default:
				// Bytes that both modes hold.
				for _, at := range []int64{lockReads, lockForbidsWrite, lockForbidsResize} {
					if !locked(watcher, at) {
						t.Errorf("byte %d was free for a moment", at)
					}
				}
				tests++
			}
		}
	}()
	for range 2000 {
		for _, mode := range []LockMode{LockWritable, LockFrozen} {
			if err := f.Lock(mode); err != nil {
				t.Error(err)
			}
		}
	}
	close(stop)
	if tests := <-done; tests < 100 {
		t.Errorf("only %d looks at the locks", tests)
	}
}

// TestLockChangeBesideATry: QEMU takes its bytes first and looks then, so who is
// being refused holds them for a moment. That must not stop a change of mode:
// who came after our locks sees them.
func TestLockChangeBesideATry(t *testing.T) {
	path := imagetest.New(t, "", "4M")
	f, other := openHost(t, path, os.O_RDWR), openHost(t, path, os.O_RDWR).(*hostFile)
	held := func(kind int16) {
		t.Helper()
		for _, at := range []int64{lockWrites, lockResizes} {
			if err := other.setLock(at, kind); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, mode := range []LockMode{LockFrozen, LockFrozen, LockWritable, LockWritable, LockFrozen, LockNone} {
		if err := f.Lock(mode); err != nil {
			t.Errorf("to mode %d: %v", mode, err)
		}
		held(unix.F_RDLCK)
	}
	// What was never ruled out is looked at.
	if err := f.Lock(LockFrozen); !errors.Is(err, ErrLocked) {
		t.Errorf("beside a writer: %v", err)
	}
	held(unix.F_UNLCK)
	if err := f.Lock(LockFrozen); err != nil {
		t.Error(err)
	}
	if err := other.setLock(lockForbidsWrite, unix.F_RDLCK); err != nil {
		t.Fatal(err)
	}
	if err := f.Lock(LockWritable); !errors.Is(err, ErrLocked) {
		t.Errorf("from frozen to writable beside a reader: %v", err)
	}
}

// TestLockWaitsForReaders: a frozen file that is to be written waits for those who read
// it now, and lets no new ones in meanwhile; not for those who stay, and whoever opens
// one for writing does not wait.
func TestLockWaitsForReaders(t *testing.T) {
	path := imagetest.New(t, "", "4M")
	f, reader, late := openHost(t, path, os.O_RDWR), openHost(t, path, os.O_RDONLY), openHost(t, path, os.O_RDONLY)
	if err := errors.Join(f.Lock(LockFrozen), reader.Lock(LockFrozen)); err != nil {
		t.Fatal(err)
	}
	locked := make(chan error, 1)
	go func() { locked <- f.Lock(LockWritable) }()
	time.Sleep(100 * time.Millisecond)
	if err := late.Lock(LockFrozen); !errors.Is(err, ErrLocked) {
		t.Errorf("a reader that comes while a writer waits: %v", err)
	}
	select {
	case err := <-locked:
		t.Errorf("beside a reader: %v", err)
		locked <- err
	default:
	}
	if err := reader.Lock(LockNone); err != nil {
		t.Fatal(err)
	}
	if err := <-locked; err != nil {
		t.Errorf("after the reader has gone: %v", err)
	}
	if err := errors.Join(f.Lock(LockFrozen), reader.Lock(LockFrozen)); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []LockMode{LockFrozen, LockNone} {
		if err := f.Lock(mode); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		err := f.Lock(LockWritable)
		took := time.Since(begun)
		if waits := mode == LockFrozen; !errors.Is(err, ErrLocked) || waits != (took >= lockPatience) {
			t.Errorf("from mode %d, beside a reader that stays: %v after %v", mode, err, took)
		}
	}
	if err := late.Lock(LockFrozen); err != nil {
		t.Errorf("when the writer has given up: %v", err)
	}
}

// TestLockEndsWithClose: a child that has inherited the descriptor, as every
// child has between fork and exec, does not keep the locks.
func TestLockEndsWithClose(t *testing.T) {
	path := imagetest.New(t, "", "4M")
	f := openHost(t, path, os.O_RDWR).(*hostFile)
	if err := f.Lock(LockWritable); err != nil {
		t.Fatal(err)
	}
	child := exec.Command("sleep", "60")
	child.ExtraFiles = []*os.File{f.f}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := child.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = child.Wait() // says that it was killed
	})
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := openHost(t, path, os.O_RDWR).Lock(LockWritable); err != nil {
		t.Error(err)
	}
}

func locked(h *hostFile, at int64) bool {
	want := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
	return unix.FcntlFlock(uintptr(h.fd), unix.F_OFD_GETLK, &want) == nil && want.Type != unix.F_UNLCK
}
