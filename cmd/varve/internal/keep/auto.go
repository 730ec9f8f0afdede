package keep

import (
	"errors"
	"syscall"
	"time"

	"varve/chain"
)

// autoLayout is how a snapshot with --auto is named, in UTC, as of time.Format.
const autoLayout = "auto-20060102T150405Z"

// IsAuto says whether a snapshot has the name of an automatic one.
func IsAuto(name string) bool {
	_, err := time.Parse(autoLayout, name)
	return err == nil
}

// mostByTime is how many may take snapshots by time at once; the last of them waits that
// many seconds.
const mostByTime = 60

// ByTime has a snapshot taken that is named by the time. It waits for the next second
// where this one has a snapshot already.
func ByTime(take func(name string) error) (name string, err error) {
	for attempt := 0; ; attempt++ {
		now := time.Now().UTC()
		name = now.Format(autoLayout)
		err = take(name)
		if (errors.Is(err, chain.ErrExist) || errors.Is(err, syscall.EEXIST)) && attempt < mostByTime {
			time.Sleep(time.Until(now.Truncate(time.Second).Add(time.Second)))
			continue
		}
		return name, err
	}
}
