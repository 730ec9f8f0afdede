// Package integration tests varve as its users meet it: real mounts, the real
// qemu-img, a real guest.
package integration

import (
	"os"
	"testing"

	"varve/integration/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
