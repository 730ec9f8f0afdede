package hostfs

import (
	"errors"

	"golang.org/x/sys/unix"
)

// IsFull says whether an error is the want of room on the host: of its file system, of a
// quota, or for a file that is as large as a file may be there.
func IsFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}
