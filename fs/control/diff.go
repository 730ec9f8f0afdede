package control

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"syscall"

	"varve/chain"
	"varve/fs/show"
)

// control/diff takes the names of two views and gives, to who reads on from the same
// open file, where they differ by the tables: after the lines of every control file
//
//	# a: before-upgrade 000002 21474836480
//	# b: leaf 000005 21474836480
//	# start length a b
//	1048576 65536 000001 000005
//	8388608 4096 000002 zeros
//	# at 5368709120
//	# end: 2 differences, 69632 bytes
//
// a and b are the layer in which each view has the bytes, or zeros, or end where it
// has ended. A line "# at" says how far it is when nothing was found for a while; one
// of "# end" or "# error" comes last.
const (
	diffViewA = "# a: "
	diffViewB = "# b: "
	diffAt    = "# at "
	diffEnd   = "# end: "
	diffError = "# error "
)

// AppendDiffHead appends the lines that come first: which views are compared.
func AppendDiffHead(text []byte, a, b chain.DiffView) []byte {
	return fmt.Appendf(text, "%s%s %s %d\n%s%s %s %d\n# start length a b\n",
		diffViewA, a.Name, a.ID, a.Size, diffViewB, b.Name, b.ID, b.Size)
}

// AppendDifference appends the line of a difference.
func AppendDifference(text []byte, d chain.Difference) []byte {
	return fmt.Appendf(text, "%d %d %s %s\n", d.Start, d.Length, d.A, d.B)
}

// AppendDiffAt appends the line that says how many bytes from the disk's start are compared.
func AppendDiffAt(text []byte, done int64) []byte {
	return fmt.Appendf(text, "%s%d\n", diffAt, done)
}

// AppendDiffEnd appends the last line of a list that is whole: how many differences there
// are, with how many bytes.
func AppendDiffEnd(text []byte, count, bytes int64) []byte {
	return fmt.Appendf(text, "%s%d differences, %d bytes\n", diffEnd, count, bytes)
}

// AppendDiffError appends the last line of a list that an error has cut off.
func AppendDiffError(text []byte, errno syscall.Errno, reason string) []byte {
	return fmt.Appendf(text, "%s%s: %s\n", diffError, ErrnoName(errno), show.OneLine(reason))
}

// DiffKind is what a line of control/diff says.
type DiffKind int

// What lines there are.
const (
	DiffComment DiffKind = iota // nothing for a program
	DiffViewA                   // which view is A
	DiffViewB                   // which view is B
	DiffFound                   // a difference
	DiffAt                      // how far it is
	DiffEnd                     // the list is whole
	DiffError                   // why it is not
)

// DiffLine is a line of control/diff as it was read.
type DiffLine struct {
	Kind   DiffKind
	View   chain.DiffView   // of DiffViewA and DiffViewB
	Found  chain.Difference // of DiffFound
	Done   int64            // of DiffAt: bytes from the disk's start that are compared
	Reason string           // of DiffError
}

// ParseDiffLine reads a line without its end. ok is false for one that is not understood.
func ParseDiffLine(text string) (line DiffLine, ok bool) {
	if words, is := strings.CutPrefix(text, diffViewA); is {
		line.Kind = DiffViewA
		line.View, ok = parseView(words)
		return line, ok
	}
	if words, is := strings.CutPrefix(text, diffViewB); is {
		line.Kind = DiffViewB
		line.View, ok = parseView(words)
		return line, ok
	}
	if words, is := strings.CutPrefix(text, diffAt); is {
		line.Kind = DiffAt
		done, err := strconv.ParseInt(words, 10, 64)
		line.Done = done
		return line, err == nil && done >= 0
	}
	if words, is := strings.CutPrefix(text, diffError); is {
		line.Kind = DiffError
		_, line.Reason, _ = strings.Cut(words, ": ")
		return line, true
	}
	switch {
	case strings.HasPrefix(text, diffEnd):
		line.Kind = DiffEnd
		return line, true
	case strings.HasPrefix(text, "#"):
		return line, true
	}
	line.Kind = DiffFound
	line.Found, ok = parseDifference(text)
	return line, ok
}

func parseView(words string) (v chain.DiffView, ok bool) {
	f := strings.Fields(words)
	if len(f) != 3 {
		return v, false
	}
	size, err := strconv.ParseInt(f[2], 10, 64)
	return chain.DiffView{Name: f[0], ID: f[1], Size: size}, err == nil && size >= 0
}

func parseDifference(line string) (d chain.Difference, ok bool) {
	f := strings.Fields(line)
	if len(f) != 4 {
		return d, false
	}
	var startErr, lengthErr error
	d.A, d.B = f[2], f[3]
	d.Start, startErr = strconv.ParseInt(f[0], 10, 64)
	d.Length, lengthErr = strconv.ParseInt(f[1], 10, 64)
	return d, startErr == nil && lengthErr == nil && d.Start >= 0 && d.Length > 0 && d.Length <= math.MaxInt64-d.Start
}
