package chain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"varve/chain/bounded"
	"varve/overlay/hostfs"
)

const (
	manifestName     = "chain.json"
	manifestTempName = "chain.json.tmp"
	// maxManifestBytes bounds chain.json when it is read and written: some
	// 30,000 layers.
	maxManifestBytes = 16 << 20
)

// errCommitUnknown says that a commit failed after its rename may have
// happened: after a power cut chain.json is the old one or the new one.
var errCommitUnknown = errors.New("it is unknown whether chain.json was replaced")

// parseManifest reads a chain.json. The error is ErrNewer or ErrCorrupt.
func parseManifest(data []byte) (*manifest, error) {
	if err := bounded.Check(data); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	// The version comes first: a newer one may give every other field another
	// form.
	var head struct {
		Version int `json:"version"`
	}
	if _, err := decodeObject(data, &head); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if head.Version > manifestVersion {
		return nil, fmt.Errorf("%w: chain.json has version %d, this varve reads up to %d",
			ErrNewer, head.Version, manifestVersion)
	}
	m := &manifest{}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if err := m.validate(); err != nil {
		return nil, err
	}
	m.wholeSectors()
	return m, nil
}

// encode writes the manifest as chain.json holds it.
func (m *manifest) encode() ([]byte, error) {
	compact, err := m.MarshalJSON()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, compact, "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// loadManifest reads dir's chain.json. The error is os.ErrNotExist when there
// is none, ErrNewer, ErrCorrupt or that of reading.
func loadManifest(fs hostfs.FS, dir string) (*manifest, error) {
	return new(manifestReader).load(fs, dir)
}

// manifestReader reads a chain.json that is read twice, before and under the
// lock, and parses it again only where it has changed meanwhile: parsing is the
// dear part. Of one goroutine.
type manifestReader struct {
	data   []byte // nil: nothing was parsed yet
	parsed *manifest
}

// load is loadManifest. What it gave before must not have been changed.
func (r *manifestReader) load(fs hostfs.FS, dir string) (*manifest, error) {
	data, err := readManifestData(fs, dir)
	if err != nil {
		return nil, err
	}
	if r.data != nil && bytes.Equal(data, r.data) {
		return r.parsed, nil
	}
	m, err := parseManifest(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, manifestName), err)
	}
	r.data, r.parsed = data, m
	return m, nil
}

// ManifestText reads the chain.json of a disk directory as it stands, at most 16 MiB of it.
// It takes no lock: a chain.json is replaced as a whole.
func ManifestText(dir string) ([]byte, error) {
	fs, leave, err := enter(hostfs.OS(), dir)
	if err != nil {
		return nil, err
	}
	text, err := readManifestData(fs, dir)
	return text, errors.Join(err, leave())
}

func readManifestData(fs hostfs.FS, dir string) ([]byte, error) {
	path := filepath.Join(dir, manifestName)
	// Looked at before it is opened: the directory may be any that an image's
	// header leads to, and opening a FIFO would wait for a writer for ever.
	found, err := fs.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s is not a disk directory: %w", dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read the chain of %s: %w", dir, err)
	}
	if !found.Mode.IsRegular() {
		return nil, fmt.Errorf("read %s: %w: it is not a file", path, ErrCorrupt)
	}
	f, err := fs.Open(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("read the chain of %s: %w", dir, err)
	}
	defer f.Close() // read only
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the chain of %s: %w", dir, err)
	}
	if info.Size > maxManifestBytes {
		return nil, fmt.Errorf("read %s: %w: it has %d bytes, at most %d are read", path, ErrCorrupt, info.Size, maxManifestBytes)
	}
	data := make([]byte, info.Size)
	if n, err := f.ReadAt(data, 0); err != nil && !(errors.Is(err, io.EOF) && n == len(data)) {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}

// restoreManifest is the way out where chain.json cannot be used. An old one is no
// use: it does not know the files of what came later.
const restoreManifest = "copy the whole disk directory somewhere first, then put the newest chain.json back from a backup; " +
	"\"qemu-img info --backing-chain\" shows what each file in layers/ stands on"

// commit replaces dir's chain.json: temp file, fsync, rename, fsync of the
// directory. It is the one place that writes chain.json. On success the
// manifest is durable (D17). On failure chain.json is the old one, unless the error
// wraps errCommitUnknown. An invalid manifest is not written (ErrCorrupt).
func (m *manifest) commit(fs hostfs.FS, dir string) error {
	path := filepath.Join(dir, manifestName)
	if err := m.validate(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	data, err := m.encode()
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if len(data) > maxManifestBytes {
		return fmt.Errorf("write %s: %w: it would have %d bytes, at most %d are read again", path, ErrInvalid, len(data), maxManifestBytes)
	}
	temp := filepath.Join(dir, manifestTempName)
	if err := fs.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove a stale temporary file: %w", err)
	}
	if err := writeFile(fs, temp, data); err != nil {
		// What is left of it is removed by the next commit at the latest.
		_ = fs.Remove(temp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := fs.Rename(temp, path); err != nil {
		if _, gone := fs.Stat(temp); errors.Is(gone, os.ErrNotExist) {
			return fmt.Errorf("replace %s: %w: %w", path, errCommitUnknown, err)
		}
		_ = fs.Remove(temp)
		return fmt.Errorf("replace %s: %w", path, err)
	}
	if err := fs.SyncDir(dir); err != nil {
		return fmt.Errorf("replace %s: %w: %w", path, errCommitUnknown, err)
	}
	return nil
}

// writeFile makes a new file, 0600 whatever the umask, with a durable content.
// Its name is durable after the directory's SyncDir.
func writeFile(fs hostfs.FS, path string, data []byte) error {
	f, err := fs.Open(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	err = func() error {
		if err := setMode(fs, path, 0o600); err != nil {
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
