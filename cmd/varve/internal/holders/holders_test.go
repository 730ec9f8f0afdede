package holders

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"varve/chain/mounts"
	"varve/integration/harness"
)

func TestProcesses(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	// A file system of its own, as every mount is.
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "layers"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "layers", "one.raw"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	reader := harness.KeepShell(t, "exec 7<"+dir+"/layers/one.raw 8<"+dir+"/layers/one.raw")
	inside := harness.KeepShell(t, "cd "+dir)

	want := map[string]bool{
		Use{PID: reader, Command: "sh", How: "open", What: "layers/one.raw"}.String(): true,
		Use{PID: inside, Command: "sh", How: "working directory", What: "."}.String(): true,
	}
	places := []mounts.Mount{{Mountpoint: dir, Root: "/"}}
	got := Find(st.Dev, places)
	if len(got) != len(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, u := range got {
		if !want[u.String()] {
			t.Errorf("unexpected: %v", u)
		}
	}
	if other := Find(st.Dev+1, places); len(other) != 0 {
		t.Errorf("a mount that nobody uses: %v", other)
	}
	// Unmounted lazily it is at no place any more, and the files have no path but the
	// one from its root.
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	got = Find(st.Dev, nil)
	if len(got) != len(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, u := range got {
		if !want[u.String()] {
			t.Errorf("unexpected: %v", u)
		}
	}
}

func TestLoops(t *testing.T) {
	sys := t.TempDir()
	for name, file := range map[string]string{
		"loop0": "/mnt/vm1/disk.raw\n",
		"loop1": "/mnt/vm10/disk.raw\n",
		"loop2": "/mnt/vm1/layers/one.raw (deleted)\n",
		"loop3": "/srv/vm1.raw\n",
	} {
		if err := os.MkdirAll(filepath.Join(sys, name, "loop"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sys, name, "loop", "backing_file"), []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := finder{places: []mounts.Mount{{Mountpoint: "/mnt/vm1", Root: "/"}, {Mountpoint: "/srv/vm1.raw", Root: "/disk.raw"}}}.loops(sys)
	want := []string{"disk.raw is attached to /dev/loop0", "layers/one.raw is attached to /dev/loop2", "disk.raw is attached to /dev/loop3"}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i].String() != want[i] {
			t.Errorf("got %q, want %q", got[i], want[i])
		}
	}
}
