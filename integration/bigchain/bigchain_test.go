package bigchain

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"

	"varve/chain"
	"varve/overlay/hostfs"
)

// The judges are qemu-img, of every layer and of the chain, and the runs
// themselves: what a layer maps, and what of it is data in the view of the leaf.
func TestBigChain(t *testing.T) {
	for name, o := range map[string]Options{
		"spread":    {Layers: 3, Size: 64 << 30, Mapped: 1 << 30, Run: 1 << 20, Placement: Spread},
		"clustered": {Layers: 3, Size: 64 << 30, Mapped: 10 << 30, Placement: Clustered, Base: true},
		"random":    {Layers: 2, Size: 12 << 30, Mapped: 48 << 20, Run: 12 << 10, Placement: Random, Seed: 7, Base: true},
		"full":      {Layers: 1, Size: 96 << 20, Mapped: 96 << 20, Run: 32 << 10, Placement: Clustered},
		"refcounts": {Layers: 1, Size: 64 << 30, Mapped: 20 << 30, Placement: Spread}, // three blocks of them
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "disk.varve")
			if err := Disk(dir, o); err != nil {
				t.Fatal(err)
			}
			d, err := chain.Open(dir, chain.OpenOptions{ReadOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if err := d.CountAll(t.Context()); err != nil {
				t.Fatal(err)
			}
			st, err := d.Status()
			if err != nil {
				t.Fatal(err)
			}
			mapped := map[int64]bool{}
			byName := map[string]chain.LayerStatus{}
			for _, l := range st.Layers {
				byName[l.Name] = l
				if l.Format != "qcow2" {
					continue
				}
				var check struct {
					Errors int64 `json:"check-errors"`
					Leaks  int64 `json:"leaks"`
				}
				out, err := exec.Command("qemu-img", "check", "-U", "--output=json", l.File).Output()
				if err != nil {
					t.Fatalf("qemu-img check %s: %v\n%s", l.File, err, out)
				}
				if err := json.Unmarshal(out, &check); err != nil || check.Errors+check.Leaks != 0 {
					t.Fatalf("qemu-img check %s: %v\n%s", l.File, err, out)
				}
			}
			for i := range o.Layers {
				runs, err := o.Runs(i)
				if err != nil {
					t.Fatal(err)
				}
				for _, at := range runs {
					mapped[at] = true
				}
				if l := byName[LayerName(i)]; l.OwnBytes != o.Mapped || l.Foreign {
					t.Errorf("layer %d maps %d bytes, not %d: %+v", i, l.OwnBytes, o.Mapped, l)
				}
			}
			full, err := o.withDefaults()
			if err != nil {
				t.Fatal(err)
			}
			if got, _, err := d.AllocatedBytes(); err != nil || got != int64(len(mapped))*full.Run {
				t.Errorf("%d bytes of the leaf's view are data, %v; %d runs of %d are mapped", got, err, len(mapped), full.Run)
			}
		})
	}
}

// A big one is small on the host: 128 layers over 1 TiB, 10 GiB in each.
func TestBigChainIsSmall(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 350 MiB")
	}
	dir := filepath.Join(t.TempDir(), "disk.varve")
	o := Options{Layers: 128, Size: 1 << 40, Mapped: 10 << 30, Placement: Clustered}
	if err := Disk(dir, o); err != nil {
		t.Fatal(err)
	}
	d, err := chain.Open(dir, chain.OpenOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var host int64
	for _, l := range d.Layers() {
		info, err := hostfs.OS().Stat(l.File)
		if err != nil {
			t.Fatal(err)
		}
		host += info.Blocks
	}
	if host > 512<<20 {
		t.Errorf("it takes %d MiB on the host", host>>20)
	}
}
