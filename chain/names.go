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

// refusal is an error of a kind, ErrInvalid or the like, whose words say all.
type refusal struct{ kind, reason error }

func (r refusal) Error() string        { return r.reason.Error() }
func (r refusal) Is(target error) bool { return target == r.kind }
func (r refusal) Unwrap() error        { return r.reason }

// invalidf is fmt.Errorf for an error that is ErrInvalid.
func invalidf(format string, args ...any) error {
	return refusal{ErrInvalid, fmt.Errorf(format, args...)}
}

// maxLayerName is the highest length of a snapshot's name in bytes.
const maxLayerName = 128

// CheckName says whether a snapshot may have a name: ErrInvalid with the reason.
func CheckName(name string) error {
	switch {
	case name == "":
		return invalidf("the name is empty")
	case len(name) > maxLayerName:
		return invalidf("the name has %d characters, at most %d are allowed", len(name), maxLayerName)
	case name[0] == '.' || name[0] == '-':
		return invalidf("the name %q begins with %q", name, name[:1])
	case name == baseName || name == leafName:
		return invalidf("the name %q is taken by varve itself", name)
	}
	for i := range len(name) {
		if !nameByte(name[i]) {
			return invalidf("the name %q has a character other than A-Z a-z 0-9 . _ -", name)
		}
	}
	return nil
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		strings.IndexByte("._-", c) >= 0
}

// legalName makes a snapshot's name of what something is called elsewhere: what no name
// may have replaced by '-', and different from all that are taken.
func legalName(name string, taken map[string]bool) string {
	var clean strings.Builder
	for _, r := range name {
		if r < 0x80 && nameByte(byte(r)) {
			clean.WriteRune(r)
		} else {
			clean.WriteByte('-')
		}
	}
	name = strings.TrimLeft(clean.String(), ".-")
	if name == "" {
		name = "layer"
	}
	name = name[:min(len(name), maxLayerName)]
	unique := name
	for n := 2; taken[unique] || unique == baseName || unique == leafName; n++ {
		suffix := fmt.Sprintf("-%d", n)
		unique = name[:min(len(name), maxLayerName-len(suffix))] + suffix
	}
	return unique
}
