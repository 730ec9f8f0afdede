package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"varve/overlay/hostfs"
	"varve/overlay/measure"
	"varve/overlay/qcow2"
)

// captured is what one flush publishes: entries as they were at one moment,
// all of whose data was in the file by then.
type captured struct {
	slices []*slice
	image  []byte // sliceBytes for each
	l1     []int
	seq    uint64 // for the punch queue
	synced bool   // nothing was written at all since the last flush
}

// DirtyBytes is how much of the tables in memory waits for a flush.
func (o *Overlay) DirtyBytes() int64 {
	return o.dirtyCount.Load() * sliceBytes
}

// Flush makes everything durable that was written before the call. A full host
// file system (ENOSPC) leaves everything as it was, to be flushed again. After
// any other error the layer has failed for good (ErrFailed, M10).
func (o *Overlay) Flush() error {
	o.flushMu.Lock()
	defer o.flushMu.Unlock()
	return o.flushLocked()
}

func (o *Overlay) flushLocked() error {
	if err := o.Failed(); err != nil {
		return err
	}
	c := o.capture()
	ended := false
	defer func() {
		// A panic, which the caller may survive, must not lose the capture in
		// silence: later flushes would claim what is on no disk.
		if !ended {
			o.Fail(errors.New("a flush was cut off"))
		}
	}()
	err := o.flushCapture(c)
	ended = true
	return err
}

// flushCapture publishes a capture, or takes it back, or fails for good.
func (o *Overlay) flushCapture(c *captured) error {
	if before := o.before.Load(); before != nil {
		if err := before.Flush(); err != nil {
			o.release(c)
			return err
		}
	}
	if c.synced {
		o.punch.completed(c.seq)
		return nil
	}
	begun := measure.Now()
	err := o.publish(c)
	o.activity.Flushes.Observe(measure.Now() - begun)
	if err == nil {
		return nil
	}
	o.activity.FlushErrors.Inc()
	if noRoom(err) {
		o.release(c)
		return err
	}
	return o.fail(err)
}

// errSync marks a failed fdatasync: what it was to write back is lost.
var errSync = errors.New("fdatasync")

// noRoom says that a write met a full host file system, a used-up quota or the
// largest size of a file, and left the file as it was, so that a flush can be tried
// again once there is room.
func noRoom(err error) bool {
	return (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)) && !errors.Is(err, errSync)
}

// release takes a capture back: its entries wait for the next flush. The data
// and the entries that were written meanwhile are right wherever they are.
func (o *Overlay) release(c *captured) {
	o.unsynced.Store(true)
	o.dirtyMu.Lock()
	o.dirtyL1 = append(o.dirtyL1, c.l1...)
	o.dirtyMu.Unlock()
	for _, s := range c.slices {
		s.mu.Lock()
		s.writing = false
		if !s.dirty {
			o.markDirty(s)
		}
		s.mu.Unlock()
	}
}

// FlushAfter makes every flush of this layer flush another one, nil for none,
// between capturing its own entries and publishing them: what leaves this
// layer's tables because it was moved to the other is then durable there first.
func (o *Overlay) FlushAfter(other *Overlay) { o.before.Store(other) }

// capture copies the dirty entries as they are now (M4). What the live tables
// get later has data that the next fdatasync may not cover, and waits for the
// next flush.
func (o *Overlay) capture() *captured {
	c := &captured{seq: o.punch.capture()}
	o.dirtyMu.Lock()
	c.slices, o.dirty = o.dirty, nil
	o.dirtyCount.Store(0)
	c.l1, o.dirtyL1 = o.dirtyL1, nil
	o.dirtyMu.Unlock()
	c.image = make([]byte, len(c.slices)*sliceBytes)
	for i, s := range c.slices {
		s.mu.Lock()
		s.encode(c.image[i*sliceBytes:])
		s.dirty, s.writing = false, true
		s.mu.Unlock()
	}
	// Last: a write that clears it again afterwards is not in the capture.
	c.synced = !o.unsynced.Swap(false) && len(c.slices) == 0 && len(c.l1) == 0
	return c
}

// publish writes what was captured (D2): data and refcounts durable, then the L2
// entries, then the L1 entries that name new tables, then all that durable
// (M4, M7). A new table is durable as a run of zeros, an empty table, before
// an L1 entry can name it, so L2 and L1 need no barrier between them.
func (o *Overlay) publish(c *captured) error {
	if err := o.linkRefcountBlocks(); err != nil {
		return err
	}
	if err := o.sync(); err != nil {
		return err
	}
	if len(c.slices) > 0 || len(c.l1) > 0 {
		for i, s := range c.slices {
			s.table.written.Or(1 << s.index)
			if err := o.writeSlice(s, c.image[i*sliceBytes:(i+1)*sliceBytes]); err != nil {
				return err
			}
			s.mu.Lock()
			s.writing = false
			s.mu.Unlock()
		}
		if err := o.writeL1(c.l1); err != nil {
			return err
		}
		if err := o.sync(); err != nil {
			return err
		}
	}
	o.punch.completed(c.seq)
	return nil
}

// writeSlice writes a slice, but for the sectors of it that could not be read: what
// stands in them nobody knows.
func (o *Overlay) writeSlice(s *slice, p []byte) error {
	if s.lacks == 0 {
		return hostfs.WriteWhole(o.file, p, s.at())
	}
	for i := int64(0); i < sliceBytes/qcow2.DamageUnit; i++ {
		if s.lacks>>i&1 == 0 {
			if err := hostfs.WriteWhole(o.file, p[i*qcow2.DamageUnit:(i+1)*qcow2.DamageUnit], s.at()+i*qcow2.DamageUnit); err != nil {
				return err
			}
		}
	}
	return nil
}

func (o *Overlay) sync() error {
	if err := o.file.Datasync(); err != nil {
		return fmt.Errorf("%w %s: %w", errSync, o.file.Name(), err)
	}
	return nil
}

func (o *Overlay) writeL1(entries []int) error {
	tables := *o.tables.Load()
	var p [8]byte
	for _, i := range entries {
		binary.BigEndian.PutUint64(p[:], uint64(tables[i].Load().host)|qcow2.CopiedFlag)
		if err := hostfs.WriteWhole(o.file, p[:], o.header.L1Offset+int64(i)*8); err != nil {
			return err
		}
	}
	return nil
}

// linkRefcountBlocks puts new refcount blocks into the refcount table. A block
// must be durable, and within the file, before the table names it; otherwise a
// crash leaves a table that points nowhere.
func (o *Overlay) linkRefcountBlocks() (err error) {
	table, blocks := o.alloc.unlinkedBlocks()
	if len(blocks) == 0 {
		return nil
	}
	defer func() {
		if err != nil {
			o.alloc.relink(blocks)
		}
	}()
	if err := o.sync(); err != nil {
		return err
	}
	if int64(len(table))*8 > int64(o.header.RefcountTableClusters)<<o.clusterBits {
		return o.moveRefcountTable()
	}
	var p [8]byte
	for _, b := range blocks {
		binary.BigEndian.PutUint64(p[:], uint64(table[b]))
		if err := hostfs.WriteWhole(o.file, p[:], o.header.RefcountTableOffset+int64(b)*8); err != nil {
			return err
		}
	}
	return nil
}

// relink takes unlinkedBlocks back.
func (a *allocator) relink(blocks []int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unlinked = append(a.unlinked, blocks...)
}

// moveRefcountTable writes the refcount table, which has outgrown its place,
// to a new one, and switches the header over.
func (o *Overlay) moveRefcountTable() error {
	table, _ := o.alloc.unlinkedBlocks()
	n := (int64(len(table))*8 + o.clusterSize() - 1) >> o.clusterBits
	host, err := o.alloc.takeTables(o.file, n)
	if err != nil {
		return err
	}
	table, _ = o.alloc.unlinkedBlocks() // taking may have added a block
	p := make([]byte, n<<o.clusterBits)
	for i, b := range table {
		binary.BigEndian.PutUint64(p[i*8:], uint64(b))
	}
	if err := hostfs.WriteWhole(o.file, p, host); err != nil {
		return err
	}
	if err := o.sync(); err != nil {
		return err
	}
	h := *o.header
	o.alloc.free(h.RefcountTableOffset>>o.clusterBits, int64(h.RefcountTableClusters))
	h.RefcountTableOffset, h.RefcountTableClusters = host, uint32(n)
	return o.switchHeader(&h)
}

// capture and completed are the punch queue's view of a flush.
func (q *punchQueue) capture() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.captured++
	return q.captured
}

func (q *punchQueue) completed(seq uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.durable = max(q.durable, seq)
}
