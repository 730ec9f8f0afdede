package chain

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// explainLimit adds to an error of opening the files of a chain what the limit
// was, where there was one, and the way out. Every layer is an open file; Go has
// raised the soft limit to the hard one already (and gives children the old one).
func explainLimit(err error, layers int) error {
	switch {
	case errors.Is(err, unix.EMFILE):
		var limit unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
			return err
		}
		return fmt.Errorf("%w: the chain has %d layers, each an open file, and this process may open %d; raise the hard limit (ulimit -Hn, LimitNOFILE= of a systemd unit), or delete snapshots", err, layers, limit.Cur)
	case errors.Is(err, unix.ENFILE):
		return fmt.Errorf("%w: the chain has %d layers, each an open file, and the host has no more to give; raise fs.file-max (sysctl)", err, layers)
	}
	return err
}
