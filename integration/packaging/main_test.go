// Package packaging tests varve as it is installed: the Debian package on a copy
// of this system, what mount(8), umount(8) and systemd call, `make install`.
package packaging

import (
	"os"
	"testing"

	"varve/integration/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
