package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"varve/chain"
	"varve/cmd/varve/internal/libvirt"
	"varve/cmd/varve/internal/mountfile"
	"varve/cmd/varve/internal/waiting"
	"varve/fs"
)

// differences gives where two views differ, some at a time.
type differences interface {
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

// differences opens two views. Of a mounted disk the daemon tells them apart: it
// alone knows where content stands while its jobs move it. To a mount that is
// read-only nothing can be written, nor does anything move.
func (t target) differences(a, b string, log *slog.Logger) (differences, error) {
	for _, name := range []string{a, b} {
		if name == "base" || name == "leaf" {
			continue
		}
		if err := chain.CheckName(name); err != nil {
			return nil, err
		}
	}
	if t.mountpoint != "" && !t.readOnly {
		return t.mountedDifferences(a, b)
	}
	d, err := t.openReadOnly(log)
	if err != nil {
		return nil, err
	}
	x, err := d.Diff(context.Background(), a, b, chain.Opener{PID: os.Getpid(), Command: "varve"})
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return &directDifferences{disk: d, Diff: x}, nil
}

// openReadOnly opens a disk that is not mounted, or mounted read-only.
func (t target) openReadOnly(log *slog.Logger) (*chain.Disk, error) {
	if t.dir != "" {
		return t.open(chain.OpenOptions{Log: log, ReadOnly: true})
	}
	if t.owner != 0 && t.owner != os.Geteuid() {
		return nil, fmt.Errorf("uid %d mounted it, and only that user can vouch for the files that it shows; run the command as that user, with \"%s varve\" and the same words", t.owner, become(t.owner))
	}
	_, st, err := t.document()
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
	defer waiting.For(pathWait(st.Disk))()
	return chain.OpenForeign(st.Disk, format, chain.OpenOptions{Log: log, Witness: libvirt.ThisHost()})
}

// directDifferences are those of a disk that this process has opened.
type directDifferences struct {
	*chain.Diff
	disk *chain.Disk
	list []chain.Difference
}

// answerPause is after how long Next returns, so that a Ctrl-C is heard.
const answerPause = 100 * time.Millisecond

func (d *directDifferences) Disk() string              { return d.disk.Dir() }
func (d *directDifferences) Titles() map[string]string { return layerTitles(d.disk.Layers()) }

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
	return d.disk.Close()
}

// layerTitles is what people call layers, by their ids.
func layerTitles(layers []chain.LayerStatus) map[string]string {
	titles := make(map[string]string, len(layers))
	for _, l := range layers {
		titles[l.ID] = l.Title()
	}
	return titles
}

// mountedDifferences are those that a daemon tells: what is read from control/diff
// after a write to it (see fs/diffstream.go).
type mountedDifferences struct {
	t      target
	file   *os.File
	lines  *bufio.Reader
	a, b   chain.DiffView
	titles map[string]string
	disk   string
	list   []chain.Difference
	done   int64
	views  map[string]*rawView
}

func (t target) mountedDifferences(a, b string) (_ differences, err error) {
	defer waiting.For(t.readWait())()
	f, err := t.openToWrite("control", "diff")
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the daemon at %s is of an older varve, which has no diff; unmount and mount the disk to renew it", t.mountpoint)
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
	if _, err := f.WriteString(a + " " + b + "\n"); err != nil {
		text, readErr := t.place().ReadOpen(f, mountfile.MostAnswer)
		if outcome, ok := fs.ParseOutcome(string(text)); readErr == nil && ok && errors.Is(err, outcome.Errno) {
			return nil, refusedError{outcome.Reason, outcome.Errno}
		}
		return nil, t.explain(err)
	}
	for d.b.ID == "" {
		line, err := d.line()
		if err != nil {
			return nil, err
		}
		if v, ok := strings.CutPrefix(line, fs.DiffViewA); ok {
			d.a, err = parseView(v)
		} else if v, ok := strings.CutPrefix(line, fs.DiffViewB); ok {
			d.b, err = parseView(v)
		}
		if err != nil {
			return nil, err
		}
	}
	_, st, err := t.document()
	if err != nil {
		return nil, err
	}
	d.titles, d.disk = layerTitles(st.Layers), st.Disk
	return d, nil
}

// line reads a line, and makes an error of one that says so.
func (d *mountedDifferences) line() (string, error) {
	answered := func() {}
	if d.lines.Buffered() == 0 {
		answered = waiting.For(d.t.readWait())
	}
	text, err := d.lines.ReadSlice('\n') // a copy is made below
	answered()
	switch {
	case errors.Is(err, io.EOF):
		return "", fmt.Errorf("read %s: it ends before the list does", d.file.Name())
	case errors.Is(err, bufio.ErrBufferFull):
		return "", notUnderstood(string(text))
	case err != nil:
		return "", d.t.explain(err)
	}
	line := strings.TrimSuffix(string(text), "\n")
	if words, ok := strings.CutPrefix(line, fs.DiffError); ok {
		_, reason, _ := strings.Cut(words, ": ")
		return "", errors.New(reason)
	}
	return line, nil
}

// notUnderstood is for a line of another varve's.
func notUnderstood(line string) error {
	return fmt.Errorf("the daemon gives a line that is not understood: %.100q", line)
}

func parseView(words string) (chain.DiffView, error) {
	f := strings.Fields(words)
	if len(f) != 3 {
		return chain.DiffView{}, notUnderstood(words)
	}
	size, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil {
		return chain.DiffView{}, notUnderstood(words)
	}
	return chain.DiffView{Name: f[0], ID: f[1], Size: size}, nil
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
		switch at, isAt := strings.CutPrefix(line, fs.DiffAt); {
		case isAt:
			if d.done, err = strconv.ParseInt(at, 10, 64); err != nil {
				return nil, d.done, false, notUnderstood(line)
			}
			return d.list, d.done, true, nil
		case strings.HasPrefix(line, fs.DiffEnd):
			return d.list, max(d.a.Size, d.b.Size), false, nil
		case strings.HasPrefix(line, "#"):
			continue
		}
		x, err := parseDifference(line)
		if err != nil {
			return nil, d.done, false, err
		}
		d.list, d.done = append(d.list, x), x.End()
		if d.lines.Buffered() == 0 { // the next one may take a while
			break
		}
	}
	return d.list, d.done, true, nil
}

func parseDifference(line string) (x chain.Difference, err error) {
	f := strings.Fields(line)
	if len(f) != 4 {
		return x, notUnderstood(line)
	}
	x.A, x.B = f[2], f[3]
	if x.Start, err = strconv.ParseInt(f[0], 10, 64); err != nil {
		return x, notUnderstood(line)
	}
	if x.Length, err = strconv.ParseInt(f[1], 10, 64); err != nil || x.Start < 0 || x.Length <= 0 {
		return x, notUnderstood(line)
	}
	return x, nil
}

// Read reads through the mount.
func (d *mountedDifferences) Read(v chain.DiffView, p []byte, off int64) error {
	view := d.views[v.Name]
	if view == nil {
		file := []string{"layers", v.Name + ".raw"}
		if v.Name == "leaf" {
			file = []string{"disk.raw"}
		}
		image, err := d.t.openView(file...)
		if err != nil {
			return d.t.explain(err)
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
