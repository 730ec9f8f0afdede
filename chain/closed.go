package chain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ClosedInOrder tells whether the last one who held a disk directory for
// writing closed it in order: whoever fails to, or is killed, leaves his words
// in the lock file. It is meant for after Holder has said that nobody holds it
// any more; while somebody does, it is false.
func ClosedInOrder(dir string) (bool, error) {
	info, err := os.Stat(filepath.Join(dir, lockName))
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look how %s was closed: %w", dir, err)
	}
	return info.Size() == 0, nil
}
