package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// qemuCluster is QEMU's default.
const qemuCluster = 64 << 10

// base is a raw image full of random bytes.
func (b *bench) base() (string, error) {
	return b.image("base", func(path string) error {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if _, err := io.CopyN(f, rand.Reader, b.size()); err != nil {
			return err
		}
		return f.Sync()
	})
}

// flat is a copy of the base that can be written to.
func (b *bench) flat() (string, error) {
	base, err := b.base()
	if err != nil {
		return "", err
	}
	return b.image("flat", func(path string) error {
		_, err := b.command("", "cp", "--reflink=never", base, path)
		return err
	})
}

// top is the topmost file of a chain with depth files below the writable one:
// the base, and qcow2 overlays by qemu-img that have each 1/depth of the disk in
// clusters at random places. Every reader of one depth gets the same files.
func (b *bench) top(depth int) (string, error) {
	base, err := b.base()
	if err != nil || depth <= 1 {
		return base, err
	}
	return b.image(fmt.Sprintf("depth%d", depth), func(path string) error {
		dir := path + ".d"
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		random := mathrand.New(mathrand.NewPCG(1, uint64(depth)))
		backing, format := base, "raw"
		clusters := b.size() / qemuCluster
		for i := 1; i < depth; i++ {
			layer := filepath.Join(dir, fmt.Sprintf("%04d.qcow2", i))
			if i == depth-1 {
				layer = path
			}
			// -u and a null backing: both commands open this one file. With all those
			// below it, each would take longer than the one before.
			if _, err := b.command("", "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format,
				layer, strconv.FormatInt(b.size(), 10)); err != nil {
				return err
			}
			alone, err := json.Marshal(map[string]any{
				"driver": "qcow2", "backing": nil, "file": map[string]any{"driver": "file", "filename": layer},
			})
			if err != nil {
				return err
			}
			var script strings.Builder
			for range max(1, clusters/int64(depth)) {
				fmt.Fprintf(&script, "write -q -P %d %d 64k\n", i%255+1, random.Int64N(clusters)*qemuCluster)
			}
			if _, err := b.command(script.String(), "qemu-io", "-t", "unsafe", "json:"+string(alone)); err != nil {
				return err
			}
			backing, format = layer, "qcow2"
		}
		return nil
	})
}

// image makes a file once in a run.
func (b *bench) image(name string, create func(path string) error) (string, error) {
	if path, ok := b.images[name]; ok {
		return path, nil
	}
	path := filepath.Join(b.dir, name)
	if !strings.HasPrefix(name, "depth") {
		path += ".raw"
	} else {
		path += ".qcow2"
	}
	if err := create(path); err != nil {
		return "", fmt.Errorf("make %s: %w", name, err)
	}
	b.images[name] = path
	return path, nil
}

// fill writes a whole disk once, so that what follows is written in place.
func (b *bench) fill(file string) error {
	_, err := b.fio(file, fioJob{rw: "write", block: 1 << 20, depth: 4, bytes: b.size()})
	if err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	_, err = b.command("", "sync", "-f", file)
	return err
}

// readThrough reads a whole disk once: the page cache and a cache of places know
// all of it.
func (b *bench) readThrough(file string) error {
	_, err := b.command("", "dd", "if="+file, "of=/dev/null", "bs=1M", "status=none")
	return err
}

// dropCaches empties the page cache of the whole machine.
func (b *bench) dropCaches() error {
	if _, err := b.command("", "sync"); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0)
}
