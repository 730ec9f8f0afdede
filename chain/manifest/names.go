package manifest

import (
	"fmt"
	"strings"

	"varve/chain/refusal"
)

// maxLayerName is the highest length of a snapshot's name in bytes.
const maxLayerName = 128

// CheckName says whether a snapshot may have a name: ErrInvalid with the reason.
func CheckName(name string) error {
	switch {
	case name == "":
		return refusal.Invalidf("the name is empty")
	case len(name) > maxLayerName:
		return refusal.Invalidf("the name has %d characters, at most %d are allowed", len(name), maxLayerName)
	case name[0] == '.' || name[0] == '-':
		return refusal.Invalidf("the name %q begins with %q", name, name[:1])
	case name == BaseName || name == LeafName:
		return refusal.Invalidf("the name %q is taken by varve itself", name)
	}
	for i := range len(name) {
		if !nameByte(name[i]) {
			return refusal.Invalidf("the name %q has a character other than A-Z a-z 0-9 . _ -", name)
		}
	}
	return nil
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		strings.IndexByte("._-", c) >= 0
}

// LegalName makes a snapshot's name of what something is called elsewhere: what no name
// may have replaced by '-', and different from all that are taken.
func LegalName(name string, taken map[string]bool) string {
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
	for n := 2; taken[unique] || unique == BaseName || unique == LeafName; n++ {
		suffix := fmt.Sprintf("-%d", n)
		unique = name[:min(len(name), maxLayerName-len(suffix))] + suffix
	}
	return unique
}
