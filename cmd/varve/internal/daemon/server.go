// Package daemon is the process that serves a mount, from what was asked for to the end of the
// mount: it plans what is mounted where (plan), opens the disk and the log, mounts, confines
// itself, and unmounts when it is asked.
//
// Beside it are the processes that do what a daemon that has confined itself may not (Children).
// It knows the flags of a mount, since a mount remembers them, and no command.
package daemon

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"varve/chain"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/background"
	"varve/cmd/varve/internal/libvirt"
	"varve/cmd/varve/internal/logfile"
	"varve/cmd/varve/internal/outside"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/waiting"
	"varve/cmd/varve/internal/where"
	"varve/fs"
)

const (
	maxLog = 1 << 20 // bytes; one older file of that size is kept
	// fewThreads is what the Go scheduler gets at least: on two cores four
	// were a fifth faster at random 4 KiB reads, queue depth 32.
	fewThreads = 4
	// gcPercent lets garbage be half of what is live: most of that is remembered
	// for long, and a host runs many mounts.
	gcPercent = 50
)

// Mount is one mount that is asked for.
type Mount struct {
	Flags      *Flags
	Source     string // a disk directory or an image, as the user wrote it
	Mountpoint string
	Stderr     io.Writer
	Pipe       *background.Pipe // to who waits for the mount; nil in the foreground
	Number     string           // of this program's version
	Version    string           // the same in words
}

// Serve mounts and returns when the mount is gone and all is written. An error
// may mean that the last writes are lost.
func Serve(m Mount) error {
	s := &server{flags: m.Flags, source: m.Source, mountpoint: m.Mountpoint, stderr: m.Stderr, pipe: m.Pipe, number: m.Number, version: m.Version}
	return s.run()
}

// server is one mount, from the command line to its end.
type server struct {
	number, version string
	flags           *Flags
	source          string
	mountpoint      string
	stderr          io.Writer
	pipe            *background.Pipe // nil in the foreground
	plan            plan
	log             *slog.Logger
	closeLog        func() error
	// openLogIn opens the log in a disk directory; nil where it goes elsewhere.
	openLogIn func(dir int) error
	scope     string    // systemd's unit of its own, "" without one
	endAlone  sync.Once // starts what ends a mount that is out of sight
	// users says who uses the mount; nil: this process may look itself.
	users      func() string
	takingDown sync.Mutex  // held while the mount is taken away, or left behind
	leftBehind atomic.Bool // the mount was left behind without a daemon
	// saidLost are the lost files for which a signal was refused; "" for none.
	saidLost string
}

func (m *server) run() error {
	// A terminal that goes away is no reason to stop, and neither is the reader of
	// the log: without this Go ends a program that writes to a broken pipe on
	// stderr. A signal that comes before there is a mount takes effect when there
	// is one.
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(fewThreads, runtime.NumCPU()))
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}

	liftFileSize()

	askedForUse := make(chan os.Signal, 1)
	signal.Notify(askedForUse, syscall.SIGUSR1)
	defer signal.Stop(askedForUse)
	d, err := m.prepare(signals)
	if err != nil {
		return err
	}
	defer m.tellUse(askedForUse)()
	err = m.serve(d, signals)
	if closeErr := d.Close(); closeErr != nil {
		m.log.Error("the disk was not closed in order; what was written last may be lost", "error", closeErr)
		err = errors.Join(err, fmt.Errorf("close the disk: %w", closeErr))
	} else if err == nil {
		m.log.Info("closed", "disk", d.Dir())
	}
	return errors.Join(err, m.closeLog())
}

// prepare opens the disk and the log, and makes the mountpoint free.
func (m *server) prepare(signals chan os.Signal) (d *chain.Disk, err error) {
	defer m.endWhileWaiting(signals)()
	if m.plan, err = makePlan(m.flags, m.source, m.mountpoint); err != nil {
		return nil, err
	}
	if err := m.recallMount(); err != nil {
		return nil, err
	}
	// All paths are absolute now, and a working directory would be kept busy.
	if err := os.Chdir("/"); err != nil {
		return nil, err
	}
	if m.flags.allowOther && os.Geteuid() != 0 && !mounts.OthersAllowed("/etc/fuse.conf") {
		return nil, errors.New("allow_other needs a line \"user_allow_other\" in /etc/fuse.conf")
	}
	if err := m.makeDisk(); err != nil {
		return nil, err
	}
	m.openLog()
	if d, err = m.openDisk(); err != nil {
		return nil, errors.Join(m.plan.explainInUse(err), m.closeLog())
	}
	if err := m.plan.clearStale(m.stderr, m.source, !m.flags.readOnly); err != nil {
		return nil, errors.Join(err, d.Close(), m.closeLog())
	}
	return d, nil
}

// endWhileWaiting lets a signal end this process while it prepares the mount and waits for a
// file system that gives no answer. After the call of prepared a signal asks for an unmount.
func (m *server) endWhileWaiting(signals chan os.Signal) (prepared func()) {
	done := waiting.For(where.PathWait(m.source))
	stop := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case s := <-signals:
			select {
			case signals <- s: // for the mount, where it comes to that
			default: // the next one is there
			}
			waiting.Interrupt()
		case <-stop:
		}
	})
	return func() {
		close(stop)
		watching.Wait()
		done()
		waiting.Resume()
	}
}

// liftFileSize takes away a soft limit of the size of files, which is a shell's, as far
// as the hard one lets it: the files of a disk grow for long after that shell. Go does
// the same for open files.
func liftFileSize() {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit) == nil && limit.Cur < limit.Max {
		limit.Cur = limit.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit) // the limit stays then
	}
}

// makeDisk makes the disk directory, where the plan says that there is none.
func (m *server) makeDisk() error {
	if !m.plan.create {
		return nil
	}
	made, err := chain.Create(m.plan.dir, chain.CreateOptions{Base: m.plan.image, Format: m.flags.format, Witness: libvirt.ThisHost()})
	switch {
	case errors.Is(err, chain.ErrExist): // another mount was quicker: opening says which
	case m.flags.disk == "" && noPlaceBeside(err):
		return fmt.Errorf("%w; beside the image no disk directory can be made, say where it shall be: --disk DIR", err)
	case err != nil:
		return where.ExplainLocked(err)
	default:
		tell.Created(m.stderr, made)
		tell.Domains(m.stderr, libvirt.ThisHost().With(made.Files[0].Path), m.plan.mountpoint)
	}
	return nil
}

// noPlaceBeside says whether a disk directory could not be made for the place's sake:
// a medium that is only read, another user's directory, a name that leaves no room for
// the ending.
func noPlaceBeside(err error) bool {
	return errors.Is(err, syscall.EROFS) || errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.ENAMETOOLONG)
}

// openLog chooses where the log goes: to stderr in the foreground and under systemd, else to
// a file in the disk directory, and to syslog what the file cannot take. A read-only mount
// writes nothing into the directory; its log goes to syslog, where there is one. The file is
// opened when the directory is locked (openLogIn), in that very directory.
func (m *server) openLog() {
	var out io.Writer
	m.closeLog = func() error { return nil }
	switch {
	case m.pipe == nil || background.StderrIsJournal():
		out = m.stderr
	case m.flags.readOnly:
		out = io.Discard
		if w, err := systemLog(); err == nil {
			out, m.closeLog = w, w.Close
		}
	default:
		log := &lastResort{open: systemLog}
		out, m.closeLog = log, log.Close
		m.openLogIn = func(dir int) error {
			f, err := logfile.Open(dir, filepath.Join(m.plan.dir, logfile.Name), maxLog)
			if err == nil {
				log.file = f
			}
			return err
		}
	}
	m.log = slog.New(slog.NewTextHandler(out, nil))
}

// openDisk opens the disk of the plan.
func (m *server) openDisk() (*chain.Disk, error) {
	o := chain.OpenOptions{
		ReadOnly:   m.flags.readOnly,
		Mountpoint: m.plan.mountpoint,
		CacheBytes: int64(m.flags.cache),
		Log:        m.log,
		LockWait:   settleTime,
		JobRate:    int64(m.flags.jobRate),
		Locked:     m.openLogIn,
	}
	if m.plan.dir == "" {
		o.Witness = libvirt.ThisHost()
		d, err := chain.OpenForeign(m.plan.image, m.flags.format, o)
		if err != nil {
			return nil, where.ExplainLocked(err)
		}
		image := d.Adopted()
		if len(image.Files) > 1 {
			tell.Line(m.stderr, "reading a chain of %d files, top first:", len(image.Files))
			tell.Files(m.stderr, image.Files)
		}
		tell.Notes(m.stderr, image.Notes)
		tell.Notes(m.stderr, image.Naming)
		if was := d.Uneven(); was > 0 {
			tell.Rounded(m.stderr, was, d.Size())
		}
		return d, nil
	}
	d, err := chain.Open(m.plan.dir, o)
	if err != nil {
		return nil, where.ExplainLocked(err)
	}
	if err := m.plan.belongs(d.Layers()); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	if was := d.Uneven(); was > 0 && m.pipe != nil { // else the log says it
		tell.Rounded(m.stderr, was, d.Size())
	}
	return d, nil
}

// serve shows the disk and returns when the mount is gone.
func (m *server) serve(d *chain.Disk, signals <-chan os.Signal) error {
	m.leaveLogin()
	apart := m.startOutside() // in the scope of the daemon, and it begins while that mounts
	defer apart.Close()
	name := m.plan.name()
	mount, err := fs.Mount(d, m.plan.mountpoint, fs.Options{
		AllowOther:   m.flags.allowOther,
		UID:          m.flags.uid,
		GID:          m.flags.gid,
		Umask:        os.FileMode(m.flags.umask),
		MountOptions: m.flags.options.passed,
		FsName:       name,
		Log:          m.log,
		ReadOnly:     m.flags.readOnly,
		Version:      m.number,
	})
	if err != nil {
		return explainMount(err)
	}
	m.rememberMount(d)
	m.confine(d, mount, apart)
	if err := m.ready(signals); err != nil {
		if unmountErr := mount.Unmount(); unmountErr != nil {
			return errors.Join(err, unmountErr)
		}
		mount.Wait()
		return err
	}
	m.log.Info("mounted", "disk", name, "mountpoint", m.plan.mountpoint, "version", m.version, "pid", os.Getpid())

	done := make(chan struct{})
	defer close(done)
	if apart != nil {
		go m.watchOutside(apart, done)
	}
	go func() {
		for {
			select {
			case s := <-signals:
				m.asked(d, mount, s, done)
			case <-done:
				return
			}
		}
	}()
	mount.Wait()
	m.notify(daemon.SdNotifyStopping)
	if !m.leftBehind.Load() {
		m.log.Info("unmounted", "mountpoint", m.plan.mountpoint)
	}
	return nil
}

// ready tells whoever waits that the mount can be used.
func (m *server) ready(signals <-chan os.Signal) error {
	select {
	case s := <-signals:
		return fmt.Errorf("interrupted (%v); the disk was unmounted again", s)
	default:
	}
	if m.pipe != nil {
		if err := m.pipe.Ready(background.StderrIsJournal()); err != nil {
			return err
		}
	}
	m.notify(fmt.Sprintf("%s\nMAINPID=%d\nSTATUS=mounted at %s", daemon.SdNotifyReady, os.Getpid(), m.plan.mountpoint))
	return nil
}

// asked answers a signal: it unmounts, unless somebody uses the mount, or files of the disk
// were removed, which would be lost; a second signal unmounts then too.
func (m *server) asked(d *chain.Disk, mount *fs.Server, s os.Signal, done <-chan struct{}) {
	lost := lostSoon(d)
	refused := lost != "" && lost != m.saidLost && mount.Mounted()
	m.saidLost = lost
	if refused {
		if err := d.Flush(); err != nil { // SIGKILL may be next
			m.log.Error("what was written last could not be made durable", "error", err)
		}
		m.log.Error("not unmounted: files of the disk were removed or replaced, and what was in them would be lost with the unmount; \"varve flatten\" of the leaf copies what disk.raw needs into a new file, and a second signal unmounts all the same",
			"signal", s.String(), "disk", d.Dir(), "files", lost)
		m.notify("STATUS=not unmounted: files of the disk were removed, and what was in them would be lost")
		return
	}
	err := m.takeDown(mount)
	if err == nil {
		return
	}
	if errors.Is(err, syscall.EBUSY) {
		who := m.whoUses(mount)
		m.log.Warn("not unmounted: it is in use", "signal", s.String(), "by", who)
		m.notify("STATUS=in use, not unmounted: " + tell.Visible(who))
		if m.scope != "" {
			go m.askAgain(d, mount, lost, done)
		}
		return
	}
	if errors.Is(err, fs.ErrNotMounted) {
		m.log.Warn("it is unmounted already, and ends when nobody uses it any more", "signal", s.String(), "by", m.whoUses(mount))
		m.endAlone.Do(func() { go m.endWhenUnused(mount, done) })
		return
	}
	m.log.Error("not unmounted", "signal", s.String(), "error", err)
}

// lostSoon gives the files of the disk that were lost, as far as the host tells it soon: one
// that hangs must not keep the daemon from its end.
func lostSoon(d *chain.Disk) string {
	answer := make(chan string, 1)
	go func() { answer <- strings.Join(d.LostFiles(), ", ") }()
	select {
	case lost := <-answer:
		return lost
	case <-time.After(lostTime):
		return ""
	}
}

// lostTime is how long the host has to tell which files were lost.
const lostTime = 5 * time.Second

// takeDown unmounts. Without the process outside, which alone may do that for a daemon that
// is confined, it leaves the mount behind without a daemon: the disk is closed in order.
func (m *server) takeDown(mount *fs.Server) error {
	m.takingDown.Lock()
	defer m.takingDown.Unlock()
	if m.leftBehind.Load() {
		return nil
	}
	err := mount.Unmount()
	if !errors.Is(err, outside.ErrGone) {
		return err
	}
	m.leftBehind.Store(true) // before Wait returns
	if err := mount.Abandon(); err != nil {
		m.leftBehind.Store(false)
		return err
	}
	m.log.Warn("varve-outside is gone, so the mount stays behind without a daemon; the disk is closed, and \"varve umount\" or the next \"varve mount\" takes the mount away", "mountpoint", m.plan.mountpoint)
	return nil
}

// watchOutside says it when the process outside ends before the mount does.
func (m *server) watchOutside(process *outside.Process, done <-chan struct{}) {
	select {
	case <-done:
		return
	case <-process.Ended():
	}
	select {
	case <-done: // it was closed
	default:
		m.log.Error("the process varve-outside has ended, perhaps somebody killed it: the disk goes on and \"varve umount\" works as always, but no clone can be made, and a SIGTERM will leave the mount behind; unmount and mount the disk to have it again")
	}
}

// whoUses says who uses the mount that this process serves.
func (m *server) whoUses(mount *fs.Server) string {
	if m.users != nil {
		return m.users()
	}
	return usersOfOwn(mount.Place())
}

// usersOfOwn says who uses a mount, from a process that serves it or belongs to the one
// that does.
func usersOfOwn(place fs.Place) string {
	who, err := where.Target{Mountpoint: place.Mountpoint, Device: place.Device}.Users(false)
	if err != nil {
		return err.Error()
	}
	return who.String()
}

// notify tells systemd, where it listens (sd_notify(3)).
func (m *server) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		m.log.Warn("systemd could not be told", "state", state, "error", err)
	}
}

// explainMount adds the way out to a failed mount, where it is known.
func explainMount(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("%w; is FUSE there (/dev/fuse, package fuse3)?", err)
	}
	return err
}
