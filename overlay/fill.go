package overlay

import "fmt"

// Source is what a merge copies from: a layer's own extents, and the content
// as it is seen through it.
type Source interface {
	// Map gives the extents as Layer.Map does.
	Map(dst []Extent, off, length int64) ([]Extent, error)
	// ReadAt reads the content seen from the source down, zeros past its end.
	ReadAt(p []byte, off int64) error
}

// Fill copies up: what source has in the range goes into the subclusters about
// which this layer says nothing. Zero extents become zero bits when zeros is
// set (something below would show through otherwise) and are left out when
// not; unallocated ones are left to the layer below. What the guest wrote
// wins: each cluster is filled by the owner of its stripe (M8). It returns the
// bytes that were copied. A subcluster that source has only in part is copied
// whole, as seen through source.
func (o *Overlay) Fill(source Source, off, length int64, below Backing) (int64, error) {
	var copied int64
	var extents []Extent
	err := o.byCluster(off, min(length, o.Size()-off), func(cluster, in, n int64) error {
		if err := o.Failed(); err != nil {
			return err
		}
		base := cluster << o.clusterBits
		m := o.stripe(cluster)
		m.Lock()
		defer m.Unlock()
		e, err := o.Lookup(base+in, n)
		if err != nil || (e.Kind != Unallocated && e.Length == n) {
			return err
		}
		if extents, err = source.Map(extents[:0], base+in, n); err != nil {
			return err
		}
		data, zero := o.wanted(extents, base)
		if zero != 0 {
			blank := below == nil
			if !blank {
				if blank, err = below.IsZero(base, o.clusterSize()); err != nil {
					return err
				}
			}
			if blank {
				zero = 0
			}
		}
		if data|zero == 0 {
			return nil
		}
		c, err := o.fillCluster(source, cluster, data, zero)
		copied += c
		return err
	})
	return copied, err
}

// wanted sorts a cluster's subclusters by what source has in them: data to be
// copied, or zeros. One that is part zero, part unallocated counts as data.
func (o *Overlay) wanted(extents []Extent, base int64) (data, zero uint32) {
	var unallocated uint32
	for _, e := range extents {
		mask := o.subMask(e.Start-base, e.Length)
		switch e.Kind {
		case Data, Compressed:
			data |= mask
		case Zero:
			zero |= mask
		default:
			unallocated |= mask
		}
	}
	data |= zero & unallocated
	return data, zero &^ data
}

// fillCluster fills one cluster; its stripe is the caller's.
func (o *Overlay) fillCluster(source Source, cluster int64, data, zero uint32) (int64, error) {
	s, i, err := o.ensureSlice(cluster)
	if err != nil {
		return 0, err
	}
	bitmap := s.bitmap[i].Load()
	have := uint32(bitmap) | uint32(bitmap>>32)
	data, zero = data&^have, zero&^have
	base := cluster << o.clusterBits
	var copied int64
	for sub := uint(0); sub < 32; {
		kind, run := runAt(uint64(data), sub)
		if kind == Data {
			in, n := int64(sub)<<o.subBits, int64(run)<<o.subBits
			if err := o.copyRun(source, cluster, base, in, n); err != nil {
				return copied, err
			}
			copied += n
		}
		sub += run
	}
	if zero == 0 {
		return copied, nil
	}
	if s, i, err = o.findSlice(cluster); err != nil {
		return copied, err
	}
	return copied, o.clearSubclusters(s, i, cluster, zero, true)
}

func (o *Overlay) copyRun(source Source, cluster, base, in, n int64) error {
	buf := getBuffer(n)
	defer putBuffer(buf)
	read := *buf
	if left := o.Size() - (base + in); left < n {
		clear(read[max(0, left):])
		read = read[:max(0, left)]
	}
	if err := source.ReadAt(read, base+in); err != nil {
		return fmt.Errorf("copy %d bytes at guest offset %d into %s: %w", n, base+in, o.file.Name(), err)
	}
	return o.writeOwned(*buf, cluster, in, o.subMask(in, n), nil)
}

// Overwrite merges down: what source has in the range replaces what this layer
// has. Data is written, zeros are discarded, unallocated ranges are left. below
// completes subclusters that source has in part. It returns the bytes copied.
// Nobody else may write this layer meanwhile.
func (o *Overlay) Overwrite(source Source, off, length int64, below Backing) (int64, error) {
	extents, err := source.Map(nil, off, min(length, o.Size()-off))
	if err != nil {
		return 0, err
	}
	var copied int64
	for _, e := range extents {
		switch e.Kind {
		case Zero:
			if err := o.Discard(e.Start, e.Length, below); err != nil {
				return copied, err
			}
		case Data, Compressed:
			err := o.byCluster(e.Start, e.Length, func(cluster, in, n int64) error {
				buf := getBuffer(n)
				defer putBuffer(buf)
				at := cluster<<o.clusterBits + in
				if err := source.ReadAt(*buf, at); err != nil {
					return fmt.Errorf("copy %d bytes at guest offset %d into %s: %w", n, at, o.file.Name(), err)
				}
				copied += n
				return o.WriteAt(*buf, at, below)
			})
			if err != nil {
				return copied, err
			}
		}
	}
	return copied, nil
}
