package fs

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/docker/go-units"

	"varve/chain"
)

// tableWidth is how many columns of a terminal a table takes at most, as far
// as shortening names can do it.
const tableWidth = 80

// JSON writes the document of status.json.
func JSON(w io.Writer, st chain.Status) error {
	// Readers expect lists, never null.
	if st.Layers == nil {
		st.Layers = []chain.LayerStatus{}
	}
	if st.Open == nil {
		st.Open = []chain.OpenStatus{}
	}
	st.Layers = slices.Clone(st.Layers)
	for i := range st.Layers {
		if st.Layers[i].Children == nil {
			st.Layers[i].Children = []string{}
		}
		if st.Layers[i].Clones == nil {
			st.Layers[i].Clones = []string{}
		}
		if st.Layers[i].Damage == nil {
			st.Layers[i].Damage = []chain.Damage{}
		}
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(st)
}

// Table writes a disk's status for people: the disk, the job, its layers as Tree draws
// them, and the open files.
func Table(w io.Writer, st chain.Status, o TreeOptions) error {
	st = Printable(st)
	var text strings.Builder
	fmt.Fprintf(&text, "disk  %s\n", st.Disk)
	fmt.Fprintf(&text, "size  %s (%d bytes)\n", HumanSize(st.Size), st.Size)
	for _, l := range st.Layers {
		if l.State == "base" {
			fmt.Fprintf(&text, "base  %s (%s, never written)\n", l.File, l.Format)
		}
	}
	if st.Job != nil {
		fmt.Fprintf(&text, "job   %s\n", wrapAtCommas(JobLine(st, *st.Job), tableWidth-6, "\n      "))
	}
	text.WriteString("\n" + newTreeDrawing(st, o).text())
	if _, err := io.WriteString(w, text.String()); err != nil {
		return err
	}
	if len(st.Open) == 0 {
		return nil
	}
	rows := [][]string{{"OPEN", "PID", "COMMAND", "TO"}}
	for _, o := range st.Open {
		pid, to := strconv.Itoa(o.PID), "read"
		if o.PID == 0 {
			pid = "?"
		}
		if o.Write {
			to = "write"
		}
		rows = append(rows, []string{o.File, pid, o.Command, to})
	}
	if _, err := io.WriteString(w, "\n"); err != nil {
		return err
	}
	return writeRows(w, rows, []int{0}, []int{1})
}

// LayerTable writes the layers of a disk for people, one a line: what it is
// called, the layer directly below it, the guest bytes that it holds itself
// (with a "~" while they are being counted), what its file takes on the host, and since when its view is what it is.
func LayerTable(w io.Writer, st chain.Status) error {
	st = Printable(st)
	rows := [][]string{{"LAYER", "ON", "OWN", "ON HOST", "SINCE"}}
	for _, l := range st.Layers {
		below := "-"
		if l.Parent != nil {
			below = layerTitle(st, *l.Parent)
		}
		rows = append(rows, []string{
			layerTitle(st, l.ID), below, ownSize(l), HumanSize(l.HostBytes),
			frozenAt(l).Local().Format("2006-01-02 15:04"),
		})
	}
	if err := writeRows(w, rows, []int{0, 1}, []int{2, 3}); err != nil {
		return err
	}
	for i := range st.Layers {
		for _, note := range damageNotes(&st.Layers[i]) {
			if _, err := fmt.Fprintf(w, "%s: %s\n", layerTitle(st, st.Layers[i].ID), note); err != nil {
				return err
			}
		}
	}
	return nil
}

// ownSize is what a layer holds itself, marked where it is not counted to the end. Of a
// damaged one nobody knows whether it is more.
func ownSize(l chain.LayerStatus) string {
	if len(l.Damage) > 0 {
		return "at least " + HumanSize(l.OwnBytes)
	}
	if !l.Counted {
		return "~" + HumanSize(l.OwnBytes)
	}
	return HumanSize(l.OwnBytes)
}

// layerTitle is what people call a layer: its name, "leaf", or its number.
func layerTitle(st chain.Status, id string) string {
	for _, l := range st.Layers {
		switch {
		case l.ID != id:
		case l.State == "leaf":
			return "leaf"
		case l.Name != "":
			return l.Name
		}
	}
	return "(" + id + ")"
}

// JobLine says in words how far a job is.
func JobLine(st chain.Status, j chain.JobStatus) string {
	line := fmt.Sprintf("%s: %s of %s, %s", j.ID, j.Kind, layerTitle(st, j.Layer), j.State)
	if j.TotalBytes > 0 {
		done := min(j.DoneBytes, j.TotalBytes)
		line += fmt.Sprintf(", %d %% (%s of %s)", jobPercent(j), HumanSize(done), HumanSize(j.TotalBytes))
	}
	if j.Rate > 0 {
		line += ", " + HumanSize(j.Rate) + "/s"
	}
	if j.RateLimit > 0 && j.State == "running" {
		line += " (limit " + HumanSize(j.RateLimit) + "/s)"
	}
	if left := timeLeft(j); left != "" {
		line += ", " + left
	}
	if j.Error != "" {
		line += ": " + printable(oneLine(j.Error))
	}
	return line
}

// wrapAtCommas breaks a line where it would be wider than that.
func wrapAtCommas(line string, width int, lineBreak string) string {
	var text strings.Builder
	at := 0
	for i, part := range strings.SplitAfter(line, ", ") {
		n := utf8.RuneCountInString(strings.TrimRight(part, " "))
		if i > 0 && at+n > width {
			wrapped := strings.TrimRight(text.String(), " ") + lineBreak
			text.Reset()
			text.WriteString(wrapped)
			at = 0
		}
		text.WriteString(part)
		at += utf8.RuneCountInString(part)
	}
	return text.String()
}

// HumanSize is a number of bytes in the unit that suits it, powers of 1024.
func HumanSize(bytes int64) string {
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
				cell = shorten(cell, widths[i])
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

// shorten takes out the middle of what is wider than that many columns: long
// names tend to differ at their ends.
func shorten(s string, width int) string {
	runes := []rune(s)
	if len(runes) <= width {
		return s
	}
	tail := (width - 1) / 2
	head := width - 1 - tail
	return string(runes[:head]) + "…" + string(runes[len(runes)-tail:])
}
