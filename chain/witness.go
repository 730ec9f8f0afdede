package chain

// Claim is what somebody says of an image who does not know it from the image.
type Claim struct {
	Format string // as which a VM is given the file: raw, qcow2 or another one
	By     string // who says so, in words: "libvirt's domain vm1"
}

// SnapshotState is of which snapshot of another program a file shows the state.
type SnapshotState struct {
	Name string // what that program calls the snapshot; "" for none
	By   string // in words: "libvirt's snapshot s1 of domain vm1"
}

// Witness knows of images what is not in them. It is asked when an image is first
// given, and what follows from its answers is kept in chain.json.
//
// All that a file holds may be a guest's: who has a raw disk can write a qcow2 header
// into it, with a backing file's name and format, and with whole tables, so that the file
// and every header of the chain below it are in order, and the chain leads to a file of
// the host that the guest is to read. So nothing inside of an image makes certain that it
// is a qcow2, however well the headers fit; its name does, which nobody gives to a raw
// disk, its user does, and so does the definition of the VM that has it.
type Witness interface {
	// Formats gives every claim about the file at an absolute path.
	Formats(path string) []Claim
	// States gives, for the files of a chain from the top down, the snapshot whose state
	// each of them shows, and what else its user should know of them, a line each.
	States(files []string) (states []SnapshotState, notes []string)
}

// noWitness knows nothing.
type noWitness struct{}

func (noWitness) Formats(string) []Claim { return nil }
func (noWitness) States(files []string) ([]SnapshotState, []string) {
	return make([]SnapshotState, len(files)), nil
}

func witnessOr(w Witness) Witness {
	if w == nil {
		return noWitness{}
	}
	return w
}

// agreed is the format that all claims have, and who has made the first of them; "" where
// there is none. Where they differ, other is one against it.
func agreed(claims []Claim) (format, by string, other Claim) {
	for _, c := range claims {
		switch {
		case format == "":
			format, by = c.Format, c.By
		case c.Format != format:
			return format, by, c
		}
	}
	return format, by, Claim{}
}
