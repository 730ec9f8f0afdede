package fs

import (
	"context"
	"time"

	"varve/chain"
	"varve/overlay/hostfs"
)

// disk is what a mount uses of a chain.Disk; see there for each method. It
// stands here so that tests can serve a disk that fails or panics on demand.
type disk interface {
	Dir() string
	ReadOnly() bool
	Size() int64

	ReadAt(p []byte, off int64) error
	WriteAt(p []byte, off int64) error
	Flush() error
	Discard(off, length int64) error
	Reserve(off, length int64) error
	Resize(size int64) error
	CheckGrowth(size, reserve int64) error
	SeekData(off int64) (int64, error)
	SeekHole(off int64) (int64, error)
	AllocatedBytes() (bytes int64, counted bool, err error)
	ModTime() time.Time
	SetModTime(t time.Time)

	OpenDisk(ctx context.Context, who chain.Opener, write bool) (handle, error)
	OpenView(ctx context.Context, id string, who chain.Opener) (view, error)

	Layers() []chain.LayerStatus
	EachHostFile(f func(id string, file hostfs.File))
	ViewFiles(id string) (chain.ViewFiles, error)
	LayerAllocatedBytes(id string) (bytes int64, counted bool, err error)
	Status() (chain.Status, error)
	Metrics() chain.Metrics
	ExtentMap(ctx context.Context, most time.Duration) (*chain.ExtentMap, error)

	Snapshot(name string) error
	Revert(name string) error
	Delete(names ...string) (job string, err error)
	DeleteUnnamed() (job string, err error)
	Flatten(name string) (job string, err error)
	Rename(oldName, newName string) error
	Cancel(job string) error
	Undo() error
	Forget() (job string, err error)
	Hold(name string) error
	Release(name string) error
	Clone(name, dir string) (chain.Created, error)
	Plan(operation chain.Operation, names []string) (chain.Plan, error)
	JobRate() int64
	SetJobRate(bytes int64) error

	OnChange(f func(chain.Change))

	insideDisk
}

// handle is an open of disk.raw.
type handle interface{ Close() }

// view is an open layer.
type view interface {
	ReadAt(p []byte, off int64) error
	Size() int64
	SeekData(off int64) (int64, error)
	SeekHole(off int64) (int64, error)
	Close()
}

// chainDisk is a chain.Disk as a disk.
type chainDisk struct{ *chain.Disk }

func (d chainDisk) OpenDisk(ctx context.Context, who chain.Opener, write bool) (handle, error) {
	h, err := d.Disk.OpenDisk(ctx, who, write)
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (d chainDisk) OpenView(ctx context.Context, id string, who chain.Opener) (view, error) {
	v, err := d.Disk.OpenView(ctx, id, who)
	if err != nil {
		return nil, err
	}
	return v, nil
}
