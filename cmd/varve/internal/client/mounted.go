package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"varve/chain"
	"varve/chain/bounded"
	"varve/cmd/varve/internal/mountfile"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
	"varve/fs/control"
	"varve/fs/show"
	"varve/overlay/qcow2"
)

// mounted is a disk that a daemon serves.
type mounted struct {
	t   where.Target
	log *slog.Logger
}

var _ Disk = (*mounted)(nil)

func openMounted(t where.Target, o Options) (Disk, error) {
	m := &mounted{t, o.Log}
	if o.JobRate != nil {
		if err := m.do(control.Rate, strconv.FormatInt(*o.JobRate, 10)); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *mounted) Close() error { return nil }

func (m *mounted) Status(context.Context) (chain.Status, error) {
	_, st, err := m.t.Document()
	return st, err
}

func (m *mounted) Document(context.Context) ([]byte, error) {
	text, _, err := m.t.Document()
	return text, err
}

func (m *mounted) Layers() ([]chain.LayerStatus, error) {
	_, st, err := m.t.Document()
	return st.Layers, err
}

func (m *mounted) Map(ctx context.Context) ([]byte, error) {
	for {
		// An open draws what it comes to in some seconds, and the next one goes on.
		answered := waiting.For(m.t.ReadWait())
		picture, err := m.t.Place().Read(mountfile.MostMap, "map.svg")
		answered()
		if err != nil {
			return nil, m.t.Explain(err)
		}
		if show.MapComplete(picture) || ctx.Err() != nil {
			return picture, nil
		}
	}
}

func (m *mounted) Plan(operation chain.Operation, names []string) (chain.Plan, error) {
	if err := apart(names...); err != nil {
		return chain.Plan{}, err
	}
	text, err := ask(m.t, control.Plan, control.Line(append([]string{operation.String()}, names...)...))
	if err != nil {
		return chain.Plan{}, err
	}
	var p chain.Plan
	if err := bounded.JSON([]byte(text), &p); err != nil {
		return chain.Plan{}, fmt.Errorf("what control/plan says is not understood: %w", err)
	}
	return p, nil
}

func (m *mounted) Diff(a, b string) (Differences, error) {
	if m.t.ReadOnly {
		// Nothing can be written to the mount to ask it, nor does anything move.
		d, err := openShown(m.t, m.log)
		if err != nil {
			return nil, err
		}
		x, err := diffOf(d, a, b, d.Close)
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		return x, nil
	}
	if err := checkViews(a, b); err != nil {
		return nil, err
	}
	return openMountedDifferences(m.t, a, b)
}

// View reads through the mount: the daemon alone knows where content stands while its jobs
// move it, and an open layer is not deleted.
func (m *mounted) View(name string, share bool) (View, error) {
	t := m.t
	file := []string{"layers", name + ".raw"}
	if name == "leaf" {
		if !t.ReadOnly {
			return View{}, fmt.Errorf("the leaf of a mounted disk changes while it is read; take a snapshot with \"varve snapshot %s NAME\" and export that", chain.ShellWord(t.Arg))
		}
		file = []string{"disk.raw"}
	} else if err := chain.CheckName(name); err != nil && name != "base" {
		return View{}, err
	}
	image, err := openImage(t, file...)
	if errors.Is(err, os.ErrNotExist) {
		return View{}, fmt.Errorf("snapshot %s: %w", name, chain.ErrNotExist)
	}
	if err != nil {
		return View{}, t.Explain(err)
	}
	view := FileView(image)
	// Which files are shared another user's daemon must not say.
	if share && (t.Owner == 0 || t.Owner == os.Geteuid()) {
		shared := &sharedView{rawView: view.Source.(*rawView), file: image.File()}
		view.Source, view.Close = shared, shared.Close
	}
	return view, nil
}

// openImage opens a file of the mount. With O_DIRECT it does not go into the page
// cache a second time, and is read in larger pieces.
func openImage(t where.Target, elements ...string) (*qcow2.Image, error) {
	f, err := t.Place().OpenDirect(t.ReadWait(), elements...)
	if err != nil {
		return nil, err
	}
	image, err := qcow2.NewImage(f, "raw")
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return image, nil
}

// do has the daemon do something that is done when it answers.
func (m *mounted) do(file string, words ...string) error {
	_, err := write(m.t, file, control.Line(words...))
	return err
}

// begin has the daemon begin a job.
func (m *mounted) begin(file string, words ...string) (Job, error) {
	id, err := write(m.t, file, control.Line(words...))
	return Job{ID: id, flatten: file == control.Flatten}, err
}

// apart refuses names with a space in them, which would be two names on a line.
func apart(names ...string) error {
	for _, name := range names {
		if strings.Contains(name, " ") {
			return chain.CheckName(name)
		}
	}
	return nil
}

func (m *mounted) Snapshot(name string) error { return m.do(control.Snapshot, name) }
func (m *mounted) Revert(name string) error   { return m.do(control.Revert, name) }
func (m *mounted) Undo() error                { return m.do(control.Undo, control.Leaf) }
func (m *mounted) Hold(name string) error     { return m.do(control.Hold, name) }
func (m *mounted) Release(name string) error  { return m.do(control.Release, name) }

func (m *mounted) Rename(from, to string) error {
	if err := apart(from, to); err != nil {
		return err
	}
	return m.do(control.Rename, from, to)
}

func (m *mounted) Resize(size int64) error {
	return m.do(control.Resize, strconv.FormatInt(size, 10))
}

func (m *mounted) Clone(name, dir string) error {
	if err := apart(name); err != nil {
		return err
	}
	return m.do(control.Clone, name, dir)
}

func (m *mounted) Delete(names ...string) (Job, error) {
	if err := apart(names...); err != nil {
		return Job{}, err
	}
	return m.begin(control.Delete, names...)
}

func (m *mounted) DeleteUnnamed() (Job, error) { return m.begin(control.Delete, control.Unnamed) }
func (m *mounted) Forget() (Job, error)        { return m.begin(control.Undo, control.ForgetAside) }

func (m *mounted) Flatten(name string) (Job, error) { return m.begin(control.Flatten, name) }

func (m *mounted) Cancel(job string) error {
	if job == "" {
		_, st, err := m.t.Document()
		if err != nil {
			return err
		}
		if job, err = running(st); err != nil {
			return err
		}
	}
	return m.do(control.Cancel, job)
}

func (m *mounted) Background(job Job) string {
	return fmt.Sprintf("job %s runs in the background; \"varve status %s\" shows how far it is", job.ID, chain.ShellWord(m.t.Arg))
}

// How far a job is is looked at after nextPoll, between shortPoll and longPoll.
const (
	shortPoll = 5 * time.Millisecond
	longPoll  = 200 * time.Millisecond
)

// nextPoll is a twentieth of how long the job has taken, so that its end is noticed
// soon, and ten times what asking cost, so that asking does not hold it up.
func nextPoll(elapsed, asking time.Duration) time.Duration {
	return min(max(shortPoll, elapsed/20, 10*asking), longPoll)
}

// Wait looks again and again how far the job is. An interrupt leaves it to the daemon.
func (m *mounted) Wait(ctx context.Context, job Job, progress func(done, total int64)) (int64, error) {
	id, arg := job.ID, chain.ShellWord(m.t.Arg)
	interrupted := func() error {
		return fmt.Errorf("interrupted; job %s goes on in the background, \"varve cancel %s %s\" stops it", id, arg, id)
	}
	leaves := func() (forget func()) {
		return waiting.Leaves(strings.TrimPrefix(interrupted().Error(), "interrupted; "))
	}
	forget := leaves()
	defer func() { forget() }()
	for start := time.Now(); ; {
		asked := time.Now()
		_, st, err := m.t.Document()
		if err != nil {
			return 0, fmt.Errorf("job %s can no longer be followed: %w; \"varve status %s\" shows how far it is, and a job that has not ended goes on, at the next mount if the disk was unmounted", id, err, arg)
		}
		switch {
		case st.Job == nil || st.Job.ID != id:
			// It has ended and another one took its place: the next merge of several.
			if st.Job != nil && st.Job.Kind == chain.DeleteJob && !job.flatten {
				id = st.Job.ID // also when that has ended: it may have failed
				forget()
				forget = leaves()
				continue
			}
			return 0, nil
		case st.Job.State != chain.JobRunning:
			return st.Job.TotalBytes, ended(m.t, *st.Job)
		}
		progress(st.Job.DoneBytes, st.Job.TotalBytes)
		select {
		case <-time.After(nextPoll(asked.Sub(start), time.Since(asked))):
		case <-ctx.Done():
			return 0, interrupted()
		}
	}
}

// running is the id of the job under way.
func running(st chain.Status) (string, error) {
	if st.Job == nil || st.Job.State != chain.JobRunning {
		return "", errors.New("no job is under way")
	}
	return st.Job.ID, nil
}

// ended is what became of a job that has ended; nil when it is done.
func ended(t where.Target, st chain.JobStatus) error {
	switch {
	case st.State == chain.JobDone:
		return nil
	case st.State == chain.JobCancelled && st.Kind == chain.DeleteJob:
		return fmt.Errorf("job %s was cancelled; \"varve delete %s --unnamed\" goes on with it", st.ID, chain.ShellWord(t.Arg))
	case st.State == chain.JobCancelled:
		return fmt.Errorf("job %s was cancelled", st.ID)
	}
	return fmt.Errorf("job %s has %s: %s", st.ID, st.State, st.Error)
}
