package show

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"varve/chain"
	"varve/overlay/procs"
)

// TreeOptions say what the terminal can do.
type TreeOptions struct {
	Width int  // columns; 0 for 80
	ASCII bool // no line-drawing characters
	Color bool // ANSI colours
}

// Tree writes a disk's layers as a tree, the oldest on top: what each one holds and
// takes on the host, and what deleting it would give back there. What stands alone on
// a layer keeps its column, so a long chain stays narrow; of several the way to the
// leaf goes straight on, and the others are branches.
func Tree(w io.Writer, st chain.Status, o TreeOptions) error {
	st = Printable(st)
	t := newTreeDrawing(st, o)
	title := t.cut(st.Disk, t.o.Width-len(Size(st.Size))-2)
	_, err := fmt.Fprintf(w, "%s, %s\n\n%s", title, Size(st.Size), t.text())
	return err
}

// treeDrawing collects the lines of a tree.
type treeDrawing struct {
	st       chain.Status
	o        TreeOptions
	marks    treeMarks
	layers   map[string]*chain.LayerStatus
	children map[string][]string
	toLeaf   map[string]bool // layers of the leaf's chain
	lines    []treeLine
}

// treeLine is a layer, or a note under one (layer is nil).
type treeLine struct {
	graph string
	layer *chain.LayerStatus
	note  string
}

type treeMarks struct{ base, frozen, unnamed, leaf, down, branch, cut string }

var (
	treeUnicode = treeMarks{"■", "●", "○", "◆", "│ ", "├─", "…"}
	treeASCII   = treeMarks{"#", "*", "o", "@", "| ", "|-", "~"}
)

func newTreeDrawing(st chain.Status, o TreeOptions) *treeDrawing {
	t := &treeDrawing{
		st: st, o: o, marks: treeUnicode, layers: make(map[string]*chain.LayerStatus),
		children: make(map[string][]string), toLeaf: make(map[string]bool),
	}
	if o.Width <= 0 {
		t.o.Width = tableWidth
	}
	if o.ASCII {
		t.marks = treeASCII
	}
	for i := range st.Layers {
		t.layers[st.Layers[i].ID] = &st.Layers[i]
	}
	for i := range st.Layers {
		l := &st.Layers[i]
		if l.Parent != nil {
			t.children[*l.Parent] = append(t.children[*l.Parent], l.ID)
		}
	}
	for l := t.layers[st.Leaf]; l != nil && !t.toLeaf[l.ID]; {
		t.toLeaf[l.ID] = true
		if l.Parent == nil {
			break
		}
		l = t.layers[*l.Parent]
	}
	for i, root := range t.roots() {
		if i > 0 {
			t.lines = append(t.lines, treeLine{})
		}
		t.walk(root, "", "")
	}
	return t
}

// roots are the layers without a backing, the leaf's the last one.
func (t *treeDrawing) roots() (roots []string) {
	last := ""
	for i := range t.st.Layers {
		l := &t.st.Layers[i]
		switch {
		case l.Parent != nil && t.layers[*l.Parent] != nil:
		case t.toLeaf[l.ID]:
			last = l.ID
		default:
			roots = append(roots, l.ID)
		}
	}
	if last != "" {
		roots = append(roots, last)
	}
	return roots
}

// walk draws a layer and all that stands on it. graph is what stands before the marks
// of its column, and before the first one.
func (t *treeDrawing) walk(id, first, graph string) {
	for {
		l := t.layers[id]
		t.lines = append(t.lines, treeLine{graph: first + t.mark(l), layer: l})
		first = graph
		on := t.children[id]
		below := graph + "  "
		if len(on) > 0 {
			below = graph + t.marks.down
		}
		for _, note := range t.notes(l) {
			t.lines = append(t.lines, treeLine{graph: below, note: note})
		}
		if len(on) == 0 {
			return
		}
		straight := len(on) - 1
		for i, child := range on {
			if t.toLeaf[child] {
				straight = i
			}
		}
		for i, child := range on {
			if i != straight {
				t.walk(child, graph+t.marks.branch, graph+t.marks.down)
			}
		}
		id = on[straight]
	}
}

func (t *treeDrawing) mark(l *chain.LayerStatus) string {
	switch {
	case l.State == chain.StateLeaf:
		return t.marks.leaf
	case l.State == chain.StateBase:
		return t.marks.base
	case l.Name == "":
		return t.marks.unnamed
	}
	return t.marks.frozen
}

// notes are what is to be said of a layer besides its figures.
func (t *treeDrawing) notes(l *chain.LayerStatus) (notes []string) {
	if j := t.st.Job; j != nil && j.Layer == l.ID && j.State == chain.JobRunning {
		note := "being deleted"
		switch j.Kind {
		case chain.FlattenJob:
			note = "being flattened"
		case chain.DeleteJob:
		default:
			note = "job " + j.Kind.String()
		}
		if j.TotalBytes > 0 {
			note += fmt.Sprintf(", %d %%", jobPercent(*j))
		}
		if left := timeLeft(*j); left != "" {
			note += ", " + left
		}
		notes = append(notes, note)
	} else if l.SetAside {
		notes = append(notes, "the leaf that the last revert set aside")
	} else if l.State == chain.StateUnnamed {
		notes = append(notes, "deleted, but needed by what stands on it")
	}
	if l.Held && len(l.Clones) == 0 {
		notes = append(notes, "held")
	}
	for _, clone := range l.Clones {
		notes = append(notes, "held for its clone "+procs.Printable(clone))
	}
	return append(notes, damageNotes(l)...)
}

const (
	treeBold   = "1"
	treeDim    = "2"
	treeLeaf   = "1;32"
	treeBase   = "34"
	treeYellow = "33"
	treeRed    = "1;31"
)

func (t *treeDrawing) paint(code, s string) string {
	if !t.o.Color || code == "" || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// text aligns the lines in columns.
func (t *treeDrawing) text() string {
	head := [5]string{"LAYER", "OWN", "ON HOST", "FREES", "SINCE"}
	cells := make([][5]string, len(t.lines))
	widths := [5]int{}
	for i, h := range head {
		widths[i] = len(h)
	}
	for i, line := range t.lines {
		if line.layer == nil {
			continue
		}
		l := line.layer
		cells[i] = [5]string{
			l.Title(), ownSize(*l), Size(l.HostBytes), frees(l),
			l.Since().Local().Format("2006-01-02 15:04"),
		}
		for k, cell := range cells[i] {
			if k == 0 {
				cell = line.graph + " " + cell
			}
			widths[k] = max(widths[k], utf8.RuneCountInString(cell))
		}
	}
	const gap, least = 2, 20
	rest := 0
	for _, n := range widths[1:] {
		rest += gap + n
	}
	widths[0] = min(widths[0], max(least, t.o.Width-rest))

	var out strings.Builder
	out.WriteString(t.paint(treeDim, t.row(pad(head[0], widths[0]), head, widths)) + "\n")
	for i, line := range t.lines {
		graph := line.graph
		switch {
		case line.layer == nil && line.note == "":
			out.WriteString("\n")
		case line.layer == nil:
			code := treeDim
			switch {
			case strings.HasPrefix(line.note, "held"):
				code = treeYellow
			case strings.HasPrefix(line.note, "damaged"):
				code = treeRed
			}
			graph = t.cutGraph(graph, t.o.Width-12)
			note := t.cut(line.note, t.o.Width-utf8.RuneCountInString(graph)-2)
			out.WriteString(t.paint(treeDim, graph) + "  " + t.paint(code, note) + "\n")
		default:
			graph = t.cutGraph(graph, widths[0]-1-min(7, utf8.RuneCountInString(cells[i][0])))
			room := widths[0] - utf8.RuneCountInString(graph) - 1
			name := t.cut(cells[i][0], room)
			padding := strings.Repeat(" ", max(0, room-utf8.RuneCountInString(name)))
			out.WriteString(t.row(t.paintedGraph(graph, line.layer)+" "+t.paint(t.code(line.layer), name)+padding, cells[i], widths) + "\n")
		}
	}
	return out.String()
}

// row joins the first cell, as wide as it is to be, with the figures of a line.
func (t *treeDrawing) row(name string, cells [5]string, widths [5]int) string {
	for k := 1; k < len(cells)-1; k++ {
		name += strings.Repeat(" ", 2+max(0, widths[k]-utf8.RuneCountInString(cells[k]))) + cells[k]
	}
	return name + "  " + cells[len(cells)-1]
}

func pad(s string, width int) string { return fmt.Sprintf("%-*s", width, s) }

func (t *treeDrawing) code(l *chain.LayerStatus) string {
	switch {
	case l.State == chain.StateLeaf:
		return treeLeaf
	case l.State == chain.StateBase:
		return treeBase
	case l.Name == "":
		return treeDim
	case t.toLeaf[l.ID]:
		return treeBold
	}
	return ""
}

// paintedGraph has the lines dim and the mark in the layer's colour.
func (t *treeDrawing) paintedGraph(graph string, l *chain.LayerStatus) string {
	_, size := utf8.DecodeLastRuneInString(graph)
	lines, mark := graph[:len(graph)-size], graph[len(graph)-size:]
	return t.paint(treeDim, lines) + t.paint(t.code(l), mark)
}

// cut is Shorten with what the terminal can show.
func (t *treeDrawing) cut(s string, width int) string {
	return strings.ReplaceAll(Shorten(s, max(1, width)), "…", t.marks.cut)
}

// cutGraph leaves out the outer branches where there are too many for the width.
func (t *treeDrawing) cutGraph(graph string, width int) string {
	runes := []rune(graph)
	if len(runes) <= width {
		return graph
	}
	return t.marks.cut + string(runes[len(runes)-max(1, width-1):])
}
