package chain

import (
	"fmt"
	"strings"
)

// Formats of layers as chain.json and headers name them.
const (
	formatRaw   = "raw"
	formatQcow2 = "qcow2"
)

// maxLayerName is the highest length of a snapshot's name in bytes.
const maxLayerName = 128

// CheckName says whether a snapshot may have a name: ErrInvalid with the reason.
func CheckName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: the name is empty", ErrInvalid)
	case len(name) > maxLayerName:
		return fmt.Errorf("%w: the name has %d characters, at most %d are allowed", ErrInvalid, len(name), maxLayerName)
	case name[0] == '.' || name[0] == '-':
		return fmt.Errorf("%w: the name %q begins with %q", ErrInvalid, name, name[:1])
	case name == baseName || name == leafName:
		return fmt.Errorf("%w: the name %q is taken by varve itself", ErrInvalid, name)
	}
	for i := range len(name) {
		if !nameByte(name[i]) {
			return fmt.Errorf("%w: the name %q has a character other than A-Z a-z 0-9 . _ -", ErrInvalid, name)
		}
	}
	return nil
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		strings.IndexByte("._-", c) >= 0
}
