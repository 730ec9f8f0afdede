package daemon

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/cmd/varve/internal/confine"
	"varve/cmd/varve/internal/outside"
	"varve/fs"
)

// A daemon reads what guests and strangers have written, often as root. When it has opened
// all and mounted, and before anybody is told that it has, it confines itself to what it
// needs from then on (M23, D32).

// startOutside starts the process that does what this one may not do when it is confined:
// nil where it cannot be started. It is to be closed when the mount is gone.
func (m *server) startOutside() *outside.Process {
	process, err := outside.Start(outsideKinds())
	if err != nil {
		m.log.Warn("the daemon keeps all rights of its user, for the process varve-outside, which has to do what a daemon with fewer rights may not, did not start", "error", err)
	}
	return process
}

// confine confines the daemon of a mount. What this process may not do afterwards the one
// outside does for it. Without that nothing is confined: a disk is never harder to unmount.
func (m *server) confine(d *chain.Disk, mount *fs.Server, process *outside.Process) {
	if process == nil {
		return
	}
	task := outsideTask{Place: mount.Place(), Daemon: os.Getpid()}
	task.Disk, _ = d.DirectoryID()
	if err := process.Ask(outsideBegin, outsideBeginTime, task, nil); err != nil {
		m.log.Warn("the daemon keeps all rights of its user, for the process varve-outside, which has to do what a daemon with fewer rights may not, gives no answer", "error", err)
		return
	}
	o := outsideProcess{process}
	mount.UnmountBy(o.unmount)
	d.SetOutside(o)
	m.users = o.users
	_, _ = time.Now().Local().Zone() // of which Go reads the file when it is first needed
	confined, err := confine.Confine(m.needs(d))
	if err != nil {
		m.log.Warn("the daemon keeps more rights than it needs, for it could not give all of them up", "error", err)
		return
	}
	m.log.Info("confined", "by", confined.String())
}

// needs are what the daemon of a disk needs once it has mounted.
func (m *server) needs(d *chain.Disk) confine.Needs {
	owner := d.Owner()
	n := confine.Needs{
		Writable:        append(alsoWritable(), os.DevNull),
		Readable:        alwaysReadable(),
		Capabilities:    diskCapabilities(owner > 0),
		AbstractSockets: strings.HasPrefix(os.Getenv("NOTIFY_SOCKET"), "@"),
	}
	if fd, ok := d.Descriptor(); ok {
		dir := fmt.Sprintf("/proc/self/fd/%d", fd) // and not what is at its path by now
		if d.ReadOnly() {
			n.Readable = append(n.Readable, dir)
		} else {
			n.Writable = append(n.Writable, dir)
		}
	}
	return n
}

// alwaysReadable are what every process of a disk's reads: who has opened a file and which
// processes there are, and the groups of the owner of a disk directory.
func alwaysReadable() []string { return []string{"/proc", "/etc/passwd", "/etc/group"} }

// diskCapabilities are what root needs in a disk directory: to write it whatever the modes
// in it are, and the blocks of a file system that are kept for root (chain counts them as
// free). In a directory of another user's it gives away what it makes, and sets its modes.
func diskCapabilities(anothers bool) []int {
	list := []int{unix.CAP_DAC_OVERRIDE, unix.CAP_SYS_RESOURCE}
	if anothers {
		list = append(list, unix.CAP_CHOWN, unix.CAP_FOWNER)
	}
	return list
}
