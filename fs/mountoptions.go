package fs

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// givenOptions are options of "mount -o", sorted by who wants them.
type givenOptions struct {
	flags      uintptr  // of mount(2)
	words      []string // the same flags as fusermount3 takes them
	kernel     []string // of the fuse file system itself
	allowOther bool
}

// mountFlag is an option that sets a bit of mount(2) or clears it.
type mountFlag struct {
	bit   uintptr
	clear bool
}

func mountFlags() map[string]mountFlag {
	return map[string]mountFlag{
		"ro": {unix.MS_RDONLY, false}, "rw": {unix.MS_RDONLY, true},
		"nosuid": {unix.MS_NOSUID, false}, "suid": {unix.MS_NOSUID, true},
		"nodev": {unix.MS_NODEV, false}, "dev": {unix.MS_NODEV, true},
		"noexec": {unix.MS_NOEXEC, false}, "exec": {unix.MS_NOEXEC, true},
		"sync": {unix.MS_SYNCHRONOUS, false}, "async": {unix.MS_SYNCHRONOUS, true},
		"dirsync": {unix.MS_DIRSYNC, false},
		"noatime": {unix.MS_NOATIME, false}, "atime": {unix.MS_NOATIME, true},
		"nodiratime": {unix.MS_NODIRATIME, false}, "diratime": {unix.MS_NODIRATIME, true},
		"relatime": {unix.MS_RELATIME, false}, "norelatime": {unix.MS_RELATIME, true},
		"strictatime": {unix.MS_STRICTATIME, false}, "nostrictatime": {unix.MS_STRICTATIME, true},
		"lazytime": {unix.MS_LAZYTIME, false}, "nolazytime": {unix.MS_LAZYTIME, true},
	}
}

// mountOptions sorts options of "mount -o". Those of /etc/fstab that speak to
// other programs are dropped; an unknown one is an error that names it.
func mountOptions(options []string) (givenOptions, error) {
	g := givenOptions{flags: unix.MS_NOSUID | unix.MS_NODEV}
	flags := mountFlags()
	for _, option := range options {
		key, _, valued := strings.Cut(option, "=")
		flag, isFlag := flags[option]
		switch {
		case isFlag:
			g.flags |= flag.bit
			if flag.clear {
				g.flags &^= flag.bit
			}
			g.words = append(g.words, option)
		case option == "allow_other":
			g.allowOther = true
		case option == "default_permissions": // always set
		case valued && (key == "context" || key == "fscontext" || key == "defcontext" || key == "rootcontext"):
			g.kernel = append(g.kernel, option)
		case MeantForOthers(option):
		default:
			return givenOptions{}, fmt.Errorf("unknown mount option %q", option)
		}
	}
	return g, nil
}

// MeantForOthers says whether an option of "mount -o" speaks to other programs, as
// options of /etc/fstab do, and means nothing to the mount.
func MeantForOthers(option string) bool {
	key, _, valued := strings.Cut(option, "=")
	switch option {
	case "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev", "comment":
		return true
	}
	return valued && key == "comment" || strings.HasPrefix(option, "x-")
}
