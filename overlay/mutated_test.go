package overlay

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"varve/integration/turn"
	"varve/overlay/hostfs"
)

var (
	mutatedImages = flag.Int("mutated.images", 0, "how many mutated images are shown to qemu-img; 0 for the default")
	mutatedSeed   = flag.Uint64("mutated.seed", 0, "the one image to show, by its number; 0 for all")
)

// mutatedNumbers are the first and the last of the images that a test shows to
// qemu-img, of 4000; their numbers begin at 1.
func mutatedNumbers(short, usual int) (first, last uint64) {
	const all = 4000
	n := usual
	switch {
	case *mutatedSeed != 0:
		return *mutatedSeed, *mutatedSeed
	case *mutatedImages > 0:
		return 1, uint64(*mutatedImages)
	case os.Getenv("VARVE_LONG") != "":
		n = all
	case testing.Short():
		n = short
	}
	first = uint64(1 + turn.Window(n, all))
	return first, first + uint64(n) - 1
}

// randomScript is a script for mutate: mostly one change.
func randomScript(rnd *rand.Rand) []byte {
	changes := 1
	if rnd.IntN(3) == 0 {
		changes += rnd.IntN(4)
	}
	script := make([]byte, changes*changeBytes)
	for i := range script {
		script[i] = byte(rnd.Uint32())
	}
	return script
}

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
	seeds := qemuSeeds(t)
	first, last := mutatedNumbers(20, 100)
	n := int(last - first + 1)
	both, partly, oursOnly, qemuOnly, neither := 0, 0, 0, 0, 0
	reasons := map[string]int{}
	for number := first; number <= last; number++ {
		rnd := rand.New(rand.NewPCG(number, 7))
		s := seeds[rnd.IntN(len(seeds))]
		script := randomScript(rnd)
		dir := t.TempDir()
		path := filepath.Join(dir, "image.qcow2")
		must(t, os.WriteFile(path, mutate(s.data, script), 0o600))
		if s.backing != nil {
			must(t, os.WriteFile(filepath.Join(dir, "base.raw"), s.backing, 0o600))
		}
		what := fmt.Sprintf("image %d (%s, script %x)", number, s.name, script)
		ours, refused, ourErr := readWhole(path, s)
		theirs, theirErr := qemuReads(dir, path)
		if ourErr == errNotComparable || theirErr == errNotComparable {
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
			if at := firstDifference(ours, theirs); at >= 0 {
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
	if *mutatedSeed == 0 && both < n/3 {
		t.Errorf("only %d of %d images are read by both: this test shows little", both, n)
	}
}

// errNotComparable: too large a disk, or one on another backing file.
var errNotComparable = errors.New("not comparable")

const largestMutated = 64 << 20

// readWhole is the guest's content as varve reads it, cluster by cluster, and
// what was said of those that it refuses. Their bytes are given as nil, one
// entry for each cluster.
func readWhole(path string, s seed) (clusters [][]byte, refused []error, err error) {
	im, err := OpenImage(hostfs.OS(), path, formatQcow2, hostfs.LockFrozen)
	if err != nil {
		return nil, nil, err
	}
	defer im.Close()
	name := im.Header().BackingName
	if im.Size() > largestMutated || name != "" && (name != "base.raw" || s.backing == nil || im.Header().BackingFormat != formatRaw) {
		return nil, nil, errNotComparable
	}
	below := memory(s.backing)
	if name == "" {
		below = nil
	}
	for start := int64(0); start < im.Size(); start += im.Header().ClusterSize() {
		p := make([]byte, min(im.Header().ClusterSize(), im.Size()-start))
		if err := readCluster(im, p, start, below); err != nil {
			refused = append(refused, err)
			p = p[:0]
		}
		clusters = append(clusters, p)
	}
	return clusters, refused, nil
}

func readCluster(im *Image, p []byte, start int64, below memory) error {
	extents, err := im.Map(nil, start, int64(len(p)))
	if err != nil {
		return err
	}
	for _, e := range extents {
		part := p[e.Start-start : e.End()-start]
		switch e.Kind {
		case Data, Compressed, Damaged:
			err = im.ReadExtent(part, e, e.Start)
		case Unallocated:
			err = below.ReadAt(part, e.Start)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// qemuReads is the guest's content as qemu-img reads it.
func qemuReads(dir, path string) ([]byte, error) {
	info, err := exec.Command("qemu-img", "info", "-f", "qcow2", "--output=json", path).Output()
	if err != nil {
		return nil, err
	}
	var size struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(info, &size); err != nil {
		return nil, err
	}
	if size.Size > largestMutated {
		return nil, errNotComparable
	}
	raw := filepath.Join(dir, "qemu.raw")
	if out, err := exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.ReadFile(raw)
}

// firstDifference is where two contents differ first, -1 where they do not.
// QEMU leaves out what of a disk is less than a sector.
func firstDifference(ours [][]byte, theirs []byte) int {
	clusterSize := 0
	for _, cluster := range ours {
		clusterSize = max(clusterSize, len(cluster))
	}
	for n, cluster := range ours {
		at := n * clusterSize
		if n == len(ours)-1 && len(cluster) > 0 {
			cluster = cluster[:len(cluster)&^511]
			if len(theirs) != at+len(cluster) {
				return len(theirs)
			}
		}
		for i, b := range cluster {
			if at+i >= len(theirs) || theirs[at+i] != b {
				return at + i
			}
		}
	}
	return -1
}

// judgeMutatedMap compares the maps. qemu-img map may fail where convert did
// not: it asks about what convert need not read.
func judgeMutatedMap(t *testing.T, what, path string) {
	t.Helper()
	if exec.Command("qemu-img", "map", "-f", "qcow2", "--output=json", path).Run() != nil {
		return
	}
	im, err := OpenImage(hostfs.OS(), path, formatQcow2, hostfs.LockFrozen)
	must(t, err)
	defer im.Close()
	if im.Size()%512 != 0 {
		return
	}
	t.Log(what)
	judgeMap(t, im, path)
}

// TestDamagedLayersAgainstQEMU damages layers of ours, opens them as after a
// crash and writes on. What varve takes, qemu-img finds no fault with, not even a
// leak, and reads the same.
func TestDamagedLayersAgainstQEMU(t *testing.T) {
	t.Parallel()
	seeds := ownSeeds(t)
	first, last := mutatedNumbers(10, 100)
	n := int(last - first + 1)
	right := 0
	for number := first; number <= last; number++ {
		rnd := rand.New(rand.NewPCG(number, 8))
		s := seeds[rnd.IntN(len(seeds))]
		script := randomScript(rnd)
		steps := make([]byte, 3*rnd.IntN(12))
		for i := range steps {
			steps[i] = byte(rnd.Uint32())
		}
		what := fmt.Sprintf("layer %d (%s, script %x)", number, s.name, script)
		after, taken := tryOverlay(t, s, mutate(s.data, script), true, steps)
		if t.Failed() {
			t.Fatal(what)
		}
		if !taken {
			continue
		}
		right++
		dir := t.TempDir()
		path := filepath.Join(dir, "layer.qcow2")
		must(t, os.WriteFile(path, after, 0o600))
		must(t, os.WriteFile(filepath.Join(dir, "base.raw"), s.backing, 0o600))
		h, err := ReadHeader(hostfs.OS(), path)
		must(t, err)
		if h.BackingName != "" && (h.BackingName != "base.raw" || h.BackingFormat != formatRaw) || h.Size > largestMutated {
			continue
		}
		if out, err := exec.Command("qemu-img", "check", "-f", "qcow2", path).CombinedOutput(); err != nil {
			t.Errorf("%s: qemu-img check: %v\n%s", what, err, out)
		}
		ours, refused, err := readWhole(path, s)
		theirs, theirErr := qemuReads(dir, path)
		if err := errors.Join(err, theirErr); err != nil || len(refused) > 0 {
			t.Errorf("%s: %v, %d clusters refused: %v", what, err, len(refused), refused[:min(1, len(refused))])
		} else if at := firstDifference(ours, theirs); at >= 0 {
			t.Errorf("%s: content differs at %d of %d bytes", what, at, len(theirs))
		}
		must(t, os.RemoveAll(dir))
	}
	t.Logf("%d damaged layers: %d taken and written", n, right)
	if *mutatedSeed == 0 && right < n/10 {
		t.Errorf("only %d of %d layers are taken: this test shows little", right, n)
	}
}
