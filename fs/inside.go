package fs

import (
	"context"
	"time"

	"varve/chain"
)

// insideDisk is what looking inside a disk uses of it: its partitions, and how two
// views differ. See chain.Disk for each method.
type insideDisk interface {
	PeekView(id string, p []byte, off int64) error
	DataBytes(id string, off, end int64, until time.Time) (bytes, at int64, err error)
	Diff(ctx context.Context, a, b string, who chain.Opener) (diff, error)
}

// diff is two views that are compared; see chain.Diff.
type diff interface {
	Views() (a, b chain.DiffView)
	Done() int64
	Next(dst []chain.Difference, until time.Time) (list []chain.Difference, more bool, err error)
	Close()
}

func (d chainDisk) Diff(ctx context.Context, a, b string, who chain.Opener) (diff, error) {
	x, err := d.Disk.Diff(ctx, a, b, who)
	if err != nil {
		return nil, err
	}
	return x, nil
}
