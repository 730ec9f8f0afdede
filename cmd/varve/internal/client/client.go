// Package client is a disk as a command works on it, whether it is mounted or not.
//
// Open gives a Disk for what package where has found. Of a disk directory that nobody has
// mounted this process opens the files itself (package chain). Of a mounted one it asks the
// daemon: it writes lines to the control files of the mount (package control) and reads what
// the mount shows. Who calls a Disk does not see which of the two it is, and what goes wrong
// can be told apart by errors.Is in the same way.
//
// It knows no command, flag or exit code, and writes nothing to people: what they are to know
// of a job comes as words. No call is safe for concurrent use, unless it says so.
package client

import (
	"context"
	"errors"
	"log/slog"

	"varve/chain"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
	"varve/overlay"
)

// Disk is an open disk. The names of its methods are those of chain.Disk, and so is what they
// do and the errors that they give.
type Disk interface {
	// Status is the disk's status; of a disk that is not mounted all of it is counted.
	Status(ctx context.Context) (chain.Status, error)
	// Document is the same as JSON: status.json.
	Document(ctx context.Context) ([]byte, error)
	Layers() ([]chain.LayerStatus, error)
	// Map is the whole map as an SVG picture, or when ctx ends a part of it.
	Map(ctx context.Context) ([]byte, error)
	Plan(operation chain.Operation, names []string) (chain.Plan, error)
	// Diff compares two views. A disk that is not mounted is open to be read only.
	Diff(a, b string) (Differences, error)
	// View opens the view of a layer: of a snapshot, "base" or "leaf". With share its blocks
	// can be shared with another file while they rest, as far as whoever serves a mount is
	// trusted. A disk that is not mounted is open to be read only.
	View(name string, share bool) (View, error)

	Snapshot(name string) error
	Revert(name string) error
	Undo() error
	Rename(from, to string) error
	Resize(size int64) error
	Hold(name string) error
	Release(name string) error
	// Clone makes the disk directory dir, an absolute path.
	Clone(name, dir string) error

	Delete(names ...string) (Job, error)
	DeleteUnnamed() (Job, error)
	Forget() (Job, error)
	Flatten(name string) (Job, error)
	// Cancel stops a job, "" for the one under way.
	Cancel(job string) error
	// Wait waits until a job that this Disk has begun has ended, with the merges that follow
	// it, and gives the bytes that it had to copy. The error says in words what became of it.
	Wait(ctx context.Context, job Job, progress func(done, total int64)) (copied int64, err error)
	// Background says in words what becomes of a job that is not waited for.
	Background(job Job) string

	Close() error
}

// Job is what a call has begun and goes on. The zero Job: there was nothing to copy.
type Job struct {
	ID      string
	flatten bool // no merge follows it
}

// Options are how a disk is opened.
type Options struct {
	Log *slog.Logger // of what is met in a disk directory
	// ReadOnly: nothing is to be changed.
	ReadOnly bool
	// HoldJob leaves a job, also one that is begun, for the next mount where the disk is not
	// mounted.
	HoldJob bool
	// JobRate is how many bytes jobs may copy a second, 0 for no limit; nil: as it is. Of a
	// mounted disk it stays so.
	JobRate *int64
}

// Open opens a disk.
func Open(t where.Target, o Options) (Disk, error) {
	if t.Mountpoint != "" {
		return openMounted(t, o)
	}
	return openDirect(t, o)
}

// View is the content of a layer, to be read.
type View struct {
	Source overlay.Source
	Size   int64 // bytes
	Close  func() error
}

// Layers lists the layers of a disk.
func Layers(t where.Target) ([]chain.LayerStatus, error) {
	d, err := Open(t, Options{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	layers, err := d.Layers()
	return layers, errors.Join(err, d.Close())
}

// Titles is what people call layers, by their ids.
func Titles(layers []chain.LayerStatus) map[string]string {
	titles := make(map[string]string, len(layers))
	for _, l := range layers {
		titles[l.ID] = l.Title()
	}
	return titles
}

// openChain opens a disk directory that nobody has mounted.
func openChain(t where.Target, o chain.OpenOptions) (*chain.Disk, error) {
	o.LockWait = where.LockWait
	defer waiting.For(where.PathWait(t.Dir))()
	return chain.Open(t.Dir, o)
}
