package overlay

import (
	"cmp"
	"slices"
	"sync"

	"varve/overlay/extent"
	"varve/overlay/qcow2"
)

// Salvage is a Source that gives zeros for what cannot be read of another one, and
// remembers where that is. It is no Placed: all of it is read, since a block that is
// shared may be one that cannot be. Safe for concurrent use as far as the other one is.
type Salvage struct {
	source Source
	size   int64 // guest bytes; what lies past it is nobody's loss

	mu   sync.Mutex // guards lost
	lost []Lost
}

// Lost is a run of guest bytes that could not be read, in bytes, and the first reason.
type Lost struct {
	Start, Length int64
	Reason        error
}

// End is the guest offset behind it.
func (l Lost) End() int64 { return l.Start + l.Length }

var _ Skipper = (*Salvage)(nil)

// NewSalvage reads from a source of size guest bytes, which stays the caller's.
func NewSalvage(source Source, size int64) *Salvage { return &Salvage{source: source, size: size} }

// ReadAt fills p. Where a read fails for damage, halves are read, down to sectors.
func (s *Salvage) ReadAt(p []byte, off int64) error {
	err := s.source.ReadAt(p, off)
	if !qcow2.IsDamage(err) {
		return err
	}
	middle := (off + int64(len(p))/2) / extent.SectorSize * extent.SectorSize
	if middle <= off {
		middle = off/extent.SectorSize*extent.SectorSize + extent.SectorSize
	}
	if middle >= off+int64(len(p)) {
		clear(p)
		if n := min(int64(len(p)), s.size-off); n > 0 {
			s.note(Lost{off, n, err})
		}
		return nil
	}
	if err := s.ReadAt(p[:middle-off], off); err != nil {
		return err
	}
	return s.ReadAt(p[middle-off:], middle)
}

// note adds a run, joined with those that it touches.
func (s *Salvage) note(l Lost) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, _ := slices.BinarySearchFunc(s.lost, l.Start, func(o Lost, at int64) int { return cmp.Compare(o.End(), at) })
	for i < len(s.lost) && s.lost[i].Start <= l.End() {
		o := s.lost[i]
		end := max(o.End(), l.End())
		l.Start, l.Reason = min(o.Start, l.Start), o.Reason
		l.Length = end - l.Start
		s.lost = slices.Delete(s.lost, i, i+1)
	}
	s.lost = slices.Insert(s.lost, i, l)
}

// Lost are the runs that could not be read so far, in order and apart.
func (s *Salvage) Lost() []Lost {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.lost)
}

// Map is that of the source; where it cannot tell, all is data, and reading tells.
func (s *Salvage) Map(dst []extent.Extent, off, length int64) ([]extent.Extent, error) {
	list, err := s.source.Map(dst, off, length)
	if qcow2.IsDamage(err) {
		return append(dst, extent.Extent{Start: off, Length: length, Kind: extent.Damaged}), nil
	}
	return list, err
}

// Next is that of the source, or off where it cannot tell.
func (s *Salvage) Next(off int64) (int64, error) {
	skipper, ok := s.source.(Skipper)
	if !ok {
		return off, nil
	}
	next, err := skipper.Next(off)
	if qcow2.IsDamage(err) {
		return off, nil
	}
	return next, err
}
