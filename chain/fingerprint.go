package chain

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// digestPrefix names the hash of a fingerprint's digest.
const digestPrefix = "sha256:"

// fingerprint tells whether a frozen layer's file is the one that it was. Size,
// modification time and digest are judged; inode and device are noted only,
// since a restore or a reboot changes them.
type fingerprint struct {
	Size    int64  // bytes of the file
	ModTime int64  // nanoseconds since 1970
	Digest  string // of the sampled blocks
	Inode   uint64
	Device  uint64

	extra extraFields
}

func (f *fingerprint) clone() *fingerprint {
	if f == nil {
		return nil
	}
	c := *f
	c.extra = f.extra.clone()
	return &c
}

// fault says what is wrong with a fingerprint as chain.json holds it.
func (f *fingerprint) fault() error {
	digits, ok := strings.CutPrefix(f.Digest, digestPrefix)
	if !ok || len(digits) != 64 {
		return fmt.Errorf("fingerprint with the digest %q", f.Digest)
	}
	if _, err := hex.DecodeString(digits); err != nil {
		return fmt.Errorf("fingerprint with the digest %q", f.Digest)
	}
	if f.Size < 0 {
		return fmt.Errorf("fingerprint with a size of %d bytes", f.Size)
	}
	return nil
}
