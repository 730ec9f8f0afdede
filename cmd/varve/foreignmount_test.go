package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unicode"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// foreignFile is a file of a mount of somebody else's program: it says the same over and
// over, to everybody.
type foreignFile struct {
	gofs.Inode
	text    string
	endless bool
}

var (
	_ = (gofs.NodeGetattrer)((*foreignFile)(nil))
	_ = (gofs.NodeOpener)((*foreignFile)(nil))
	_ = (gofs.NodeReader)((*foreignFile)(nil))
	_ = (gofs.NodeWriter)((*foreignFile)(nil))
)

func (f *foreignFile) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = unix.S_IFREG|0o666, uint64(len(f.text))
	if f.endless {
		out.Size = 1 << 40
	}
	return 0
}

func (f *foreignFile) Open(context.Context, uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *foreignFile) Read(_ context.Context, _ gofs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if f.endless {
		for n := 0; n < len(p); n += copy(p[n:], f.text) {
		}
		return fuse.ReadResultData(p), 0
	}
	return fuse.ReadResultData([]byte(f.text)[min(off, int64(len(f.text))):]), 0
}

func (f *foreignFile) Write(_ context.Context, _ gofs.FileHandle, p []byte, _ int64) (uint32, syscall.Errno) {
	return uint32(len(p)), 0
}

// foreignMount mounts a file system of an ordinary user's that calls itself a varve mount of
// a disk. A file "->PATH" is a link.
func foreignMount(t *testing.T, mountpoint, source string, files map[string]*foreignFile) {
	t.Helper()
	if err := os.MkdirAll(mountpoint, 0o755); err != nil {
		t.Fatal(err)
	}
	root := &gofs.Inode{}
	server, err := gofs.Mount(mountpoint, root, &gofs.Options{
		MountOptions: fuse.MountOptions{
			FsName: source, Name: "varve", DirectMount: true, AllowOther: true, Options: []string{fmt.Sprintf("user_id=%d", nobody)},
		},
		OnAdd: func(ctx context.Context) {
			for name, file := range files {
				dir := root
				for _, part := range strings.Split(filepath.Dir(name), "/") {
					if part == "." {
						continue
					}
					child := dir.GetChild(part)
					if child == nil {
						child = root.NewPersistentInode(ctx, &gofs.Inode{}, gofs.StableAttr{Mode: unix.S_IFDIR})
						dir.AddChild(part, child, true)
					}
					dir = child
				}
				var node *gofs.Inode
				if to, ok := strings.CutPrefix(file.text, "->"); ok {
					node = root.NewPersistentInode(ctx, &gofs.MemSymlink{Data: []byte(to)}, gofs.StableAttr{Mode: unix.S_IFLNK})
				} else {
					node = root.NewPersistentInode(ctx, file, gofs.StableAttr{Mode: unix.S_IFREG})
				}
				dir.AddChild(filepath.Base(name), node, true)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Unmount(mountpoint, unix.MNT_DETACH) // it may have gone
		server.Wait()
	})
}

// A file without an end in the mount of another user takes no memory of whoever looks at it.
func TestEndlessFilesOfAMount(t *testing.T) {
	dir := hostDir(t)
	fake := filepath.Join(dir, "fake")
	files := map[string]*foreignFile{}
	for _, name := range []string{"status.json", "metrics", "map.svg", "control/diff", "control/plan", "control/snapshot", "control/delete", "layers/one.raw", "disk.raw"} {
		files[name] = &foreignFile{text: "{\"a\":[[[ ", endless: true}
	}
	foreignMount(t, fake, dir+"/nothing.varve", files)
	const most = 1 << 30 // bytes, of a file of 1 TiB
	for _, words := range []string{
		"status fake", "list", "metrics --all", "map fake -o out.svg", "diff fake one leaf", "snapshot fake two", "delete fake one --dry-run", "umount fake --timeout 10s",
	} {
		cmd := command(dir, strings.Fields(words)...)
		r := finish(t, cmd)
		use := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
		if use > most {
			t.Errorf("%s: %d MiB of memory", words, use>>20)
		}
		if strings.Contains(words, "fake") && r.code == exitDone && !strings.HasPrefix(words, "umount") {
			t.Errorf("%s: %+v", words, r)
		}
		if strings.Contains(r.stderr, "goroutine ") {
			t.Errorf("%s: %+v", words, r)
		}
	}
}

// What is a link in somebody's mount is not read with the rights of whoever looks, whatever
// file it leads to.
func TestReadsStayInTheMount(t *testing.T) {
	dir := hostDir(t)
	fake, secret := filepath.Join(dir, "fake"), filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte(`{"version":1,"disk":"the secret"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	image(t, filepath.Join(dir, "vm.raw"), 1<<20, 1<<20)
	must(t, dir, "create", "two.varve", "--size", "1M")
	link := &foreignFile{text: "->" + secret}
	foreignMount(t, fake, dir+"/nothing.varve", map[string]*foreignFile{
		"status.json": link, "metrics": link, "map.svg": link, "control/diff": link, "control/plan": link, "layers/one.raw": link, "disk.raw": link,
	})
	for _, words := range []string{
		"status fake", "list fake --json", "metrics fake", "map fake", "diff fake one leaf", "export fake one -", "delete fake one --dry-run", "import vm.raw fake", "import fake/disk.raw two.varve --format raw",
	} {
		if r := vv(t, dir, strings.Fields(words)...); r.code == exitDone || strings.Contains(r.stdout+r.stderr, "the secret") || !strings.Contains(r.stderr, "is not a varve mount") {
			t.Errorf("%s: %+v", words, r)
		}
	}
	for _, words := range []string{"list --json", "metrics --all", "doctor fake"} {
		if r := vv(t, dir, strings.Fields(words)...); strings.Contains(r.stdout+r.stderr, "the secret") {
			t.Errorf("%s: %+v", words, r)
		}
	}
	if text, err := os.ReadFile(secret); err != nil || !strings.Contains(string(text), "the secret") {
		t.Errorf("%q, %v", text, err)
	}
}

// A mount that calls itself one of somebody else's disk is that disk's for nobody: not by
// the disk directory, and not in what is said of all mounts.
func TestAMountThatNamesAnothersDisk(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	disk := dir + "/vm.raw.varve"
	fake := filepath.Join(dir, "fake")
	foreignMount(t, fake, disk, map[string]*foreignFile{
		"status.json": {text: `{"version":1,"disk":"` + disk + `","size":4096,"leaf":"1","layers":[{"id":"1","state":"leaf","file":"/etc/shadow"}]}`},
		"metrics":     {text: "varve_disk_bytes 4096\n"},
	})
	if r := must(t, dir, "list"); !strings.Contains(r.stdout, fmt.Sprintf("%s (claimed by uid %d)", disk, nobody)) || !strings.Contains(r.stdout, mnt+"   "+disk+"  ") && strings.Count(r.stdout, disk) != 2 {
		t.Errorf("list: %s", r.stdout)
	}
	if r := must(t, dir, "metrics", "--all"); !strings.Contains(r.stdout, fmt.Sprintf(`varve_up{disk="%s (claimed by uid %d)",mountpoint="%s"} 1`, disk, nobody, fake)) ||
		!strings.Contains(r.stdout, fmt.Sprintf(`varve_up{disk="%s",mountpoint="%s"} 1`, disk, mnt)) {
		t.Errorf("metrics: %s", r.stdout)
	}
	if r := must(t, dir, "status", disk); !strings.Contains(r.stdout, "4 MiB") {
		t.Errorf("status: %+v", r)
	}
	must(t, dir, "snapshot", disk, "one")
	if r := vv(t, dir, "doctor", "--json", "fake"); !strings.Contains(r.stdout, "claims to be the disk "+disk) {
		t.Errorf("doctor: %+v", r)
	}
	must(t, dir, "umount", disk)
	fails(t, dir, exitFailed, []string{"it is not mounted"}, "umount", disk)
	if r := vv(t, dir, "status", disk); r.code != exitDone || !strings.Contains(r.stdout, "4 MiB") {
		t.Errorf("status of the disk that is not mounted: %+v", r)
	}
	must(t, dir, "umount", fake)
}

// A page of metrics from somebody's mount spoils the others' as little as that mount does.
func TestMetricsOfAStranger(t *testing.T) {
	dir, mnt := mounted(t, 4<<20, 1<<20)
	for i, page := range []string{
		"varve_x 1\nvarve_x 2\n", "node_load1 3\n", "varve_up 0\n", "# TYPE varve_layers histogram\nvarve_layers_sum 1\n",
		"varve_x{disk=\"a\"} 1\n", "varve_x{a=\"1\",a=\"2\"} 1\n", "varve_x one\n", "# TYPE varve_x nothing\nvarve_x 1\n", "\x1b[31m",
	} {
		foreignMount(t, fmt.Sprintf("%s/fake%d", dir, i), dir+"/x.varve", map[string]*foreignFile{"metrics": {text: page}})
	}
	foreignMount(t, dir+"/good", dir+"/y.varve", map[string]*foreignFile{"metrics": {text: "# HELP varve_z \x1b[31m\nvarve_z{a=\"\u009b\u202e\"} 1\n"}})
	r := vv(t, dir, "metrics", "--all")
	if !strings.Contains(r.stdout, mnt+`"} 1`) || strings.Count(r.stdout, "varve_z{") != 1 || strings.Contains(r.stdout, "varve_x") || strings.Contains(r.stdout, "node_load1") {
		t.Errorf("%+v", r)
	}
	if i := strings.IndexFunc(r.stdout, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
		t.Errorf("raw: %q", r.stdout[i:])
	}
	for i := range 9 {
		if !strings.Contains(r.stdout, fmt.Sprintf(`/fake%d"} 0`, i)) {
			t.Errorf("page %d was taken:\n%s", i, r.stdout)
		}
	}
}
