package overlay

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"varve/integration/interleave"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
)

// sectionedMemory is content that stands in pieces of a file, elsewhere in each
// section: what was placed in one is overwritten when it ends.
type sectionedMemory struct {
	t       *testing.T
	content memory
	rand    *rand.Rand
	file    *memFile
	at      int64 // where the section's pieces stand
	inside  bool
	shared  int64
	refused int
}

func (s *sectionedMemory) Map(dst []extent.Extent, off, length int64) ([]extent.Extent, error) {
	return append(dst, extent.Extent{Start: off, Length: length, Kind: extent.Data}), nil
}

func (s *sectionedMemory) ReadAt(p []byte, off int64) error {
	if s.inside {
		s.t.Error("read within a section")
	}
	return s.content.ReadAt(p, off)
}

func (s *sectionedMemory) Enter() Placed {
	if s.rand.IntN(4) == 0 {
		return nil
	}
	s.inside = true
	s.at += memPage * s.rand.Int64N(8)
	s.file.now.write(s.content, s.at)
	return placedMemory{s}
}

func (s *sectionedMemory) Leave(shared int64, refused error) {
	s.inside = false
	s.shared += shared
	if refused != nil {
		s.refused++
	}
	s.file.now.write(bytes.Repeat([]byte{0xee}, len(s.content)), s.at)
}

// placedMemory is what a section gives: every seventh stretch is compressed, as it
// were, every fifth is small, every third stands askew, and one cannot be looked up.
type placedMemory struct{ *sectionedMemory }

func (s placedMemory) Place(off, length int64) (hostfs.File, int64, int64, error) {
	const stretch = 40 << 10
	i, n := off/stretch, min(length, stretch-off%stretch)
	switch {
	case i == 11:
		return nil, 0, 0, io.ErrUnexpectedEOF
	case i%7 == 0:
		return nil, 0, n, nil
	case i%5 == 0:
		n = min(n, 8<<10)
	case i%3 == 0:
		return s.file, s.at + off + 512, n, nil
	}
	return s.file, s.at + off, n, nil
}

// A copy of what is placed in sections only shares blocks within them, reads the rest
// outside of them, and tells what came of each.
func TestCopyInSections(t *testing.T) {
	for _, clones := range []bool{true, false} {
		random := rand.New(rand.NewPCG(7, 8))
		s := &sectionedMemory{t: t, content: make(memory, 2<<20+700), rand: random, file: &memFile{now: memContent{pages: map[int64]*[memPage]byte{}}, clones: true}}
		for i := range s.content {
			s.content[i] = byte(random.Uint32())
		}
		to := &memFile{now: memContent{pages: map[int64]*[memPage]byte{}}, durable: memContent{pages: map[int64]*[memPage]byte{}}, clones: clones}
		cloned := int64(0)
		to.Watch(func(call interleave.Call) {
			if call.Op == "clone" && !call.Done {
				cloned += call.Length
				if !s.inside {
					t.Errorf("%d bytes at %d are shared outside of a section", call.Length, call.Off)
				}
			}
		})
		e := Export{Source: s, Size: int64(len(s.content))}
		if err := e.Raw(t.Context(), to); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(s.content))
		if _, err := to.now.read(got, 0); err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, s.content) {
			t.Errorf("clones %v: the copy differs (%v)", clones, err)
		}
		switch {
		case clones && (cloned < 200<<10 || s.shared != cloned):
			t.Errorf("%d bytes were shared, and %d told", cloned, s.shared)
		case !clones && (s.shared != 0 || s.refused < 5):
			t.Errorf("%d bytes told to be shared, %d refused", s.shared, s.refused)
		}
	}
}
