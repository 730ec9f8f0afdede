package check

// useCounts counts how often host clusters are used, for one part of the file
// at a time. Only pages of it in which something is in use take memory.
type useCounts struct {
	end       int64 // no cluster at or behind it can be in use
	low, high int64 // the part that is counted
	pages     []*usePage
}

// usePage counts the uses of clusters that follow each other: the number of
// uses, and by what in the upper bits.
type usePage [1 << usePageBits]uint32

const (
	usePageBits = 10

	usedByCopied   = 1 << 31 // an active entry with the COPIED flag
	usedByUncopied = 1 << 30 // an active entry without it
	usedByData     = 1 << 29 // an L2 entry, for guest data
	usedByL2       = 1 << 28 // an L1 entry, as an L2 table
	usedByTable    = 1 << 27 // other metadata, which shares its clusters with nothing

	maxUses = usedByTable - 1 // more are not counted
)

// reset begins with another part of the file.
func (u *useCounts) reset(low, n int64) {
	u.low, u.high = low, min(low+n, u.end)
	u.pages = make([]*usePage, (u.high-u.low+1<<usePageBits-1)>>usePageBits)
}

// page is the page that has a cluster, none before low; nil when nothing on it is
// in use. All of a page lies on the same side of high.
func (u *useCounts) page(cluster int64) *usePage {
	if cluster >= u.high {
		return nil
	}
	return u.pages[(cluster-u.low)>>usePageBits]
}

// pageEnd is the cluster behind the last one of a cluster's page.
func (u *useCounts) pageEnd(cluster int64) int64 {
	return u.low + ((cluster-u.low)>>usePageBits+1)<<usePageBits
}

func (u *useCounts) get(cluster int64) uint32 {
	if p := u.page(cluster); p != nil {
		return p[(cluster-u.low)&(1<<usePageBits-1)]
	}
	return 0
}

// add counts a use of the clusters [first, last], by what the flags say.
func (u *useCounts) add(first, last int64, flags uint32) {
	for c := max(first, u.low); c <= last && c < u.high; c++ {
		p := &u.pages[(c-u.low)>>usePageBits]
		if *p == nil {
			*p = new(usePage)
		}
		n := &(*p)[(c-u.low)&(1<<usePageBits-1)]
		if *n&maxUses < maxUses {
			*n++
		}
		*n |= flags
	}
}
