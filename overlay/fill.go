package overlay

import (
	"cmp"
	"fmt"
	"slices"

	"varve/overlay/extent"
	"varve/overlay/qcow2"
)

// Source is what a merge copies from: a layer's own extents, and the content
// as it is seen through it.
type Source interface {
	// Map gives the extents as Layer.Map does.
	Map(dst []extent.Extent, off, length int64) ([]extent.Extent, error)
	// ReadAt reads the content seen from the source down, zeros past its end.
	ReadAt(p []byte, off int64) error
}

// Skipper is a Source that knows how far nothing follows.
type Skipper interface {
	Source
	// Next is where, at off or behind it, the source may hold something, off itself where
	// that is not known. Before it is nothing but zeros, or of a layer alone nothing of
	// its own. Where nothing follows it is the size of the source or more.
	Next(off int64) (int64, error)
}

// Fill copies up: what source has in the range goes into the subclusters about
// which this layer says nothing. Zero extents become zero bits when zeros is
// set (something below would show through otherwise) and are left out when
// not; unallocated ones are left to the layer below. What the guest wrote
// wins: each cluster is filled by the owner of its stripe (M8). It returns the
// bytes that were read and written, without those that are shared. A subcluster
// that source has only in part is copied whole, as seen through source. What
// source says must not change meanwhile.
func (o *Overlay) Fill(source Source, off, length int64, below Backing) (int64, error) {
	length = min(length, o.Size()-off)
	all, err := source.Map(nil, off, length)
	if err != nil {
		return 0, err
	}
	return o.unshared(func() (int64, error) {
		// The runs of whole clusters first, by themselves; then what is between.
		return o.inRuns(source, all, off, length, func(off, length int64) (int64, error) {
			return o.fillClusters(source, all, off, length, below)
		})
	})
}

// nothingToFill is how many bytes from off on, whole clusters or all up to end, a fill
// passes over: source says nothing there, or that it is zeros which are there already.
// extents are source's. How far it looks below at once far says.
func (o *Overlay) nothingToFill(extents []extent.Extent, off, end, far int64, below Backing) (int64, error) {
	i, found := slices.BinarySearchFunc(extents, off, func(e extent.Extent, off int64) int { return cmp.Compare(e.Start, off) })
	if !found {
		i--
	}
	e := extents[i]
	if e.Kind != extent.Unallocated && e.Kind != extent.Zero {
		return 0, nil
	}
	stop := end
	if e.End() < end {
		stop = e.End() &^ (o.clusterSize() - 1)
	}
	if stop <= off || e.Kind == extent.Unallocated || below == nil {
		return max(0, stop-off), nil
	}
	if stop-off > far {
		stop = (off + far) &^ (o.clusterSize() - 1)
	}
	if zero, err := below.IsZero(off, stop-off); err != nil || !zero {
		return 0, err
	}
	return stop - off, nil
}

// Shares says whether most of what Fill or Overwrite dealt with last took no copying:
// the host shares blocks, and the content stands in pieces that are worth it.
func (o *Overlay) Shares() bool { return o.copier.shares.Load() }

// Thrift says whether Fill and Overwrite share also what costs less to copy, down to one
// block of the host: what is shared takes no room there. Safe for concurrent use.
func (o *Overlay) Thrift(on bool) { o.copier.thrift.Store(on) }

// unshared takes what is shared off the bytes that fill has filled. Nobody else
// copies into this layer meanwhile.
func (o *Overlay) unshared(fill func() (int64, error)) (int64, error) {
	before := o.copier.shared.Load()
	n, err := fill()
	shared := o.copier.shared.Load() - before
	o.copier.judge(n, shared)
	return max(0, n-shared), err
}

// inRuns cuts a range into runs of whole clusters that source has as data and
// this layer has nothing of, which it copies, and what is between them, which it
// leaves to rest. It returns the bytes copied. A run of one cluster is no better
// than a cluster alone.
func (o *Overlay) inRuns(source Source, extents []extent.Extent, off, length int64, rest func(off, length int64) (int64, error)) (int64, error) {
	cs, ahead := o.clusterSize(), int64(aheadBytes)
	if o.Shares() {
		ahead = aheadShared
	}
	var copied int64
	done := off // what is before is dealt with
	upTo := func(end int64) error {
		if end <= done {
			return nil
		}
		n, err := rest(done, end-done)
		copied += n
		done = end
		return err
	}
	for _, e := range extents {
		if e.Kind != extent.Data {
			continue
		}
		at, end := (e.Start+cs-1)&^(cs-1), min(e.End(), o.Size())&^(cs-1)
		for at < end {
			n, err := o.emptyRun(at>>o.clusterBits, min(end-at, max(ahead, 2*cs))>>o.clusterBits)
			if err != nil {
				return copied, err
			}
			if n < 2 {
				at += cs
				continue
			}
			if err := upTo(at); err != nil {
				return copied, err
			}
			c, err := o.copyAhead(source, at>>o.clusterBits, n)
			copied += c
			if err != nil {
				return copied, err
			}
			at += n * cs
			done = at
		}
	}
	return copied, upTo(off + length)
}

// fillClusters is Fill cluster by cluster.
func (o *Overlay) fillClusters(source Source, all []extent.Extent, off, length int64, below Backing) (int64, error) {
	var copied int64
	var extents []extent.Extent
	far := minFar
	for end := off + length; off < end; {
		n, err := o.nothingToFill(all, off, end, far, below)
		if err != nil {
			return copied, err
		}
		if n > 0 {
			off, far = off+n, min(2*far, maxFar)
			continue
		}
		far = minFar
		in := off & (o.clusterSize() - 1)
		n = min(end-off, o.clusterSize()-in)
		c, err := o.fillPart(source, &extents, off>>o.clusterBits, in, n, below)
		copied += c
		if err != nil {
			return copied, err
		}
		off += n
	}
	return copied, nil
}

// fillPart is Fill of a range within a cluster. room is for extents.
func (o *Overlay) fillPart(source Source, room *[]extent.Extent, cluster, in, n int64, below Backing) (int64, error) {
	if err := o.Failed(); err != nil {
		return 0, err
	}
	base := cluster << o.clusterBits
	m := o.stripe(cluster)
	m.Lock()
	defer m.Unlock()
	e, err := o.Lookup(base+in, n)
	if err != nil || (e.Kind != extent.Unallocated && e.Kind != extent.Damaged && e.Length == n) {
		return 0, err
	}
	if *room, err = source.Map((*room)[:0], base+in, n); err != nil {
		return 0, err
	}
	data, zero := o.wanted(*room, base)
	if zero != 0 {
		blank := below == nil
		if !blank {
			if blank, err = below.IsZero(base, o.clusterSize()); err != nil {
				return 0, err
			}
		}
		if blank {
			zero = 0
		}
	}
	if data|zero == 0 {
		return 0, nil
	}
	return o.fillCluster(source, cluster, data, zero)
}

// wanted sorts a cluster's subclusters by what source has in them: data to be
// copied, or zeros. One that is part zero, part unallocated counts as data.
func (o *Overlay) wanted(extents []extent.Extent, base int64) (data, zero uint32) {
	var unallocated uint32
	for _, e := range extents {
		mask := o.subMask(e.Start-base, e.Length)
		switch e.Kind {
		case extent.Data, extent.Compressed, extent.Damaged: // reading what is damaged ends the copy
			data |= mask
		case extent.Zero:
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
		if kind == extent.Data {
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

// Overwrite merges down: what source has in the range replaces what this layer
// has. Data is written, zeros are discarded, unallocated ranges are left. below
// completes subclusters that source has in part. It returns the bytes that were read
// and written, without those that are shared. Nobody else may write this layer
// meanwhile.
func (o *Overlay) Overwrite(source Source, off, length int64, below Backing) (int64, error) {
	return o.unshared(func() (int64, error) { return o.overwrite(source, off, length, below) })
}

func (o *Overlay) overwrite(source Source, off, length int64, below Backing) (int64, error) {
	extents, err := source.Map(nil, off, min(length, o.Size()-off))
	if err != nil {
		return 0, err
	}
	var copied int64
	for _, e := range extents {
		switch e.Kind {
		case extent.Zero:
			if err := o.Discard(e.Start, e.Length, below); err != nil {
				return copied, err
			}
		case extent.Damaged:
			// What this layer has must not show where source may have something else.
			n := min(e.Length, o.subSize())
			if err := source.ReadAt(make([]byte, n), e.Start); err != nil {
				return copied, fmt.Errorf("copy %d bytes at guest offset %d into %s: %w", e.Length, e.Start, o.file.Name(), err)
			}
			return copied, fmt.Errorf("copy %d bytes at guest offset %d into %s: %w", e.Length, e.Start, o.file.Name(), qcow2.ErrReadable)
		case extent.Data, extent.Compressed:
			n, err := o.inRuns(source, []extent.Extent{e}, e.Start, e.Length, func(off, length int64) (int64, error) {
				return length, o.byCluster(off, length, func(cluster, in, n int64) error {
					return o.overwriteCluster(source, cluster, in, n, below)
				})
			})
			copied += n
			if err != nil {
				return copied, err
			}
		}
	}
	return copied, nil
}

// overwriteCluster replaces a part of one cluster by what source has there.
func (o *Overlay) overwriteCluster(source Source, cluster, in, n int64, below Backing) error {
	base := cluster << o.clusterBits
	if (in|n)&(o.subSize()-1) == 0 {
		if err := o.Failed(); err != nil {
			return err
		}
		m := o.stripe(cluster)
		m.Lock()
		defer m.Unlock()
		return o.copyRun(source, cluster, base, in, n)
	}
	// below completes what source has in part.
	buf := getBuffer(n)
	defer putBuffer(buf)
	if err := source.ReadAt(*buf, base+in); err != nil {
		return fmt.Errorf("copy %d bytes at guest offset %d into %s: %w", n, base+in, o.file.Name(), err)
	}
	return o.WriteAt(*buf, base+in, below)
}
