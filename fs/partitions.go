package fs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/fs/partition"
	"varve/overlay/extent"
)

// Beside each NAME.raw with a partition table stands a directory NAME.d with the
// partitions as files, p1.raw and so on:
//
//	disk.d/                  the table of the leaf, looked at anew every time
//	layers/NAME.d/           the table of a view, which never changes: read once
//
// Names are told apart by their ends, ".raw" and ".d", whatever a snapshot is called.
const (
	nameDiskParts = "disk.d"
	partsSuffix   = ".d"
)

// Node ids of partitions: nodePart, plus a layer's number (0 for disk.raw) times
// partNumbers, plus the partition's number, 0 for the directory. Those of a layer
// have at most 40 bits.
const (
	nodePart    = 1 << 52
	partNumbers = partition.MaxNumber + 1
)

func partNode(layer uint64, number int) uint64 {
	if layer == 0 && number == 0 {
		return nodeDiskParts
	}
	return nodePart + layer*partNumbers + uint64(number)
}

// partOf is partNode's inverse; ok is false for other nodes.
func partOf(node uint64) (layer uint64, number int, ok bool) {
	switch {
	case node == nodeDiskParts:
		return 0, 0, true
	case node <= nodePart:
		return 0, 0, false
	}
	node -= nodePart
	return node / partNumbers, int(node % partNumbers), true
}

// isPart says whether a node id is a partition's.
func isPart(node uint64) bool {
	_, number, ok := partOf(node)
	return ok && number != 0
}

// isPartsDir says whether a node id is that of a directory of partitions.
func isPartsDir(node uint64) bool {
	_, number, ok := partOf(node)
	return ok && number == 0
}

// parentOf is the directory that holds another.
func parentOf(dir uint64) uint64 {
	if isPartsDir(dir) && dir != nodeDiskParts {
		return nodeLayers
	}
	return nodeRoot
}

// partName is the file name of a partition.
func partName(number int) string { return fmt.Sprintf("p%d.raw", number) }

// partNumber is partName's inverse.
func partNumber(name string) (number int, ok bool) {
	middle, found := strings.CutPrefix(strings.TrimSuffix(name, layerSuffix), "p")
	number, err := strconv.Atoi(middle)
	return number, found && err == nil && number <= partition.MaxNumber && partName(number) == name
}

// partTables remembers the partition tables of views. Safe for concurrent use.
type partTables struct {
	mu     sync.Mutex // guards all below; held for no call
	layers map[uint64]*partTable
	live   string // what was last said of the table of disk.raw
}

// partTable is what is known of one view's table.
type partTable struct {
	list   []partition.Partition
	read   bool // list is right
	said   bool // that there is nothing to show, or why
	counts map[int]*partCount
}

// of gives the table of a layer by its number, made where there is none. mu is held.
func (t *partTables) of(layer uint64) *partTable {
	if t.layers == nil {
		t.layers = make(map[uint64]*partTable)
	}
	if t.layers[layer] == nil {
		t.layers[layer] = &partTable{counts: make(map[int]*partCount)}
	}
	return t.layers[layer]
}

func (t *partTables) known(layer uint64) ([]partition.Partition, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.of(layer)
	return p.list, p.read
}

// keep forgets the layers that are gone.
func (t *partTables) keep(layers map[uint64]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for number := range t.layers {
		if !layers[number] {
			delete(t.layers, number)
		}
	}
}

// layerParts is the partitions of a view; none where it has no table, or one that
// is broken or cannot be read: the log says that once.
func (f *fileSystem) layerParts(l chain.LayerStatus) []partition.Partition {
	number, ok := layerNumber(l)
	if !ok {
		return nil
	}
	list, known := f.parts.known(number)
	if known {
		return list
	}
	list, err := partition.Read(partition.ReadFunc(func(p []byte, off int64) error {
		return f.disk.PeekView(l.ID, p, off)
	}), extent.WholeSectors(l.Size)) // a raw base may end within one
	if errors.Is(err, chain.ErrNotExist) { // deleted meanwhile
		return nil
	}
	f.parts.mu.Lock()
	table := f.parts.of(number)
	says := !table.said && len(list) == 0
	table.said = table.said || says
	if err == nil || errors.Is(err, partition.ErrNone) || errors.Is(err, partition.ErrBroken) {
		table.list, table.read = list, true
	}
	f.parts.mu.Unlock()
	if says {
		f.log.Info("no partitions to show", "of", nameLayers+"/"+l.Name+layerSuffix, "reason", noParts(err))
	}
	return list
}

// noParts says why a disk shows no partitions.
func noParts(err error) string {
	if err == nil {
		return "the partition table is empty"
	}
	return err.Error()
}

// layerNumber is the number of a layer that layers/ shows.
func layerNumber(l chain.LayerStatus) (uint64, bool) {
	if _, shown := shownAs(l); !shown {
		return 0, false
	}
	n, err := layerNode(l.ID)
	return n - nodeLayer, err == nil
}

// diskParts is the partitions of disk.raw as its table is now. The log says it when
// there are none, and again when the reason is another.
func (f *fileSystem) diskParts() []partition.Partition {
	list, err := partition.Read(f.disk, f.disk.Size())
	why := ""
	if len(list) == 0 {
		why = noParts(err)
	}
	f.parts.mu.Lock()
	says := why != f.parts.live
	f.parts.live = why
	f.parts.mu.Unlock()
	if says && why != "" {
		f.log.Info("no partitions to show", "of", nameDisk, "reason", why)
	}
	return list
}

// partsAtOnce is how many tables are read at a time for a listing: the first one of
// a chain on a cold disk waits for each layer's file.
const partsAtOnce = 8

// partsDirs adds to the entries of layers/ a directory for each layer that has
// partitions.
func (f *fileSystem) partsDirs(layers []chain.LayerStatus) []entry {
	numbers := make(map[uint64]bool, len(layers))
	var work sync.WaitGroup
	slots := make(chan struct{}, partsAtOnce)
	for _, l := range layers {
		number, ok := layerNumber(l)
		if !ok {
			continue
		}
		numbers[number] = true
		if _, known := f.parts.known(number); known {
			continue
		}
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			f.layerParts(l)
		})
	}
	work.Wait()
	f.parts.keep(numbers)
	var list []entry
	for _, l := range layers {
		if number, ok := layerNumber(l); ok && len(f.layerParts(l)) > 0 {
			list = append(list, entry{l.Name + partsSuffix, partNode(number, 0)})
		}
	}
	return list
}

// diskPartsDir is the entry of disk.d, when there is one.
func (f *fileSystem) diskPartsDir() []entry {
	if len(f.diskParts()) == 0 {
		return nil
	}
	return []entry{{nameDiskParts, nodeDiskParts}}
}

// partsOf is the partitions of a node's disk or view; the layer is only there for
// a view's. An error when that is gone.
func (f *fileSystem) partsOf(node uint64) (list []partition.Partition, l chain.LayerStatus, err error) {
	number, _, _ := partOf(node)
	if number == 0 {
		return f.diskParts(), l, nil
	}
	l, ok := f.layerByNode(nodeLayer + number)
	if !ok {
		return nil, l, errStale()
	}
	return f.layerParts(l), l, nil
}

// partEntries lists a directory of partitions.
func (f *fileSystem) partEntries(dir uint64) []entry {
	parts, _, err := f.partsOf(dir)
	if err != nil {
		return nil
	}
	layer, _, _ := partOf(dir)
	var list []entry
	for _, p := range parts {
		list = append(list, entry{partName(p.Number), partNode(layer, p.Number)})
	}
	return list
}

// findPart looks up a partition, or the directory for them; mine is false where a
// name is none of these.
func (f *fileSystem) findPart(dir uint64, name string) (node uint64, keep time.Duration, mine bool) {
	switch {
	case dir == nodeRoot && name == nameDiskParts:
		if len(f.diskParts()) > 0 {
			node = nodeDiskParts
		}
		return node, alwaysAsked, true
	case dir == nodeLayers && strings.HasSuffix(name, partsSuffix):
		l, ok := f.layerByName(strings.TrimSuffix(name, partsSuffix) + layerSuffix)
		if number, shown := layerNumber(l); ok && shown && len(f.layerParts(l)) > 0 {
			node = partNode(number, 0)
		}
		return node, alwaysAsked, true
	case !isPartsDir(dir):
		return 0, 0, false
	}
	layer, _, _ := partOf(dir)
	keep = fixedNames
	if layer == 0 {
		keep = alwaysAsked
	}
	number, ok := partNumber(name)
	if _, _, err := f.part(partNode(layer, number)); !ok || err != nil {
		return 0, keep, true
	}
	return partNode(layer, number), keep, true
}

// part is the partition of a node.
func (f *fileSystem) part(node uint64) (partition.Partition, chain.LayerStatus, error) {
	parts, l, err := f.partsOf(node)
	if err != nil {
		return partition.Partition{}, l, err
	}
	_, number, _ := partOf(node)
	for _, p := range parts {
		if p.Number == number {
			return p, l, nil
		}
	}
	return partition.Partition{}, l, refuse(unix.ESTALE, "the partition is gone")
}

// partAttr fills in the attributes of a partition or of a directory of them.
func (f *fileSystem) partAttr(node uint64, a *fuse.Attr) (valid time.Duration, err error) {
	if isPartsDir(node) {
		_, l, err := f.partsOf(node)
		if err != nil {
			return 0, err
		}
		a.Mode, a.Nlink = unix.S_IFDIR|0o555&^f.umask, 2
		if node == nodeDiskParts {
			setTime(a, f.disk.ModTime())
			return alwaysAsked, nil
		}
		setTime(a, l.Since())
		return fixedAttrs, nil
	}
	p, l, err := f.part(node)
	if err != nil {
		return 0, err
	}
	a.Mode = unix.S_IFREG | 0o444&^f.umask
	a.Blksize = imageBlock
	a.Size = uint64(p.Length)
	bytes, counted, err := f.partBytes(node, p, l)
	if err != nil {
		return 0, err
	}
	setBlocks(a, bytes)
	switch {
	case l.ID == "":
		setTime(a, f.disk.ModTime())
		return alwaysAsked, nil
	case !counted:
		valid = notCounted
	default:
		valid = fixedAttrs
	}
	setTime(a, l.Since())
	return valid, nil
}

// partCount is how far the bytes of a partition that are data were counted.
type partCount struct {
	mu    sync.Mutex // guards all below; held while the chain counts
	at    int64      // bytes from the disk's start
	bytes int64
}

// partPatience is how long a stat counts a partition. Up to some GiB are counted at
// once.
const partPatience = 20 * time.Millisecond

// partBytes is how much of a partition is data. Where the time does not suffice,
// what is not counted yet is taken for data, as far as the whole view has that much,
// and later calls go on.
func (f *fileSystem) partBytes(node uint64, p partition.Partition, l chain.LayerStatus) (bytes int64, counted bool, err error) {
	c := &partCount{at: p.Start}
	layer, number, _ := partOf(node)
	if layer != 0 {
		f.parts.mu.Lock()
		table := f.parts.of(layer)
		if table.counts[number] == nil {
			table.counts[number] = c
		}
		c = table.counts[number]
		f.parts.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	end := p.Start + p.Length
	if c.at < end {
		n, at, err := f.disk.DataBytes(l.ID, c.at, end, time.Now().Add(partPatience))
		c.bytes, c.at = c.bytes+n, at
		if err != nil {
			return 0, false, err
		}
	}
	if c.at >= end {
		return c.bytes, true, nil
	}
	whole, err := f.wholeBytes(l)
	if err != nil {
		return 0, false, err
	}
	return c.bytes + max(0, min(end-c.at, whole-c.bytes)), false, nil
}

// wholeBytes is how much of a view is data, or of disk.raw.
func (f *fileSystem) wholeBytes(l chain.LayerStatus) (bytes int64, err error) {
	if l.ID == "" {
		bytes, _, err = f.disk.AllocatedBytes()
		return bytes, err
	}
	bytes, _, err = f.disk.LayerAllocatedBytes(l.ID)
	return bytes, err
}
