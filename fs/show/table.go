package show

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"varve/chain"
)

// Table writes a disk's status for people: the disk, the job, its layers as Tree draws
// them, and the open files.
func Table(w io.Writer, st chain.Status, o TreeOptions) error {
	st = Printable(st)
	var text strings.Builder
	fmt.Fprintf(&text, "disk  %s\n", st.Disk)
	fmt.Fprintf(&text, "size  %s (%d bytes)\n", Size(st.Size), st.Size)
	for _, l := range st.Layers {
		if l.State == chain.StateBase {
			fmt.Fprintf(&text, "base  %s (%s, never written)\n", l.File, l.Format)
		}
	}
	if st.Job != nil {
		fmt.Fprintf(&text, "job   %s\n", wrapAtCommas(jobLine(st, *st.Job), tableWidth-6, "\n      "))
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
			below = titleOf(st, *l.Parent)
		}
		rows = append(rows, []string{
			l.Title(), below, ownSize(l), Size(l.HostBytes),
			l.Since().Local().Format("2006-01-02 15:04"),
		})
	}
	if err := writeRows(w, rows, []int{0, 1}, []int{2, 3}); err != nil {
		return err
	}
	for i := range st.Layers {
		for _, note := range damageNotes(&st.Layers[i]) {
			if _, err := fmt.Fprintf(w, "%s: %s\n", st.Layers[i].Title(), note); err != nil {
				return err
			}
		}
	}
	return nil
}
