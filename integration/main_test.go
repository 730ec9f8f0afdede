// Package integration tests varve as its users meet it: real mounts, the real
// qemu-img, a real guest.
package integration

import (
	"os"
	"testing"

	"varve/integration/harness"
	"varve/integration/stamps"
)

func TestMain(m *testing.M) {
	if code, isWriter := stamps.Main(); isWriter {
		os.Exit(code)
	}
	os.Exit(harness.Main(m))
}
