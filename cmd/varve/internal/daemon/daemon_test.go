package daemon

import (
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"varve/chain"
	"varve/chain/mounts"
	"varve/fs"
)

// What words gives, recall takes.
func TestMountWords(t *testing.T) {
	for _, c := range []struct {
		args  []string
		words string
	}{
		{nil, ""},
		{[]string{"-r", "-f"}, ""},
		{[]string{"--umask", "022", "--uid", "0"}, "uid=0,umask=022"},
		{[]string{"-o", `context=system_u:object_r:svirt_image_t:s0:c1\,c2,ro,noexec,_netdev`}, `context=system_u:object_r:svirt_image_t:s0:c1\,c2,noexec`},
		{[]string{"--cache", "1G", "--allow-other", "-o", "job_rate=5M,disk=/x"}, "allow_other,cache=1073741824,job_rate=5242880"},
	} {
		m, err := parseMountFlags(c.args...)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.words(); got != c.words {
			t.Errorf("%v: %q, want %q", c.args, got, c.words)
		}
		again := NewFlags()
		again.options.into = again
		if err := again.recall(c.words); err != nil || again.words() != c.words {
			t.Errorf("%v: recalled as %q, %v", c.args, again.words(), err)
		}
	}
}

// TestMadeMeanwhile: of two first mounts of an image one makes the disk, and the other
// goes on with that, to be told who has it.
func TestMadeMeanwhile(t *testing.T) {
	var said strings.Builder
	image := filepath.Join(diskDir(t), "vm.raw")
	write(t, image, strings.Repeat("image", 1024*1024/5))
	first, err := chain.Create(image+".varve", chain.CreateOptions{Base: image, Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	holder, err := chain.Open(first.Dir, chain.OpenOptions{Mountpoint: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	m := &server{flags: &Flags{}, stderr: &said, log: slog.New(slog.DiscardHandler), plan: plan{
		image: image, dir: image + ".varve", mountpoint: t.TempDir(), create: true,
	}}
	if err := m.makeDisk(); err != nil || said.String() != "" {
		t.Fatalf("%v %s", err, said.String())
	}
	d, err := m.openDisk()
	if err == nil {
		_ = d.Close()
	}
	if !errors.Is(err, chain.ErrInUse) {
		t.Errorf("opening says %v", err)
	}
}

// The process outside takes no mount away that has the number of its own only since that is
// gone.
func TestProcessOutsideOfAMountThatIsGone(t *testing.T) {
	disk, mnt := diskDir(t)+"/vm.varve", t.TempDir()
	if _, err := chain.Create(disk, chain.CreateOptions{Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	d, err := chain.Open(disk, chain.OpenOptions{Mountpoint: mnt})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	server, err := fs.Mount(d, mnt, fs.Options{FsName: disk})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Wait()
	m, _, err := mounts.At(mnt)
	if err != nil {
		t.Fatal(err)
	}
	task := outsideTask{Place: fs.Place{Mountpoint: mnt, Device: m.Device, Direct: true}, connection: connectionOf(m.Device)}
	if task.connection == 0 {
		t.Fatal("the file system of /sys/fs/fuse/connections is not mounted")
	}
	task.connection++ // of one that is gone
	if err := task.unmount(); !errors.Is(err, fs.ErrNotMounted) {
		t.Error(err)
	}
	if _, there, err := mounts.At(mnt); err != nil || !there {
		t.Fatalf("it is unmounted, %v", err)
	}
	task.connection--
	if err := task.unmount(); err != nil {
		t.Error(err)
	}
}
