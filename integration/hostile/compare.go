package hostile

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"varve/integration/turn"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

var (
	mutatedImages = flag.Int("mutated.images", 0, "how many mutated images are shown to qemu-img; 0 for the default")
	MutatedSeed   = flag.Uint64("mutated.seed", 0, "the one image to show, by its number; 0 for all")
)

// MutatedNumbers are the first and the last of the images that a test shows to
// qemu-img, of 4000; their numbers begin at 1.
func MutatedNumbers(short, usual int) (first, last uint64) {
	const all = 4000
	n := usual
	switch {
	case *MutatedSeed != 0:
		return *MutatedSeed, *MutatedSeed
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

// RandomScript is a script for mutate: mostly one change.
func RandomScript(rnd *rand.Rand) []byte {
	changes := 1
	if rnd.IntN(3) == 0 {
		changes += rnd.IntN(4)
	}
	script := make([]byte, changes*ChangeBytes)
	for i := range script {
		script[i] = byte(rnd.Uint32())
	}
	return script
}

// ErrNotComparable: too large a disk, or one on another backing file.
var ErrNotComparable = errors.New("not comparable")

const LargestMutated = 64 << 20

// ReadWhole is the guest's content as varve reads it, cluster by cluster, and
// what was said of those that it refuses. Their bytes are given as nil, one
// entry for each cluster.
func ReadWhole(path string, s Seed) (clusters [][]byte, refused []error, err error) {
	im, err := qcow2.OpenImage(hostfs.OS(), path, qcow2.FormatQcow2, hostfs.LockFrozen)
	if err != nil {
		return nil, nil, err
	}
	defer im.Close()
	name := im.Header().BackingName
	if im.Size() > LargestMutated || name != "" && (name != "base.raw" || s.Backing == nil || im.Header().BackingFormat != qcow2.FormatRaw) {
		return nil, nil, ErrNotComparable
	}
	below := s.Backing
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

func readCluster(im *qcow2.Image, p []byte, start int64, below []byte) error {
	extents, err := im.Map(nil, start, int64(len(p)))
	if err != nil {
		return err
	}
	for _, e := range extents {
		part := p[e.Start-start : e.End()-start]
		switch e.Kind {
		case extent.Data, extent.Compressed, extent.Damaged:
			err = im.ReadExtent(part, e, e.Start)
		case extent.Unallocated:
			clear(part)
			if e.Start < int64(len(below)) {
				copy(part, below[e.Start:])
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// QemuReads is the guest's content as qemu-img reads it.
func QemuReads(dir, path string) ([]byte, error) {
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
	if size.Size > LargestMutated {
		return nil, ErrNotComparable
	}
	raw := filepath.Join(dir, "qemu.raw")
	if out, err := exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.ReadFile(raw)
}

// FirstDifference is where two contents differ first, -1 where they do not.
// QEMU leaves out what of a disk is less than a sector.
func FirstDifference(ours [][]byte, theirs []byte) int {
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
