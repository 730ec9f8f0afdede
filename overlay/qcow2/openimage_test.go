package qcow2_test

import (
	"testing"

	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// openImage opens an image and closes it at the test's end.
func openImage(tb testing.TB, path, format string) *qcow2.Image {
	tb.Helper()
	im, err := qcow2.OpenImage(hostfs.OS(), path, format, hostfs.LockFrozen)
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

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
