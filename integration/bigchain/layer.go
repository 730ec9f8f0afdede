package bigchain

import (
	"encoding/binary"
	"os"

	"varve/overlay"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

const (
	copied   = uint64(1) << 63
	l2Entry  = 16 // bytes of an extended entry
	perWrite = 4 << 10
)

// layerWriter writes the tables of a layer that overlay.Create has made, each L2
// table in front of the clusters that it names, as varve itself allocates.
type layerWriter struct {
	f       *os.File
	cluster int64 // bytes
	l1      []byte
	table   []byte // the L2 table under construction
	index   int64  // its L1 index, -1 for none
	next    int64  // host cluster
}

// writeLayer makes a layer that maps runs, in order, of run bytes each.
func writeLayer(file string, o overlay.CreateOptions, runs []int64, run int64) error {
	if err := overlay.Create(hostfs.OS(), file, o); err != nil {
		return err
	}
	h, err := qcow2.ReadHeader(hostfs.OS(), file)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close() // what counts is synced
	info, err := f.Stat()
	if err != nil {
		return err
	}
	w := &layerWriter{
		f: f, cluster: h.ClusterSize(), index: -1, next: info.Size() / h.ClusterSize(),
		l1: make([]byte, int64(h.L1Entries)*8), table: make([]byte, h.ClusterSize()),
	}
	for _, at := range runs {
		if err := w.add(at, run); err != nil {
			return err
		}
	}
	if err := w.endTable(); err != nil {
		return err
	}
	if err := w.refcounts(h); err != nil {
		return err
	}
	if _, err := f.WriteAt(w.l1, h.L1Offset); err != nil {
		return err
	}
	return f.Truncate(w.next * w.cluster)
}

// add maps guest bytes from at on, which lie behind all that were mapped before.
func (w *layerWriter) add(at, length int64) error {
	for end := at + length; at < end; {
		cluster := at / w.cluster
		perTable := w.cluster / l2Entry
		if i := cluster / perTable; i != w.index {
			if err := w.endTable(); err != nil {
				return err
			}
			w.index = i
			binary.BigEndian.PutUint64(w.l1[i*8:], uint64(w.next*w.cluster)|copied)
			w.next++
		}
		entry := w.table[cluster%perTable*l2Entry:]
		if binary.BigEndian.Uint64(entry) == 0 {
			binary.BigEndian.PutUint64(entry, uint64(w.next*w.cluster)|copied)
			w.next++
		}
		stop := min(end, (cluster+1)*w.cluster)
		first, last := at%w.cluster/(w.cluster/32), (stop-1)%w.cluster/(w.cluster/32)
		bits := ^uint64(0) >> (63 - (last - first)) << first
		binary.BigEndian.PutUint64(entry[8:], binary.BigEndian.Uint64(entry[8:])|bits)
		at = stop
	}
	return nil
}

// endTable writes the pieces of the table that say something.
func (w *layerWriter) endTable() error {
	if w.index < 0 {
		return nil
	}
	at := int64(binary.BigEndian.Uint64(w.l1[w.index*8:]) &^ copied)
	written := func(piece int) bool {
		for _, b := range w.table[piece*perWrite:][:perWrite] {
			if b != 0 {
				return true
			}
		}
		return false
	}
	for i, pieces := 0, len(w.table)/perWrite; i < pieces; i++ {
		start := i
		for i < pieces && written(i) {
			i++
		}
		if i > start {
			if _, err := w.f.WriteAt(w.table[start*perWrite:i*perWrite], at+int64(start)*perWrite); err != nil {
				return err
			}
		}
	}
	clear(w.table)
	w.index = -1
	return nil
}

// refcounts makes every cluster's refcount 1, with the blocks that this takes at
// the end of the file.
func (w *layerWriter) refcounts(h *qcow2.Header) error {
	perBlock := w.cluster / 2
	blocks := []int64{2 * w.cluster} // Create's one
	for int64(len(blocks))*perBlock < w.next {
		blocks = append(blocks, w.next*w.cluster)
		w.next++
	}
	var table []byte
	for i, at := range blocks {
		table = binary.BigEndian.AppendUint64(table, uint64(at))
		ones := make([]byte, 2*min(perBlock, w.next-int64(i)*perBlock))
		for k := 1; k < len(ones); k += 2 {
			ones[k] = 1
		}
		if _, err := w.f.WriteAt(ones, at); err != nil {
			return err
		}
	}
	_, err := w.f.WriteAt(table, h.RefcountTableOffset)
	return err
}
