package overlay

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"varve/integration/hostile"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// TestDamagedLayersAgainstQEMU damages layers of ours, opens them as after a
// crash and writes on. What varve takes, qemu-img finds no fault with, not even a
// leak, and reads the same.
func TestDamagedLayersAgainstQEMU(t *testing.T) {
	t.Parallel()
	seeds := ownSeeds(t)
	first, last := hostile.MutatedNumbers(10, 100)
	n := int(last - first + 1)
	right := 0
	for number := first; number <= last; number++ {
		rnd := rand.New(rand.NewPCG(number, 8))
		s := seeds[rnd.IntN(len(seeds))]
		script := hostile.RandomScript(rnd)
		steps := make([]byte, 3*rnd.IntN(12))
		for i := range steps {
			steps[i] = byte(rnd.Uint32())
		}
		what := fmt.Sprintf("layer %d (%s, script %x)", number, s.Name, script)
		after, taken := tryOverlay(t, s, hostile.Mutate(s.Data, script), true, steps)
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
		must(t, os.WriteFile(filepath.Join(dir, "base.raw"), s.Backing, 0o600))
		h, err := qcow2.ReadHeader(hostfs.OS(), path)
		must(t, err)
		if h.BackingName != "" && (h.BackingName != "base.raw" || h.BackingFormat != qcow2.FormatRaw) || h.Size > hostile.LargestMutated {
			continue
		}
		if out, err := exec.Command("qemu-img", "check", "-f", "qcow2", path).CombinedOutput(); err != nil {
			t.Errorf("%s: qemu-img check: %v\n%s", what, err, out)
		}
		ours, refused, err := hostile.ReadWhole(path, s)
		theirs, theirErr := hostile.QemuReads(dir, path)
		if err := errors.Join(err, theirErr); err != nil || len(refused) > 0 {
			t.Errorf("%s: %v, %d clusters refused: %v", what, err, len(refused), refused[:min(1, len(refused))])
		} else if at := hostile.FirstDifference(ours, theirs); at >= 0 {
			t.Errorf("%s: content differs at %d of %d bytes", what, at, len(theirs))
		}
		must(t, os.RemoveAll(dir))
	}
	t.Logf("%d damaged layers: %d taken and written", n, right)
	if *hostile.MutatedSeed == 0 && right < n/10 {
		t.Errorf("only %d of %d layers are taken: this test shows little", right, n)
	}
}
