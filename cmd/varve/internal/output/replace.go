package output

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Write writes content to a place: a file of its own whole or not at all, with a mode, or
// with 0 what the umask leaves; anything else as it stands.
func Write(ctx context.Context, place Place, content []byte, mode os.FileMode) error {
	if !place.Direct() {
		return Replace(place.Path, content, mode)
	}
	f, err := place.Open(ctx)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close())
}

// Replace writes a file whole or not at all, with a mode, or with 0 what the
// umask leaves.
func Replace(path string, content []byte, mode os.FileMode) (err error) {
	partial := Partial(path)
	f, err := os.OpenFile(partial, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return fmt.Errorf("make %s: %w", path, Underlying(err))
	}
	_, err = f.Write(content)
	if err == nil && mode != 0 {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync() // or a power cut could leave an empty one in the old one's place
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(partial, path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(Underlying(err), os.Remove(partial)))
	}
	return nil
}

// Partial is the path at which a file is written until it is whole: beside
// path, hidden, with this process's number. Of a name that is nearly as long as a
// name can be (NAME_MAX) only the beginning is in it.
func Partial(path string) string {
	name, suffix := filepath.Base(path), fmt.Sprintf(".%d.partial", os.Getpid())
	if most := unix.NAME_MAX - len(".") - len(suffix); len(name) > most {
		name = strings.ToValidUTF8(name[:most], "")
	}
	return filepath.Join(filepath.Dir(path), "."+name+suffix)
}

// Underlying leaves out the name of a file that the user has not named.
func Underlying(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
