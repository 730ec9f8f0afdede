package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
)

// layerOpenFlags: a view never changes, so its pages stay in the kernel's
// cache from one open to the next.
const layerOpenFlags = fuse.FOPEN_KEEP_CACHE

// layerFile is an open of layers/NAME.raw.
type layerFile struct{ view view }

func (o *layerFile) close() { o.view.Close() }

// openLayer fills out's flags and gives what stands behind the handle.
func (f *fileSystem) openLayer(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) (openFile, error) {
	l, ok := f.layerByNode(in.NodeId)
	if !ok {
		return nil, errStale()
	}
	ctx := &fuse.Context{Caller: in.Caller, Cancel: cancel}
	v, err := f.disk.OpenView(ctx, l.ID, openerOf(in.Pid))
	if err != nil {
		return nil, err
	}
	out.OpenFlags = layerOpenFlags
	if backing, ok := f.through.of(in.NodeId); ok {
		out.OpenFlags, out.BackingID = fuse.FOPEN_PASSTHROUGH, backing
	}
	return &layerFile{view: v}, nil
}

func (f *fileSystem) readLayer(in *fuse.ReadIn, o *layerFile, buf []byte, off int64) ([]byte, fuse.Status) {
	buf, status := clipRead(in, buf, off, o.view.Size())
	if len(buf) > 0 {
		if err := o.view.ReadAt(buf, off); err != nil {
			return nil, f.status("read a layer", err)
		}
	}
	return buf, status
}
