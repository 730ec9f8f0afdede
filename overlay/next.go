package overlay

// Next implements Layer: it looks at the L1 table in memory.
func (o *Overlay) Next(off int64) (int64, error) {
	size := o.Size()
	if off >= size {
		return size, nil
	}
	return o.index.Load().NextReach(off, size, o.tableBits+o.clusterBits), nil
}

// nextTable is where, behind the reach in which off lies and which has no table, that of
// a table begins; end when none does before. A table comes into the index before it is
// there.
func (o *Overlay) nextTable(off, end int64) int64 {
	span := o.tableBits + o.clusterBits
	if behind := (off>>span + 1) << span; behind < end {
		return o.index.Load().NextReach(behind, end, span)
	}
	return end
}
