package chain

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"varve/chain/manifest"
	"varve/integration/model"
	"varve/integration/turn"
	"varve/overlay/hostfs"
)

var modelSteps = flag.Int("model.steps", 250, "steps of each run against the model")
var modelEvery = flag.Int("model.every", 0, "steps between comparisons of all views; 0 for the default")
var modelSeed = flag.Uint64("model.seed", 0, "the one seed to run against the model; 0 for several")

// diskTarget is a Disk, without FUSE, as the model's target.
type diskTarget struct {
	t    *testing.T
	dir  string
	opts OpenOptions
	d    *Disk
}

func (d *diskTarget) Write(p []byte, off int64) error { return d.d.WriteAt(p, off) }
func (d *diskTarget) Read(p []byte, off int64) error  { return d.d.ReadAt(p, off) }
func (d *diskTarget) Discard(off, n int64) error      { return d.d.Discard(off, n) }
func (d *diskTarget) Flush() error                    { return d.d.Flush() }
func (d *diskTarget) Grow(size int64) error           { return d.d.Resize(size) }
func (d *diskTarget) Size() (int64, error)            { return d.d.Size(), nil }
func (d *diskTarget) Snapshot(name string) error      { return d.d.Snapshot(name) }
func (d *diskTarget) Revert(name string) error        { return d.d.Revert(name) }
func (d *diskTarget) Delete(name string) error        { _, err := d.d.Delete(name); return err }
func (d *diskTarget) Flatten(name string) error       { _, err := d.d.Flatten(name); return err }
func (d *diskTarget) Rename(a, b string) error        { return d.d.Rename(a, b) }

func (d *diskTarget) WaitJob() error {
	for {
		j := d.d.lastJob()
		if !j.running() {
			return nil
		}
		s, err := d.d.WaitJob(context.Background(), j.id)
		if err != nil {
			return err
		}
		if s.State != JobDone {
			return fmt.Errorf("job %s: %s: %s", s.ID, s.State, s.Error)
		}
	}
}

func (d *diskTarget) CancelJob() error {
	j := d.d.lastJob()
	if !j.running() {
		return nil
	}
	if err := d.d.Cancel(j.id); err != nil && !errors.Is(err, ErrNotExist) {
		return err
	}
	return nil
}

func (d *diskTarget) Names() ([]string, error) {
	var names []string
	for _, l := range d.d.Layers() {
		if l.Name != "" {
			names = append(names, l.Name)
		}
	}
	return names, nil
}

func (d *diskTarget) ReadView(name string) ([]byte, error) {
	m, _ := d.d.tree()
	rec := m.ByName(name)
	if rec == nil {
		return nil, os.ErrNotExist
	}
	v, err := d.d.OpenView(context.Background(), rec.ID, Opener{})
	if err != nil {
		return nil, err
	}
	defer v.Close()
	p := make([]byte, v.Size())
	return p, v.ReadAt(p, 0)
}

func (d *diskTarget) Reopen(crash bool, want map[string][]byte) error {
	if crash {
		d.kill()
	} else if err := d.d.Close(); err != nil {
		return err
	}
	if err := d.judge(crash, want); err != nil {
		return err
	}
	return d.open()
}

func (d *diskTarget) open() (err error) {
	d.d, err = Open(d.dir, d.opts)
	return err
}

// kill lets go of everything without writing, as a killed daemon does.
func (d *diskTarget) kill() {
	d.d.stopJob()
	d.d.background.stop()
	d.d.background = nil
	for _, n := range d.d.nodes {
		n.Layer().Close()
	}
	d.d.lock.Failed = errors.New("killed")
	d.d.lock.Unlock()
	d.d.closed = true
}

// judge lets qemu-img check every layer, and compare every view.
func (d *diskTarget) judge(crash bool, want map[string][]byte) error {
	m, err := manifest.Load(hostfs.OS(), d.dir)
	if err != nil {
		return err
	}
	for _, l := range m.Layers {
		if l.Format != formatQcow2 {
			continue
		}
		path := l.Path(d.dir)
		out, err := exec.Command("qemu-img", "check", "-f", "qcow2", path).CombinedOutput()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == 3 && crash {
			err = nil // leaks are what a crash may leave
		}
		if err != nil {
			return fmt.Errorf("qemu-img check %s: %v\n%s", path, err, out)
		}
		name := l.Name
		content, ok := want[name]
		if l.ID == m.Leaf {
			content, ok = want[""], true
		} else if name == "" {
			continue
		}
		if !ok {
			return fmt.Errorf("layer %s has the name %q, which nobody gave it", l.ID, name)
		}
		raw := filepath.Join(d.t.TempDir(), "view.raw")
		if out, err := exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw).CombinedOutput(); err != nil {
			return fmt.Errorf("qemu-img convert %s: %v\n%s", path, err, out)
		}
		got, err := os.ReadFile(raw)
		if err != nil {
			return err
		}
		os.Remove(raw)
		if n := len(content) &^ 511; len(got) == n {
			content = content[:n] // QEMU leaves out what is less than a sector
		}
		if !bytes.Equal(got, content) {
			i := 0
			for i < min(len(got), len(content)) && got[i] == content[i] {
				i++
			}
			return fmt.Errorf("qemu-img reads the view of %q (%s) otherwise than the model has it: %d bytes, want %d, first difference at %d", name, path, len(got), len(content), i)
		}
	}
	return nil
}

func TestDiskAgainstModel(t *testing.T) {
	t.Parallel()
	seeds := []uint64{1 + uint64(turn.Of(0, 8))} // one of eight has its turn
	switch {
	case os.Getenv("VARVE_LONG") != "":
		seeds = []uint64{1, 2, 3, 4, 5, 6, 7, 8}
	case *modelSeed != 0:
		seeds = []uint64{*modelSeed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 7))
			base := make([]byte, 17<<20+1234)
			for i := range base {
				if i>>15%3 != 0 {
					base[i] = byte(rnd.Uint32())
				}
			}
			dir := t.TempDir()
			path := filepath.Join(dir, "base.raw")
			if err := os.WriteFile(path, base, 0o600); err != nil {
				t.Fatal(err)
			}
			disk := filepath.Join(dir, "vm.varve")
			if _, err := Create(disk, CreateOptions{Base: path}); err != nil {
				t.Fatal(err)
			}
			target := &diskTarget{t: t, dir: disk, opts: OpenOptions{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), CacheBytes: 1 << 20, window: 1}}
			if err := target.open(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := target.d.Close(); err != nil {
					t.Error(err)
				}
			})
			err := model.Run(target, model.Options{
				Seed: seed, Steps: *modelSteps, Base: base, Size: int64(len(base)), MaxSize: 40 << 20, Crash: true, Every: *modelEvery,
			})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, base) {
				t.Fatalf("the base was written: %v", err)
			}
		})
	}
}
