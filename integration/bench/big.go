package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"varve/integration/bigchain"
)

// varveBig is varve on a disk of 1 TiB with a million extents in all, of 4 KiB
// each. At depth 1 the leaf has all of them, everywhere on the disk; deeper, each
// layer and the leaf have the same number, within 1 GiB each.
const varveBig kind = "varve, 1 TiB, a million extents"

const (
	bigBytes   = int64(1) << 40
	bigExtents = 1 << 20
	hotBytes   = int64(256 << 20) // of a disk that is large enough
)

func (b *bench) hot() int64 { return min(hotBytes, b.size()) }

// snapshotBigRow rewrites a range of a big disk, and of a raw file: what the host
// itself does to the slowest write.
func (b *bench) snapshotBigRow(load fioJob) row {
	load.span = b.hot()
	filled := func(b *bench, s *server) error {
		_, err := b.fio(s.file, fioJob{rw: "write", block: mib, depth: 4, bytes: b.hot(), offset: s.hot, span: b.hot()})
		return errors.Join(err, settle(b, s))
	}
	return row{name: "snapshot-1t-8000", unit: "ms stall", lowerBetter: true, before: filled, do: stall(load), contestants: []contestant{
		{kind: varveBig, depth: 1, fresh: true}, {kind: varveBig, depth: 128, fresh: true}, {kind: rawFile},
	}}
}

// startBig makes and mounts a disk whose leaf is the topmost layer of those that
// bigchain makes: it merges the empty leaf above into it.
func (b *bench) startBig(c contestant, s *server) error {
	o := bigchain.Options{Layers: c.depth, Size: bigBytes, Run: 4096, Base: true, Placement: bigchain.Clustered}
	if c.depth == 1 {
		o.Placement = bigchain.Random
	}
	o.Mapped = bigExtents / int64(c.depth) * o.Run
	s.disk = filepath.Join(s.dir, "disk.varve")
	if err := bigchain.Disk(s.disk, o); err != nil {
		return err
	}
	top := c.depth - 1
	if _, err := b.command("", b.varve, "delete", s.disk, bigchain.LayerName(top)); err != nil {
		return err
	}
	// That the leaf is that layer now, and not a copy, its extents tell.
	status, err := b.command("", b.varve, "status", "--json", s.disk)
	if err != nil {
		return err
	}
	leaf, err := leafOf(status)
	if err != nil {
		return err
	}
	if leaf.Depth != c.depth+1 || leaf.OwnBytes != o.Mapped {
		return fmt.Errorf("the leaf is layer %d with %d bytes, want %d with %d", leaf.Depth, leaf.OwnBytes, c.depth+1, o.Mapped)
	}
	runs, err := o.Runs(top)
	if err != nil {
		return err
	}
	// In the middle of what the leaf maps.
	s.hot = min(runs[len(runs)/2]/b.hot()*b.hot(), bigBytes-b.hot())
	if err := b.mountVarve(c, s, s.disk); err != nil {
		return err
	}
	if size := sizeOf(s.file); size != bigBytes {
		return fmt.Errorf("%s has %d bytes, want %d", filepath.Base(s.file), size, bigBytes)
	}
	return nil
}

type layerStatus struct {
	State    string `json:"state"`
	Depth    int    `json:"depth"`
	OwnBytes int64  `json:"own_bytes"`
}

// leafOf reads varve's status.
func leafOf(status string) (layerStatus, error) {
	var parsed struct {
		Layers []layerStatus `json:"layers"`
	}
	if err := json.Unmarshal([]byte(status), &parsed); err != nil {
		return layerStatus{}, err
	}
	for _, l := range parsed.Layers {
		if l.State == "leaf" {
			return l, nil
		}
	}
	return layerStatus{}, errors.New("status shows no leaf")
}
