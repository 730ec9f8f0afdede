package powercut

import (
	"io"
	"maps"
)

// pageSize is the unit in which a file has blocks, in bytes.
const pageSize = 4096

// content is what a file holds. Its pages are never changed, only replaced: a
// copy of the map is a copy of the content.
type content struct {
	size  int64
	pages map[int64]*[pageSize]byte
}

var zeroPage [pageSize]byte

func newContent() content { return content{pages: map[int64]*[pageSize]byte{}} }

func (c *content) clone() content { return content{c.size, maps.Clone(c.pages)} }

func (c *content) write(p []byte, off int64) {
	for len(p) > 0 {
		page, in := off/pageSize, off%pageSize
		n := min(int64(len(p)), pageSize-in)
		fresh := new([pageSize]byte)
		if old := c.pages[page]; old != nil && n < pageSize {
			*fresh = *old
		}
		copy(fresh[in:], p[:n])
		c.pages[page] = fresh
		p, off = p[n:], off+n
		c.size = max(c.size, off)
	}
}

// zero punches [off, off+n): whole pages have no blocks any more.
func (c *content) zero(off, n int64) {
	for n > 0 {
		page, in := off/pageSize, off%pageSize
		part := min(n, pageSize-in)
		if old := c.pages[page]; old != nil {
			if part == pageSize {
				delete(c.pages, page)
			} else {
				fresh := *old
				clear(fresh[in : in+part])
				c.pages[page] = &fresh
			}
		}
		off, n = off+part, n-part
	}
}

func (c *content) resize(size int64) {
	if size < c.size {
		last := (size + pageSize - 1) / pageSize
		for page := range c.pages {
			if page >= last {
				delete(c.pages, page)
			}
		}
		if size%pageSize != 0 {
			c.zero(size, pageSize-size%pageSize)
		}
	}
	c.size = size
}

// allocate gives the range blocks that read as zeros where it had none.
func (c *content) allocate(off, n int64) {
	for page := off / pageSize; page*pageSize < off+n; page++ {
		if c.pages[page] == nil {
			c.pages[page] = &zeroPage
		}
	}
	c.size = max(c.size, off+n)
}

func (c *content) read(p []byte, off int64) (int, error) {
	if off >= c.size {
		return 0, io.EOF
	}
	var err error
	if left := c.size - off; left < int64(len(p)) {
		p, err = p[:left], io.EOF
	}
	n := 0
	for n < len(p) {
		page, in := off/pageSize, off%pageSize
		part := min(int64(len(p)-n), pageSize-in)
		if have := c.pages[page]; have != nil {
			copy(p[n:], have[in:in+part])
		} else {
			clear(p[n : n+int(part)])
		}
		n, off = n+int(part), off+part
	}
	return n, err
}

// seek gives the next data or hole at or after off; io.EOF when only a hole
// follows and data is asked for.
func (c *content) seek(off int64, data bool) (int64, error) {
	for ; off < c.size; off = off/pageSize*pageSize + pageSize {
		if (c.pages[off/pageSize] != nil) == data {
			return off, nil
		}
	}
	if data {
		return 0, io.EOF
	}
	return c.size, nil
}
