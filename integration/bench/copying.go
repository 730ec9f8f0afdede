package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Tools that the copying jobs are measured against, and cp as the limit.
const (
	copyPlain  kind = "cp --sparse=always"
	copySynced kind = "cp --sparse=always and sync"
	imgConvert kind = "qemu-img convert"
	imgRebase  kind = "qemu-img rebase"
	imgCommit  kind = "qemu-img commit"
)

// copyRows move the bytes of a whole disk, or of three eighths of it (delete). The
// unit is MB/s of guest bytes until all is done; of varve's jobs that is until they
// are durable. The rows in seconds do the same job on two sizes, where the host
// file system can clone.
func (b *bench) copyRows() []row {
	if b.suite == "quick" {
		return nil
	}
	cps := []contestant{{kind: copyPlain, fresh: true}, {kind: copySynced, fresh: true}}
	with := func(tools ...kind) []contestant {
		list := []contestant{{kind: varveMount, depth: 1, fresh: true}}
		for _, t := range tools {
			list = append(list, contestant{kind: t, fresh: true})
		}
		return append(list, cps...)
	}
	var rows []row
	for _, host := range []string{"", "xfs-"} {
		rows = append(rows,
			row{name: host + "flatten", unit: "MB/s", xfs: host != "", contestants: with(imgRebase), before: beforeFlatten, do: doFlatten},
			row{name: host + "delete-up", unit: "MB/s", xfs: host != "", contestants: with(imgCommit), before: beforeDelete(true), do: doDelete},
			row{name: host + "delete-down", unit: "MB/s", xfs: host != "", contestants: with(imgCommit), before: beforeDelete(false), do: doDelete},
			row{name: host + "export", unit: "MB/s", xfs: host != "", contestants: with(imgConvert), before: settle, do: doExport})
	}
	sizes := []contestant{{kind: varveMount, depth: 1, fresh: true}, {kind: varveMount, depth: 1, fresh: true, quarter: true}}
	return append(rows,
		row{name: "xfs-flatten-4x", unit: "s", lowerBetter: true, xfs: true, contestants: sizes, before: beforeFlatten, do: inSeconds(doFlatten)},
		row{name: "xfs-delete-up-4x", unit: "s", lowerBetter: true, xfs: true, contestants: sizes, before: beforeDelete(true), do: inSeconds(doDelete)},
		row{name: "xfs-delete-down-4x", unit: "s", lowerBetter: true, xfs: true, contestants: sizes, before: beforeDelete(false), do: inSeconds(doDelete)},
		row{name: "xfs-export-4x", unit: "s", lowerBetter: true, xfs: true, contestants: sizes, before: settle, do: inSeconds(doExport)},
		b.sparseExportRow(), b.loadRow())
}

// inSeconds is a measurement in MB/s as one of its time.
func inSeconds(do func(*bench, *server) (sample, error)) func(*bench, *server) (sample, error) {
	return func(b *bench, s *server) (sample, error) {
		got, err := do(b, s)
		if err != nil {
			return sample{}, err
		}
		return sample{got.More["seconds"], map[string]float64{"MB/s": got.Value}}, nil
	}
}

// startTool makes what a tool works on: an empty overlay on the base.
func (b *bench) startTool(c contestant, s *server) error {
	base, err := b.base()
	if err != nil {
		return err
	}
	s.tool, s.file = c.kind, filepath.Join(s.dir, "overlay.qcow2")
	_, err = b.command("", "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", s.file)
	return err
}

func beforeFlatten(b *bench, s *server) error {
	if s.tool != "" {
		return settle(b, s)
	}
	if _, err := b.command("", b.varve, "snapshot", s.mountpoint, "low"); err != nil {
		return err
	}
	return settle(b, s)
}

func doFlatten(b *bench, s *server) (sample, error) {
	if s.tool == "" {
		return b.timed(b.size(), b.varve, "flatten", s.mountpoint, "low")
	}
	if s.tool == imgRebase {
		return b.timed(b.size(), "qemu-img", "rebase", "-b", "", s.file)
	}
	return b.cp(s, b.size())
}

// moved is what a delete copies: the smaller one of two layers that together are
// as large as the disk.
func (b *bench) moved() int64 { return b.size() / 8 * 3 }

// beforeDelete writes one part of the disk below a snapshot and the other above.
// Up: the layer that is to be deleted is the smaller one; otherwise that above it
// is. qemu-img commit always copies the upper one, which is the smaller.
func beforeDelete(up bool) func(*bench, *server) error {
	return func(b *bench, s *server) error {
		lower := b.moved()
		if !up || s.tool != "" {
			lower = b.size() - lower
		}
		switch s.tool {
		case "":
			for i, name := range []string{"keep", "low"} {
				from, to := int64(i)*lower, lower+int64(i)*(b.size()-lower)
				if err := b.writePart(s.file, from, to); err != nil {
					return err
				}
				if _, err := b.command("", b.varve, "snapshot", s.mountpoint, name); err != nil {
					return err
				}
			}
		case imgCommit:
			upper := filepath.Join(s.dir, "upper.qcow2")
			if _, err := b.command(fmt.Sprintf("write -q 0 %d\n", lower), "qemu-io", "-f", "qcow2", s.file); err != nil {
				return err
			}
			if _, err := b.command("", "qemu-img", "create", "-q", "-f", "qcow2", "-b", s.file, "-F", "qcow2", upper); err != nil {
				return err
			}
			if _, err := b.command(fmt.Sprintf("write -q %d %d\n", lower, b.size()-lower), "qemu-io", "-f", "qcow2", upper); err != nil {
				return err
			}
			s.file = upper
		}
		return settle(b, s)
	}
}

// writePart writes the base's bytes of a part of the disk to the same place.
func (b *bench) writePart(file string, from, to int64) error {
	_, err := b.command("", "dd", "if="+b.images["base"], "of="+file, "bs=1M", "conv=notrunc", "status=none",
		fmt.Sprintf("skip=%d", from/mib), fmt.Sprintf("seek=%d", from/mib), fmt.Sprintf("count=%d", (to-from)/mib))
	return err
}

func doDelete(b *bench, s *server) (sample, error) {
	moved := b.moved()
	switch s.tool {
	case "":
		return b.timed(moved, b.varve, "delete", s.mountpoint, "keep")
	case imgCommit:
		return b.timed(moved, "qemu-img", "commit", "-q", s.file)
	}
	return b.cp(s, moved)
}

func doExport(b *bench, s *server) (sample, error) {
	out := filepath.Join(s.dir, "out.raw")
	switch s.tool {
	case "":
		if !b.canExport() {
			return b.timed(b.size(), "cp", "--sparse=always", s.file, out)
		}
		if _, err := b.command("", b.varve, "snapshot", s.mountpoint, "low"); err != nil {
			return sample{}, err
		}
		return b.timed(b.size(), b.varve, "export", s.mountpoint, "low", out, "--format", "raw")
	case imgConvert:
		return b.timed(b.size(), "qemu-img", "convert", "-O", "raw", s.file, out)
	}
	return b.cp(s, b.size())
}

// canExport: an older varve has no export; then its mount is read by cp.
func (b *bench) canExport() bool {
	out, err := b.command("", b.varve, "--help")
	return err == nil && strings.Contains(out, "\n  export ")
}

// cp copies the first bytes of the base, which is full.
func (b *bench) cp(s *server, bytes int64) (sample, error) {
	from := b.images["base"]
	if bytes < b.size() {
		part, err := b.image("part", func(path string) error {
			_, err := b.command("", "dd", "if="+from, "of="+path, "bs=1M", fmt.Sprintf("count=%d", bytes/mib), "status=none", "conv=fsync")
			return err
		})
		if err != nil {
			return sample{}, err
		}
		from = part
	}
	start := time.Now()
	out := filepath.Join(s.dir, "copy")
	if _, err := b.timed(bytes, "cp", "--sparse=always", from, out); err != nil {
		return sample{}, err
	}
	if s.tool == copySynced {
		f, err := os.OpenFile(out, os.O_RDWR, 0)
		if err != nil {
			return sample{}, err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return sample{}, err
		}
	}
	return rate(bytes, time.Since(start)), nil
}

func (b *bench) timed(bytes int64, name string, args ...string) (sample, error) {
	start := time.Now()
	if _, err := b.command("", name, args...); err != nil {
		return sample{}, err
	}
	return rate(bytes, time.Since(start)), nil
}

func rate(bytes int64, took time.Duration) sample {
	return sample{float64(bytes) / 1e6 / took.Seconds(), map[string]float64{"seconds": took.Seconds()}}
}

// onXFS is a bench of its own whose files are on xfs with reflink, on a loop
// device. It ends with this one.
func (b *bench) onXFS() (*bench, error) {
	if b.xfs != nil {
		return b.xfs, nil
	}
	image, mountpoint := filepath.Join(b.dir, "xfs.img"), filepath.Join(b.dir, "xfs")
	f, err := os.Create(image)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(6*b.size()+(1<<30)), f.Close(), os.Mkdir(mountpoint, 0o700)); err != nil {
		return nil, err
	}
	if _, err := b.command("", "mkfs.xfs", "-q", "-m", "reflink=1", image); err != nil {
		return nil, err
	}
	if _, err := b.command("", "mount", "-o", "loop", image, mountpoint); err != nil {
		return nil, err
	}
	// The loop device goes with the mount.
	b.started = append(b.started, &server{stop: func() error { return unmount(mountpoint) }})
	o := b.options
	o.dir = mountpoint
	if b.xfs, err = newBench(b.ctx, o); err != nil {
		return nil, err
	}
	b.xfs.within = true
	return b.xfs, nil
}
