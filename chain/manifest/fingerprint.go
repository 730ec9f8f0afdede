package manifest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// digestPrefix names the hash of a fingerprint's digest.
const digestPrefix = "sha256:"

// What a digest covers. Places depend on the file's size and, for qcow2, on
// its header only, never on where it has holes: a copy or a restored file has
// others, and is the same file. The count bounds what a check costs, whatever
// the size: a hole is read without touching the device.
const (
	sampleBytes = 4096
	sampleCount = 64 // blocks, spread evenly, the first and the last among them
	// firstPartition is where partitioning tools put the first partition, and
	// so a file system's superblock, which any mount for writing changes.
	firstPartition = 1 << 20
	// maxWholeL1 is how many bytes of an L1 table are read whole; a larger one
	// is sampled like a file.
	maxWholeL1 = 1 << 20
)

// Fingerprint tells whether a frozen layer's file is the one that it was. Size,
// modification time and digest are judged; inode and device are noted only,
// since a restore or a reboot changes them.
type Fingerprint struct {
	Size    int64  // bytes of the file
	ModTime int64  // nanoseconds since 1970; 0 for a block device, whose node has none of its own
	Digest  string // of the sampled blocks
	Inode   uint64
	Device  uint64

	// Unread is where a sampled block could not be read, 0 for nowhere (a header that
	// cannot be read is an error). The digest says nothing then.
	Unread int64

	extra extraFields
}

func (f *Fingerprint) copy() *Fingerprint {
	if f == nil {
		return nil
	}
	c := *f
	c.extra = f.extra.clone()
	return &c
}

// KeepUnknown takes over from the fingerprint of the same layer before what this varve does
// not know.
func (f *Fingerprint) KeepUnknown(before *Fingerprint) { f.extra = before.extra.clone() }

// fault says what is wrong with a fingerprint as chain.json holds it.
func (f *Fingerprint) fault() error {
	digits, ok := strings.CutPrefix(f.Digest, digestPrefix)
	if !ok || len(digits) != 2*sha256.Size {
		return fmt.Errorf("fingerprint with the digest %q", f.Digest)
	}
	if _, err := hex.DecodeString(digits); err != nil {
		return fmt.Errorf("fingerprint with the digest %q", f.Digest)
	}
	if f.Unread < 0 {
		return fmt.Errorf("fingerprint that could not be read at %d", f.Unread)
	}
	if f.Size < 0 {
		return fmt.Errorf("fingerprint with a size of %d bytes", f.Size)
	}
	return nil
}

// TakeFingerprint reads a file's fingerprint. The image's lock must be held, or
// the file may change under it (M18: lock, test, then fingerprint).
func TakeFingerprint(f hostfs.File, format string) (*Fingerprint, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("fingerprint %s: %w", f.Name(), err)
	}
	sum, unread := sha256.New(), int64(0)
	block := make([]byte, sampleBytes)
	add := func(off, length int64) error {
		for length > 0 {
			part := block[:min(length, sampleBytes)]
			n, err := f.ReadAt(part, off)
			if hostfs.CannotRead(err) { // once is no damage
				n, err = f.ReadAt(part, off)
			}
			if hostfs.CannotRead(err) {
				unread, n, err = max(off, 1), 0, nil
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("fingerprint: read %d bytes at 0x%x of %s: %w", len(part), off, f.Name(), err)
			}
			clear(part[n:]) // past the end of a file that is being cut
			var place [8]byte
			binary.BigEndian.PutUint64(place[:], uint64(off))
			sum.Write(place[:]) // a hash's Write never fails
			sum.Write(part)
			off, length = off+int64(len(part)), length-int64(len(part))
		}
		return nil
	}
	if err := addSamples(add, 0, info.Size); err != nil {
		return nil, err
	}
	if err := add(firstPartition, min(sampleBytes, info.Size-firstPartition)); err != nil {
		return nil, err
	}
	if format == qcow2.FormatQcow2 {
		off, length, err := l1Place(f, info.Size)
		if err != nil {
			return nil, err
		}
		if length <= maxWholeL1 {
			err = add(off, length)
		} else {
			err = addSamples(add, off, length)
		}
		if err != nil {
			return nil, err
		}
	}
	taken := &Fingerprint{
		Size:    info.Size,
		ModTime: info.ModTime.UnixNano(),
		Digest:  digestPrefix + hex.EncodeToString(sum.Sum(nil)),
		Inode:   info.Inode,
		Device:  info.Device,
		Unread:  unread,
	}
	if info.Mode&os.ModeDevice != 0 {
		taken.ModTime = 0
	}
	return taken, nil
}

// FingerprintFile takes the fingerprint of a file that nobody else writes.
func FingerprintFile(fs hostfs.FS, path, format string) (*Fingerprint, error) {
	f, err := fs.Open(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	return TakeFingerprint(f, format)
}

// addSamples adds blocks that are spread over a range, the first and the last
// among them.
func addSamples(add func(off, length int64) error, start, length int64) error {
	blocks := (length + sampleBytes - 1) / sampleBytes
	count := min(blocks, sampleCount)
	for i := range count {
		at := i
		if blocks > sampleCount {
			// blocks is below 2^51 and i below 2^6: no overflow.
			at = i * (blocks - 1) / (sampleCount - 1)
		}
		off := at * sampleBytes
		if err := add(start+off, min(sampleBytes, length-off)); err != nil {
			return err
		}
	}
	return nil
}

// l1Place is where a qcow2's active L1 table stands, cut at the end of the
// file (qcow2 specification, "Header": l1_size at byte 36, l1_table_offset at
// byte 40). A header that lies gives a digest of something else, which is as
// good a fingerprint.
func l1Place(f hostfs.File, size int64) (off, length int64, err error) {
	var header [48]byte
	if _, err := f.ReadAt(header[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return 0, 0, fmt.Errorf("fingerprint: read the header of %s: %w", f.Name(), err)
	}
	length = int64(binary.BigEndian.Uint32(header[36:])) * 8
	at := binary.BigEndian.Uint64(header[40:])
	if at >= uint64(size) {
		return 0, 0, nil
	}
	return int64(at), min(length, size-int64(at)), nil
}

// Compare says, in words, what changed from old to now: changes
// that falsify the views above, and those that are noted only.
func (f *Fingerprint) Compare(now *Fingerprint) (changes, noted []string) {
	if f.Size != now.Size {
		changes = append(changes, fmt.Sprintf("size %d → %d bytes", f.Size, now.Size))
	}
	if f.ModTime != now.ModTime {
		changes = append(changes, fmt.Sprintf("modification time %s → %s", stamp(f.ModTime), stamp(now.ModTime)))
	}
	switch {
	case f.Digest == now.Digest:
	case now.Unread > 0:
		noted = append(noted, fmt.Sprintf("it cannot be read at 0x%x, so what it holds is not compared", now.Unread))
	case f.Unread > 0:
		noted = append(noted, fmt.Sprintf("it could not be read at 0x%x, so what it holds is not compared", f.Unread))
	default:
		changes = append(changes, "content at sampled places")
	}
	if f.Inode != now.Inode {
		noted = append(noted, fmt.Sprintf("inode %d → %d", f.Inode, now.Inode))
	}
	if f.Device != now.Device {
		noted = append(noted, fmt.Sprintf("device 0x%x → 0x%x", f.Device, now.Device))
	}
	return changes, noted
}

func stamp(nanoseconds int64) string {
	return time.Unix(0, nanoseconds).UTC().Format(time.RFC3339Nano)
}
