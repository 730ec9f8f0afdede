package extent

// Kind says what a layer holds at an extent.
type Kind uint8

const (
	// Unallocated: the layer says nothing; the backing layer answers.
	Unallocated Kind = iota
	// Zero: the layer says that the bytes read as zeros.
	Zero
	// Data: the bytes stand in the layer's file from Extent.Host on.
	Data
	// Compressed: the bytes are part of a compressed cluster; Extent.Host is
	// the cluster's descriptor (qcow2 specification, "Compressed Clusters
	// Descriptor"), read with Layer.ReadExtent.
	Compressed
	// Damaged: the entry that says it breaks a rule, or cannot be read. Nobody knows
	// what the bytes are, nor whether the backing layer answers; Layer.ReadExtent says
	// what is wrong.
	Damaged
)

// Extent is a run of guest bytes for which a layer has one answer.
type Extent struct {
	Start  int64 // guest offset in bytes
	Length int64 // bytes
	Host   int64 // Data: offset in the file; Compressed: descriptor
	Kind   Kind
}

// End is the guest offset behind the extent.
func (e Extent) End() int64 { return e.Start + e.Length }

// Append adds e, merged with the last extent where that continues.
func Append(dst []Extent, e Extent) []Extent {
	if n := len(dst); n > 0 {
		last := &dst[n-1]
		if last.End() == e.Start && last.Kind == e.Kind && e.Kind != Compressed &&
			(e.Kind != Data || last.Host+last.Length == e.Host) {
			last.Length += e.Length
			return dst
		}
	}
	return append(dst, e)
}

// List collects extents, clipped to [low, high), neighbours merged.
type List struct {
	Extents   []Extent
	First     int // what is before belongs to the caller
	Low, High int64
	Strict    bool // see broken
}

// Add appends [start, end). host counts for Data, where it moves with a
// clipped start, and Compressed, where it stays.
func (l *List) Add(kind Kind, start, end, host int64) {
	if kind != Data && kind != Compressed {
		host = 0
	}
	if start < l.Low {
		if kind == Data {
			host += l.Low - start
		}
		start = l.Low
	}
	end = min(end, l.High)
	if start >= end {
		return
	}
	if n := len(l.Extents); n > l.First {
		last := &l.Extents[n-1]
		if last.Kind == kind && kind != Compressed && (kind != Data || last.Host+last.Length == host) {
			last.Length += end - start
			return
		}
	}
	l.Extents = append(l.Extents, Extent{Start: start, Length: end - start, Host: host, Kind: kind})
}

// Broken appends [start, end), of which an image says nothing that can be used. A
// strict look ends with the reason.
func (l *List) Broken(start, end int64, reason error) error {
	if l.Strict && start < l.High && end > l.Low {
		return reason
	}
	l.Add(Damaged, start, end, 0)
	return nil
}
