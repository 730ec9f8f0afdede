package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"varve/chain"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
	"varve/fs"
	"varve/fs/show"
)

// direct is a disk that is not mounted and that this process has opened.
type direct struct {
	t    where.Target
	disk *chain.Disk
}

var _ Disk = (*direct)(nil)

func openDirect(t where.Target, o Options) (Disk, error) {
	co := chain.OpenOptions{Log: o.Log, ReadOnly: o.ReadOnly, HoldJob: o.HoldJob}
	if o.JobRate != nil {
		co.JobRate = *o.JobRate
	}
	d, err := openChain(t, co)
	if err != nil {
		return nil, err
	}
	return &direct{t, d}, nil
}

// busy makes a wait of a call that may hang with the host's file system.
func (d *direct) busy() (done func()) { return waiting.For(where.PathWait(d.t.Dir)) }

// Close tells whether the disk was left in order.
func (d *direct) Close() error {
	defer d.busy()()
	return d.disk.Close()
}

func (d *direct) Status(ctx context.Context) (chain.Status, error) {
	// Nobody's VM waits for this one, and what is asked once should be right.
	if err := d.disk.CountAll(ctx); err != nil {
		return chain.Status{}, err
	}
	st, err := d.disk.Status()
	if err == nil {
		fs.NameDamage(&st, func(id string, p []byte, off int64) error {
			if id == "" {
				return d.disk.ReadAt(p, off)
			}
			return d.disk.PeekView(id, p, off)
		})
	}
	return st, err
}

func (d *direct) Document(ctx context.Context) ([]byte, error) {
	st, err := d.Status(ctx)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	err = show.JSON(&text, st)
	return text.Bytes(), err
}

func (d *direct) Layers() ([]chain.LayerStatus, error) { return d.disk.Layers(), nil }

func (d *direct) Map(ctx context.Context) ([]byte, error) {
	m, err := d.disk.ExtentMap(ctx, 0)
	if err != nil {
		return nil, err
	}
	var picture bytes.Buffer
	err = show.MapSVG(&picture, m)
	return picture.Bytes(), err
}

func (d *direct) Plan(operation chain.Operation, names []string) (chain.Plan, error) {
	return d.disk.Plan(operation, names)
}

func (d *direct) Diff(a, b string) (Differences, error) {
	return diffOf(d.disk, a, b, func() error { return nil })
}

func (d *direct) View(name string, _ bool) (View, error) {
	source, size, err := d.disk.ExportSource(name)
	return View{source, size, func() error { return nil }}, err
}

func (d *direct) Snapshot(name string) error {
	defer d.busy()()
	return d.disk.Snapshot(name)
}

func (d *direct) Revert(name string) error {
	defer d.busy()()
	return d.disk.Revert(name)
}

func (d *direct) Undo() error {
	defer d.busy()()
	return d.disk.Undo()
}

func (d *direct) Rename(from, to string) error {
	defer d.busy()()
	return d.disk.Rename(from, to)
}

func (d *direct) Resize(size int64) error {
	defer d.busy()()
	return d.disk.Resize(size)
}

func (d *direct) Hold(name string) error {
	defer d.busy()()
	return d.disk.Hold(name)
}

func (d *direct) Release(name string) error {
	defer d.busy()()
	return d.disk.Release(name)
}

func (d *direct) Clone(name, dir string) error {
	defer d.busy()()
	_, err := d.disk.Clone(name, dir)
	return err
}

func (d *direct) Delete(names ...string) (Job, error) {
	defer d.busy()()
	id, err := d.disk.Delete(names...)
	return Job{ID: id}, err
}

func (d *direct) DeleteUnnamed() (Job, error) {
	defer d.busy()()
	id, err := d.disk.DeleteUnnamed()
	return Job{ID: id}, err
}

func (d *direct) Forget() (Job, error) {
	defer d.busy()()
	id, err := d.disk.Forget()
	return Job{ID: id}, err
}

func (d *direct) Flatten(name string) (Job, error) {
	defer d.busy()()
	id, err := d.disk.Flatten(name)
	return Job{ID: id, flatten: true}, err
}

func (d *direct) Cancel(job string) error {
	defer d.busy()()
	if job == "" {
		st, err := d.disk.Status()
		if err != nil {
			return err
		}
		if job, err = running(st); err != nil {
			return err
		}
	}
	return d.disk.Cancel(job)
}

// Wait waits for the jobs that run in this process.
func (d *direct) Wait(ctx context.Context, _ Job, progress func(done, total int64)) (int64, error) {
	for {
		wait, cancel := context.WithTimeout(ctx, longPoll)
		st, err := d.disk.WaitJobs(wait)
		cancel()
		switch {
		case err == nil:
			return st.TotalBytes, ended(d.t, st)
		case ctx.Err() != nil:
			return 0, fmt.Errorf("interrupted; job %s was stopped in good order and goes on when the disk is next mounted or worked on", st.ID)
		case errors.Is(err, context.DeadlineExceeded):
			progress(st.DoneBytes, st.TotalBytes)
		default:
			return 0, err
		}
	}
}

func (d *direct) Background(job Job) string {
	return fmt.Sprintf("job %s is recorded; the disk is not mounted, so it goes on at the next mount", job.ID)
}

// Recent is the status of a disk that is asked for again and again: one that is not mounted is
// looked at anew only when it has changed.
type Recent struct {
	// The last look: every operation replaces chain.json.
	changed time.Time
	inode   os.FileInfo
	status  chain.Status
}

// Status is the status of a disk now.
func (r *Recent) Status(ctx context.Context, t where.Target, o Options) (chain.Status, error) {
	var info os.FileInfo
	if t.Mountpoint == "" {
		var err error
		if info, err = os.Stat(filepath.Join(t.Dir, "chain.json")); err != nil {
			return chain.Status{}, err
		}
		if r.inode != nil && os.SameFile(info, r.inode) && info.ModTime().Equal(r.changed) {
			return r.status, nil
		}
	}
	d, err := Open(t, o)
	if err != nil {
		return chain.Status{}, err
	}
	defer d.Close() // read only: there is nothing to lose
	st, err := d.Status(ctx)
	*r = Recent{}
	if err == nil && info != nil {
		*r = Recent{info.ModTime(), info, st}
	}
	return st, err
}
