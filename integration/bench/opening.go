package main

import (
	"errors"
	"os"
	"path/filepath"
	"time"
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
	if b.disk != "" {
		rows = append(rows, row{name: "open-disk", unit: "ms", lowerBetter: true, contestants: []contestant{{kind: opening, fresh: true}}, do: openMount})
	}
	return rows
}

// opening is varve that is not mounted yet.
const opening kind = "varve mount"

func (b *bench) startOpening(c contestant, s *server) error {
	s.mountpoint, s.disk = filepath.Join(s.dir, "mnt"), b.disk
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
	if err := d.until("mount", exists(file)); err != nil {
		return sample{}, err
	}
	ready := time.Since(start)
	resident, err := mounted.memory("VmRSS")
	if err != nil {
		return sample{}, err
	}
	start = time.Now()
	if _, err := readFirst(file); err != nil {
		return sample{}, err
	}
	first := time.Since(start)
	return sample{ready.Seconds() * 1000, map[string]float64{"resident MiB": resident, "first read us": float64(first.Microseconds())}}, nil
}

func readFirst(file string) (int, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	return f.ReadAt(make([]byte, 4096), 0)
}
