package dirlock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ClosedInOrder tells whether the last one who held a disk directory for writing closed it
// in order: the lock file says so, or is empty or gone; whoever is killed leaves the words of
// a holder. It is meant for after Holder has said that nobody holds it any more; while
// somebody does, it is false. Who asks for the end of a certain session uses Session.
func ClosedInOrder(dir string) (bool, error) {
	f, err := openFile(filepath.Join(dir, Name), os.O_RDONLY)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look how %s was closed: %w", dir, err)
	}
	defer f.Close() // read only
	info, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("look how %s was closed: %w", dir, err)
	}
	if info.Size() == 0 {
		return true, nil
	}
	words, ok := readWords(f)
	return ok && words.PID == 0 && len(words.Ended) > 0 && !words.Ended[0].Died && words.Ended[0].Error == "", nil
}
