package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"varve/chain"
	"varve/chain/dirlock"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/claim"
	"varve/cmd/varve/internal/holders"
	"varve/cmd/varve/internal/where"
)

// plan is what is to be mounted where. All paths are absolute and resolved.
type plan struct {
	mountpoint string
	image      string // "" when the source is a disk directory
	dir        string // the disk directory; "" for an image that is mounted read-only without one
	create     bool   // dir is yet to be made
	stale      bool   // a mount of this disk whose daemon is gone is still at the mountpoint
}

// makePlan looks at what was asked for and refuses what cannot be. It changes
// nothing.
func makePlan(flags *Flags, source, mountpoint string) (plan, error) {
	at, stale, err := checkMountpoint(mountpoint)
	if err != nil {
		return plan{}, err
	}
	p, err := findSource(flags, source)
	if err != nil {
		return plan{}, err
	}
	p.mountpoint = at
	if err := p.refuseLinked(flags, source); err != nil {
		return plan{}, err
	}
	if stale != nil {
		if stale.Source != p.name() {
			return plan{}, fmt.Errorf("at %s is a mount of another disk, %s, whose daemon is gone (%w); clear it with \"varve umount %s\", or mount elsewhere",
				mountpoint, stale.Source, syscall.ENOTCONN, chain.ShellWord(mountpoint))
		}
		p.stale = true
	}
	if p.dir == "" {
		return p, nil
	}
	switch {
	case mounts.Within(p.mountpoint, p.dir):
		return plan{}, fmt.Errorf("the mountpoint %s lies inside the disk directory %s; mount it elsewhere", p.mountpoint, p.dir)
	case mounts.Within(p.dir, p.mountpoint):
		return plan{}, fmt.Errorf("the disk directory %s lies inside the mountpoint %s, which would hide it; mount it elsewhere", p.dir, p.mountpoint)
	}
	return p, p.checkFree()
}

// name is how the mount table names the disk: by its directory, or by the image
// that is shown without one.
func (p plan) name() string {
	if p.dir == "" {
		return p.image
	}
	return p.dir
}

// checkMountpoint gives the resolved path of an empty directory; or, with stale,
// of one that is hidden by a varve mount whose daemon is gone.
func checkMountpoint(path string) (at string, stale *mounts.Mount, err error) {
	if at, err = mounts.Resolve(path); err != nil {
		return "", nil, err
	}
	// The lock file and status.json name the mountpoint, as text; so do lists, a line each.
	if !utf8.ValidString(at) || strings.Contains(at, "\n") {
		return "", nil, fmt.Errorf("the mountpoint %q is not UTF-8 text, or has a line break in it; mount elsewhere", path)
	}
	// The mount table first: what is mounted there may not answer.
	fsType, source, mounted, err := mounts.Top(at)
	if err != nil {
		return "", nil, err
	}
	if mounted && fsType == mounts.FSType {
		m, _, err := mounts.At(at)
		if err != nil {
			return "", nil, err
		}
		if !where.DaemonGone(at) && !abandoned(m) {
			return "", nil, fmt.Errorf("at %s the disk %s is mounted already", path, source)
		}
		return at, &m, nil
	}
	return at, nil, checkEmpty(path, at, fsType, source)
}

// checkEmpty refuses what is no empty directory. fsType and source are those of
// what is mounted there, "" for nothing.
func checkEmpty(path, at, fsType, source string) error {
	info, err := os.Stat(at)
	switch {
	case errors.Is(err, syscall.ENOTCONN) && fsType != "":
		return fmt.Errorf("at %s is a mount of %s (%s) whose daemon is gone (%w); it is not varve's: clear it with \"fusermount3 -u %s\", or mount elsewhere",
			path, source, fsType, syscall.ENOTCONN, path)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("the mountpoint %s does not exist; make it with mkdir", path)
	case err != nil:
		return fmt.Errorf("look at the mountpoint: %w", err)
	case !info.IsDir():
		return fmt.Errorf("the mountpoint %s is not a directory", path)
	}
	dir, err := os.Open(at)
	if err != nil {
		return fmt.Errorf("look into the mountpoint: %w", err)
	}
	defer dir.Close() // read only
	if names, _ := dir.Readdirnames(1); len(names) > 0 {
		return fmt.Errorf("the mountpoint %s is not empty (it has %q in it)", path, names[0])
	}
	return nil
}

// abandoned says of another user's mount, into which not even root can look,
// whether nobody holds the disk that it shows for writing: its daemon would.
func abandoned(m mounts.Mount) bool {
	if m.UID == os.Geteuid() || m.ReadOnly || !claim.Believed(m) || !where.IsDiskDirectory(m.Source) {
		return false
	}
	_, _, held, err := dirlock.Holder(m.Source)
	return err == nil && !held
}

// findSource tells a disk directory from an image.
func findSource(flags *Flags, source string) (plan, error) {
	path, err := mounts.Resolve(source)
	if err != nil {
		return plan{}, err
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if where.IsDiskDirectory(path + ".varve") {
			return plan{}, fmt.Errorf("no such image or disk directory; did you mean %s.varve?", filepath.Base(path))
		}
		return plan{}, errors.New("no such image or disk directory")
	case err != nil:
		return plan{}, err
	case info.IsDir():
		return directorySource(flags, path)
	}
	return imageSource(flags, path)
}

func directorySource(flags *Flags, dir string) (plan, error) {
	switch {
	case !where.IsDiskDirectory(dir):
		return plan{}, errors.New("it is neither an image nor a disk directory (it has no chain.json)")
	case flags.disk != "":
		return plan{}, errors.New("it is a disk directory itself; --disk goes with an image")
	case flags.format != "":
		return plan{}, errors.New("it is a disk directory, which knows its formats; --format goes with an image that is mounted for the first time")
	}
	return plan{dir: dir}, nil
}

func imageSource(flags *Flags, image string) (plan, error) {
	p := plan{image: image}
	var err error
	if flags.disk != "" {
		p.dir, err = mounts.Resolve(flags.disk)
	} else {
		p.dir, err = chain.DirFor(image)
	}
	switch {
	case err == nil:
	case flags.readOnly:
		// No place for a disk directory, and none is needed.
		return plan{image: image}, nil
	default:
		return plan{}, err
	}
	if where.IsDiskDirectory(p.dir) {
		return p, nil
	}
	if flags.readOnly {
		return plan{image: image}, nil
	}
	p.create = true
	return p, nil
}

// settleTime is how long a mount waits for the last one of the same disk to
// flush and go.
const settleTime = 10 * time.Second

// checkFree refuses a disk that is mounted. One that is just being unmounted
// is waited for when it is opened.
func (p plan) checkFree() error {
	if p.create {
		return nil
	}
	pid, mountpoint, held, err := dirlock.Holder(p.dir)
	if err != nil || !held || mountpoint == "" {
		return err
	}
	m, there, err := where.MountOfDisk(pid, mountpoint, p.dir)
	if err != nil || !there || m.Reachable() && where.DaemonGone(m.Mountpoint) {
		return err
	}
	return fmt.Errorf("%s is mounted already at %s (pid %d %s)", p.dir, m.Mountpoint, pid, holders.Command(pid))
}

// belongs refuses to show, for an image, a disk of another one that --disk
// names. The disk beside an image is the image's, also when the snapshot that
// the image was is deleted.
func (p plan) belongs(layers []chain.LayerStatus) error {
	if p.image == "" {
		return nil
	}
	if home, err := chain.DirFor(p.image); err == nil && home == p.dir {
		return nil
	}
	image, err := os.Stat(p.image)
	if err != nil {
		return err
	}
	top := topForeign(layers)
	if top == nil {
		return fmt.Errorf("the disk %s does not read this image (any more); to mount the disk, name it instead of the image", p.dir)
	}
	if file, err := os.Stat(top.File); err == nil && os.SameFile(file, image) {
		return nil
	}
	return fmt.Errorf("the disk %s belongs to another image, %s; name another directory with --disk", p.dir, top.File)
}

// topForeign is the image that a disk was made for: the uppermost file that is
// not varve's own.
func topForeign(layers []chain.LayerStatus) *chain.LayerStatus {
	var top *chain.LayerStatus
	for i := range layers {
		if l := &layers[i]; l.Foreign && (top == nil || l.Depth > top.Depth) {
			top = l
		}
	}
	return top
}
