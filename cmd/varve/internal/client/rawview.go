package client

import (
	"errors"
	"io"
	"math"
	"sync"

	"varve/overlay"
	"varve/overlay/extent"
	"varve/overlay/qcow2"
)

// rawView is a file of a mount as what an export copies from. It asks for each run of
// data once, with the hole before it, and goes on from the answer: the daemon goes
// through tables to find either's end, and an export asks once a MiB. Only of a view
// that does not change. Safe for concurrent use.
type rawView struct {
	*qcow2.Image

	mu sync.Mutex // guards what is below; held while the file is asked
	// From known to start is a hole, and from there to end is data.
	known, start, end int64
}

var _ overlay.Skipper = (*rawView)(nil)

func newRawView(image *qcow2.Image) *rawView { return &rawView{Image: image} }

// FileView is the view that an open file of a mount shows. Closing the view closes the file.
func FileView(image *qcow2.Image) View {
	return View{newRawView(image), image.Size(), image.Close}
}

// run is the first run of data that ends behind off. Behind the last one is an empty
// one at math.MaxInt64.
func (s *rawView) run(off int64) (start, end int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if off >= s.known && off < s.end {
		return s.start, s.end, nil
	}
	f := s.File()
	start, end = math.MaxInt64, math.MaxInt64
	if off < s.Size() {
		start, err = f.SeekData(off)
		switch {
		case errors.Is(err, io.EOF):
			start = math.MaxInt64
		case err != nil:
			return 0, 0, err
		default:
			start = max(start, off)
			// A host that forgets its holes gives data.
			if end, err = f.SeekHole(start); errors.Is(err, io.EOF) || err == nil && end <= start {
				end = s.Size()
			} else if err != nil {
				return 0, 0, err
			}
		}
	}
	s.known, s.start, s.end = off, start, end
	return start, end, nil
}

// Next implements overlay.Skipper.
func (s *rawView) Next(off int64) (int64, error) {
	start, _, err := s.run(off)
	return max(start, off), err
}

// Map gives holes as Zero. What lies past the end is one.
func (s *rawView) Map(dst []extent.Extent, off, length int64) ([]extent.Extent, error) {
	for end := off + length; off < end; {
		start, stop, err := s.run(off)
		if err != nil {
			return dst, err
		}
		start, stop = min(max(start, off), end), min(stop, end)
		if start > off {
			dst = append(dst, extent.Extent{Start: off, Length: start - off, Kind: extent.Zero})
		}
		if stop > start {
			dst = append(dst, extent.Extent{Start: start, Length: stop - start, Host: start, Kind: extent.Data})
		}
		off = stop
	}
	return dst, nil
}

// ReadAt gives zeros past the end.
func (s *rawView) ReadAt(p []byte, off int64) error {
	n := max(0, min(int64(len(p)), s.Size()-off))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return s.ReadExtent(p[:n], extent.Extent{Start: off, Length: n, Host: off, Kind: extent.Data}, off)
}
