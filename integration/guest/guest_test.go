package guest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"varve/integration/harness"
	"varve/integration/turn"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// TestPlainRaw shows that the guest and the judges are right where there is no
// varve: what they say of a varve disk means something only then. The ways in which QEMU
// opens the image take turns.
func TestPlainRaw(t *testing.T) {
	drives := []string{"cache=none,aio=native", "cache=none,aio=io_uring"}
	if !harness.Long() {
		at := turn.Of(0, len(drives))
		drives = drives[at : at+1]
	}
	for _, drive := range drives {
		t.Run(drive, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "plain.raw")
			Image(t, image, 96<<20)
			Fsck(t, image, "-r")

			began := time.Now()
			g := Boot(t, Options{Disk: image, Drive: drive})
			t.Logf("booted in %.1f s", time.Since(began).Seconds())
			g.Run("put one 64")
			g.StartWriter("w")
			g.WaitFsynced(5)
			g.StopWriter()
			g.Verify()
			files := g.Fsynced()
			g.PowerOff()

			Fsck(t, image, "-r")
			Contains(t, image, Data(t, image), files)
			t.Logf("the guest wrote %d files", len(files))
		})
	}
}

// TestPullThePlug kills QEMU and judges what it leaves as the journal's owner
// would: fsynced files are there.
func TestPullThePlug(t *testing.T) {
	image := filepath.Join(t.TempDir(), "plain.raw")
	Image(t, image, 96<<20)
	g := Boot(t, Options{Disk: image, Drive: "cache=writeback"})
	g.StartWriter("w")
	g.WaitFsynced(5)
	files := g.Fsynced()
	g.Kill()
	Contains(t, image, Data(t, FsckCrashed(t, image)), files)
}
