package manifest

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
	"varve/chain/diskdir"
	"varve/chain/refusal"
	"varve/overlay/hostfs"
)

const (
	FileName = "chain.json"
	TempName = "chain.json.tmp"
	// maxBytes bounds chain.json when it is read and written: some
	// 30,000 layers.
	maxBytes = 16 << 20
)

// ErrUnknown says that a commit failed after its rename may have
// happened: after a power cut chain.json is the old one or the new one.
var ErrUnknown = errors.New("it is unknown whether chain.json was replaced")

// Parse reads a chain.json. The error is ErrNewer or ErrCorrupt.
func Parse(data []byte) (*Manifest, error) {
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
	if head.Version > CurrentVersion {
		return nil, fmt.Errorf("%w: chain.json has version %d, this varve reads up to %d",
			ErrNewer, head.Version, CurrentVersion)
	}
	m := &Manifest{}
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
func (m *Manifest) encode() ([]byte, error) {
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

// Load reads dir's chain.json. The error is os.ErrNotExist when there
// is none, ErrNewer, ErrCorrupt or that of reading.
func Load(fs hostfs.FS, dir string) (*Manifest, error) {
	return new(Reader).Load(fs, dir)
}

// Reader reads a chain.json that is read twice, before and under the
// lock, and parses it again only where it has changed meanwhile: parsing is the
// dear part. Of one goroutine.
type Reader struct {
	data   []byte // nil: nothing was parsed yet
	parsed *Manifest
}

// Load is Load. What it gave before must not have been changed.
func (r *Reader) Load(fs hostfs.FS, dir string) (*Manifest, error) {
	data, err := Text(fs, dir)
	if err != nil {
		return nil, err
	}
	if r.data != nil && bytes.Equal(data, r.data) {
		return r.parsed, nil
	}
	m, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, FileName), err)
	}
	r.data, r.parsed = data, m
	return m, nil
}

// Text reads dir's chain.json as it stands, at most maxBytes of it. Errors are as Load has them,
// except those of parsing.
func Text(fs hostfs.FS, dir string) ([]byte, error) {
	path := filepath.Join(dir, FileName)
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
	if info.Size > maxBytes {
		return nil, fmt.Errorf("read %s: %w: it has %d bytes, at most %d are read", path, ErrCorrupt, info.Size, maxBytes)
	}
	data := make([]byte, info.Size)
	if n, err := f.ReadAt(data, 0); err != nil && !(errors.Is(err, io.EOF) && n == len(data)) {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}

// RestoreWords is the way out where chain.json cannot be used. An old one is no
// use: it does not know the files of what came later.
const RestoreWords = "copy the whole disk directory somewhere first, then put the newest chain.json back from a backup; " +
	"\"qemu-img info --backing-chain\" shows what each file in layers/ stands on"

// Commit replaces dir's chain.json: temp file, fsync, rename, fsync of the
// directory. It is the one place that writes chain.json. On success the
// manifest is durable (D17). On failure chain.json is the old one, unless the error
// wraps ErrUnknown. An invalid manifest is not written (ErrCorrupt).
func (m *Manifest) Commit(fs hostfs.FS, dir string) error {
	path := filepath.Join(dir, FileName)
	if err := m.validate(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	data, err := m.encode()
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if len(data) > maxBytes {
		return fmt.Errorf("write %s: %w: it would have %d bytes, at most %d are read again", path, refusal.ErrInvalid, len(data), maxBytes)
	}
	temp := filepath.Join(dir, TempName)
	if err := fs.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove a stale temporary file: %w", err)
	}
	if err := diskdir.WriteNew(fs, temp, data); err != nil {
		// What is left of it is removed by the next commit at the latest.
		_ = fs.Remove(temp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := fs.Rename(temp, path); err != nil {
		if _, gone := fs.Stat(temp); errors.Is(gone, os.ErrNotExist) {
			return fmt.Errorf("replace %s: %w: %w", path, ErrUnknown, err)
		}
		_ = fs.Remove(temp)
		return fmt.Errorf("replace %s: %w", path, err)
	}
	if err := fs.SyncDir(dir); err != nil {
		return fmt.Errorf("replace %s: %w: %w", path, ErrUnknown, err)
	}
	return nil
}
