package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"varve/integration/patience"
)

// Loop is an attached loop device.
type Loop struct {
	Device string // such as /dev/loop0
	t      testing.TB
	gone   bool
}

// AttachLoop attaches a file with losetup and its arguments (-r, -o BYTES,
// --direct-io=on). The end of the test detaches it.
func AttachLoop(t testing.TB, file string, args ...string) *Loop {
	t.Helper()
	out := Run(t, "losetup", append(append([]string{"--find", "--show"}, args...), file)...)
	l := &Loop{Device: strings.TrimSpace(out), t: t}
	t.Cleanup(l.Detach)
	return l
}

// AttachPartition attaches the bytes [start, start+length) of a file.
func AttachPartition(t testing.TB, file string, start, length int64, args ...string) *Loop {
	t.Helper()
	return AttachLoop(t, file, append([]string{
		"--offset", strconv.FormatInt(start, 10), "--sizelimit", strconv.FormatInt(length, 10),
	}, args...)...)
}

// Detach detaches the device. Calling it again does nothing.
func (l *Loop) Detach() {
	l.t.Helper()
	if l.gone {
		return
	}
	l.gone = true
	if r := Try(l.t, "losetup", "-d", l.Device); r.Code != 0 {
		l.t.Errorf("losetup -d %s: %s", l.Device, r.Stderr)
		return
	}
	// losetup returns before the kernel has let go of the file.
	state := "/sys/block/" + filepath.Base(l.Device) + "/loop/backing_file"
	Eventually(l.t, patience.Hang, func() error {
		if file, err := os.ReadFile(state); err == nil {
			return fmt.Errorf("%s still holds %s", l.Device, file)
		}
		return nil
	})
}
