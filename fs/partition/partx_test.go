package partition

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/partition/mbr"
)

// byPartx is what util-linux' partx says of a disk, as Linux would show it: without
// what lies outside of the disk.
func byPartx(t *testing.T, path string, size int64) []Partition {
	t.Helper()
	out, err := exec.Command("partx", "-o", "NR,START,SECTORS,TYPE", "-g", "--show", path).Output()
	if err != nil {
		t.Fatalf("partx: %v: %s", err, stderrOf(err))
	}
	var list []Partition
	for line := range strings.Lines(string(out)) {
		var p Partition
		var kind int
		if _, err := fmt.Sscanf(line, "%d %d %d %v", &p.Number, &p.Start, &p.Length, &kind); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		p.Start, p.Length = p.Start*sector, p.Length*sector
		if p.Start >= size {
			continue
		}
		p.Length = min(p.Length, size-p.Start)
		if extended(mbr.Type(kind)) {
			p.Length = min(p.Length, 2*sector) // as Linux shows it
		}
		list = append(list, p)
	}
	return list
}

// TestExtendedAsPartx forges chains of extended partitions, with all four entries of a
// link in use. They have no ring, and no two partitions with one start, of which partx
// would show one only.
func TestExtendedAsPartx(t *testing.T) {
	const sectors = 4096
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	path := filepath.Join(t.TempDir(), "disk")
	seen := 0
	for range 60 {
		d := make(image, sectors*sector)
		taken := map[uint32]bool{}
		between := func(low, high int) uint32 { return uint32(low + random.IntN(high-low)) }
		kinds := []byte{0x05, 0x0f, 0x85}
		first, length := between(10, 500), between(500, sectors)
		entry(d, 0, random.IntN(primaries), kinds[random.IntN(3)], first, length)
		for link, links := first, between(1, 12); links > 0 && link < sectors; links-- {
			slots := random.Perm(primaries)
			next := between(1, int(length))
			for taken[first+next] {
				next++
			}
			taken[first+next] = true
			entry(d, int64(link)*sector, slots[0], kinds[random.IntN(3)], next, between(1, 1000))
			for _, slot := range slots[1:between(1, primaries+1)] {
				start := between(1, 600)
				for taken[link+start] {
					start++
				}
				taken[link+start] = true
				entry(d, int64(link)*sector, slot, 0x83, start, between(1, 600))
				d[int64(link)*sector+entriesAt+int64(slot)*entrySize] = byte(between(0, 256))
			}
			link = first + next
		}
		if err := os.WriteFile(path, d, 0o600); err != nil {
			t.Fatal(err)
		}
		want := byPartx(t, path, int64(len(d)))
		got, err := Read(d, int64(len(d)))
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%v, %v\npartx says %v", got, err, want)
		}
		seen += len(want)
	}
	if seen < 200 {
		t.Errorf("only %d partitions in all", seen)
	}
}

func stderrOf(err error) string {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(exit.Stderr)
	}
	return ""
}
