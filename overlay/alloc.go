package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// allocator gives out host clusters in the order of the file, and keeps the
// refcounts ahead of them.
//
// Refcounts are written as 1 for a batch of clusters before the first of them
// is given out (M7, D14): a crash leaves refcounts that are exact or too high,
// which qemu-img check calls leaks. A cluster once given out is never given
// out again by a live layer (M3).
//
//	0 ........ next ........ end ........
//	 in use      refcount 1,   refcount 0,
//	             not in use    past the file's end
type allocator struct {
	mu          sync.Mutex
	clusterBits uint32
	next        int64 // the next cluster to give out
	end         int64 // clusters below have refcount 1 and lie within the file
	opened      int64 // next when the layer was opened; it does not change
	batch       int64 // clusters to add at a time
	ahead       int64 // clusters up to here may have refcount 1 still, after a Settle that failed

	tableOffset int64   // of the refcount table
	table       []int64 // offsets of the refcount blocks; 0 for none; replaced, not changed
	unlinked    []int   // table entries that are to be written by the next flush
	freed       []int64 // clusters that no longer serve: refcount 0 when settling

	// tables are the clusters that hold no guest data: the header, the L1
	// table, L2 tables, the refcount table and its blocks, also those that no
	// longer serve.
	tables map[int64]struct{}
}

const (
	minBatch = 64
	maxBatch = 4096
)

// perBlock is how many refcounts of 16 bits a refcount block holds (qcow2
// specification, "Host cluster management").
func (a *allocator) perBlock() int64 { return 1 << (a.clusterBits - 1) }

func (a *allocator) load(f hostfs.File, h *qcow2.Header, fileSize int64) error {
	a.clusterBits = h.ClusterBits
	cs := h.ClusterSize()
	a.next = (fileSize + cs - 1) >> h.ClusterBits
	a.end, a.opened = a.next, a.next
	a.batch = minBatch
	table, err := readRefcountTable(f, h, fileSize)
	if err != nil {
		return err
	}
	a.table = table
	a.tableOffset = h.RefcountTableOffset
	return nil
}

// checkLast refuses a file whose last clusters no refcount block counts: a new block would
// call clusters free that are in use. A crash leaves such a file, which recovery shortens.
func (a *allocator) checkLast(f hostfs.File) error {
	if b := a.end / a.perBlock(); a.end%a.perBlock() != 0 && (b >= int64(len(a.table)) || a.table[b] == 0) {
		return fmt.Errorf("%s: refcount table entry %d is 0, and clusters that it counts are in use: %w", f.Name(), b, qcow2.ErrCorrupt)
	}
	return nil
}

// readRefcountTable gives the offsets of the refcount blocks. The table must lie
// within the file, as must all of which memory is given out for.
func readRefcountTable(f hostfs.File, h *qcow2.Header, fileSize int64) ([]int64, error) {
	cs := h.ClusterSize()
	if n := int64(h.RefcountTableClusters) * cs; h.RefcountTableOffset > (fileSize+cs-1)&^(cs-1)-n {
		return nil, fmt.Errorf("%s: the refcount table at 0x%x, %d bytes long, ends behind the end of the file at 0x%x: %w",
			f.Name(), h.RefcountTableOffset, n, fileSize, qcow2.ErrCorrupt)
	}
	p := make([]byte, int64(h.RefcountTableClusters)*h.ClusterSize())
	if err := hostfs.ReadPadded(f, p, h.RefcountTableOffset); err != nil {
		return nil, fmt.Errorf("read refcount table at 0x%x of %s: %w", h.RefcountTableOffset, f.Name(), err)
	}
	table := make([]int64, len(p)/8)
	for i := range table {
		table[i] = int64(binary.BigEndian.Uint64(p[i*8:]))
		if table[i]&(h.ClusterSize()-1) != 0 {
			return nil, fmt.Errorf("%s: refcount table entry %d is 0x%x: %w", f.Name(), i, table[i], qcow2.ErrCorrupt)
		}
	}
	return table, nil
}

// take gives out n clusters that follow each other and returns the host
// offset of the first. The file is long enough for them, they read as zeros,
// and their refcounts are 1, all this not yet durable. ENOSPC comes from here.
func (a *allocator) take(f hostfs.File, n int64) (int64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.next+n > a.end {
		if err := a.extend(f, n); err != nil {
			return 0, fmt.Errorf("allocate a cluster of %s: %w", f.Name(), err)
		}
	}
	host := a.next << a.clusterBits
	a.next += n
	return host, nil
}

// giveBack takes back the cluster of a table that was given out last, if it is
// that.
func (a *allocator) giveBack(host int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := host >> a.clusterBits; c == a.next-1 {
		delete(a.tables, c)
		a.next = c
	} else {
		a.freed = append(a.freed, c)
	}
}

// extend adds a batch of at least n clusters behind end, with the refcount
// blocks that they need in front. A batch has room for both: it is at least
// twice n, and a block serves thousands of clusters.
func (a *allocator) extend(f hostfs.File, n int64) error {
	err := a.extendBy(f, max(a.batch, 2*n))
	// Near the largest size that the host allows a file, what is needed may fit
	// where a batch does not.
	for batch := a.batch / 2; errors.Is(err, unix.EFBIG) && batch >= 2*n; batch /= 2 {
		err = a.extendBy(f, batch)
	}
	return err
}

// extendBy adds as many clusters as that, all or none.
func (a *allocator) extendBy(f hostfs.File, batch int64) error {
	end := a.end + batch
	table := a.table
	if last := (end - 1) / a.perBlock(); last >= int64(len(table)) {
		// The table on disk is too small as well; the flush that writes the new
		// entries moves it (unlinkedBlocks).
		table = append(table[:len(table):len(table)], make([]int64, max(last+1-int64(len(table)), int64(len(table))))...)
	}
	next := a.next
	var blocks []int
	for b := a.end / a.perBlock(); b <= (end-1)/a.perBlock(); b++ {
		if table[b] == 0 {
			if len(blocks) == 0 {
				table = append([]int64(nil), table...)
			}
			table[b] = next << a.clusterBits
			blocks = append(blocks, int(b))
			next++
		}
	}
	if err := f.Truncate(end << a.clusterBits); err != nil {
		return err
	}
	if err := setRefcounts(f, table, a.clusterBits, a.end, end, 1); err != nil {
		return err
	}
	a.table, a.next, a.end = table, next, end
	for _, b := range blocks {
		a.tables[table[b]>>a.clusterBits] = struct{}{}
	}
	a.unlinked = append(a.unlinked, blocks...)
	a.batch = min(maxBatch, a.batch*2)
	return nil
}

// setRefcounts writes the refcounts of clusters [from, to).
func setRefcounts(f hostfs.File, table []int64, clusterBits uint32, from, to int64, value uint16) error {
	perBlock := int64(1) << (clusterBits - 1)
	for from < to {
		b, in := from/perBlock, from%perBlock
		n := min(to-from, perBlock-in)
		p := make([]byte, 2*n)
		for i := int64(0); i < n; i++ {
			binary.BigEndian.PutUint16(p[2*i:], value)
		}
		if b >= int64(len(table)) || table[b] == 0 {
			return fmt.Errorf("%s: no refcount block for cluster %d: %w", f.Name(), from, qcow2.ErrCorrupt)
		}
		if err := hostfs.WriteWhole(f, p, table[b]+2*in); err != nil {
			return err
		}
		from += n
	}
	return nil
}

// unlinkedBlocks takes the refcount table entries that are to be written.
func (a *allocator) unlinkedBlocks() (table []int64, blocks []int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	blocks, a.unlinked = a.unlinked, nil
	return a.table, blocks
}
