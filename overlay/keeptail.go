package overlay

// KeepTail copies up what the last sector has of a layer below, or of this one before it
// grew, whose size is no whole number of sectors: QEMU leaves out of a qcow2 what is
// less than a sector, and a larger layer on top would show zeros there. It does nothing
// where this layer has that place already. Durable after a Flush that starts later.
func (o *Overlay) KeepTail(size int64, below Backing) error {
	if !Uneven(size) {
		return nil
	}
	if err := o.Failed(); err != nil {
		return err
	}
	cluster := size >> o.clusterBits
	m := o.stripe(cluster)
	m.Lock()
	defer m.Unlock()
	start := size &^ (o.subSize() - 1)
	if e, err := o.Lookup(start, 1); err != nil || e.Kind != Unallocated {
		return err
	}
	buf := getBuffer(size - start)
	defer putBuffer(buf)
	if err := below.ReadAt(*buf, start); err != nil {
		return err
	}
	in := start & (o.clusterSize() - 1)
	return o.writeOwned(*buf, cluster, in, o.subMask(in, size-start), below)
}

// HideTail has an image that somebody else made show zeros where the image that it stands
// on has less than a sector at its end, when it is larger itself: QEMU, with which it was
// written, reads zeros there. To be called before anything is read.
func (im *Image) HideTail(below *Image) {
	if im.header == nil || below.header == nil || !Uneven(below.size) {
		return
	}
	start := below.size - below.size%SectorSize
	if im.size-im.size%SectorSize > start {
		im.hidden = Extent{Start: start, Length: SectorSize}
	}
}

// mapHidden is Map of a range that has to do with what is hidden.
func (im *Image) mapHidden(dst []Extent, off, length int64) (_ []Extent, err error) {
	list, end := dst, off+length
	for _, stop := range []int64{im.hidden.Start, im.hidden.End(), end} {
		stop = min(stop, end)
		if stop <= off {
			continue
		}
		first := len(list)
		if list, err = im.mapShown(list, off, stop-off); err != nil {
			return dst, err
		}
		for i := range list[first:] {
			if e := &list[first+i]; off >= im.hidden.Start && stop <= im.hidden.End() && e.Kind == Unallocated {
				e.Kind = Zero
			}
		}
		off = stop
	}
	return list, nil
}
