package show

import (
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/docker/go-units"

	"varve/overlay/procs"
)

// tableWidth is how many columns of a terminal a table takes at most, as far
// as shortening names can do it.
const tableWidth = 80

// HumanSize is a number of bytes in the unit that suits it, powers of 1024.
func Size(bytes int64) string {
	return units.CustomSize("%.4g %s", float64(bytes), 1024, []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"})
}

// writeRows aligns rows in columns. The columns of shrink give way, evenly,
// where a row would be wider than tableWidth; those of right are aligned to
// the right.
func writeRows(w io.Writer, rows [][]string, shrink, right []int) error {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	const gap = 2
	total := gap * (len(widths) - 1)
	for _, n := range widths {
		total += n
	}
	const least = 8 // columns that a shortened name keeps
	for ; total > tableWidth; total-- {
		widest := shrink[0]
		for _, i := range shrink {
			if widths[i] > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= least {
			break
		}
		widths[widest]--
	}
	var text strings.Builder
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			if slices.Contains(shrink, i) {
				cell = Shorten(cell, widths[i])
			}
			pad := strings.Repeat(" ", max(0, widths[i]-utf8.RuneCountInString(cell)))
			if slices.Contains(right, i) {
				cell = pad + cell
			} else {
				cell += pad
			}
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", gap))
			}
		}
		text.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// Shorten takes out the middle of what is wider than that many columns of a terminal:
// long names tend to differ at their ends.
func Shorten(s string, width int) string {
	runes := []rune(s)
	if len(runes) <= width {
		return s
	}
	tail := (width - 1) / 2
	head := width - 1 - tail
	return string(runes[:head]) + "…" + string(runes[len(runes)-tail:])
}

// OneLine is a message as one line of text that a terminal may be given.
func OneLine(s string) string { return procs.Printable(strings.Join(strings.Fields(s), " ")) }
