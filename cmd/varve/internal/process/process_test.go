package process

import (
	"strings"
	"testing"

	"varve/integration/harness"
)

// TestTerminateAsksVarvesOnly: a process that a lock file says to be the daemon, and that is
// none, gets no signal.
func TestTerminateAsksVarvesOnly(t *testing.T) {
	other := Open(harness.KeepShell(t, "true"))
	defer other.Close()
	if err := other.Terminate(); err == nil || !strings.Contains(err.Error(), "that process is sh, not varve") {
		t.Errorf("%v", err)
	}
}
