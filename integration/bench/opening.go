package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"varve/integration/bigchain"
)

// openRows time `varve mount` until it returns, which is when the mount is
// ready, on chains that qemu-img made and on a disk that was given.
func (b *bench) openRows() []row {
	if b.suite == "quick" {
		return nil
	}
	depths := []int{1, 128}
	if b.suite == "full" {
		depths = append(depths, 1000)
	}
	var list []contestant
	for _, d := range depths {
		list = append(list, contestant{kind: opening, depth: d, fresh: true})
	}
	rows := []row{{name: "open", unit: "ms", lowerBetter: true, contestants: list, before: b.adopt, do: openMount}}
	rows = append(rows, row{name: "open-1t", unit: "ms", lowerBetter: true, contestants: []contestant{{kind: openingBig, fresh: true}}, do: openMount})
	if b.disk != "" {
		rows = append(rows, row{name: "open-disk", unit: "ms", lowerBetter: true, contestants: []contestant{{kind: opening, fresh: true}}, do: openMount})
	}
	return rows
}

// opening is varve that is not mounted yet.
const opening kind = "varve mount"

// openingBig opens a disk of 1 TiB whose 128 layers map 10 GiB each.
const openingBig kind = "varve mount, 1 TiB, 128 layers"

// bigDisk makes that disk, of metadata over sparse files, once.
func (b *bench) bigDisk() (string, error) {
	if path := b.images["big"]; path != "" {
		return path, nil
	}
	path := filepath.Join(b.dir, "big.varve")
	err := bigchain.Disk(path, bigchain.Options{Layers: 128, Size: 1 << 40, Mapped: 10 << 30, Base: true})
	if err == nil {
		b.images["big"] = path
	}
	return path, err
}

func (b *bench) startOpening(c contestant, s *server) error {
	s.mountpoint, s.disk = filepath.Join(s.dir, "mnt"), b.disk
	if c.kind == openingBig {
		disk, err := b.bigDisk()
		if err != nil {
			return err
		}
		s.disk = disk
	}
	if c.depth > 0 {
		top, err := b.top(c.depth)
		if err != nil {
			return err
		}
		s.file, s.disk = top, filepath.Join(s.dir, "disk.varve")
	}
	return os.Mkdir(s.mountpoint, 0o700)
}

// adopt makes the disk directory of a chain, so that what is measured is a later
// mount.
func (b *bench) adopt(_ *bench, s *server) error {
	if _, err := b.command("", b.varve, "mount", "--disk", s.disk, s.file, s.mountpoint); err != nil {
		return err
	}
	_, err := always(b.varve, "umount", s.mountpoint)
	return err
}

func openMount(b *bench, s *server) (_ sample, err error) {
	start := time.Now()
	d, err := launch(filepath.Join(s.dir, "log"), b.varve, "mount", "--foreground", s.disk, s.mountpoint)
	if err != nil {
		return sample{}, err
	}
	mounted := &server{pids: []int{d.cmd.Process.Pid}}
	s.stop = func() error {
		_, err := always(b.varve, "umount", s.mountpoint)
		return errors.Join(err, d.end(0))
	}
	defer func() {
		err = errors.Join(err, s.stop())
		s.stop = func() error { return nil }
	}()
	file := filepath.Join(s.mountpoint, "disk.raw")
	if err := d.until("mount", mountedAt(s.mountpoint)); err != nil {
		return sample{}, err
	}
	ready := time.Since(start)
	// By itself: what is not counted yet is waited for a moment.
	start = time.Now()
	if _, err := os.Stat(file); err != nil {
		return sample{}, err
	}
	stat := time.Since(start)
	resident, err := mounted.memory("VmRSS")
	if err != nil {
		return sample{}, err
	}
	start = time.Now()
	// A read that hangs cannot be given up; without its daemon it fails.
	giveUp, cancel := context.WithTimeout(b.ctx, time.Minute)
	stopWatch := context.AfterFunc(giveUp, func() { _ = d.cmd.Process.Kill() })
	_, err = readFirst(file)
	stopWatch()
	cancel()
	if err != nil {
		return sample{}, fmt.Errorf("first read: %w", err)
	}
	first := time.Since(start)
	return sample{ready.Seconds() * 1000, map[string]float64{
		"resident MiB": resident, "first read us": float64(first.Microseconds()), "first stat ms": stat.Seconds() * 1000,
	}}, nil
}

// mountedAt asks the mount's root only.
func mountedAt(dir string) func() bool {
	return func() bool {
		var here, above unix.Stat_t
		return unix.Stat(dir, &here) == nil && unix.Stat(filepath.Dir(dir), &above) == nil && here.Dev != above.Dev
	}
}

func readFirst(file string) (int, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	return f.ReadAt(make([]byte, 4096), 0)
}
