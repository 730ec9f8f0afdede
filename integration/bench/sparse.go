package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// A disk of 1 TiB in which little was written, mounted: what an export of a snapshot
// takes beside cp, which asks the mount for each run of data once.
const (
	sparseExport kind = "varve export, 1 TiB, 16 MiB of data"
	sparseCopy   kind = "cp --sparse=auto of the view"

	sparseRow     = "export-sparse-1t"
	sparseExtents = 16
)

func (b *bench) sparseExportRow() row {
	return row{name: sparseRow, unit: "s", lowerBetter: true, before: settle, do: doSparse, contestants: []contestant{
		{kind: sparseExport, depth: 1, fresh: true}, {kind: sparseCopy, depth: 1, fresh: true},
	}}
}

func (b *bench) startSparse(c contestant, s *server) error {
	s.disk, s.tool = filepath.Join(s.dir, "disk.varve"), c.kind
	if _, err := b.command("", b.varve, "create", s.disk, "--size", fmt.Sprint(bigBytes)); err != nil {
		return err
	}
	if err := b.mountVarve(c, s, s.disk); err != nil {
		return err
	}
	if err := writeSparse(s.file); err != nil {
		return err
	}
	_, err := b.command("", b.varve, "snapshot", s.mountpoint, "low")
	return err
}

// writeSparse writes extents of 1 MiB, far from each other.
func writeSparse(file string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	data := make([]byte, mib)
	for i := range int64(sparseExtents) {
		for k := range data {
			data[k] = byte(int64(k)*7 + i + 1)
		}
		if _, err := f.WriteAt(data, bigBytes/sparseExtents*i); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

func doSparse(b *bench, s *server) (sample, error) {
	out := filepath.Join(s.dir, "out.raw")
	do := []string{b.varve, "export", s.mountpoint, "low", out, "--format", "raw"}
	if s.tool == sparseCopy {
		do = []string{"cp", "--sparse=auto", filepath.Join(s.mountpoint, "layers", "low.raw"), out}
	}
	got, err := b.timed(bigBytes, do[0], do[1:]...)
	if err != nil {
		return sample{}, err
	}
	if size := sizeOf(out); size != bigBytes {
		return sample{}, fmt.Errorf("%s has %d bytes, want %d", out, size, bigBytes)
	}
	return sample{got.More["seconds"], nil}, nil
}
