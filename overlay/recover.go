package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"

	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// usedClusters walks all tables of a layer of ours and collects the host
// clusters that they name.
type usedClusters struct {
	file   hostfs.File
	h      *qcow2.Header
	limit  int64   // clusters in the file
	blocks []int64 // the refcount table
	set    qcow2.ClusterSet
}

func (u *usedClusters) mark(what string, off, n int64) error {
	cs := u.h.ClusterSize()
	for c := off / cs; c < off/cs+n; c++ {
		if off <= 0 && what != "header" || off%cs != 0 || c >= u.limit {
			return fmt.Errorf("%s at 0x%x of %s: not within the file or not aligned: %w", what, off, u.file.Name(), qcow2.ErrCorrupt)
		}
		if b := c / (cs / 2); b >= int64(len(u.blocks)) || u.blocks[b] == 0 {
			return fmt.Errorf("%s at 0x%x of %s: cluster %d is in use and has no refcount block: %w", what, off, u.file.Name(), c, qcow2.ErrCorrupt)
		}
		if !u.set.Add(c) {
			return fmt.Errorf("%s at 0x%x of %s: the cluster is used twice: %w", what, off, u.file.Name(), qcow2.ErrCorrupt)
		}
	}
	return nil
}

func (u *usedClusters) collect() error {
	h, cs := u.h, u.h.ClusterSize()
	if err := u.mark("header", 0, 1); err != nil {
		return err
	}
	if err := u.mark("refcount table", h.RefcountTableOffset, int64(h.RefcountTableClusters)); err != nil {
		return err
	}
	for _, b := range u.blocks {
		if b != 0 {
			if err := u.mark("refcount block", b, 1); err != nil {
				return err
			}
		}
	}
	if err := u.mark("L1 table", h.L1Offset, max(1, (int64(h.L1Entries)*8+cs-1)/cs)); err != nil {
		return err
	}
	walk := qcow2.Walk{File: u.file, Header: h, Buf: make([]byte, cs), L1: u.l1Entry, L2: u.l2Entry}
	return walk.Run(h.L1Offset, int64(h.L1Entries))
}

func (u *usedClusters) l1Entry(i int64, entry uint64) (bool, error) {
	if err := badOwnL1Entry(entry); err != nil {
		return false, fmt.Errorf("%s: L1 entry %d: %w", u.file.Name(), i, err)
	}
	return true, u.mark("L2 table", int64(entry&qcow2.OffsetMask), 1)
}

func (u *usedClusters) l2Entry(at, _ int64, word, bitmap uint64) error {
	if err := badOwnEntry(word, bitmap, u.h.ClusterSize()); err != nil {
		return fmt.Errorf("L2 entry at 0x%x of %s: %w", at, u.file.Name(), err)
	}
	if data := int64(word & qcow2.OffsetMask); data != 0 {
		return u.mark("data cluster", data, 1)
	}
	return nil
}

// surveyOverlay finds the clusters that a layer of ours uses, and its refcount
// blocks. Its errors are what recovery does not mend.
func surveyOverlay(f hostfs.File, h *qcow2.Header, fileSize int64) (*qcow2.ClusterSet, []int64, error) {
	table, err := readRefcountTable(f, h, fileSize)
	if err != nil {
		return nil, nil, err
	}
	cs := h.ClusterSize()
	u := usedClusters{file: f, h: h, limit: (fileSize + cs - 1) / cs, blocks: table}
	if err := u.collect(); err != nil {
		return nil, nil, err
	}
	return &u.set, table, nil
}

// Mendable is nil when OpenOverlay with Unclean mends the refcounts of a layer of
// ours; otherwise it wraps what keeps it from that: ErrNotPlain, ErrCorrupt or the
// host's error. It reads only, and takes no lock.
func Mendable(f hostfs.File) error {
	h, size, err := readOwnHeader(f)
	if err != nil {
		return err
	}
	_, _, err = surveyOverlay(f, h, size)
	return err
}

// recoverOverlay mends a layer of ours that was not settled: refcounts become
// exact, leaked clusters are given back, the file ends behind its last cluster.
// It can be cut off anywhere and run again (D16): refcounts that are too low are
// raised, durably, before any is lowered.
func recoverOverlay(f hostfs.File, h *qcow2.Header, log *slog.Logger) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	used, table, err := surveyOverlay(f, h, info.Size)
	if err != nil {
		return err
	}
	raised, _, err := mendRefcounts(f, h, table, used, true)
	if err != nil {
		return err
	}
	if raised > 0 {
		log.Warn("raised refcounts that were too low", "file", f.Name(), "clusters", raised)
		if err := f.Datasync(); err != nil {
			return fmt.Errorf("fdatasync %s: %w", f.Name(), err)
		}
	}
	_, lowered, err := mendRefcounts(f, h, table, used, false)
	if err != nil {
		return err
	}
	if err := punchUnused(f, h, used); err != nil {
		return err
	}
	if end := used.High * h.ClusterSize(); end < info.Size {
		if err := f.Truncate(end); err != nil {
			return err
		}
	}
	if err := f.Datasync(); err != nil {
		return fmt.Errorf("fdatasync %s: %w", f.Name(), err)
	}
	if lowered > 0 {
		log.Info("gave back clusters that were allocated ahead or leaked", "file", f.Name(), "clusters", lowered)
	}
	return nil
}

// mendRefcounts makes the refcounts 1 for used clusters and 0 for the others,
// the raising part or the lowering part of it.
func mendRefcounts(f hostfs.File, h *qcow2.Header, table []int64, used *qcow2.ClusterSet, raise bool) (raised, lowered int, err error) {
	cs := h.ClusterSize()
	perBlock := cs / 2
	p := make([]byte, cs)
	for b, off := range table {
		if off == 0 {
			continue
		}
		if err := hostfs.ReadPadded(f, p, off); err != nil {
			return 0, 0, fmt.Errorf("read refcount block at 0x%x of %s: %w", off, f.Name(), err)
		}
		first, last := -1, -1 // changed refcounts
		for i := 0; i < int(perBlock); i++ {
			have := binary.BigEndian.Uint16(p[2*i:])
			want := uint16(0)
			if used.Has(int64(b)*perBlock + int64(i)) {
				want = 1
			}
			switch {
			case have < want && raise:
				raised++
			case have > want && !raise:
				lowered++
			default:
				continue
			}
			binary.BigEndian.PutUint16(p[2*i:], want)
			if first < 0 {
				first = i
			}
			last = i
		}
		if first >= 0 {
			if err := hostfs.WriteWhole(f, p[2*first:2*last+2], off+2*int64(first)); err != nil {
				return 0, 0, err
			}
		}
	}
	return raised, lowered, nil
}

func punchUnused(f hostfs.File, h *qcow2.Header, used *qcow2.ClusterSet) error {
	cs := h.ClusterSize()
	for c := int64(0); c < used.High; {
		next := used.Next(c)
		if next == c {
			c++
			continue
		}
		if err := f.PunchHole(c*cs, (next-c)*cs); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return fmt.Errorf("punch leaked clusters at 0x%x of %s: %w", c*cs, f.Name(), err)
		}
		c = next
	}
	return nil
}
