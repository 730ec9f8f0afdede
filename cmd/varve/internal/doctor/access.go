package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"varve/chain"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/aside"
	"varve/cmd/varve/internal/libvirt"
)

// Errands that try what QEMU's user may do.
const (
	passErrand = "pass" // go through the directories of a path
	useErrand  = "use"  // and read and write the file
)

// judgeUser judges whether a VM that is to start gets at its file of a mount.
func (s *Scope) judgeUser(v vm, m mounts.Mount, inside string) []Finding {
	if v.PID != 0 || v.UID < 0 || m.UID < 0 {
		return nil
	}
	const again = "mount it again with --allow-other --umask 066"
	finding := func(what, fix string) []Finding {
		return []Finding{{Severity: Problem, Check: vmAccess, Subject: m.Mountpoint, Fix: fix,
			What: fmt.Sprintf("%s would run as uid %d, and %s", v.who(), v.UID, what)}}
	}
	if v.UID != m.UID && !m.AllowOther {
		fix := again
		if m.UID != 0 && !s.machine.othersAllowed() {
			fix += "; before that, root puts the line user_allow_other into /etc/fuse.conf"
		}
		return finding(fmt.Sprintf("this mount lets in uid %d only", m.UID), fix)
	}
	errand := passErrand
	if !v.qemu.Owns {
		errand = useErrand // libvirt does not give it the file
	}
	path := filepath.Join(m.Mountpoint, inside)
	at, mode := s.machine.refusedAt(v.qemu, errand, path)
	switch {
	case at == "":
		return nil
	case at == path:
		return finding(fmt.Sprintf("may not read and write %s (%s)", inside, mode), fmt.Sprintf("mount it again with --allow-other --uid %d --gid %d", v.UID, max(v.GID, 0)))
	case mounts.Within(at, m.Mountpoint):
		return finding(fmt.Sprintf("the mount's modes (%s) do not let it pass", mode), again)
	}
	return finding(fmt.Sprintf("may not pass the directory %s (%s)", at, mode),
		fmt.Sprintf("mount the disk elsewhere, such as below /mnt, or let that user pass: setfacl -m u:%d:x %s", v.UID, chain.ShellWord(at)))
}

// refusal is what an errand that tries has found: the first place that is refused, "" for
// none.
type refusal struct{ At, Mode string }

// refusedAt tries, as QEMU's user where that can be done, and otherwise goes by the modes.
func (m *machine) refusedAt(q libvirt.QEMU, errand, path string) (at, mode string) {
	var r refusal
	var text []byte
	var err error
	switch {
	case q.UID == m.uid:
		text, err = aside.Ask(context.Background(), errand, path, answerTime)
	case m.uid == 0 && q.GID >= 0:
		as := &syscall.Credential{Uid: uint32(q.UID), Gid: uint32(q.GID)}
		for _, g := range q.Groups {
			as.Groups = append(as.Groups, uint32(g))
		}
		text, err = aside.AskAs(context.Background(), as, errand, path, answerTime)
	}
	if err == nil && len(text) > 0 && json.Unmarshal(text, &r) == nil {
		return r.At, r.Mode
	}
	for _, dir := range directories(path) {
		if info, err := StatSoon(dir); err == nil && !mayPass(info, q.UID, q.GID, q.Groups) && !hasACL(dir) {
			return dir, info.Mode().String()
		}
	}
	return "", ""
}

// directories are those that a path leads through, from the root down.
func directories(path string) []string {
	var list []string
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		list = append(list, dir)
		if dir == filepath.Dir(dir) {
			slices.Reverse(list)
			return list
		}
	}
}

// hasACL says whether modes do not tell all of who may do what.
func hasACL(path string) bool {
	_, err := unix.Getxattr(path, "system.posix_acl_access", nil)
	return err == nil
}

// tryPath is what an errand does: as this process's user it goes through the directories
// of a path, and with file reads and writes it, as far as access(2) tells.
func tryPath(path string, file bool) ([]byte, error) {
	var r refusal
	try := func(path string, mode uint32) bool {
		if err := unix.Access(path, mode); !errors.Is(err, unix.EACCES) {
			return err == nil
		}
		r.At, r.Mode = path, "its mode is not told"
		if info, err := os.Stat(path); err == nil {
			r.Mode = info.Mode().String()
		}
		return false
	}
	for _, dir := range directories(path) {
		if !try(dir, unix.X_OK) {
			return json.Marshal(r)
		}
	}
	if file {
		try(path, unix.R_OK|unix.W_OK)
	}
	return json.Marshal(r)
}

// mayPass says whether a user may pass through a directory, by its mode alone.
func mayPass(info os.FileInfo, uid, gid int, groups []int) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	switch mode := info.Mode().Perm(); {
	case !ok || uid == 0:
		return true
	case int(st.Uid) == uid:
		return mode&0o100 != 0
	case gid < 0:
		return mode&0o011 != 0
	case int(st.Gid) == gid || slices.Contains(groups, int(st.Gid)):
		return mode&0o010 != 0
	default:
		return mode&0o001 != 0
	}
}
