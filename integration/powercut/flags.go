package powercut

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// Flags say how much of what can be tried is tried. The defaults take seconds;
// with Stride and FaultStride 1 every place and every call has its turn.
type Flags struct {
	Seed        uint64
	Runs        int
	Stride      int
	States      int
	Qemu        int
	Again       int
	FaultStride int
	For         time.Duration
	Keep        string

	began time.Time
}

// NewFlags defines the flags of a test binary.
func NewFlags() *Flags {
	f := &Flags{began: time.Now()}
	flag.Uint64Var(&f.Seed, "crash.seed", 1, "the first seed of the crash tests")
	flag.IntVar(&f.Runs, "crash.runs", 1, "how many seeds the random crash tests take")
	flag.DurationVar(&f.For, "crash.for", 0, "go on with further seeds until this time has passed")
	flag.IntVar(&f.Stride, "crash.stride", 50, "of how many places in a record one has its power cut")
	flag.IntVar(&f.States, "crash.states", 8, "states tried at each place; all subsets of what is pending where there are no more")
	flag.IntVar(&f.Qemu, "crash.qemu", 300, "of how many states one is shown to qemu-img before it is opened; 0 for none")
	flag.IntVar(&f.Again, "crash.again", 12, "of how many states one has its recovery cut off too; 0 for none")
	flag.IntVar(&f.FaultStride, "fault.stride", 50, "of how many calls to the host one fails, in a run of its own")
	flag.StringVar(&f.Keep, "crash.keep", "", "a directory into which a state that fails is written")
	return f
}

// Seeds runs a test for each seed.
func (f *Flags) Seeds(t *testing.T, run func(t *testing.T, seed uint64)) {
	for i := 0; i < f.Runs || time.Since(f.began) < f.For; i++ {
		seed := f.Seed + uint64(i)
		ok := t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { run(t, seed) })
		if !ok {
			return
		}
	}
}

// Sometimes is true once in n times, never when n is 0.
func Sometimes(rnd *rand.Rand, n int) bool { return n > 0 && rnd.IntN(n) == 0 }
