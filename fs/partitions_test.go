package fs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/overlay/qcow2"
)

// partitioned gives a disk's content: a table that sfdisk makes by a script, and
// in the first MiB of each partition of the list its own letter.
func partitioned(t *testing.T, size int64, script string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sfdisk", "--quiet", "--no-tell-kernel", "--no-reread", path)
	cmd.Stdin = strings.NewReader(script)
	run(t, cmd)
	return content(t, path)
}

const (
	mbrScript = "label: dos\nstart=2048,size=2048\nstart=4096,size=8192,type=5\nstart=6144,size=1024\n"
	gptScript = "label: gpt\nstart=2048,size=2048\n3: start=4096,size=4096\n"
)

// logBuffer is a log that a test reads.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (b *logBuffer) log() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

// withDisk mounts a fake disk whose base and leaf have that content.
func withDisk(t *testing.T, data []byte, o Options) (string, *fakeDisk, *Server) {
	t.Helper()
	top := reachable(t)
	d := newFakeDisk(top, int64(len(data)))
	copy(d.data, data)
	copy(d.views[0].data, data)
	for _, m := range []map[int64]bool{d.mapped, d.views[0].mapped} {
		m[0] = true
		for b := int64(mib/fakeBlock) + 1; b < mib/fakeBlock+11; b++ {
			m[b] = true
		}
	}
	dir := filepath.Join(top, "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, d, serve(t, d, dir, o)
}

func TestPartitions(t *testing.T) {
	for _, c := range []struct {
		name, script string
		parts        map[string][2]int64 // start and length in sectors
	}{
		{"MBR", mbrScript, map[string][2]int64{"p1.raw": {2048, 2048}, "p2.raw": {4096, 2}, "p5.raw": {6144, 1024}}},
		{"GPT", gptScript, map[string][2]int64{"p1.raw": {2048, 2048}, "p3.raw": {4096, 4096}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			data := partitioned(t, 8*mib, c.script)
			for i := mib; i < 8*mib-mib; i++ {
				data[i] |= byte(i >> 12)
			}
			dir, d, s := withDisk(t, data, Options{Umask: 0o022, UID: 5, GID: 6})
			if err := d.Snapshot("one"); err != nil {
				t.Fatal(err)
			}
			if got := names(t, dir); !slices.Contains(got, "disk.d") {
				t.Errorf("the mount has %v", got)
			}
			if got := names(t, dir+"/layers"); !slices.Equal(got, []string{"base.d", "base.raw", "one.d", "one.raw"}) {
				t.Errorf("layers/ has %v", got)
			}
			inodes := map[uint64]string{}
			for _, sub := range []string{"disk.d", "layers/base.d", "layers/one.d"} {
				if st := stat(t, filepath.Join(dir, sub)); st.Mode != unix.S_IFDIR|0o555 || st.Uid != 5 || st.Gid != 6 {
					t.Errorf("%s: %+v", sub, st)
				}
				got := names(t, filepath.Join(dir, sub))
				if len(got) != len(c.parts) {
					t.Errorf("%s has %v", sub, got)
				}
				for name, where := range c.parts {
					path := filepath.Join(dir, sub, name)
					start, length := where[0]*512, where[1]*512
					st := stat(t, path)
					if st.Mode != unix.S_IFREG|0o444 || st.Size != length || st.Uid != 5 {
						t.Errorf("%s: %+v", path, st)
					}
					if other, taken := inodes[st.Ino]; taken {
						t.Errorf("%s and %s have inode %d", path, other, st.Ino)
					}
					inodes[st.Ino] = path
					if !bytes.Equal(content(t, path), data[start:start+length]) {
						t.Errorf("%s is not what the disk has there", path)
					}
					if blocks := map[string]int64{"p1.raw": 10 * 8}[name]; st.Blocks != blocks {
						t.Errorf("%s: %d blocks, want %d", path, st.Blocks, blocks)
					}
					refusesWrites(t, path)
				}
			}
			seeksWithin(t, dir+"/layers/one.d/p1.raw")
			seeksWithin(t, dir+"/disk.d/p1.raw")
			for _, name := range []string{"p0.raw", "p4.raw", "p01.raw", "p1", "p-1.raw", "p257.raw", "p999999999999999999999.raw", "raw", "p.raw"} {
				for _, sub := range []string{"disk.d", "layers/one.d"} {
					if _, err := os.Stat(filepath.Join(dir, sub, name)); !errors.Is(err, os.ErrNotExist) {
						t.Errorf("%s/%s: %v, want ENOENT", sub, name, err)
					}
				}
			}
			if err := s.Unmount(); err != nil {
				t.Fatal(err)
			}
			s.Wait()
			serve(t, d, dir, Options{})
			for inode, path := range inodes {
				if st := stat(t, path); st.Ino != inode {
					t.Errorf("%s has inode %d in the next mount, %d before", path, st.Ino, inode)
				}
			}
		})
	}
}

// refusesWrites: root, too, cannot open a partition for writing.
func refusesWrites(t *testing.T, path string) {
	t.Helper()
	for _, flag := range []int{os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC} {
		if file, err := os.OpenFile(path, flag, 0); !errors.Is(err, unix.EACCES) {
			t.Errorf("open %s with flags %#x: %v, want EACCES", path, flag, err)
			file.Close()
		}
	}
	if err := os.Truncate(path, 0); !errors.Is(err, unix.EACCES) {
		t.Errorf("truncate %s: %v, want EACCES", path, err)
	}
}

// seeksWithin: the partition begins with a hole of a block, has ten of data, and
// ends with a hole.
func seeksWithin(t *testing.T, path string) {
	t.Helper()
	file := open(t, path, os.O_RDONLY)
	defer file.Close()
	for _, c := range []struct {
		off, want int64
		whence    int
		err       error
	}{
		{0, 0, unix.SEEK_HOLE, nil},
		{0, fakeBlock, unix.SEEK_DATA, nil},
		{fakeBlock + 7, fakeBlock + 7, unix.SEEK_DATA, nil},
		{fakeBlock, 11 * fakeBlock, unix.SEEK_HOLE, nil},
		{11 * fakeBlock, 0, unix.SEEK_DATA, unix.ENXIO},
		{mib, 0, unix.SEEK_HOLE, unix.ENXIO},
		{mib, 0, unix.SEEK_DATA, unix.ENXIO},
	} {
		if pos, err := unix.Seek(int(file.Fd()), c.off, c.whence); err != c.err || err == nil && pos != c.want {
			t.Errorf("%s: seek %d from %d: %d, %v; want %d, %v", path, c.whence, c.off, pos, err, c.want, c.err)
		}
	}
	if n, err := file.ReadAt(make([]byte, 4096), mib-100); n != 100 || err != io.EOF {
		t.Errorf("%s: a read over the end gives %d, %v", path, n, err)
	}
}

// Where data goes on behind a partition, its end is a hole, as every file's.
func TestSeekAtTheEndOfAPartition(t *testing.T) {
	o := &partFile{source: allDataSource(100 * fakeBlock), start: fakeBlock, length: 10 * fakeBlock}
	if pos, err := o.SeekHole(5); pos != 10*fakeBlock || err != nil {
		t.Errorf("%d, %v", pos, err)
	}
	o.source = allDataFrom(20 * fakeBlock)
	if pos, err := o.SeekData(5); err != io.EOF {
		t.Errorf("data behind the partition is found at %d, %v", pos, err)
	}
}

type allDataSource int64

func (allDataSource) ReadAt([]byte, int64) error          { return nil }
func (n allDataSource) SeekData(off int64) (int64, error) { return off, nil }
func (n allDataSource) SeekHole(int64) (int64, error)     { return int64(n), nil }

type allDataFrom int64

func (allDataFrom) ReadAt([]byte, int64) error          { return nil }
func (n allDataFrom) SeekData(int64) (int64, error)     { return int64(n), nil }
func (n allDataFrom) SeekHole(off int64) (int64, error) { return off, nil }

func TestNothingCanBeMadeInPartitions(t *testing.T) {
	dir, d, _ := withDisk(t, partitioned(t, 8*mib, gptScript), Options{})
	if err := d.Snapshot("one"); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for what, err := range map[string]error{
		"unlink":          os.Remove(at("layers/one.d/p1.raw")),
		"unlink of disk":  os.Remove(at("disk.d/p1.raw")),
		"rmdir":           unix.Rmdir(at("layers/one.d")),
		"rmdir of disk":   unix.Rmdir(at("disk.d")),
		"create":          os.WriteFile(at("layers/one.d/p2.raw"), nil, 0o600),
		"mkdir":           os.Mkdir(at("layers/one.d/x"), 0o700),
		"mkdir of a .d":   os.Mkdir(at("layers/two.d"), 0o700),
		"symlink":         os.Symlink("x", at("disk.d/link")),
		"link":            os.Link(at("disk.d/p1.raw"), at("disk.d/p2.raw")),
		"rename":          os.Rename(at("layers/one.d"), at("layers/two.d")),
		"rename to a raw": os.Rename(at("layers/one.d"), at("layers/two.raw")),
		"rename to a .d":  os.Rename(at("layers/one.raw"), at("layers/two.d")),
		"rename of a p":   os.Rename(at("layers/one.d/p1.raw"), at("layers/one.d/p2.raw")),
		"move out":        os.Rename(at("layers/one.d/p1.raw"), at("layers/p1.raw")),
		"chmod":           os.Chmod(at("layers/one.d/p1.raw"), 0o666),
		"chmod of a dir":  os.Chmod(at("disk.d"), 0o777),
		"chown":           os.Chown(at("disk.d/p1.raw"), 1, 1),
	} {
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: %v, want EPERM", what, err)
		}
	}
	if got := names(t, at("layers/one.d")); !slices.Equal(got, []string{"p1.raw", "p3.raw"}) {
		t.Errorf("left: %v", got)
	}
}

// Whatever a snapshot is called, each name in layers/ is one thing.
func TestNamesLikePartitions(t *testing.T) {
	dir, d, _ := withDisk(t, partitioned(t, 8*mib, gptScript), Options{})
	for _, name := range []string{"x", "x.d", "x.raw", "x.d.raw", "disk.d"} {
		if err := d.Snapshot(name); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"base.d", "base.raw", "disk.d.d", "disk.d.raw", "x.d", "x.d.d", "x.d.raw", "x.d.raw.d", "x.d.raw.raw", "x.raw", "x.raw.d", "x.raw.raw",
	}
	if got := names(t, dir+"/layers"); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	inodes := map[uint64]bool{}
	for _, name := range want {
		st := stat(t, filepath.Join(dir, "layers", name))
		if isDir := strings.HasSuffix(name, ".d"); isDir != (st.Mode&unix.S_IFMT == unix.S_IFDIR) || inodes[st.Ino] {
			t.Errorf("%s: %+v", name, st)
		}
		inodes[st.Ino] = true
	}
}

// The table of a view is read once, whatever is asked of it, and again only when
// that failed.
func TestTablesAreRememberedOnce(t *testing.T) {
	var log logBuffer
	dir, d, _ := withDisk(t, partitioned(t, 8*mib, gptScript), Options{Log: log.log()})
	look := func() {
		names(t, dir+"/layers")
		names(t, dir+"/layers/base.d")
		stat(t, dir+"/layers/base.d/p1.raw")
		content(t, dir+"/layers/base.d/p3.raw")
	}
	d.failWith("PeekView 000001", qcow2.ErrCorrupt)
	for range 3 {
		if got := names(t, dir+"/layers"); !slices.Equal(got, []string{"base.raw"}) {
			t.Errorf("a listing while the table cannot be read: %v", got)
		}
	}
	if text := log.String(); strings.Count(text, "no partitions to show") != 1 {
		t.Errorf("the log says\n%s", text)
	}
	d.failWith("PeekView 000001", nil)
	look()
	reads := d.count("PeekView 000001")
	for range 3 {
		look()
	}
	if n := d.count("PeekView 000001"); n != reads {
		t.Errorf("the table was read %d times more", n-reads)
	}
	d.panicIn("PeekView 000002", true)
	if err := d.Snapshot("one"); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir+"/layers"); !slices.Equal(got, []string{"base.d", "base.raw", "one.raw"}) {
		t.Errorf("a listing while reading panics: %v", got)
	}
}

// A disk without a table, or with a broken one, has no directory, and each layer has
// one line in the log.
func TestNoPartitions(t *testing.T) {
	broken := partitioned(t, 8*mib, gptScript)
	clear(broken[512 : 34*512])
	clear(broken[len(broken)-512:])
	empty := make([]byte, 8*mib)
	empty[510], empty[511] = 0x55, 0xaa
	for _, c := range []struct {
		data []byte
		says string
	}{
		{make([]byte, 8*mib), "no partition table"},
		{broken, "the partition table is broken"},
		{empty, "the partition table is empty"},
	} {
		var log logBuffer
		dir, d, _ := withDisk(t, c.data, Options{Log: log.log()})
		if err := d.Snapshot("one"); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if got := names(t, dir+"/layers"); !slices.Equal(got, []string{"base.raw", "one.raw"}) {
				t.Errorf("%s: layers/ has %v", c.says, got)
			}
			if got := names(t, dir); slices.Contains(got, "disk.d") {
				t.Errorf("%s: the mount has %v", c.says, got)
			}
			for _, name := range []string{"disk.d", "layers/one.d", "layers/one.d/p1.raw"} {
				if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s: %s: %v, want ENOENT", c.says, name, err)
				}
			}
		}
		if text := log.String(); strings.Count(text, "no partitions to show") != 3 || strings.Count(text, c.says) != 3 {
			t.Errorf("the log says\n%s", text)
		}
	}
}

// disk.d shows the table that the disk has now. An open partition stays what it was.
func TestLivePartitions(t *testing.T) {
	dir, d, _ := withDisk(t, make([]byte, 8*mib), Options{})
	disk := open(t, dir+"/disk.raw", os.O_RDWR)
	put := func(data []byte, off int64) {
		t.Helper()
		if _, err := disk.WriteAt(data, off); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir + "/disk.d"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a blank disk: %v", err)
	}
	put(partitioned(t, 8*mib, gptScript), 0)
	if got := names(t, dir+"/disk.d"); !slices.Equal(got, []string{"p1.raw", "p3.raw"}) {
		t.Errorf("%v", got)
	}
	part := open(t, dir+"/disk.d/p3.raw", os.O_RDONLY)
	buf := make([]byte, 5)
	for _, text := range []string{"one..", "two.."} { // nothing is kept in a cache
		put([]byte(text), 2*mib+4096)
		if _, err := part.ReadAt(buf, 4096); err != nil || string(buf) != text {
			t.Errorf("%q, %v; want %q", buf, err, text)
		}
	}
	table := partitioned(t, 8*mib, mbrScript)
	put(table[:mib], 0)
	put(table[2*mib:2*mib+512], 2*mib) // the extended partition's first sector
	if got := names(t, dir+"/disk.d"); !slices.Equal(got, []string{"p1.raw", "p2.raw", "p5.raw"}) {
		t.Errorf("%v", got)
	}
	if _, err := part.ReadAt(buf, 4096); err != nil || string(buf) != "two.." {
		t.Errorf("an open partition that is gone: %q, %v", buf, err)
	}
	if _, err := os.Stat(dir + "/disk.d/p3.raw"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a partition that is gone: %v", err)
	}
	if opens := d.opens(); len(opens) != 2 {
		t.Errorf("open: %+v", opens)
	}
	put(make([]byte, mib), 0)
	if _, err := os.Stat(dir + "/disk.d"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a table that is gone: %v", err)
	}
}

// What there was no time to count is taken for data, as far as the view has that
// much; later looks count on.
func TestBlocksOfAPartitionThatIsNotCounted(t *testing.T) {
	dir, d, s := withDisk(t, partitioned(t, 8*mib, gptScript), Options{})
	d.mu.Lock()
	d.slowCount = true
	d.mu.Unlock()
	var out [12]int64
	for i := range out {
		a, _, err := attrOf(s.fs, partNode(1, 1))
		if err != nil {
			t.Fatal(err)
		}
		out[i] = int64(a.Blocks) * 512 / fakeBlock
	}
	// Eleven blocks in all, the first ten of the partition after a hole, one before it.
	if out[0] != 11 || out[11] != 11 {
		t.Errorf("%v blocks", out)
	}
	d.mu.Lock()
	d.slowCount = false
	d.mu.Unlock()
	if st := stat(t, dir+"/layers/base.d/p1.raw"); st.Blocks*512/fakeBlock != 10 {
		t.Errorf("%d blocks when all is counted", st.Blocks)
	}
}

// attrOf is what a stat of a node gets, without the kernel's cache.
func attrOf(f *fileSystem, node uint64) (a fuse.Attr, valid time.Duration, err error) {
	valid, err = f.attr(node, &a)
	return a, valid, err
}

func TestManyLayersWithPartitions(t *testing.T) {
	dir, d, _ := withDisk(t, partitioned(t, 4*mib, "label: dos\nstart=2048\n"), Options{})
	const layers = 200
	for i := range layers - 1 {
		if err := d.Snapshot(fmt.Sprintf("s%03d", i)); err != nil {
			t.Fatal(err)
		}
	}
	got := names(t, dir+"/layers")
	if len(got) != 2*layers {
		t.Errorf("%d names", len(got))
	}
	if out, err := shell(t, dir, "find . -name 'p1.raw' | wc -l"); err != nil || strings.TrimSpace(out) != fmt.Sprint(layers+1) {
		t.Errorf("find sees %s, %v", out, err)
	}
}
