package overlay

import (
	"fmt"

	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// The clusters of a layer of ours that hold tables are known as long as it is
// open for writing. A damaged entry that names one of them, or one that was never
// given out, is found when it is read and before anything is written: a guest's
// write would otherwise land in the tables, and the damage of one place would
// become the loss of all.

// noteTables collects the clusters of the tables that the header, the L1 table
// and the refcount table name. ErrCorrupt when one lies outside the file or two
// are the same.
func (o *Overlay) noteTables() error {
	a, h := &o.alloc, o.header
	a.tables = make(map[int64]struct{})
	mark := func(what string, off, n int64) error {
		for c := off >> o.clusterBits; n > 0; c, n = c+1, n-1 {
			switch _, twice := a.tables[c]; {
			case twice:
				return fmt.Errorf("%s at 0x%x of %s: the cluster at 0x%x is another table's: %w", what, off, o.file.Name(), c<<o.clusterBits, qcow2.ErrCorrupt)
			case off < 0 || c >= a.next:
				return fmt.Errorf("%s at 0x%x of %s is not within the file: %w", what, uint64(off), o.file.Name(), qcow2.ErrCorrupt)
			}
			a.tables[c] = struct{}{}
		}
		return nil
	}
	if err := mark("header", 0, 1); err != nil {
		return err
	}
	if err := mark("refcount table", h.RefcountTableOffset, int64(h.RefcountTableClusters)); err != nil {
		return err
	}
	if err := mark("L1 table", h.L1Offset, max(1, (int64(h.L1Entries)*8+o.clusterSize()-1)>>o.clusterBits)); err != nil {
		return err
	}
	for _, block := range a.table {
		if block == 0 {
			continue
		}
		if err := mark("refcount block", block, 1); err != nil {
			return err
		}
	}
	tables := *o.tables.Load()
	for i := range tables {
		if t := tables[i].Load(); t != nil {
			if err := mark("L2 table", t.host, 1); err != nil {
				return err
			}
		}
	}
	return nil
}

// takeTables is take for clusters that will hold tables and no guest data.
func (a *allocator) takeTables(f hostfs.File, n int64) (int64, error) {
	host, err := a.take(f, n)
	if err != nil {
		return 0, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := host >> a.clusterBits; n > 0; c, n = c+1, n-1 {
		a.tables[c] = struct{}{}
	}
	return host, nil
}

// checkData says what is wrong with the host offset of a data cluster as it was
// read from a table; 0 is none. written: the entry may have been written since the
// layer was opened.
func (a *allocator) checkData(host int64, written bool) error {
	if host == 0 {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c, end := host>>a.clusterBits, a.opened
	if written {
		end = a.next
	}
	if c >= end {
		return fmt.Errorf("the cluster at 0x%x is behind the last one in use: %w", host, qcow2.ErrCorrupt)
	}
	if _, table := a.tables[c]; table {
		return fmt.Errorf("the cluster at 0x%x holds a table: %w", host, qcow2.ErrCorrupt)
	}
	return nil
}
