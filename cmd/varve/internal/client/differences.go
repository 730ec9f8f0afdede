package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"varve/chain"
	"varve/cmd/varve/internal/libvirt"
	"varve/cmd/varve/internal/mountfile"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
	"varve/fs/control"
)

// Differences gives where two views differ, some at a time. It goes by the tables of the layers.
type Differences interface {
	Views() (a, b chain.DiffView)
	Disk() string              // the disk directory
	Titles() map[string]string // what people call the layers, by id
	// Next gives what was found next, in order, and how many bytes from the disk's
	// start are looked at. more is false when there is nothing else. It returns now
	// and then, also with nothing found.
	Next() (list []chain.Difference, done int64, more bool, err error)
	// Read fills p from a view, within it.
	Read(v chain.DiffView, p []byte, off int64) error
	Close() error
}

// checkViews refuses names that no view can have.
func checkViews(a, b string) error {
	for _, name := range []string{a, b} {
		if name == "base" || name == "leaf" {
			continue
		}
		if err := chain.CheckName(name); err != nil {
			return err
		}
	}
	return nil
}

// diffOf compares two views of a disk that this process has opened; closed is called when
// that ends.
func diffOf(d *chain.Disk, a, b string, closed func() error) (Differences, error) {
	if err := checkViews(a, b); err != nil {
		return nil, err
	}
	x, err := d.Diff(context.Background(), a, b, chain.Opener{PID: os.Getpid(), Command: "varve"})
	if err != nil {
		return nil, err
	}
	return &directDifferences{disk: d, Diff: x, closed: closed}, nil
}

// openShown opens the disk that a read-only mount shows.
func openShown(t where.Target, log *slog.Logger) (*chain.Disk, error) {
	if t.Dir != "" {
		return openChain(t, chain.OpenOptions{Log: log, ReadOnly: true})
	}
	if t.Owner != 0 && t.Owner != os.Geteuid() {
		return nil, fmt.Errorf("uid %d mounted it, and only that user can vouch for the files that it shows; run the command as that user, with \"%s varve\" and the same words", t.Owner, where.Become(t.Owner))
	}
	_, st, err := t.Document()
	if err != nil {
		return nil, err
	}
	format := ""
	for _, l := range st.Layers { // the image is what the leaf stands on
		for _, child := range l.Children {
			if child == st.Leaf {
				format = l.Format
			}
		}
	}
	defer waiting.For(where.PathWait(st.Disk))()
	return chain.OpenForeign(st.Disk, format, chain.OpenOptions{Log: log, Witness: libvirt.ThisHost()})
}

// directDifferences are those of a disk that this process has opened.
type directDifferences struct {
	*chain.Diff
	disk *chain.Disk
	list []chain.Difference

	closed func() error
}

// answerPause is after how long Next returns, so that a Ctrl-C is heard.
const answerPause = 100 * time.Millisecond

func (d *directDifferences) Disk() string              { return d.disk.Dir() }
func (d *directDifferences) Titles() map[string]string { return Titles(d.disk.Layers()) }

func (d *directDifferences) Next() (list []chain.Difference, done int64, more bool, err error) {
	d.list, more, err = d.Diff.Next(d.list[:0], time.Now().Add(answerPause))
	return d.list, d.Done(), more, err
}

func (d *directDifferences) Read(v chain.DiffView, p []byte, off int64) error {
	source, _, err := d.disk.ExportSource(v.Name)
	if err != nil {
		return err
	}
	return source.ReadAt(p, off)
}

func (d *directDifferences) Close() error {
	d.Diff.Close()
	return d.closed()
}

// mountedDifferences are those that a daemon tells: what is read from control/diff
// after a write to it (package control).
type mountedDifferences struct {
	t      where.Target
	file   *os.File
	lines  *bufio.Reader
	a, b   chain.DiffView
	titles map[string]string
	disk   string
	list   []chain.Difference
	done   int64
	views  map[string]*rawView
}

func openMountedDifferences(t where.Target, a, b string) (_ Differences, err error) {
	defer waiting.For(t.ReadWait())()
	f, err := openToWrite(t, control.Dir, control.Diff)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the daemon at %s is of an older varve, which has no diff; unmount and mount the disk to renew it", t.Mountpoint)
	}
	if err != nil {
		return nil, err
	}
	d := &mountedDifferences{t: t, file: f, lines: bufio.NewReaderSize(f, 64<<10), views: map[string]*rawView{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if _, err := f.WriteString(control.Line(a, b) + "\n"); err != nil {
		text, readErr := t.Place().ReadOpen(f, mountfile.MostAnswer)
		if outcome, ok := control.ParseOutcome(string(text)); readErr == nil && ok && errors.Is(err, outcome.Errno) {
			return nil, refusedError{outcome.Reason, outcome.Errno}
		}
		return nil, t.Explain(err)
	}
	for d.b.ID == "" {
		line, err := d.line()
		if err != nil {
			return nil, err
		}
		switch line.Kind {
		case control.DiffViewA:
			d.a = line.View
		case control.DiffViewB:
			d.b = line.View
		}
	}
	_, st, err := t.Document()
	if err != nil {
		return nil, err
	}
	d.titles, d.disk = Titles(st.Layers), st.Disk
	return d, nil
}

// line reads a line, and makes an error of one that says so.
func (d *mountedDifferences) line() (control.DiffLine, error) {
	answered := func() {}
	if d.lines.Buffered() == 0 {
		answered = waiting.For(d.t.ReadWait())
	}
	text, err := d.lines.ReadSlice('\n') // a copy is made below
	answered()
	none := control.DiffLine{}
	switch {
	case errors.Is(err, io.EOF):
		return none, fmt.Errorf("read %s: it ends before the list does", d.file.Name())
	case errors.Is(err, bufio.ErrBufferFull):
		return none, notUnderstood(string(text))
	case err != nil:
		return none, d.t.Explain(err)
	}
	words := strings.TrimSuffix(string(text), "\n")
	switch line, ok := control.ParseDiffLine(words); {
	case !ok:
		return none, notUnderstood(words)
	case line.Kind == control.DiffError:
		return none, errors.New(line.Reason)
	default:
		return line, nil
	}
}

// notUnderstood is for a line of another varve's.
func notUnderstood(line string) error {
	return fmt.Errorf("the daemon gives a line that is not understood: %.100q", line)
}

func (d *mountedDifferences) Views() (a, b chain.DiffView) { return d.a, d.b }
func (d *mountedDifferences) Disk() string                 { return d.disk }
func (d *mountedDifferences) Titles() map[string]string    { return d.titles }

// linesAtOnce is after how many lines Next returns.
const linesAtOnce = 1024

func (d *mountedDifferences) Next() (list []chain.Difference, done int64, more bool, err error) {
	d.list = d.list[:0]
	for len(d.list) < linesAtOnce {
		line, err := d.line()
		if err != nil {
			return nil, d.done, false, err
		}
		switch line.Kind {
		case control.DiffAt:
			d.done = line.Done
			return d.list, d.done, true, nil
		case control.DiffEnd:
			return d.list, max(d.a.Size, d.b.Size), false, nil
		case control.DiffFound:
		default:
			continue
		}
		d.list, d.done = append(d.list, line.Found), line.Found.End()
		if d.lines.Buffered() == 0 { // the next one may take a while
			break
		}
	}
	return d.list, d.done, true, nil
}

// Read reads through the mount.
func (d *mountedDifferences) Read(v chain.DiffView, p []byte, off int64) error {
	view := d.views[v.Name]
	if view == nil {
		file := []string{"layers", v.Name + ".raw"}
		if v.Name == "leaf" {
			file = []string{"disk.raw"}
		}
		image, err := openImage(d.t, file...)
		if err != nil {
			return d.t.Explain(err)
		}
		view = newRawView(image)
		d.views[v.Name] = view
	}
	return view.ReadAt(p, off)
}

func (d *mountedDifferences) Close() error {
	err := d.file.Close()
	for _, image := range d.views {
		err = errors.Join(err, image.Close())
	}
	return err
}
