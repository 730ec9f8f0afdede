package overlay

import (
	"testing"

	"varve/overlay/hostfs"
)

// openImage opens an image and closes it at the test's end.
func openImage(tb testing.TB, path, format string) *Image {
	tb.Helper()
	im, err := OpenImage(hostfs.OS(), path, format, hostfs.LockFrozen)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := im.Close(); err != nil {
			tb.Error(err)
		}
	})
	return im
}
