package qcow2

import "math/bits"

// ClusterSet is a set of host clusters. It costs memory for the neighbourhoods
// that have members, whatever their numbers: a damaged entry may name a cluster
// at the end of a sparse file of any length.
type ClusterSet struct {
	pages map[int64]*clusterPage
	High  int64 // one more than the highest member

	// The page that was used last, since clusters come in runs.
	last      *clusterPage
	lastIndex int64
}

const clusterPageBits = 15

type clusterPage [1 << clusterPageBits / 64]uint64

// page is the page that a cluster falls into; nil when it has no members.
func (s *ClusterSet) page(c int64) *clusterPage {
	index := c >> clusterPageBits
	if s.last == nil || s.lastIndex != index {
		s.last, s.lastIndex = s.pages[index], index
	}
	return s.last
}

func (s *ClusterSet) Has(c int64) bool {
	p := s.page(c)
	return p != nil && p[c&(1<<clusterPageBits-1)>>6]>>(c&63)&1 != 0
}

// Add reports false when c was a member already.
func (s *ClusterSet) Add(c int64) bool {
	p := s.page(c)
	if p == nil {
		if s.pages == nil {
			s.pages = make(map[int64]*clusterPage)
		}
		p = new(clusterPage)
		s.pages[c>>clusterPageBits] = p
		s.last, s.lastIndex = p, c>>clusterPageBits
	}
	word := &p[c&(1<<clusterPageBits-1)>>6]
	if *word>>(c&63)&1 != 0 {
		return false
	}
	*word |= 1 << (c & 63)
	s.High = max(s.High, c+1)
	return true
}

// Next is the lowest member from c on, or high when there is none.
func (s *ClusterSet) Next(c int64) int64 {
	for c < s.High {
		p := s.page(c)
		if p == nil {
			c = (c>>clusterPageBits + 1) << clusterPageBits
			continue
		}
		if word := p[c&(1<<clusterPageBits-1)>>6] >> (c & 63); word != 0 {
			return c + int64(bits.TrailingZeros64(word))
		}
		c = (c>>6 + 1) << 6
	}
	return s.High
}
