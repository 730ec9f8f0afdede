// Package doctor looks for the usual troubles of disks, images, mounts and the
// host, and says the way out of each.
//
// It writes nothing, takes no lock, and asks no mount for anything without a time
// limit.
package doctor

// Severity says how bad a finding is.
type Severity string

const (
	Problem Severity = "problem" // something fails, is lost, or will
	Warning Severity = "warning" // worth a look
	Note    Severity = "note"    // for information
)

// rank orders severities, the worst first.
func (s Severity) rank() int {
	switch s {
	case Problem:
		return 0
	case Warning:
		return 1
	}
	return 2
}

// Finding is one thing that a check noticed. Fields are added, never changed in
// meaning.
type Finding struct {
	Severity Severity `json:"severity"`
	Check    string   `json:"check"`   // id of the check
	Subject  string   `json:"subject"` // what it is about: a path, a process, "host"
	What     string   `json:"what"`
	Fix      string   `json:"fix"` // the way out, "" where there is nothing to do
	// Commands is the way out as lines for a shell, where that says all; each ends with a
	// newline.
	Commands string `json:"commands"`
}
