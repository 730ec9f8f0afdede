package check

import (
	"encoding/binary"
	"errors"

	"varve/overlay/hostfs"
)

// compareRefcounts compares what was counted with the refcounts in the file.
// In the last part also those behind the end of the file are looked at.
func (c *checker) compareRefcounts(last bool) error {
	perBlock := c.h.ClusterSize() * 8 >> c.h.RefcountOrder
	for b := c.counts.low / perBlock; b < int64(len(c.refcountTable)) || b*perBlock < c.counts.high; b++ {
		from := max(b*perBlock, c.counts.low)
		to := (b + 1) * perBlock
		if !last {
			if to = min(to, c.counts.high); from >= to {
				return nil
			}
		}
		entry := uint64(0)
		if b < int64(len(c.refcountTable)) {
			entry = c.refcountTable[b]
		}
		switch {
		case entry == 0:
			c.compareBlock(nil, b*perBlock, from, min(to, c.counts.high))
		case c.badBlock[b]:
			// One error was told; what it should say nobody knows.
			c.skipBlock(from, min(to, c.counts.high))
		default:
			if err := c.ctx.Err(); err != nil {
				return err
			}
			err := hostfs.ReadPadded(c.file, c.buf, int64(entry))
			if errors.Is(err, hostfs.ErrUnreadable) {
				c.refcountErrorf(int64(entry), "refcount block at 0x%x: it cannot be read: %v", entry, err)
				c.badBlock[b] = true
				c.skipBlock(from, min(to, c.counts.high))
				break
			}
			if err != nil {
				return err
			}
			c.compareBlock(c.buf, b*perBlock, from, to)
			if to == (b+1)*perBlock {
				c.advance()
			}
		}
	}
	return nil
}

// compareBlock judges the clusters [from, to) by a refcount block, whose first
// refcount is that of cluster start; nil is a block of zeros.
func (c *checker) compareBlock(block []byte, start, from, to int64) {
	order := c.h.RefcountOrder
	perWord := int64(64) >> order
	for cl := from; cl < to; {
		page := c.counts.page(cl)
		if page == nil {
			// Nothing is in use up to the end of the page: only refcounts that
			// are not 0 matter, a word of them at a time.
			end := to
			if cl < c.counts.high {
				end = min(to, c.counts.pageEnd(cl))
			}
			if block == nil {
				cl = end
				continue
			}
			for cl < end {
				i := cl - start
				if i%perWord == 0 && end-cl >= perWord {
					words := block[i>>(6-order)*8 : (end-start)>>(6-order)*8]
					if n := leadingZeroWords(words); n > 0 {
						cl += n * perWord
						continue
					}
				}
				if refcount := refcountAt(block, i, order); refcount != 0 {
					c.leaked(cl, refcount, 0)
				}
				cl++
			}
			continue
		}
		end := min(to, c.counts.pageEnd(cl))
		for ; cl < end; cl++ {
			refcount := uint64(0)
			if block != nil {
				refcount = refcountAt(block, cl-start, order)
			}
			if use := c.counts.get(cl); use != 0 || refcount != 0 {
				c.judge(cl, refcount, use)
			}
		}
	}
}

// leadingZeroWords counts the words of 8 bytes that are 0 at the start of p.
func leadingZeroWords(p []byte) int64 {
	n := int64(0)
	for ; len(p) >= 8 && binary.NativeEndian.Uint64(p) == 0; p = p[8:] {
		n++
	}
	return n
}

// judge compares one cluster's refcount with its uses.
func (c *checker) judge(cluster int64, refcount uint64, use uint32) {
	at, uses := cluster<<c.h.ClusterBits, uint64(use&maxUses)
	if uses > 0 {
		c.result.UsedClusters++
	}
	c.judgeSharing(at, use)
	switch {
	case refcount < uses:
		c.refcountErrorf(at, "cluster at 0x%x: refcount %d, used %s", at, refcount, times(uses))
	case refcount > uses && !(uses == maxUses && refcount > maxUses):
		c.leaked(cluster, refcount, uses)
	}
	if refcount == 1 && use&usedByUncopied != 0 {
		c.errorf(at, "cluster at 0x%x: refcount 1, but its entry lacks the COPIED flag", at)
	}
	// Of a refcount that is too low the error above says enough.
	if refcount != 1 && refcount >= uses && use&usedByCopied != 0 {
		c.refcountErrorf(at, "cluster at 0x%x: refcount %d, but its entry has the COPIED flag", at, refcount)
	}
}

// judgeSharing looks for tables that lie over each other, or over data: a
// write to one would damage the other, whatever the refcount says.
func (c *checker) judgeSharing(at int64, use uint32) {
	switch {
	case use&usedByTable != 0 && use&maxUses > 1:
		c.errorf(at, "cluster at 0x%x: metadata stands in it, and it is used %s", at, times(uint64(use&maxUses)))
	case use&usedByL2 != 0 && use&usedByData != 0:
		c.errorf(at, "cluster at 0x%x: used as an L2 table and for guest data", at)
	}
}

// skipBlock judges the clusters [from, to), of which the refcounts are not
// known.
func (c *checker) skipBlock(from, to int64) {
	for cl := from; cl < to; {
		if c.counts.page(cl) == nil {
			cl = c.counts.pageEnd(cl)
			continue
		}
		if use := c.counts.get(cl); use != 0 {
			c.result.UsedClusters++
			c.judgeSharing(cl<<c.h.ClusterBits, use)
		}
		cl++
	}
}

// refcountAt is refcount number i of a block of refcounts of 1<<order bits.
// Those below a byte stand in it from its lowest bit on (qcow2 specification,
// "Host cluster management").
func refcountAt(block []byte, i int64, order uint32) uint64 {
	switch order {
	case 3:
		return uint64(block[i])
	case 4:
		return uint64(binary.BigEndian.Uint16(block[i*2:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(block[i*4:]))
	case 6:
		return binary.BigEndian.Uint64(block[i*8:])
	}
	bit := i << order
	return uint64(block[bit>>3]) >> (bit & 7) & (1<<(1<<order) - 1)
}
