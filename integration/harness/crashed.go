package harness

import (
	"fmt"
	"syscall"
	"time"
)

// Crash kills the daemon and takes the dead mount away.
func (m *Mount) Crash() {
	m.t.Helper()
	// The test may have killed it, and somebody waited for it since.
	if err := syscall.Kill(m.PID, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		m.t.Fatal(err)
	}
	Eventually(m.t, time.Minute, func() error {
		if running(m.PID) {
			return fmt.Errorf("the daemon (pid %d) still runs after a kill", m.PID)
		}
		return nil
	})
	if err := syscall.Unmount(m.Point, syscall.MNT_DETACH); err != nil {
		m.t.Fatalf("unmount %s: %v", m.Point, err)
	}
	m.gone = true
}
