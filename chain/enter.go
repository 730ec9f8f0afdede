package chain

import (
	"errors"
	"time"

	"varve/chain/dirlock"
	"varve/chain/diskdir"
	"varve/chain/manifest"
	"varve/chain/refusal"
	"varve/overlay/hostfs"
)

// enter gives the file system with which a disk directory is used: the host's, from a
// descriptor of the directory that is held until leave, also where fs has entered another
// one. A simulated one is used as it is.
func enter(fs hostfs.FS, dir string) (entered hostfs.FS, leave func() error, err error) {
	if !diskdir.OnHost(fs) {
		return fs, func() error { return nil }, nil
	}
	d, err := diskdir.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	return d, d.Close, nil
}

// lockDir locks a disk directory that was entered, see dirlock.Take. Where the host is too full
// for the lock file, the lock takes the disk's reserve.
func lockDir(fs hostfs.FS, dir string, exclusive bool, mountpoint string, wait time.Duration) (*dirlock.Lock, error) {
	return dirlock.Take(fs, dir, dirlock.Options{
		Exclusive: exclusive, Mountpoint: mountpoint, Wait: wait,
		MakeRoom: func() bool { return giveReserve(fs, dir) },
	})
}

// inPlace fails where the path of a disk directory leads to another one by now: what is
// asked for is meant for the disk at the path. What has begun goes on in the directory that
// was opened.
func inPlace(fs hostfs.FS) error {
	if d, ok := fs.(*diskdir.Dir); ok {
		if err := d.Moved(); err != nil {
			return refusal.Of(ErrChanged, err)
		}
	}
	return nil
}

// ManifestText reads the chain.json of a disk directory as it stands, at most 16 MiB of it.
// It takes no lock: a chain.json is replaced as a whole.
func ManifestText(dir string) ([]byte, error) {
	fs, leave, err := enter(hostfs.OS(), dir)
	if err != nil {
		return nil, err
	}
	text, err := manifest.Text(fs, dir)
	return text, errors.Join(err, leave())
}
