package export

import (
	"errors"
	"fmt"
	"os"

	"varve/chain"
	"varve/cmd/varve/internal/client"
	"varve/cmd/varve/internal/where"
	"varve/overlay/hostfs"
)

// checkReplaced refuses an OUT that is there and is needed: as a file of this disk,
// such as its base, as the image of another disk, or by whoever has it open as an
// image. Its content would be lost with the name.
func checkReplaced(t where.Target, out string, info os.FileInfo) error {
	if err := checkLayer(t, out, info); err != nil {
		return err
	}
	if dir, err := chain.DirFor(out); err == nil && where.IsDiskDirectory(dir) {
		return fmt.Errorf("%s is the image of the disk %s; name another file", out, dir)
	}
	f, err := hostfs.OS().Open(out, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	err = f.Lock(hostfs.LockWritable)
	if errors.Is(err, hostfs.ErrLocked) {
		err = fmt.Errorf("%w; name another file", err)
	}
	return errors.Join(err, f.Close())
}

// checkLayer refuses a file that is one of this disk's.
func checkLayer(t where.Target, out string, info os.FileInfo) error {
	layers, err := client.Layers(t)
	if err != nil {
		return err
	}
	for _, l := range layers {
		if file, err := os.Stat(l.File); err == nil && os.SameFile(file, info) {
			return fmt.Errorf("%s is a file of this disk (%s); name another one", out, client.Titles(layers)[l.ID])
		}
	}
	return nil
}
