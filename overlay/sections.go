package overlay

import (
	"errors"
	"fmt"

	"varve/overlay/hostfs"
)

// Sectioned is a Source that can be had as a Placed one for a short time only: where
// its content stands may change between two sections. What it reads by itself is
// always right.
type Sectioned interface {
	Source
	// Enter begins a section, or goes on with one: the same content, with places that
	// hold until Leave. nil where none is to be had, then Leave is not called.
	Enter() Placed
	// Leave ends what Enter began. It is told what came of it: the bytes that could be
	// shared, and why others could not, nil where nothing stood in the way.
	Leave(shared int64, refused error)
}

// copySectioned is Copy with a section for each piece. Within it places are asked for
// and blocks are shared, nothing is read: that would take longer, through the page
// cache of files which others use.
func (c *Copier) copySectioned(source Sectioned, off, host, n int64) error {
	for n > 0 {
		piece := min(n, copyPiece)
		if p := source.Enter(); p != nil {
			shared, plain, refused, err := c.share(p, off, host, n)
			source.Leave(shared, refused)
			if err != nil {
				return fmt.Errorf("share blocks at guest offset %d with %s: %w", off, c.to.Name(), err)
			}
			if shared > 0 {
				c.shared.Add(shared)
				off, host, n = off+shared, host+shared, n-shared
				continue
			}
			piece = plain
		}
		if err := c.copyPiece(source, nil, 0, off, host, piece); err != nil {
			return err
		}
		off, host, n = off+piece, host+piece, n-piece
	}
	return nil
}

// share shares the beginning of a range. Where that cannot be done shared is 0, plain
// is how many bytes are to be read instead, at most copyPiece, and refused says why.
func (c *Copier) share(p Placed, off, host, n int64) (shared, plain int64, refused, err error) {
	for most := min(n, copyPiece); plain < most; {
		f, at, length, err := p.Place(off+plain, n-plain)
		if err != nil { // reading through the source decides
			return 0, most, err, nil
		}
		head := -at & (hostfs.CloneUnit - 1)
		if f == nil || length < c.leastClone()+head || (at-host-plain)&(hostfs.CloneUnit-1) != 0 {
			plain = min(plain+length, most)
			continue
		}
		if plain+head > 0 { // what follows can be shared
			return 0, min(plain+head, most), nil, nil
		}
		shared, err = c.clone(f, at, host, length)
		if errors.Is(err, errors.ErrUnsupported) {
			return 0, min(length, most), err, nil
		}
		return shared, 0, nil, err
	}
	return 0, plain, nil, nil
}
