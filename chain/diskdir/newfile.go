package diskdir

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"varve/overlay/hostfs"
)

// WriteNew makes a new file, 0600 whatever the umask, with a durable content.
// Its name is durable after the directory's SyncDir.
func WriteNew(fs hostfs.FS, path string, data []byte) error {
	f, err := fs.Open(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	err = func() error {
		if err := SetMode(fs, path, 0o600); err != nil {
			return err
		}
		if n, err := f.WriteAt(data, 0); err != nil {
			return err
		} else if n < len(data) {
			return fmt.Errorf("write %s: %w", path, io.ErrShortWrite)
		}
		return f.Datasync()
	}()
	return errors.Join(err, f.Close())
}

// SetMode gives what was just made its mode whatever the umask. A simulated
// file system has none.
func SetMode(fs hostfs.FS, path string, mode os.FileMode) error {
	if !OnHost(fs) {
		return nil
	}
	if d, ok := fs.(*Dir); ok {
		return d.Chmod(path, mode)
	}
	return os.Chmod(path, mode)
}
