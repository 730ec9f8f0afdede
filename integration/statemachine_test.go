package integration

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/integration/harness"
	"varve/integration/model"
	"varve/integration/patience"
	"varve/integration/turn"
)

var (
	machineSteps = flag.Int("machine.steps", 0, "steps of each state machine run; 0 for the default")
	machineSeed  = flag.Uint64("machine.seed", 0, "the one seed to run; 0 for several")
)

// mountTarget is a mounted disk, used through its files, as the model's target.
type mountTarget struct {
	t      *testing.T
	source string
	m      *harness.Mount
	raw    *os.File // kept open but for reverts, as a VM does
}

func (m *mountTarget) mount() error {
	m.m = harness.MountDisk(m.t, m.source)
	m.t.Cleanup(func() { m.raw.Close() }) // before the unmount that MountDisk queued
	return m.openRaw()
}

func (m *mountTarget) openRaw() (err error) {
	m.raw, err = os.OpenFile(m.m.Raw(), os.O_RDWR, 0)
	return err
}

func (m *mountTarget) Write(p []byte, off int64) error {
	_, err := m.raw.WriteAt(p, off)
	return err
}

func (m *mountTarget) Read(p []byte, off int64) error {
	_, err := m.raw.ReadAt(p, off)
	return err
}

func (m *mountTarget) Discard(off, length int64) error {
	// Half of them as a guest's discard, half as its write zeroes.
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	if off/512%2 == 1 {
		mode = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
	}
	return unix.Fallocate(int(m.raw.Fd()), mode, off, length)
}

func (m *mountTarget) Flush() error { return m.raw.Sync() }

func (m *mountTarget) Grow(size int64) error {
	if size%2 == 0 {
		return m.m.Control("resize", fmt.Sprint(size))
	}
	return m.raw.Truncate(size)
}

func (m *mountTarget) Size() (int64, error) {
	info, err := os.Stat(m.m.Raw())
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (m *mountTarget) control(name, line string) error {
	err := m.m.Control(name, line)
	if err != nil {
		words, _ := os.ReadFile(m.m.Path("control", name))
		return fmt.Errorf("%w\n%s", err, words)
	}
	return nil
}

func (m *mountTarget) Snapshot(name string) error { return m.control("snapshot", name) }
func (m *mountTarget) Delete(name string) error   { return m.control("delete", name) }
func (m *mountTarget) Flatten(name string) error  { return m.control("flatten", name) }

func (m *mountTarget) Rename(oldName, newName string) error {
	if len(newName)%2 == 0 {
		return os.Rename(m.m.Layer(oldName), m.m.Layer(newName))
	}
	return m.control("rename", oldName+" "+newName)
}

func (m *mountTarget) Revert(name string) error {
	if err := m.control("revert", name); !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("revert with disk.raw open: %v, want EBUSY", err)
	}
	if err := m.raw.Close(); err != nil {
		return err
	}
	if err := m.control("revert", name); err != nil {
		return err
	}
	return m.openRaw()
}

func (m *mountTarget) WaitJob() error {
	if job := m.m.WaitJob(patience.Hang); job != nil && job.State != "done" && job.State != "cancelled" {
		return fmt.Errorf("job %s (%s): %s: %s", job.ID, job.Kind, job.State, job.Error)
	}
	return nil
}

func (m *mountTarget) CancelJob() error {
	job := m.m.Status().Job
	if job == nil || job.State != "running" {
		return nil
	}
	if err := m.m.Control("cancel", job.ID); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

func (m *mountTarget) Names() ([]string, error) {
	entries, err := os.ReadDir(m.m.Path("layers"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() { // of partitions
			continue
		}
		name, ok := strings.CutSuffix(e.Name(), ".raw")
		if !ok {
			return nil, fmt.Errorf("layers/ has a file %q", e.Name())
		}
		names = append(names, name)
	}
	return names, nil
}

func (m *mountTarget) ReadView(name string) ([]byte, error) { return os.ReadFile(m.m.Layer(name)) }

func (m *mountTarget) Reopen(_ bool, want map[string][]byte) error {
	disk := m.m.Disk
	views := map[string]string{}
	dir := m.t.TempDir()
	for _, l := range m.m.Status().Layers {
		if content, ok := want[l.Name]; ok && (l.Name != "" || l.State == "leaf") {
			views[l.ID] = filepath.Join(dir, l.ID+".raw")
			if err := os.WriteFile(views[l.ID], content, 0o600); err != nil {
				return err
			}
		}
	}
	if err := m.raw.Close(); err != nil {
		return err
	}
	m.m.Unmount()
	harness.Judge(m.t, disk, views)
	if m.t.Failed() {
		return errors.New("the files are not right")
	}
	os.RemoveAll(dir)
	return m.mount()
}

// TestStateMachine does random steps to a real mount, with a base whose size is odd,
// a blank disk, and an adopted chain of qemu-img's, and compares every view with a
// model in memory. Ten seeds take turns; make test-long does thousands of steps.
func TestStateMachine(t *testing.T) {
	steps, seeds := 200, []uint64{1 + uint64(turn.Of(0, 10))}
	if harness.Long() {
		steps, seeds = 1500, []uint64{1, 2, 3}
	}
	if *machineSteps != 0 {
		steps = *machineSteps
	}
	if *machineSeed != 0 {
		seeds = []uint64{*machineSeed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("raw base, seed %d", seed), func(t *testing.T) {
			base := noise(seed, 9<<20+777)
			file := filepath.Join(t.TempDir(), "base.raw")
			save(t, file, base)
			harness.Guard(t, file)
			runMachine(t, file, model.Options{Seed: seed, Steps: steps, Base: base, Size: int64(len(base)), MaxSize: 24 << 20})
		})
		t.Run(fmt.Sprintf("blank, seed %d", seed), func(t *testing.T) {
			disk := filepath.Join(t.TempDir(), "blank.varve")
			harness.Run(t, harness.Varve(), "create", disk, "--size", "10M")
			runMachine(t, disk, model.Options{Seed: seed, Steps: steps, Size: 10 << 20, MaxSize: 24 << 20})
		})
		t.Run(fmt.Sprintf("adopted chain, seed %d", seed), func(t *testing.T) {
			dir := t.TempDir()
			raw := filepath.Join(dir, "base.raw")
			base := noise(seed, 8<<20)
			save(t, raw, base)
			one, top := filepath.Join(dir, "one.qcow2"), filepath.Join(dir, "top.qcow2")
			harness.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", one)
			harness.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 300k", "-c", "write -z 3M 1M", one)
			harness.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", one, "-F", "qcow2", top, "10M")
			harness.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 9 1200k 7k", "-c", "write -c -P 5 9M 64k", top)
			extra := map[string][]byte{}
			for name, file := range map[string]string{"layer-1": one, "adopted": top} {
				out := filepath.Join(dir, name+".out")
				harness.Convert(t, file, "qcow2", out, "raw")
				extra[name] = load(t, out)
			}
			harness.Guard(t, raw, one, top)
			runMachine(t, top, model.Options{Seed: seed, Steps: steps, Base: base, Size: 10 << 20, MaxSize: 24 << 20, Extra: extra, Top: "adopted"})
		})
	}
}

func runMachine(t *testing.T, source string, o model.Options) {
	target := &mountTarget{t: t, source: source}
	if err := target.mount(); err != nil {
		t.Fatal(err)
	}
	// Reopening, which looks at everything as well, and single views come more often.
	o.Every = 60
	if err := model.Run(target, o); err != nil {
		t.Fatalf("run again with -machine.seed %d -machine.steps %d: %v", o.Seed, o.Steps, err)
	}
}

// noise is random but for some stretches of zeros.
func noise(seed uint64, size int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	p := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(p) // never fails
	for at := 0; at+200000 < size; at += 700001 {
		clear(p[at : at+200000])
	}
	return p
}

func save(t *testing.T, file string, p []byte) {
	t.Helper()
	if err := os.WriteFile(file, p, 0o600); err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T, file string) []byte {
	t.Helper()
	p, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
