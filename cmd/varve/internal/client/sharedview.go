package client

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/fs"
	"varve/overlay"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

const (
	// sectionTime is how long the files of a mounted disk are held at a time at least:
	// a job that begins meanwhile waits for it, up to a second (overlay's Lock).
	sectionTime = 100 * time.Millisecond
	// Opening many layers takes some of that; a section is longer for them, that no
	// more than a part of the time goes into it. openTime is how long it may take.
	sectionPerOpen = 8
	longestSection = 400 * time.Millisecond
	openTime       = 300 * time.Millisecond
	// sectionPause is how long no section is tried after one could not be had.
	sectionPause = 500 * time.Millisecond
	// refusedMost is how many pieces may be refused, and none shared, before no section
	// is tried any more: below it the other layers may be where the target is.
	refusedMost = 256
)

// sharedView is a layer of a mounted disk as what an export copies from. It is read
// through the mount, and for short sections the files of its chain are open here too,
// so that their blocks can be shared.
//
// A section is safe by three things, in this order (docs/inside.md, "Locks"). Each file
// is locked as frozen, so a daemon that is writing one of them, or has not settled it,
// keeps us out, and one that wants to waits for us (M18). Then the daemon says of which
// files the view is made, by device and inode, and they are the ones that are locked.
// Then they stay what they are until the section ends (M1).
type sharedView struct {
	*rawView
	file hostfs.File // of the mount; open, so that the layer is not deleted

	// mu is held from Enter to Leave, and guards the rest.
	mu      sync.Mutex
	section *chain.AtRest // nil between two
	places  overlay.Placed
	timer   *time.Timer // ends the section
	ends    time.Time
	next    time.Time // not tried before
	never   bool      // nor at all
	shared  int64
	refused int // pieces

	warm int64 // guest offset up to which the daemon has looked at tables
}

var _ overlay.Sectioned = (*sharedView)(nil)

// regionBytes is how much of a view the daemon looks up at once.
const regionBytes = qcow2.ChangeSpan

// Map gives what the section says, which costs less than asking the mount.
func (s *sharedView) Map(dst []extent.Extent, off, length int64) ([]extent.Extent, error) {
	for end := off + length; off < end; {
		n := min(end-off, regionBytes-off%regionBytes)
		s.warmUp(off)
		var source overlay.Source = s.rawView
		places := s.Enter()
		if places != nil {
			source = places
		}
		list, err := source.Map(dst, off, n)
		if places != nil {
			s.Leave(0, nil)
			if err != nil { // the mount decides
				list, err = s.rawView.Map(dst, off, n)
			}
		}
		if err != nil {
			return dst, err
		}
		dst, off = list, off+n
	}
	return dst, nil
}

// warmUp has the daemon look at the tables for a region before a section does: where
// they have to come from a slow disk nobody has to wait for us then.
func (s *sharedView) warmUp(off int64) {
	if off < s.warm || off >= s.Size() {
		return
	}
	s.warm = off - off%regionBytes + regionBytes
	_, _ = s.file.SeekData(off) // an error comes again where it is looked at
}

// Enter implements overlay.Sectioned.
func (s *sharedView) Enter() overlay.Placed {
	s.mu.Lock()
	if s.section == nil || time.Now().After(s.ends) {
		s.end()
		if s.never || time.Now().Before(s.next) || !s.begin() {
			s.mu.Unlock()
			return nil
		}
	}
	return s.places
}

// Leave implements overlay.Sectioned.
func (s *sharedView) Leave(shared int64, refused error) {
	defer s.mu.Unlock()
	s.shared += shared
	switch {
	case refused == nil:
	case errors.Is(refused, unix.EOPNOTSUPP), errors.Is(refused, unix.ENOTTY), errors.Is(refused, unix.ENOSYS):
		s.never = true // the target's file system shares nothing
	case !errors.Is(refused, errors.ErrUnsupported):
		s.pause(0) // the section cannot be read
		s.end()
	default:
		s.refused++
		s.never = s.shared == 0 && s.refused >= refusedMost
	}
	if s.never || time.Now().After(s.ends) {
		s.end()
	}
}

// pause keeps from trying again too soon, after a try that took some time.
func (s *sharedView) pause(took time.Duration) {
	s.next = time.Now().Add(max(sectionPause, sectionPerOpen*took))
}

// begin opens a section. Called with mu held.
func (s *sharedView) begin() bool {
	begun := time.Now()
	section, err := s.open(begun.Add(openTime))
	took := time.Since(begun)
	if err == nil && took > openTime { // and so would the next one, with jobs waiting
		err = errors.Join(os.ErrDeadlineExceeded, section.Close())
	}
	if err != nil {
		s.never = errors.Is(err, unix.ENODATA) // a daemon of another version
		s.pause(took)
		return false
	}
	s.section, s.places = section, section.Source()
	length := min(max(sectionTime, sectionPerOpen*took), longestSection)
	s.ends = time.Now().Add(length)
	s.timer = time.AfterFunc(length, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.section == section {
			s.end()
		}
	})
	return true
}

// errOtherFiles says that the view is made of other files than those at their paths.
var errOtherFiles = errors.New("the daemon has other files open")

// open opens and locks the files of the chain, and has the daemon say that they are
// those of the view.
func (s *sharedView) open(deadline time.Time) (*chain.AtRest, error) {
	before, err := s.files()
	if err != nil {
		return nil, err
	}
	section, err := chain.OpenAtRest(hostfs.OS(), before.File, before.Format, deadline)
	if err != nil {
		return nil, err
	}
	now, err := s.files() // with all locks held: nothing moves any more
	if err == nil && (now.Digest != section.Digest() || s.Size() != section.Size()) {
		err = errOtherFiles
	}
	if err != nil {
		return nil, errors.Join(err, section.Close())
	}
	return section, nil
}

// files asks the daemon of which files the view is made.
func (s *sharedView) files() (chain.ViewFiles, error) {
	buf := make([]byte, 4096+256) // a path and a digest
	n, err := unix.Fgetxattr(s.file.Fd(), fs.FilesAttribute, buf)
	for err == unix.EINTR { // Go's own preemption
		n, err = unix.Fgetxattr(s.file.Fd(), fs.FilesAttribute, buf)
	}
	if err != nil {
		return chain.ViewFiles{}, err
	}
	return chain.ParseViewFiles(string(buf[:n]))
}

// end ends the section, if there is one. Called with mu held.
func (s *sharedView) end() {
	if s.section == nil {
		return
	}
	s.timer.Stop()
	_ = s.section.Close() // only read
	s.section, s.places = nil, nil
}

// Close ends the section and closes the view.
func (s *sharedView) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end()
	s.never = true
	return s.Image.Close()
}
