package holders

import (
	"os"
	"path/filepath"
	"testing"

	"varve/integration/harness"
)

func TestProcesses(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
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
	got := Find(dir)
	if len(got) != len(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, u := range got {
		if !want[u.String()] {
			t.Errorf("unexpected: %v", u)
		}
	}
	if other := Find(dir + "x"); len(other) != 0 {
		t.Errorf("a directory that nobody uses: %v", other)
	}
}

func TestLoops(t *testing.T) {
	sys := t.TempDir()
	for name, file := range map[string]string{
		"loop0": "/mnt/vm1/disk.raw\n",
		"loop1": "/mnt/vm10/disk.raw\n",
		"loop2": "/mnt/vm1/layers/one.raw (deleted)\n",
	} {
		if err := os.MkdirAll(filepath.Join(sys, name, "loop"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sys, name, "loop", "backing_file"), []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := loops(sys, "/mnt/vm1")
	want := []string{"disk.raw is attached to /dev/loop0", "layers/one.raw is attached to /dev/loop2"}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i].String() != want[i] {
			t.Errorf("got %q, want %q", got[i], want[i])
		}
	}
}
