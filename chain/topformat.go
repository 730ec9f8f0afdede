package chain

import (
	"fmt"
	"path/filepath"
	"strings"

	"varve/chain/manifest"
	"varve/chain/shellword"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
	"varve/overlay/sniff"
)

// topFormat decides the format of the image that the user named: what they said, or by
// its name and what a witness says (Witness has the reasons). Content never decides, since
// a guest can write any header into a raw disk; it can only make the name a lie. The
// decision is made when an image is first given, and chain.json keeps it (M20). note is what the
// user should know, "" for nothing.
func topFormat(fs hostfs.FS, path, said string, witness Witness) (format, note string, err error) {
	switch said {
	case "", formatRaw, formatQcow2:
	default:
		return "", "", invalidf("the format %q; raw and qcow2 are known", said)
	}
	if err := checkFile(fs, path); err != nil {
		return "", "", err
	}
	if said == formatRaw {
		return formatRaw, "", nil
	}
	found, known, err := sniff.Recognise(fs, path)
	if err != nil {
		return "", "", err
	}
	if said == "" && known && !found.Raw {
		format, note, err := claimed(path, found, witness.Formats(path))
		if format != "" || err != nil {
			return format, note, err
		}
	}
	other := known && !found.Qcow2 && !found.Raw
	switch {
	case found.Qcow2 && (said == formatQcow2 || namedQcow2(path)):
		return formatQcow2, "", nil
	case found.Qcow2:
		return "", "", invalidf("%s begins like a qcow2%s but is not named .qcow2, and no libvirt domain says what it is; say --format qcow2, or --format raw if a guest wrote that", path, standsOnWords(fs, path))
	case other && said == formatQcow2:
		return "", "", invalidf("%s is no qcow2: it is %s; %s", path, found.Name, wayOut(fs, path, found))
	case other:
		return "", "", invalidf("%s is %s, not a raw disk; %s (or say --format raw if a guest wrote that into its disk)", path, found.Name, wayOut(fs, path, found))
	case said == formatQcow2:
		return "", "", invalidf("%s is no qcow2: it does not begin with its magic; say --format raw if it is a raw image, as an ISO image is", path)
	case namedQcow2(path):
		return "", "", invalidf("%s is named .qcow2 but does not begin with its magic; if it is a raw image, say --format raw", path)
	case known:
		note = rawNote(path, found)
	}
	return formatRaw, note, nil
}

// claimed is the format of an image that is no raw disk by its first bytes, where others
// claim one; "" where nobody does. A claim that it is raw is believed of every content: a
// raw disk can hold anything, and names no file.
func claimed(path string, found sniff.Format, claims []Claim) (format, note string, err error) {
	format, by, other := agreed(claims)
	switch {
	case other != Claim{}:
		return "", "", invalidf("libvirt gives %s to VMs as %s (%s) and as %s (%s); say with --format which one is right", path, format, by, other.Format, other.By)
	case format == formatRaw && found.Qcow2 && namedQcow2(path):
		return "", "", invalidf("%s is named .qcow2 and begins like one, but %s uses it as raw, so a guest may have written that beginning; say --format raw, or --format qcow2 if the domain is wrong", path, by)
	case format == formatRaw:
		return formatRaw, fmt.Sprintf("%s is read as raw, as %s has it, although it begins like %s: a guest wrote that", path, by, found.Name), nil
	case format == formatQcow2 && found.Qcow2 && namedQcow2(path):
		return formatQcow2, "", nil
	case format == formatQcow2 && found.Qcow2:
		return formatQcow2, fmt.Sprintf("%s is read as a qcow2, as %s has it", path, by), nil
	}
	return "", "", nil
}

// standsOnWords says on what a file stands, if it is a qcow2, for who has to decide that.
func standsOnWords(fs hostfs.FS, path string) string {
	header, err := qcow2.ReadHeader(fs, path)
	if err != nil || header.BackingName == "" || manifest.CheckPath(header.BackingName) != nil {
		return ""
	}
	return fmt.Sprintf(" on %q", header.BackingName)
}

// wayOut makes a raw image of a file that is recognised, under a name that is free: the
// commands replace what is there.
func wayOut(fs hostfs.FS, path string, found sniff.Format) string {
	stem := strings.TrimSuffix(path, filepath.Ext(path))
	stem = strings.TrimSuffix(stem, ".raw")
	out := stem + ".raw"
	for n := 2; n < 100; n++ {
		if _, err := fs.Stat(out); err != nil {
			break
		}
		out = fmt.Sprintf("%s-%d.raw", stem, n)
	}
	return found.WayOut(shellword.Quote(path), shellword.Quote(out))
}

func namedQcow2(path string) bool { return strings.HasSuffix(strings.ToLower(path), ".qcow2") }

// rawNote is what to know of an image that is recognised, and may be a raw disk.
func rawNote(path string, found sniff.Format) string {
	return fmt.Sprintf("%s is %s, and disk.raw shows it as it is: whoever uses disk.raw has to decrypt it", path, found.Name)
}

// backingNote is what to know of a backing file that a header calls raw. That somebody
// wrote this into the header is a decision, as --format raw is one.
func backingNote(f hostfs.File, namedBy string) (string, error) {
	found, known, err := sniff.RecogniseFile(f)
	switch {
	case err != nil || !known:
		return "", err
	case found.Raw:
		return rawNote(f.Name(), found), nil
	}
	return fmt.Sprintf("%s is read as raw, as %s says of it, and looks like another thing: %s", f.Name(), namedBy, found.Name), nil
}
