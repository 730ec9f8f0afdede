package qcow2_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"varve/integration/hostile"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// readerStricter are the reasons for which varve refuses a place, or a whole image,
// that QEMU reads. QEMU does not look there and reads something all the same;
// varve says so, by the place, and does not guess.
var readerStricter = []string{
	"reserved bit",                    // QEMU masks them off
	"behind the end of the file",      // zeros to QEMU, or nothing
	"ends behind the end",             //
	"inside the header",               // compressed data there
	"offset 0 is the header's",        // a table there
	"no multiple of the cluster size", // of a zero cluster's place, which QEMU does not use
	"has the subcluster bitmap",       // of a compressed cluster
	"longer than a cluster",           // QEMU stops when a cluster is full
}

// TestMutatedImagesAgainstQEMU shows damaged images to qemu-img and to varve.
// Where both read a cluster they read the same, byte for byte, and map it the
// same. What only varve refuses is in a list of reasons; what only QEMU refuses
// may be read: QEMU looks at refcounts, snapshots and bitmaps, too.
func TestMutatedImagesAgainstQEMU(t *testing.T) {
	t.Parallel()
	seeds := hostile.QemuSeeds(t)
	first, last := hostile.MutatedNumbers(20, 100)
	n := int(last - first + 1)
	both, partly, oursOnly, qemuOnly, neither := 0, 0, 0, 0, 0
	reasons := map[string]int{}
	for number := first; number <= last; number++ {
		rnd := rand.New(rand.NewPCG(number, 7))
		s := seeds[rnd.IntN(len(seeds))]
		script := hostile.RandomScript(rnd)
		dir := t.TempDir()
		path := filepath.Join(dir, "image.qcow2")
		must(t, os.WriteFile(path, hostile.Mutate(s.Data, script), 0o600))
		if s.Backing != nil {
			must(t, os.WriteFile(filepath.Join(dir, "base.raw"), s.Backing, 0o600))
		}
		what := fmt.Sprintf("image %d (%s, script %x)", number, s.Name, script)
		ours, refused, ourErr := hostile.ReadWhole(path, s)
		theirs, theirErr := hostile.QemuReads(dir, path)
		if ourErr == hostile.ErrNotComparable || theirErr == hostile.ErrNotComparable {
			continue
		}
		if theirErr == nil {
			for _, err := range append(refused, ourErr) {
				if err == nil {
					continue
				}
				known := "unknown: " + err.Error()
				for _, reason := range readerStricter {
					if strings.Contains(err.Error(), reason) {
						known = reason
					}
				}
				reasons[known]++
				if strings.HasPrefix(known, "unknown") {
					t.Errorf("%s: qemu-img reads it, varve says: %v", what, err)
				}
			}
		}
		switch {
		case ourErr == nil && theirErr == nil:
			if at := hostile.FirstDifference(ours, theirs); at >= 0 {
				t.Errorf("%s: content differs at %d of %d and %d bytes", what, at, len(ours), len(theirs))
			}
			if both++; len(refused) > 0 {
				partly++
			} else {
				judgeMutatedMap(t, what, path)
			}
		case ourErr == nil:
			oursOnly++
		case theirErr == nil:
			qemuOnly++
		default:
			neither++
		}
		must(t, os.RemoveAll(dir))
	}
	t.Logf("%d images: both read %d (%d of them varve in part), only varve %d, only qemu-img %d, nobody %d", n, both, partly, oursOnly, qemuOnly, neither)
	t.Logf("what varve refuses and qemu-img reads: %v", reasons)
	if *hostile.MutatedSeed == 0 && both < n/3 {
		t.Errorf("only %d of %d images are read by both: this test shows little", both, n)
	}
}

// judgeMutatedMap compares the maps. qemu-img map may fail where convert did
// not: it asks about what convert need not read.
func judgeMutatedMap(t *testing.T, what, path string) {
	t.Helper()
	if exec.Command("qemu-img", "map", "-f", "qcow2", "--output=json", path).Run() != nil {
		return
	}
	im, err := qcow2.OpenImage(hostfs.OS(), path, qcow2.FormatQcow2, hostfs.LockFrozen)
	must(t, err)
	defer im.Close()
	if im.Size()%512 != 0 {
		return
	}
	t.Log(what)
	judgeMap(t, im, path)
}
