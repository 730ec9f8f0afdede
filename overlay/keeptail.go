package overlay

import "varve/overlay/extent"

// KeepTail copies up what the last sector has of a layer below, or of this one before it
// grew, whose size is no whole number of sectors: QEMU leaves out of a qcow2 what is
// less than a sector, and a larger layer on top would show zeros there. It does nothing
// where this layer has that place already. Durable after a Flush that starts later.
func (o *Overlay) KeepTail(size int64, below Backing) error {
	if !extent.Uneven(size) {
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
	if e, err := o.Lookup(start, 1); err != nil || e.Kind != extent.Unallocated {
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
