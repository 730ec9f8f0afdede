package client

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"varve/chain"
	"varve/cmd/varve/internal/mountfile"
	"varve/cmd/varve/internal/where"
	"varve/fs/control"
	"varve/overlay/hostfs"
	"varve/overlay/procs"
)

// Leaf is the leaf of a disk that this process alone writes, as long as it is open.
type Leaf interface {
	WriteAt(p []byte, off int64) error
	Discard(off, length int64) error
	// SeekData and SeekHole are those of hostfs.File.
	SeekData(off int64) (int64, error)
	SeekHole(off int64) (int64, error)
	Flush() error

	Size() int64 // bytes
	// Holds says whether the leaf holds anything that would be gone with it; parent
	// is the name of what it stands on.
	Holds() (yes bool, parent string, err error)
	Snapshot(name string) error
	// Alone fails when somebody else may have written to the disk.
	Alone() error
	Close() error
}

// OpenLeaf opens the leaf of a disk, so that nobody else writes it meanwhile.
func OpenLeaf(t where.Target, log *slog.Logger) (Leaf, error) {
	if t.Mountpoint != "" {
		return openMountedLeaf(t)
	}
	d, err := openChain(t, chain.OpenOptions{Log: log, HoldJob: true})
	if err != nil {
		return nil, err
	}
	return directLeaf{d}, nil
}

// directLeaf is that of a disk that is not mounted. Its directory's lock keeps others away.
type directLeaf struct{ *chain.Disk }

func (d directLeaf) Alone() error { return nil }

func (d directLeaf) Holds() (bool, string, error) {
	yes, err := d.LeafHolds()
	if err != nil {
		return false, "", err
	}
	st, err := d.Status()
	return yes, leafParent(st), err
}

// mountedLeaf is disk.raw of a mount, open and locked as QEMU locks an image that it
// writes. Who does not look for these locks the daemon's list of open files shows.
type mountedLeaf struct {
	t      where.Target
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

func openMountedLeaf(t where.Target) (Leaf, error) {
	if t.ReadOnly {
		return nil, fmt.Errorf("%s is mounted read-only", t.Mountpoint)
	}
	opened, err := openToWrite(t, "disk.raw")
	if err != nil {
		return nil, err
	}
	f, err := hostfs.FileOf(opened)
	if err != nil {
		return nil, err
	}
	m := &mountedLeaf{t: t, file: mountfile.Awaited(f, t.ChangeWait())}
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

func (m *mountedLeaf) sizeNow() (int64, error) {
	info, err := m.file.Stat()
	return info.Size, err
}

// look fails when somebody else has disk.raw open for writing and keeps it.
func (m *mountedLeaf) look() error {
	for deadline := time.Now().Add(closeTold); ; time.Sleep(where.LockPoll) {
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
func (m *mountedLeaf) writers() (others []string, err error) {
	_, st, err := m.t.Document()
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

func (m *mountedLeaf) Alone() error {
	if time.Since(m.looked) < aloneEvery {
		return nil
	}
	return m.look()
}

func (m *mountedLeaf) Size() int64 { return m.length }

func (m *mountedLeaf) WriteAt(p []byte, off int64) error {
	_, err := m.file.WriteAt(p, off)
	return err
}

func (m *mountedLeaf) Discard(off, length int64) error {
	return m.file.PunchHole(off, length)
}

func (m *mountedLeaf) SeekData(off int64) (int64, error) { return m.file.SeekData(off) }
func (m *mountedLeaf) SeekHole(off int64) (int64, error) { return m.file.SeekHole(off) }

func (m *mountedLeaf) Flush() error {
	return errors.Join(m.file.Sync(), m.look())
}

// Holds believes that the leaf holds something as long as the daemon has not counted.
func (m *mountedLeaf) Holds() (yes bool, parent string, err error) {
	for deadline := time.Now().Add(countedSoon); ; time.Sleep(where.LockPoll) {
		_, st, err := m.t.Document()
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

func (m *mountedLeaf) Snapshot(name string) error {
	_, err := write(m.t, control.Snapshot, name)
	return err
}

func (m *mountedLeaf) Close() error { return m.file.Close() }

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
