package fs

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"

	"varve/chain"
)

// Node ids are inode numbers too. They are the same in every mount of a disk,
// so a backup program finds the files that it knows. A layer's number is never
// used twice, hence neither is its node id, and one generation does for all.
const (
	nodeRoot       = fuse.FUSE_ROOT_ID
	nodeDisk       = 2
	nodeLayers     = 3
	nodeControl    = 4
	nodeStatus     = 5
	nodeStatusJSON = 6
	nodeMapSVG     = 7
	nodeMetrics    = 8
	nodeDiskParts  = 9       // disk.d; what it holds: nodePart
	nodeCommand    = 16      // the first control file, then as in commands
	nodeLayer      = 1 << 20 // plus the layer's number

	generation = 1
)

// Names in the mount's root.
const (
	nameDisk       = "disk.raw"
	nameLayers     = "layers"
	nameControl    = "control"
	nameStatus     = "status"
	nameStatusJSON = "status.json"
	nameMapSVG     = "map.svg"
	nameMetrics    = "metrics"

	layerSuffix = ".raw"
)

// entry is a name in a directory.
type entry struct {
	name string
	node uint64
}

// rootEntries and controlEntries list the directories that never change.
func rootEntries() []entry {
	return []entry{
		{nameDisk, nodeDisk},
		{nameLayers, nodeLayers},
		{nameControl, nodeControl},
		{nameStatus, nodeStatus},
		{nameStatusJSON, nodeStatusJSON},
		{nameMapSVG, nodeMapSVG},
		{nameMetrics, nodeMetrics},
	}
}

func controlEntries() []entry {
	var es []entry
	for i, c := range commands() {
		es = append(es, entry{c.name, nodeCommand + uint64(i)})
	}
	return es
}

// commandOf is the control file with a node id.
func commandOf(node uint64) (command, bool) {
	cs := commands()
	if node < nodeCommand || node >= nodeCommand+uint64(len(cs)) {
		return command{}, false
	}
	return cs[node-nodeCommand], true
}

// layerNode is the node id of a layer id such as "000002".
func layerNode(id string) (uint64, error) {
	n, err := strconv.ParseUint(id, 10, 40)
	if err != nil {
		return 0, fmt.Errorf("layer id %q: %w", id, err)
	}
	return nodeLayer + n, nil
}

// isLayer says whether a node id is a layer's.
func isLayer(node uint64) bool { return node >= nodeLayer && node < nodePart }

// isDir says whether a node id is a directory's.
func isDir(node uint64) bool {
	return node == nodeRoot || node == nodeLayers || node == nodeControl || isPartsDir(node)
}

// shownAs is the name under which layers/ shows a layer; ok is false for the
// leaf and for unnamed layers, which have none.
func shownAs(l chain.LayerStatus) (name string, ok bool) {
	if l.Name == "" || l.State == chain.StateLeaf || l.State == chain.StateUnnamed {
		return "", false
	}
	return l.Name + layerSuffix, true
}

// layerByNode finds the shown layer with a node id.
func (f *fileSystem) layerByNode(node uint64) (chain.LayerStatus, bool) {
	for _, l := range f.disk.Layers() {
		if _, shown := shownAs(l); !shown {
			continue
		}
		if n, err := layerNode(l.ID); err == nil && n == node {
			return l, true
		}
	}
	return chain.LayerStatus{}, false
}

// layerByName finds the layer that layers/ shows under a file name.
func (f *fileSystem) layerByName(file string) (chain.LayerStatus, bool) {
	if !strings.HasSuffix(file, layerSuffix) {
		return chain.LayerStatus{}, false
	}
	for _, l := range f.disk.Layers() {
		if shown, ok := shownAs(l); ok && shown == file {
			return l, true
		}
	}
	return chain.LayerStatus{}, false
}

// leafStatus finds the leaf, which disk.raw shows.
func (f *fileSystem) leafStatus() (chain.LayerStatus, bool) {
	for _, l := range f.disk.Layers() {
		if l.State == chain.StateLeaf {
			return l, true
		}
	}
	return chain.LayerStatus{}, false
}

// entries lists a directory as it is now.
func (f *fileSystem) entries(dir uint64) []entry {
	switch dir {
	case nodeRoot:
		return append(rootEntries(), f.diskPartsDir()...)
	case nodeControl:
		return controlEntries()
	case nodeLayers:
		var es []entry
		layers := f.disk.Layers()
		for _, l := range layers {
			name, shown := shownAs(l)
			if !shown {
				continue
			}
			if n, err := layerNode(l.ID); err == nil {
				es = append(es, entry{name, n})
			}
		}
		return append(es, f.partsDirs(layers)...)
	}
	return f.partEntries(dir)
}

// find looks a name up in a directory that never changes.
func (f *fileSystem) find(dir uint64, name string) (uint64, bool) {
	var fixed []entry
	switch dir {
	case nodeRoot:
		fixed = rootEntries()
	case nodeControl:
		fixed = controlEntries()
	}
	for _, e := range fixed {
		if e.name == name {
			return e.node, true
		}
	}
	return 0, false
}
