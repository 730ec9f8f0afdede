package overlay

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/flate"

	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// An exported qcow2 is version 3 with clusters of 64 KiB and without subclusters:
// what every program that reads qcow2 can read. Compressed clusters are zlib's.
//
//	0        header
//	1 …      L1 table
//	…        clusters of data, each L2 table behind the data that it names
//	…        refcount blocks, refcount table
//
// The header is written last, after everything else is durable: a file without
// it is no image.
const (
	exportClusterBits = 16
	exportCluster     = 1 << exportClusterBits
	exportTable       = exportCluster / 8 // entries of an L2 table
	// compressedWindow is zlib's window of 4 KiB, which is what QEMU reads
	// (inflateInit2 with -12 in its qcow2 driver).
	compressedWindow = 1 << 12
	compressAtOnce   = 64 // clusters
)

type qcow2Writer struct {
	Export
	file   hostfs.File
	copier *Copier
	refs   []uint16 // of each cluster of the file
	next   int64    // bytes: the end of what is given out, a whole cluster
	packed int64    // bytes: where compressed data ended last

	l1    []uint64
	l2    []byte // the table under construction
	l2At  int64  // its index
	dirty bool   // it has entries
}

// Qcow2 writes a qcow2 image into an empty file and makes it durable, with
// compressed clusters if compress is set. The image has whole sectors: of a view that
// ends within one the rest is zeros. Errors as of Raw.
func (e Export) Qcow2(ctx context.Context, f hostfs.File, compress bool) error {
	size := extent.WholeSectors(e.Size)
	tables := (size + exportTable<<exportClusterBits - 1) / (exportTable << exportClusterBits)
	if tables*8 > qcow2.MaxL1Bytes {
		return fmt.Errorf("%s: %d bytes are more than qcow2 can hold with clusters of %d bytes", f.Name(), size, exportCluster)
	}
	w := &qcow2Writer{Export: e, file: f, copier: NewCopier(f), l1: make([]uint64, tables), l2: make([]byte, exportCluster)}
	w.take(1 + max(1, (tables*8+exportCluster-1)/exportCluster))
	var err error
	if compress {
		err = w.compressAll(ctx)
	} else {
		err = w.copyAll(ctx)
	}
	if err != nil {
		return err
	}
	if err := w.setTable(-1); err != nil {
		return err
	}
	return w.finish()
}

// take gives out whole clusters, by the offset of the first.
func (w *qcow2Writer) take(n int64) int64 {
	at := w.next
	for range n {
		w.refs = append(w.refs, 1)
	}
	w.next += n * exportCluster
	return at
}

// copyAll copies runs of clusters that hold any data.
func (w *qcow2Writer) copyAll(ctx context.Context) error {
	first, last := int64(0), int64(-1) // clusters that wait to be copied
	flush := func() error {
		n := last - first + 1
		if n == 0 {
			return nil
		}
		host := w.take(n)
		if err := w.copier.Copy(w.Source, first<<exportClusterBits, host, n<<exportClusterBits); err != nil {
			return err
		}
		w.copier.StartWriteBack()
		for k := range n {
			if err := w.set(first+k, uint64(host+k*exportCluster)|qcow2.CopiedFlag); err != nil {
				return err
			}
		}
		first = last + 1
		return nil
	}
	err := w.each(ctx, w.copier, func(off, n int64) error {
		from, to := off>>exportClusterBits, (off+n-1)>>exportClusterBits
		from = max(from, last+1)
		if from > to {
			return nil
		}
		if from > last+1 || (to-first+1)<<exportClusterBits > 2*exportStep {
			if err := flush(); err != nil {
				return err
			}
			first = from
		}
		last = to
		return nil
	}, nil, flush)
	if err != nil {
		return err
	}
	return flush()
}

// compressAll reads, compresses and writes batches, several clusters at a time.
func (w *qcow2Writer) compressAll(ctx context.Context) error {
	var batch []int64
	last := int64(-1)
	err := w.each(ctx, nil, func(off, n int64) error {
		for c := max(off>>exportClusterBits, last+1); c <= (off+n-1)>>exportClusterBits; c++ {
			batch = append(batch, c)
			last = c
		}
		if len(batch) < compressAtOnce {
			return nil
		}
		err := w.compress(batch)
		batch = batch[:0]
		return err
	}, nil, nothingPutOff)
	if err != nil {
		return err
	}
	return w.compress(batch)
}

// compressedCluster is one that is to be written; data is nil for zeros.
type compressedCluster struct {
	data  []byte
	plain bool // not compressed: it would not become smaller
	err   error
}

func (w *qcow2Writer) compress(clusters []int64) error {
	results := make([]compressedCluster, len(clusters))
	var group sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for i := range workers {
		group.Go(func() {
			buf := make([]byte, exportCluster)
			for k := i; k < len(clusters); k += workers {
				results[k] = compressOne(w.Source, clusters[k], buf)
			}
		})
	}
	group.Wait()
	for k, r := range results {
		if r.err != nil {
			return r.err
		}
		if r.data == nil {
			continue
		}
		entry, err := w.place(r)
		if err != nil {
			return err
		}
		if err := w.set(clusters[k], entry); err != nil {
			return err
		}
	}
	return nil
}

func compressOne(source Source, cluster int64, buf []byte) (r compressedCluster) {
	if r.err = source.ReadAt(buf, cluster<<exportClusterBits); r.err != nil {
		return r
	}
	if isZeros(buf) {
		return r
	}
	var out bytes.Buffer
	z, err := flate.NewWriterWindow(&out, compressedWindow)
	if err == nil {
		_, err = z.Write(buf)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		r.err = fmt.Errorf("compress guest offset %d: %w", cluster<<exportClusterBits, err)
		return r
	}
	if out.Len() >= exportCluster-512 { // what is named in sectors must be less than a cluster
		r.data, r.plain = bytes.Clone(buf), true
		return r
	}
	r.data = out.Bytes()
	return r
}

// place writes a cluster and gives its entry (qcow2 specification, "Compressed
// Clusters Descriptor"). Compressed ones stand side by side; each counts in every
// host cluster that its sectors touch.
func (w *qcow2Writer) place(r compressedCluster) (uint64, error) {
	if r.plain {
		at := w.take(1)
		return uint64(at) | qcow2.CopiedFlag, hostfs.WriteWhole(w.file, r.data, at)
	}
	n := int64(len(r.data))
	at := w.packed
	// Behind the cluster in which the last one ends may be something else by now.
	if whole := (at + exportCluster - 1) &^ (exportCluster - 1); whole != w.next && at+n > whole {
		at = w.next
	}
	sectors := (at+n-1)/512 - at/512
	end := (at/512 + sectors + 1) * 512
	for w.next < end {
		w.refs = append(w.refs, 0)
		w.next += exportCluster
	}
	for c := at >> exportClusterBits; c <= (end-1)>>exportClusterBits; c++ {
		w.refs[c]++
	}
	w.packed = at + n
	const shift = 62 - (exportClusterBits - 8)
	return uint64(at) | uint64(sectors)<<shift | qcow2.CompressedFlag, hostfs.WriteWhole(w.file, r.data, at)
}

// set names a cluster; they come in order.
func (w *qcow2Writer) set(cluster int64, entry uint64) error {
	if at := cluster / exportTable; at != w.l2At {
		if err := w.setTable(at); err != nil {
			return err
		}
	}
	binary.BigEndian.PutUint64(w.l2[cluster%exportTable*8:], entry)
	w.dirty = true
	return nil
}

// setTable writes the table under construction and begins another.
func (w *qcow2Writer) setTable(at int64) error {
	if w.dirty {
		host := w.take(1)
		if err := hostfs.WriteWhole(w.file, w.l2, host); err != nil {
			return err
		}
		w.l1[w.l2At] = uint64(host) | qcow2.CopiedFlag
		clear(w.l2)
	}
	w.l2At, w.dirty = at, false
	return nil
}

// finish writes refcounts, L1 table and, when all that is durable, the header.
func (w *qcow2Writer) finish() error {
	const perBlock = exportCluster / 2
	used := int64(len(w.refs))
	blocks, table := int64(0), int64(0)
	for {
		total := used + blocks + table
		b := (total + perBlock - 1) / perBlock
		t := (b*8 + exportCluster - 1) / exportCluster
		if b == blocks && t == table {
			break
		}
		blocks, table = b, t
	}
	firstBlock := w.take(blocks)
	tableAt := w.take(table)
	counts := make([]byte, blocks*exportCluster)
	for c, n := range w.refs {
		binary.BigEndian.PutUint16(counts[c*2:], n)
	}
	entries := make([]byte, table*exportCluster)
	for b := range blocks {
		binary.BigEndian.PutUint64(entries[b*8:], uint64(firstBlock+b*exportCluster))
	}
	l1 := make([]byte, max(1, (len(w.l1)*8+exportCluster-1)/exportCluster)*exportCluster)
	for i, e := range w.l1 {
		binary.BigEndian.PutUint64(l1[i*8:], e)
	}
	header, err := encodeHeader(&qcow2.Header{
		Version: 3, ClusterBits: exportClusterBits, Size: extent.WholeSectors(w.Size),
		L1Entries: uint32(len(w.l1)), L1Offset: exportCluster,
		RefcountTableOffset: tableAt, RefcountTableClusters: uint32(table),
		RefcountOrder: 4, HeaderLength: ownHeaderLength,
	})
	if err != nil {
		return err
	}
	for _, part := range []struct {
		p   []byte
		off int64
	}{{counts, firstBlock}, {entries, tableAt}, {l1, exportCluster}} {
		if err := hostfs.WriteWhole(w.file, part.p, part.off); err != nil {
			return err
		}
	}
	if err := w.file.Datasync(); err != nil {
		return err
	}
	if err := hostfs.WriteWhole(w.file, header, 0); err != nil {
		return err
	}
	return finish(w.file, w.copier)
}
