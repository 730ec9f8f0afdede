package control

import (
	"strings"
	"syscall"
	"testing"

	"varve/chain"
)

// Every line of a list is read as it was written.
func TestDiffLines(t *testing.T) {
	a, b := chain.DiffView{Name: "one", ID: "000002", Size: 1 << 40}, chain.DiffView{Name: "leaf", ID: "000005"}
	found := chain.Difference{Start: 4096, Length: 512, A: chain.InZeros, B: chain.InDamage + "000005"}
	text := AppendDiffHead(nil, a, b)
	text = AppendDifference(text, found)
	text = AppendDiffAt(text, 1<<39)
	text = AppendDiffEnd(text, 1, 512)
	text = AppendDiffError(text, syscall.EIO, "bad:\ntable")
	want := []DiffLine{
		{Kind: DiffViewA, View: a}, {Kind: DiffViewB, View: b}, {}, {Kind: DiffFound, Found: found},
		{Kind: DiffAt, Done: 1 << 39}, {Kind: DiffEnd}, {Kind: DiffError, Reason: "bad: table"},
	}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d lines:\n%s", len(lines), text)
	}
	for i, line := range lines {
		if got, ok := ParseDiffLine(line); !ok || got != want[i] {
			t.Errorf("%q: %+v, %v; want %+v", line, got, ok, want[i])
		}
	}
	for _, bad := range []string{"", "1 2 3", "x 2 a b", "0 0 a b", "-1 2 a b", "1 -2 a b", "9223372036854775807 1 a b", "1 2 3 4 5",
		"# a: one 000002", "# b: leaf 000005 much", "# a: one 000002 -1", "# at home", "# at -1"} {
		if line, ok := ParseDiffLine(bad); ok {
			t.Errorf("%q is read as %+v", bad, line)
		}
	}
}

func FuzzParseDiffLine(f *testing.F) {
	for _, s := range []string{"# a: one 000002 1", "# b: leaf 000005 0", "# at 1", "# end: 2 differences, 3 bytes", "# error EIO: x", "# x", "1 2 a b", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		line, ok := ParseDiffLine(text)
		if !ok {
			return
		}
		// What a command goes on with is within a disk.
		if d := line.Found; line.Kind == DiffFound && (d.Start < 0 || d.Length <= 0 || d.End() < d.Start) {
			t.Errorf("%q is a difference at %d of %d bytes", text, d.Start, d.Length)
		}
		if line.Done < 0 || line.View.Size < 0 {
			t.Errorf("%q gave %+v", text, line)
		}
	})
}
