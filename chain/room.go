package chain

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/manifest"
	"varve/chain/view"
	"varve/overlay/extent"
)

// hostFree is how many bytes the file system of the disk directory has free for us;
// ok is false where that is not known.
func (d *Disk) hostFree() (bytes int64, ok bool) {
	bytes, err := d.fs.Free(d.dir)
	return bytes, err == nil
}

// sharesBlocks says whether jobs share blocks of files instead of copying them: where
// the file system can, and for a flatten the base stands on it too.
func (d *Disk) sharesBlocks() bool {
	if !d.canShare() {
		return false
	}
	own, err := d.fs.Stat(d.dir)
	if err != nil {
		return false
	}
	m, nodes := d.tree()
	for _, l := range m.Layers {
		if n := nodes[l.ID]; l.Foreign && n != nil && n.Layer() != nil {
			if info, err := n.Layer().File.Stat(); err != nil || info.Device != own.Device {
				return false
			}
		}
	}
	return true
}

// canShare says whether the host's file system can share blocks, of files in the disk
// directory at least.
func (d *Disk) canShare() bool {
	return isOn(d.fs, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC)
}

// leastStep is what a merge on a full host needs for one step beside the tables of its
// target: a piece of a subcluster, refcounts, a chain.json, in bytes.
const leastStep = 32 << 10

// available is how much room the host has for a job, with what is kept for it.
func (d *Disk) available() (bytes int64, ok bool) {
	free, ok := d.hostFree()
	return free + d.stepsHeld(), ok
}

// roomFor refuses a job for which the host has not the room. bound is what it surely
// does not need more than: with that free no plan is made. Asked before the operation
// takes its lock, for a plan of a large disk takes a while; what is wrong with the
// operation itself it leaves to that.
func (d *Disk) roomFor(bound int64, operation Operation, names ...string) error {
	free, ok := d.available()
	if !ok || d.readOnly || free >= bound+tablesExtra(bound) || d.lastJob().running() {
		return nil
	}
	p, err := d.Plan(operation, names)
	if err != nil || p.LeastBytes <= free {
		return nil
	}
	return fmt.Errorf("it needs %d bytes free on the host at least, and %s has %d%s: %w", p.LeastBytes, d.dir, free, d.otherRoom(p), unix.ENOSPC)
}

// otherRoom says what would make room where a plan does not fit.
func (d *Disk) otherRoom(p Plan) (text string) {
	if p.Operation == OpDelete && p.FreedBytes <= 0 {
		text += "; it would give nothing back, since newer layers need all that goes"
	}
	best, err := d.bestDelete()
	switch {
	case err != nil:
	case best == nil:
		text += "; there is no snapshot whose delete fits there and gives anything back: make room on the host in another way"
	default:
		text += fmt.Sprintf("; deleting %s would give back most, %d bytes", best.Gone[0].Name, best.FreedBytes)
	}
	return text
}

// mostAdvised is of how many snapshots a plan is made to find the best.
const mostAdvised = 8

// bestDelete is the plan of the delete of one snapshot, of those that the host has the
// room for, that gives back most for what it needs; nil when none gives anything. Of
// the largest files alone: a delete gives back no more than its file takes.
func (d *Disk) bestDelete() (*Plan, error) {
	free, known := d.available()
	m, nodes := d.tree()
	host := make(map[*manifest.Layer]int64)
	for _, l := range m.Layers {
		n := nodes[l.ID]
		if _, err := m.Deletable([]string{l.Name}); err != nil || l.Foreign || n == nil || n.Layer() == nil {
			continue
		}
		bytes, err := d.hostBytes(n)
		if err != nil {
			return nil, err
		}
		host[l] = bytes
	}
	list := slices.SortedFunc(maps.Keys(host), func(a, b *manifest.Layer) int {
		return cmp.Or(cmp.Compare(host[b], host[a]), cmp.Compare(a.ID, b.ID))
	})
	var best *Plan
	for _, l := range list[:min(len(list), mostAdvised)] {
		p, err := d.Plan(OpDelete, []string{l.Name})
		if err != nil || len(p.Gone) == 0 || p.FreedBytes <= 0 || known && p.LeastBytes > free {
			continue
		}
		// Per byte needed; two that need nothing by what they give.
		if best == nil || float64(p.FreedBytes)*float64(1+best.LeastBytes) > float64(best.FreedBytes)*float64(1+p.LeastBytes) {
			best = &p
		}
	}
	return best, nil
}

// mergeBound is what the merges after a delete surely do not need more of at once: a
// window, and for a foreign layer, whose blocks are not given back, all of it.
func (d *Disk) mergeBound(names []string) int64 {
	bound := int64(windowExtra)
	m, _ := d.tree()
	for _, l := range m.Layers {
		if l.Foreign && l.ID != m.Base && (l.Name == "" || slices.Contains(names, l.Name)) {
			bound += l.Size
		}
	}
	return bound
}

// flattenBound is what a flatten surely does not need more of: what is known of the
// view below, or else the whole of it.
func (d *Disk) flattenBound(name string) int64 {
	m, nodes := d.tree()
	rec := m.ByName(name)
	if name == manifest.LeafName {
		rec = m.Layer(m.Leaf)
	}
	if rec == nil {
		return 0
	}
	source := nodes[rec.Parent]
	if leaf := nodes[rec.ID]; rec.ID == m.Leaf && leaf != nil && d.isLost(rec, leaf) {
		source = leaf // a new leaf gets all of it (coverLost)
	}
	if source == nil {
		return 0
	}
	if bytes, known, err := d.figures.View(source, time.Time{}); err == nil && known {
		return bytes
	}
	return source.Size()
}

// tablesMissing is how many bytes of L2 tables the file of target has not yet for what
// source maps; both are layers whose content is merged into one, top first.
func (d *Disk) tablesMissing(target, source []*view.Node) (total int64, err error) {
	if len(target) == 0 || len(source) == 0 {
		return 0, nil
	}
	cluster := int64(64 << 10)
	if h := target[0].Layer().Header(); h != nil {
		cluster = h.ClusterSize()
	}
	span := cluster / 16 * cluster // what a table maps: 16 bytes for each cluster
	size := int64(0)
	for _, n := range source {
		size = max(size, n.Size())
	}
	for off := int64(0); off < size; off += span {
		next, err := d.nextOfAny(source, off)
		if err != nil {
			return 0, err
		}
		if off = next / span * span; next >= size {
			break
		}
		has, err := d.mapsAny(target, off, span)
		if err == nil && !has {
			if has, err = d.mapsAny(source, off, span); has {
				total += cluster
			}
		}
		if err != nil {
			return 0, err
		}
	}
	return total, nil
}

// nextOfAny is where, at off or behind it, one of some layers may hold something itself,
// math.MaxInt64 when nothing follows.
func (d *Disk) nextOfAny(nodes []*view.Node, off int64) (int64, error) {
	section := d.readers.Enter()
	defer d.readers.Exit(section)
	best := int64(math.MaxInt64)
	for _, n := range nodes {
		next, err := n.NextOwn(off)
		if err != nil {
			return 0, fmt.Errorf("count layer %s: %w", n.ID, err)
		}
		best = min(best, next)
	}
	return best, nil
}

// mapsAny says whether one of some layers maps anything in a range itself.
func (d *Disk) mapsAny(nodes []*view.Node, off, length int64) (bool, error) {
	for _, n := range nodes {
		for at := off; at < off+length; at += view.RegionSize {
			section := d.readers.Enter()
			l, extents, err := n.Layer(), []extent.Extent(nil), error(nil)
			if l != nil && at < l.Size() {
				extents, err = l.Extents(nil, at, min(view.RegionSize, l.Size()-at))
			}
			d.readers.Exit(section)
			if err != nil {
				return false, fmt.Errorf("count layer %s: %w", n.ID, err)
			}
			if slices.ContainsFunc(extents, func(e extent.Extent) bool { return e.Kind != extent.Unallocated }) {
				return true, nil
			}
		}
	}
	return false, nil
}

// needs is what a merge has to have free at the least in either direction, in bytes:
// the tables of its target, and a step.
type needs struct{ up, down int64 }

// needsOf are the needs of the merge of what stands in lower with what stands in upper.
func (d *Disk) needsOf(upper, lower []*view.Node) (n needs, err error) {
	if n.up, err = d.tablesMissing(upper, lower); err != nil {
		return n, err
	}
	n.down, err = d.tablesMissing(lower, upper)
	return n, err
}

// turn is goesUp for the merge of x with c, where what is free is little.
func (d *Disk) turn(up bool, x, c *view.Node) (bool, error) {
	free, ok := d.available()
	if !ok || free >= windowExtra {
		return up, nil
	}
	need, err := d.needsOf([]*view.Node{c}, []*view.Node{x})
	return need.goesUp(up, true, free), err
}

// of is the need in a direction.
func (n needs) of(up bool) int64 {
	if up {
		return n.up
	}
	return n.down
}

// goesUp says whether a merge goes up: the way that moves less, or where the host
// has not the room for that the one that needs less.
func (n needs) goesUp(up, lowerWritable bool, free int64) bool {
	if !lowerWritable {
		return true
	}
	if n.of(up)+leastStep > free && n.of(!up) < n.of(up) {
		return !up
	}
	return up
}
