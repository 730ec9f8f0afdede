// Package claim judges what a mount says of itself.
//
// The kernel's mount table tells which user made a mount. The type and the source, which
// for a varve is the disk, are words of that user: anybody who may mount with fusermount3
// can write fuse.varve and the disk directory of somebody else there. So of another user's
// mount the disk is believed only where it is that user's own, or where the process that
// serves the mount holds the lock of the disk directory, which takes the right to write it
// (D31).
package claim

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"varve/chain/dirlock"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/holders"
)

// Believed says whether a mount is of the disk that it names, as far as that is not the
// word of another user. It looks at files by the name that the mount gives, which can
// be in a file system that hangs; BelievedSoon cannot be kept by that.
func Believed(m mounts.Mount) bool {
	return own(m) || judge(judged{m.Source, m.UID, m.Device})
}

// MountOf gives the first mount that is believed to be of a disk directory.
func MountOf(dir string) (mounts.Mount, bool, error) {
	list, err := mounts.List()
	if err != nil {
		return mounts.Mount{}, false, err
	}
	for _, m := range list {
		if m.Source == dir && Believed(m) {
			return m, true, nil
		}
	}
	return mounts.Mount{}, false, nil
}

// Words are the source of a mount for people: of one that is not believed with whose word
// that is.
func Words(m mounts.Mount, believed bool) string {
	if believed {
		return m.Source
	}
	return fmt.Sprintf("%s (claimed by uid %d)", m.Source, m.UID)
}

// own says that the mount is root's or the caller's.
func own(m mounts.Mount) bool { return m.UID == 0 || m.UID == os.Geteuid() }

// Errand is what a process of aside is sent for by BelievedSoon.
const Errand = "believe"

// judged is what has to be known of a mount.
type judged struct {
	Source string
	UID    int
	Device uint64
}

// BelievedSoon is Believed by a process of its own, which has a time limit; where it gives
// no answer the mount is not believed.
func BelievedSoon(ctx context.Context, m mounts.Mount, limit time.Duration) bool {
	if own(m) {
		return true
	}
	word, err := json.Marshal(judged{m.Source, m.UID, m.Device})
	if err != nil {
		return false
	}
	text, err := aside.Ask(ctx, Errand, string(word), limit)
	return err == nil && string(text) == yes
}

const yes = "yes"

// Answer does the errand.
func Answer(word string) ([]byte, error) {
	var j judged
	if err := json.Unmarshal([]byte(word), &j); err != nil {
		return nil, fmt.Errorf("%q is no mount: %w", word, err)
	}
	if judge(j) {
		return []byte(yes), nil
	}
	return nil, nil
}

// judge is Believed of another user's mount.
func judge(j judged) bool {
	if !filepath.IsAbs(j.Source) || j.UID < 0 {
		return false
	}
	info, err := os.Stat(j.Source)
	if err != nil {
		return false
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) == j.UID {
		return true
	}
	return info.IsDir() && Serves(j.Source, j.Device)
}

// Serves says whether a process that holds the lock of a disk directory, exclusively or to
// read, serves the mount of a device.
func Serves(dir string, device uint64) bool {
	for _, pid := range holders.Servers(device) {
		if held, err := dirlock.HeldBy(dir, pid); err == nil && held {
			return true
		}
	}
	return false
}

// OfHolder says whether a mount can be the one that a process serves: by the connection
// that the kernel shows, and where it shows none, as to a user who is neither root nor
// that of the process, by the users of both.
func OfHolder(m mounts.Mount, pid int) bool {
	if serves := holders.Connections(pid); len(serves) > 0 {
		return slices.Contains(serves, m.Device)
	}
	info, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		return true // of a process that cannot be seen nothing is known
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return !ok || m.UID < 0 || int(st.Uid) == m.UID
}
