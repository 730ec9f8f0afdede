package fs

import (
	"strconv"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/chain"
)

// attributePrefix begins the names of the extended attributes that layers and
// disk.raw (for the leaf) carry: what status has of a layer.
const attributePrefix = "user.varve."

// FilesAttribute tells which files of the host a layer is read from at the moment
// (chain.ViewFiles). It is for exports, and not among those that are listed: copied
// with a file it would mean nothing.
const FilesAttribute = attributePrefix + "files"

// attribute is one of them.
type attribute struct {
	name    string
	counted bool // only Disk.Status has it
	value   func(chain.LayerStatus) string
}

func attributes() []attribute {
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	return []attribute{
		{"id", false, func(l chain.LayerStatus) string { return l.ID }},
		{"name", false, func(l chain.LayerStatus) string { return l.Name }},
		{"state", false, func(l chain.LayerStatus) string { return l.State.String() }},
		{"foreign", false, func(l chain.LayerStatus) string { return strconv.FormatBool(l.Foreign) }},
		{"parent", false, func(l chain.LayerStatus) string {
			if l.Parent == nil {
				return ""
			}
			return *l.Parent
		}},
		{"children", false, func(l chain.LayerStatus) string { return strings.Join(l.Children, " ") }},
		{"format", false, func(l chain.LayerStatus) string { return l.Format }},
		{"file", false, func(l chain.LayerStatus) string { return l.File }},
		{"created", false, func(l chain.LayerStatus) string { return l.Created.UTC().Format(time.RFC3339) }},
		{"size", false, func(l chain.LayerStatus) string { return number(l.Size) }},
		{"own_bytes", true, func(l chain.LayerStatus) string { return number(l.OwnBytes) }},
		{"host_bytes", true, func(l chain.LayerStatus) string { return number(l.HostBytes) }},
		{"depth", false, func(l chain.LayerStatus) string { return strconv.Itoa(l.Depth) }},
	}
}

// attributed finds the layer whose attributes a node carries.
func (f *fileSystem) attributed(node uint64) (chain.LayerStatus, bool) {
	if node == nodeDisk {
		return f.leafStatus()
	}
	if isLayer(node) {
		return f.layerByNode(node)
	}
	return chain.LayerStatus{}, false
}

// trustedPrefix begins the names of attributes that only privileged processes see.
const trustedPrefix = "trusted."

// GetXAttr reads an attribute. The kernel asks for security.* and system.*
// ones now and then; those are ENODATA without a further look. libvirt asks for
// a trusted.* one to learn whether it can set it: with ENODATA for a layer it would
// try, and not start the VM because that fails.
func (f *fileSystem) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	short, ours := strings.CutPrefix(name, attributePrefix)
	switch {
	case f.isRemembered(in.NodeId, name):
		value, ok := f.remembered.get(name)
		if !ok {
			return 0, fuse.ENODATA
		}
		return giveXAttr(dest, value)
	case strings.HasPrefix(name, trustedPrefix):
		return 0, refusedXAttr(name)
	case !ours:
		return 0, fuse.ENODATA
	case name == FilesAttribute:
		return f.giveFiles(in.NodeId, dest)
	}
	for _, a := range attributes() {
		if a.name != short {
			continue
		}
		l, ok := f.attributed(in.NodeId)
		if !ok {
			return 0, fuse.ENODATA
		}
		if a.counted {
			var err error
			if l, err = f.counted(l.ID); err != nil {
				return 0, f.status("getxattr", err)
			}
		}
		return giveXAttr(dest, a.value(l))
	}
	return 0, fuse.ENODATA
}

func (f *fileSystem) giveFiles(node uint64, dest []byte) (uint32, fuse.Status) {
	l, ok := f.attributed(node)
	if !ok {
		return 0, fuse.ENODATA
	}
	files, err := f.disk.ViewFiles(l.ID)
	if err != nil {
		return 0, f.status("getxattr", err)
	}
	return giveXAttr(dest, files.String())
}

// counted is a layer's status with its bytes counted.
func (f *fileSystem) counted(id string) (chain.LayerStatus, error) {
	st, err := f.disk.Status()
	if err != nil {
		return chain.LayerStatus{}, err
	}
	for _, l := range st.Layers {
		if l.ID == id {
			return l, nil
		}
	}
	return chain.LayerStatus{}, errStale()
}

// ListXAttr lists the names of our attributes, which programs may copy. Those of libvirt
// are this mount's alone.
func (f *fileSystem) ListXAttr(cancel <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if _, ok := f.attributed(in.NodeId); !ok {
		return 0, fuse.OK
	}
	var names strings.Builder
	for _, a := range attributes() {
		names.WriteString(attributePrefix + a.name + "\x00")
	}
	return giveXAttr(dest, names.String())
}

// giveXAttr copies a value out, or tells how much room it needs.
func giveXAttr(dest []byte, value string) (uint32, fuse.Status) {
	if len(dest) < len(value) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

// SetXAttr: ours cannot be set; others, but those of libvirt on disk.raw, are not
// stored, which programs take as "no extended attributes here" and go on.
func (f *fileSystem) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	if f.isRemembered(in.NodeId, name) {
		return f.remembered.set(name, data, in.Flags)
	}
	return refusedXAttr(name)
}

// RemoveXAttr is refused as SetXAttr is.
func (f *fileSystem) RemoveXAttr(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if f.isRemembered(in.NodeId, name) {
		return f.remembered.remove(name)
	}
	return refusedXAttr(name)
}

func refusedXAttr(name string) fuse.Status {
	if strings.HasPrefix(name, attributePrefix) {
		return fuse.EPERM
	}
	return fuse.Status(unix.EOPNOTSUPP)
}
