// Package control is the language that a mount's control files speak: their names, the lines
// that are written to them, and the lines that are read back. fs serves the files and the
// commands use them; both take the words from here.
//
// It knows no mount and no disk, opens no file and carries nothing out. What a line means for
// a disk is package fs's (its commands); docs/reference.md has the language for people.
package control

import "strings"

// Dir is the directory of the control files, in the root of a mount.
const Dir = "control"

// The control files.
const (
	Snapshot = "snapshot"
	Revert   = "revert"
	Delete   = "delete"
	Flatten  = "flatten"
	Rename   = "rename"
	Resize   = "resize"
	Cancel   = "cancel"
	Rate     = "rate"
	Undo     = "undo"
	Hold     = "hold"
	Release  = "release"
	Clone    = "clone"
	Plan     = "plan"
	Diff     = "diff"
)

// Words that are no names: a name cannot begin with '-', and Leaf is taken.
const (
	Unnamed     = "--unnamed" // to Delete: the layers that have no name any more
	ForgetAside = "--forget"  // to Undo: remove the leaf that was set aside
	Leaf        = "leaf"      // to Undo: make that leaf the leaf again
)

// Line is several words as one line, with a space between them. Only the last one may have a
// space in it.
func Line(words ...string) string { return strings.Join(words, " ") }

// Words are the words of a line that Line has made of words without a space.
func Words(line string) []string { return strings.Split(line, " ") }

// answerMark begins the line with the answer to the last write to an open file.
const answerMark = "# answer: "

// AppendAnswer appends the line that answers a write; answer is one line without its end.
func AppendAnswer(text []byte, answer string) []byte {
	return append(append(append(text, answerMark...), answer...), '\n')
}

// ParseAnswer is the answer in what a control file reads; ok is false where there is
// none.
func ParseAnswer(text string) (answer string, ok bool) {
	for line := range strings.Lines(text) {
		if answer, ok = strings.CutPrefix(line, answerMark); ok {
			return strings.TrimSuffix(answer, "\n"), true
		}
	}
	return "", false
}
