package chain

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain/dirlock"
	"varve/integration/patience"
)

// TestFifos: a FIFO where a file should be, in a directory that a hostile header
// or command line leads to, is an error. Opening one for reading would wait for
// a writer for ever.
func TestFifos(t *testing.T) {
	for _, c := range []struct {
		what string
		fifo string // below the root; what is there is replaced
		do   func(root string) error
	}{
		{"chain.json beside a base", "chain.json", func(root string) error {
			_, err := Create(filepath.Join(root, "new.varve"), CreateOptions{Base: filepath.Join(root, "base.raw")})
			return errors.Join(err, ErrInvalid) // it may well be made
		}},
		{"chain.json above a base", "../chain.json", func(root string) error {
			_, err := Create(filepath.Join(root, "new.varve"), CreateOptions{Base: filepath.Join(root, "base.raw")})
			return errors.Join(err, ErrInvalid)
		}},
		{"chain.json of a disk", "disk.varve/chain.json", func(root string) error {
			_, err := Open(filepath.Join(root, "disk.varve"), OpenOptions{})
			return err
		}},
		{"the lock, read-only", "disk.varve/lock", func(root string) error {
			_, err := Open(filepath.Join(root, "disk.varve"), OpenOptions{ReadOnly: true})
			return err
		}},
		{"the lock", "disk.varve/lock", func(root string) error {
			_, err := Open(filepath.Join(root, "disk.varve"), OpenOptions{})
			return err
		}},
		{"the lock, asked who holds it", "disk.varve/lock", func(root string) error {
			_, _, _, err := dirlock.Holder(filepath.Join(root, "disk.varve"))
			return err
		}},
		{"the leaf", "disk.varve/layers/000003.qcow2", func(root string) error {
			_, err := Open(filepath.Join(root, "disk.varve"), OpenOptions{})
			return err
		}},
		{"the leaf, read-only", "disk.varve/layers/000003.qcow2", func(root string) error {
			_, err := Open(filepath.Join(root, "disk.varve"), OpenOptions{ReadOnly: true})
			return err
		}},
		{"a frozen layer", "disk.varve/layers/000002.qcow2", func(root string) error {
			_, err := Open(filepath.Join(root, "disk.varve"), OpenOptions{})
			return err
		}},
		{"the base", "base.raw", func(root string) error {
			_, err := Open(filepath.Join(root, "disk.varve"), OpenOptions{})
			return err
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			must(t, os.Mkdir(root, 0o700))
			rawImage(t, filepath.Join(root, "base.raw"), 1<<20)
			_, err := Create(filepath.Join(root, "disk.varve"), CreateOptions{Base: filepath.Join(root, "base.raw")})
			must(t, err)
			d, err := Open(filepath.Join(root, "disk.varve"), OpenOptions{})
			must(t, err)
			must(t, d.Snapshot("one"))
			must(t, d.Close())
			fifo := filepath.Join(root, c.fifo)
			if err := os.Remove(fifo); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			must(t, unix.Mkfifo(fifo, 0o600))
			done := make(chan error, 1)
			go func() { done <- c.do(root) }()
			select {
			case err = <-done:
			case <-time.After(patience.Hang):
				t.Error("it waits for somebody to write to the FIFO")
				// Let it go on.
				release, err := os.OpenFile(fifo, os.O_RDWR, 0)
				must(t, err)
				defer release.Close()
				<-done
				return
			}
			if err == nil {
				t.Error("no error")
			}
			t.Log(err)
		})
	}
}
