package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/cmd/varve/internal/mountfile"
	"varve/overlay"
	"varve/overlay/hostfs"
	"varve/overlay/procs"
)

// importTarget is a disk that an import writes to.
type importTarget interface {
	WriteAt(p []byte, off int64) error
	Discard(off, length int64) error
	// SeekData and SeekHole are those of hostfs.File.
	SeekData(off int64) (int64, error)
	SeekHole(off int64) (int64, error)
	Flush() error

	size() int64
	// holds says whether the leaf holds anything that would be gone with it; parent
	// is the name of what it stands on.
	holds() (yes bool, parent string, err error)
	snapshot(name string) error
	// alone fails when somebody else may have written to the disk.
	alone() error
	close() error
}

// openTarget opens the disk for an import, so that nobody else writes it meanwhile.
func (t target) openTarget(cmd *cobra.Command) (importTarget, error) {
	if t.mountpoint != "" {
		return t.openMounted()
	}
	d, err := t.open(chain.OpenOptions{Log: warnings(cmd.ErrOrStderr()), HoldJob: true})
	if err != nil {
		return nil, err
	}
	return directTarget{d}, nil
}

// directTarget is a disk that is not mounted. Its directory's lock keeps others away.
type directTarget struct{ *chain.Disk }

func (d directTarget) size() int64                { return d.Size() }
func (d directTarget) snapshot(name string) error { return d.Snapshot(name) }
func (d directTarget) alone() error               { return nil }
func (d directTarget) close() error               { return d.Close() }

func (d directTarget) holds() (bool, string, error) {
	yes, err := d.LeafHolds()
	if err != nil {
		return false, "", err
	}
	st, err := d.Status()
	return yes, leafParent(st), err
}

// mountedTarget is disk.raw of a mount, open and locked as QEMU locks an image that it
// writes. Who does not look for these locks the daemon's list of open files shows.
type mountedTarget struct {
	t      target
	file   hostfs.File
	length int64
	looked time.Time // at who has the disk open
}

const (
	// closeTold is how long another writer is given to go again: the kernel tells of a
	// close late, and a VM that finds our locks has the disk open for a moment.
	closeTold = time.Second
	// aloneEvery is how often an import looks whether somebody else writes.
	aloneEvery = 5 * time.Second
	// countedSoon is how long a daemon is given to count what the leaf holds.
	countedSoon = 2 * time.Second
)

func (t target) openMounted() (importTarget, error) {
	if t.readOnly {
		return nil, fmt.Errorf("%s is mounted read-only", t.mountpoint)
	}
	opened, err := t.openToWrite("disk.raw")
	if err != nil {
		return nil, err
	}
	f, err := hostfs.FileOf(opened)
	if err != nil {
		return nil, err
	}
	m := &mountedTarget{t: t, file: mountfile.Awaited(f, t.changeWait())}
	if err = f.Lock(hostfs.LockWritable); err == nil {
		err = m.look()
	}
	if err == nil {
		m.length, err = m.sizeNow()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return m, nil
}

func (m *mountedTarget) sizeNow() (int64, error) {
	info, err := m.file.Stat()
	return info.Size, err
}

// look fails when somebody else has disk.raw open for writing and keeps it.
func (m *mountedTarget) look() error {
	for deadline := time.Now().Add(closeTold); ; time.Sleep(lockPoll) {
		others, err := m.writers()
		m.looked = time.Now()
		if err != nil || len(others) == 0 {
			return err
		}
		if m.looked.After(deadline) {
			return fmt.Errorf("disk.raw is open for writing (%s); stop that first", strings.Join(others, ", "))
		}
	}
}

// writers lists who else has disk.raw open for writing. One of those who have is this
// process, whose pid may be another one where the daemon lives.
func (m *mountedTarget) writers() (others []string, err error) {
	_, st, err := m.t.document()
	if err != nil {
		return nil, err
	}
	all := 0
	for _, o := range st.Open {
		if o.File != "disk.raw" || !o.Write {
			continue
		}
		all++
		if o.PID != os.Getpid() {
			others = append(others, procs.Title(o.PID, o.Command))
		}
	}
	if all < 2 {
		return nil, nil
	}
	return others, nil
}

func (m *mountedTarget) alone() error {
	if time.Since(m.looked) < aloneEvery {
		return nil
	}
	return m.look()
}

func (m *mountedTarget) size() int64 { return m.length }

func (m *mountedTarget) WriteAt(p []byte, off int64) error {
	_, err := m.file.WriteAt(p, off)
	return err
}

func (m *mountedTarget) Discard(off, length int64) error {
	return m.file.PunchHole(off, length)
}

func (m *mountedTarget) SeekData(off int64) (int64, error) { return m.file.SeekData(off) }
func (m *mountedTarget) SeekHole(off int64) (int64, error) { return m.file.SeekHole(off) }

func (m *mountedTarget) Flush() error {
	return errors.Join(m.file.Sync(), m.look())
}

// holds believes that the leaf holds something as long as the daemon has not counted.
func (m *mountedTarget) holds() (yes bool, parent string, err error) {
	for deadline := time.Now().Add(countedSoon); ; time.Sleep(lockPoll) {
		_, st, err := m.t.document()
		if err != nil {
			return false, "", err
		}
		leaf := layerOf(st, st.Leaf)
		if leaf.Counted && leaf.OwnBytes == 0 || leaf.OwnBytes > 0 || time.Now().After(deadline) {
			parent := leafParent(st)
			return leaf.OwnBytes > 0 || !leaf.Counted || parent == "", parent, nil
		}
	}
}

func (m *mountedTarget) snapshot(name string) error {
	_, err := m.t.control("snapshot", name)
	return err
}

func (m *mountedTarget) close() error { return m.file.Close() }

func layerOf(st chain.Status, id string) chain.LayerStatus {
	for _, l := range st.Layers {
		if l.ID == id {
			return l
		}
	}
	return chain.LayerStatus{}
}

// leafParent is the name of what the leaf stands on, base where that is nothing or the
// base; "" where it has no name.
func leafParent(st chain.Status) string {
	leaf := layerOf(st, st.Leaf)
	if leaf.Parent == nil {
		return "base"
	}
	parent := layerOf(st, *leaf.Parent)
	if parent.State == chain.StateBase {
		return "base"
	}
	return parent.Name
}

// pour writes pieces, which come in order and without gaps, to a disk. Zeros of the
// image are discarded where the disk has data, and nowhere else.
type pour struct {
	to    importTarget
	zeros int64 // where zeros began that wait for their end
	end   int64 // of what was given
}

func (w *pour) write(p piece) error {
	if p.data == nil {
		w.end = p.off + p.n
		return nil
	}
	return overlay.EachRun(p.data, func(in, n int64, zero bool) error {
		off := p.off + in
		if !zero {
			if err := w.discard(off); err != nil {
				return err
			}
			if err := w.to.WriteAt(p.data[in:in+n], off); err != nil {
				return fmt.Errorf("write %d bytes at offset %d of the disk: %w", n, off, err)
			}
			w.zeros = off + n
		}
		w.end = off + n
		return nil
	})
}

// discard discards what waits, up to off.
func (w *pour) discard(off int64) error {
	for at := w.zeros; at < off; {
		start, err := w.to.SeekData(at)
		if errors.Is(err, io.EOF) || err == nil && start >= off {
			break
		}
		end := off
		if err == nil {
			end, err = w.to.SeekHole(start)
		}
		if err == nil {
			end = min(end, off)
			err = w.to.Discard(start, end-start)
		}
		if err != nil {
			return fmt.Errorf("discard from offset %d of the disk on: %w", at, err)
		}
		at = end
	}
	w.zeros = off
	return nil
}

// giveUp discards what was written.
func (w *pour) giveUp() error {
	w.zeros = 0
	if err := w.discard(w.end); err != nil {
		return err
	}
	return w.to.Flush()
}

// noRoom says whether an error means that the host is full.
func noRoom(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
