package daemon

import (
	"context"
	"errors"
	"syscall"
	"time"

	"varve/chain"
	"varve/cmd/varve/internal/session"
	"varve/fs"
)

const (
	scopeTime = 3 * time.Second // how long systemd may take to make a scope
	// askedTime is how long a daemon in a scope of its own holds on to a SIGTERM
	// that came while the mount was in use: at a shutdown its users are ended at
	// the same time. systemd waits for 90 seconds before it kills.
	askedTime = 60 * time.Second
	askedPoll = 500 * time.Millisecond
)

// leaveLogin moves a daemon that was started from a login out of it, so that the
// logout does not end it. Where that cannot be the mount goes on as it is.
func (m *server) leaveLogin() {
	if m.pipe == nil || !session.InLogin() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), scopeTime)
	defer cancel()
	unit, err := session.Leave(ctx, "varve mount "+m.plan.mountpoint)
	if err != nil {
		m.log.Warn("it stays in the login session that it was started from; where KillUserProcesses=yes is set the logout ends it", "error", err)
		return
	}
	m.scope = unit
	m.log.Info("moved out of the login session", "scope", unit)
}

// askAgain unmounts when those who use the mount are done, if that is soon. It gives up
// when done is closed, and when other files of the disk are lost than the signal was told of.
func (m *server) askAgain(d *chain.Disk, mount *fs.Server, lost string, done <-chan struct{}) {
	for deadline := time.Now().Add(askedTime); time.Now().Before(deadline); {
		select {
		case <-done:
			return
		case <-time.After(askedPoll):
		}
		if now := lostSoon(d); now != "" && now != lost {
			m.log.Error("not unmounted: files of the disk were removed or replaced while it was in use", "files", now)
			return
		}
		if err := m.takeDown(mount); !errors.Is(err, syscall.EBUSY) {
			return
		}
	}
}

// endWhenUnused ends a mount that is out of sight when the last file of it is closed: a
// copy in another mount namespace would keep it. It gives up when done is closed.
func (m *server) endWhenUnused(mount *fs.Server, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-time.After(askedPoll):
		}
		if err := m.takeDown(mount); !errors.Is(err, fs.ErrNotMounted) {
			return
		}
	}
}
