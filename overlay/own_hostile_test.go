package overlay

import (
	"bytes"
	"io"
	"os"
	"testing"

	"varve/integration/hostile"
	"varve/integration/imagetest"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// TestEntriesThatNameTables: a damaged entry must not turn a guest's write into
// one that overwrites the layer's tables. The layer is a clean one: nobody looks
// through it when it is opened.
func TestEntriesThatNameTables(t *testing.T) {
	var clean hostile.Seed
	for _, s := range ownSeeds(t) {
		if s.Name == "17 bits, backing true, settled true" {
			clean = s
		}
	}
	const cs = 1 << defaultClusterBits
	m := hostile.MapImage(clean.Data)
	l1, l2 := int64(m.L1[0]), int64(m.L2[0])
	end := int64(len(clean.Data))
	entry := func(host int64) []byte {
		return append(imagetest.BE64(qcow2.CopiedFlag|uint64(host)), imagetest.BE64(0xffffffff)...)
	}
	for _, c := range []struct {
		what  string
		at    int64
		bytes []byte
		says  string
		open  bool // it is found when the layer is opened
	}{
		{"data in the refcount table", l2, entry(1 * cs), "holds a table", false},
		{"data in a refcount block", l2, entry(2 * cs), "holds a table", false},
		{"data in the L1 table", l2, entry(3 * cs), "holds a table", false},
		{"data in the L2 table", l2, entry(l2), "holds a table", false},
		{"data behind the end", l2, entry(end), "behind the last one in use", false},
		{"data far behind the end", l2, entry(1 << 54), "behind the last one in use", false},
		{"the L2 table in the L1 table", l1, imagetest.BE64(qcow2.CopiedFlag | 3*cs), "another table's", true},
		{"the L2 table in a refcount block", l1, imagetest.BE64(qcow2.CopiedFlag | 2*cs), "another table's", true},
		{"the L2 table behind the end", l1, imagetest.BE64(qcow2.CopiedFlag | uint64(end)), "not within the file", true},
		{"a reserved bit in an L1 entry", l1, imagetest.BE64(m.Word(uint64(l1)) | 1), "reserved bits", true},
		{"a refcount block in the L1 table", cs, imagetest.BE64(3 * cs), "another table's", true},
		{"a refcount block in the header", cs + 8, imagetest.BE64(1 << 63), "not within the file", true},
		{"a refcount block behind the end", cs, imagetest.BE64(uint64(end)), "not within the file", true},
		{"the refcount table in the L1 table", 48, imagetest.BE64(3 * cs), "another table's", true},
		{"a long refcount table", 56, imagetest.BE32(60), "refcount table at 0x20000, 7864320 bytes long, ends behind", true},
	} {
		t.Run(c.what, func(t *testing.T) {
			path := t.TempDir() + "/layer.qcow2"
			must(t, os.WriteFile(path, clean.Data, 0o600))
			imagetest.Patch(t, path, c.at, c.bytes...)
			damaged, err := os.ReadFile(path)
			must(t, err)
			o, err := OpenOverlay(hostfs.OS(), path, OverlayOptions{})
			if (err != nil) != c.open {
				t.Fatalf("open: %v", err)
			}
			if o != nil {
				err = o.WriteAt(bytes.Repeat([]byte{0xee}, 4096), 4096, memory(clean.Backing))
				must(t, o.Close())
			}
			imagetest.JudgeError(t, err, qcow2.ErrCorrupt, c.says, path)
			// Recovery, which looks through all of it, refuses it too.
			_, err = OpenOverlay(hostfs.OS(), path, OverlayOptions{Unclean: true})
			imagetest.JudgeError(t, err, qcow2.ErrCorrupt, path)
			now, err := os.ReadFile(path)
			must(t, err)
			if !bytes.Equal(now, damaged) {
				t.Error("the file was changed")
			}
		})
	}
}

// claimFile is a file that is longer than what it has: the rest reads as zeros.
type claimFile struct {
	memoryFile
	size int64
}

func (f *claimFile) Stat() (hostfs.Info, error) { return hostfs.Info{Size: f.size}, nil }
func (f *claimFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= f.size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), f.size-off)]
	clear(p)
	if off < int64(len(f.Data)) {
		copy(p, f.Data[off:])
	}
	return len(p), nil
}
func (f *claimFile) Truncate(int64) error                     { return nil }
func (f *claimFile) PunchHole(int64, int64) error             { return nil }
func (f *claimFile) WriteAt(p []byte, off int64) (int, error) { return len(p), nil }

// TestMemoryForClaims: what a header or an entry claims costs memory only when
// the file has it, also when the file is sparse and of any length.
func TestMemoryForClaims(t *testing.T) {
	layer := func(clusterBits uint32) []byte {
		path := t.TempDir() + "/layer.qcow2"
		must(t, Create(hostfs.OS(), path, CreateOptions{Size: 1 << 40, ClusterBits: clusterBits}))
		data, err := os.ReadFile(path)
		must(t, err)
		return data
	}
	set := func(data []byte, at int64, b ...byte) []byte {
		data = bytes.Clone(data)
		copy(data[at:], b)
		return data
	}
	small := layer(14)
	withTable := set(small, int64(hostile.MapImage(small).L1[0]), imagetest.BE64(qcow2.CopiedFlag|uint64(len(small)))...)
	image := imagetest.New(t, "cluster_size=2M", "1M")
	plain, err := os.ReadFile(image)
	must(t, err)
	for _, c := range []struct {
		what  string
		data  []byte
		size  int64 // of the file; 0: what it has
		limit int   // bytes that may be allocated
	}{
		{"an L1 table of 32 MiB", set(small, 36, imagetest.BE32(4<<20)...), 0, 1 << 20},
		{"an L1 table of 32 MiB in a sparse file", set(small, 36, imagetest.BE32(4<<20)...), 1 << 40, 104 << 20},
		{"a refcount table of 8 MiB", set(small, 56, imagetest.BE32(512)...), 0, 8 << 20},
		{"a refcount table of 8 MiB in a sparse file", set(small, 56, imagetest.BE32(512)...), 1 << 40, 24 << 20},
		{"a disk of 8 EiB", set(small, 24, imagetest.BE64(1<<63-1)...), 0, 1 << 20},
		{"an L2 table at the end of a file of 16 PiB", set(withTable, int64(hostile.MapImage(small).L1[0]), imagetest.BE64(qcow2.CopiedFlag|1<<54-1<<14)...), 1 << 54, 8 << 20},
		{"65536 snapshots", set(plain, 60, append(imagetest.BE32(65536), imagetest.BE64(2<<21)...)...), 0, 8 << 20},
		{"2 MiB clusters and a disk of 2^60 bytes", func() []byte {
			d := set(layer(18), 20, imagetest.BE32(21)...)
			d = set(set(d, 24, imagetest.BE64(1<<60)...), 36, append(imagetest.BE32(4<<20), imagetest.BE64(1<<30)...)...)
			return set(d, 48, imagetest.BE64(1<<21)...)
		}(), 1 << 40, 104 << 20},
	} {
		t.Run(c.what, func(t *testing.T) {
			size := max(c.size, int64(len(c.data)))
			file := func() *claimFile {
				f := &claimFile{size: size}
				f.Data, f.T = c.data, t
				return f
			}
			for _, unclean := range []bool{false, true} {
				hostile.MayAllocate(t, "opening the layer", c.limit, func() {
					o, err := NewOverlay(file(), OverlayOptions{Unclean: unclean})
					t.Logf("unclean %v: taken %v, %v", unclean, o != nil, err)
				})
			}
			hostile.MayAllocate(t, "opening the image", c.limit, func() {
				im, err := qcow2.NewImage(file(), qcow2.FormatQcow2)
				t.Logf("image: taken %v, %v", im != nil, err)
			})
		})
	}
}

// TestFarCluster: recovery of a layer whose last cluster stands at the end of a
// file of petabytes costs what its tables have.
func TestFarCluster(t *testing.T) {
	const cs, far = 1 << 17, int64(1) << 49
	const perBlock = cs / 2
	blockIndex := far / cs / perBlock
	// Header, refcount table of 64 clusters, a block, an L1 table, an L2 table,
	// and a second block for the far end.
	const tableAt, blockAt, l1At, l2At, farBlockAt = 1 * cs, 65 * cs, 66 * cs, 67 * cs, 68 * cs
	h := &qcow2.Header{
		Version: 3, ClusterBits: 17, Size: 1 << 30, L1Entries: 1, L1Offset: l1At, RefcountTableOffset: tableAt, RefcountTableClusters: 64,
		Incompatible: qcow2.IncompatibleExtendedL2, RefcountOrder: writeRefcountOrder, HeaderLength: ownHeaderLength,
	}
	sector, err := encodeHeader(h)
	must(t, err)
	data := make([]byte, 69*cs)
	copy(data, sector)
	copy(data[tableAt:], imagetest.BE64(blockAt))
	copy(data[tableAt+8*blockIndex:], imagetest.BE64(farBlockAt))
	for i := range 69 {
		copy(data[blockAt+2*i:], []byte{0, 1})
	}
	copy(data[farBlockAt:], []byte{0, 1})
	copy(data[l1At:], imagetest.BE64(qcow2.CopiedFlag|l2At))
	copy(data[l2At:], append(imagetest.BE64(qcow2.CopiedFlag|uint64(far)), imagetest.BE64(1)...))
	f := &claimFile{size: far + cs}
	f.Data, f.T = data, t
	hostile.MayAllocate(t, "recovering", 40<<20, func() {
		if _, err := NewOverlay(f, OverlayOptions{Unclean: true}); err != nil {
			t.Fatal(err)
		}
	})
}
