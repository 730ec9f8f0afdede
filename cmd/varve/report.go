package main

import (
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"unicode/utf8"

	"varve/chain"
	"varve/cmd/varve/internal/tell"
)

// reportWriter writes findings. The first error of writing stays.
type reportWriter struct {
	out   io.Writer
	disk  string
	names map[string]string // of layers, by id
	err   error
}

func (w *reportWriter) line(text string) {
	if w.err == nil {
		_, w.err = fmt.Fprintln(w.out, text)
	}
}

// name remembers what a layer is called.
func (w *reportWriter) name(l chain.LayerCheck) {
	if w.names == nil {
		w.names = make(map[string]string)
	}
	name := l.Name
	switch {
	case l.State == chain.StateLeaf:
		name = "the leaf"
	case name == "":
		name = "unnamed"
	}
	w.names[l.ID] = name
}

// fewLike is how many findings of one kind are written that follow each other; one
// cause makes thousands of them at times. JSON has all.
const fewLike = 4

// findings writes findings under the file that they are about, and what to do
// once for those that follow each other with the same.
func (w *reportWriter) findings(list []chain.CheckFinding, ways bool) {
	for i := 0; i < len(list); {
		f, n := list[i], alike(list[i:])
		if i == 0 || f.File != list[i-1].File {
			w.line(tell.Visible(w.title(f)))
		}
		shown := n
		if n > fewLike {
			shown = fewLike - 1
		}
		for _, f := range list[i : i+shown] {
			w.wrapped("  "+fmt.Sprintf("%-5s", f.Severity)+"  ", f.Text)
		}
		if n > shown {
			w.line(fmt.Sprintf("         … and %d more like these", n-shown))
		}
		i += n
		if !ways || f.WayOut == "" || i < len(list) && list[i].File == f.File && list[i].WayOut == f.WayOut {
			continue
		}
		w.wrapped("         → ", f.WayOut)
	}
}

// alike is how many findings at the start of a list may have one cause.
func alike(list []chain.CheckFinding) int {
	n := 1
	for f := list[0]; f.Kind != "" && n < len(list); n++ {
		if o := list[n]; o.Kind != f.Kind || o.Severity != f.Severity || o.File != f.File || o.WayOut != f.WayOut {
			break
		}
	}
	return n
}

// title names a file: within the disk directory by its place there.
func (w *reportWriter) title(f chain.CheckFinding) string {
	file := f.File
	if within, err := filepath.Rel(w.disk, file); err == nil && !strings.HasPrefix(within, "..") && within != "." {
		file = within
	}
	if name := w.names[f.Layer]; name != "" {
		return fmt.Sprintf("%s (%s)", file, name)
	}
	return file
}

// wrapped writes words after a head, and below it where a line ends.
func (w *reportWriter) wrapped(head, text string) { w.wrappedAs(head, head, text) }

// wrappedAs is wrapped with a head that is written as another one of the same width:
// with colours.
func (w *reportWriter) wrappedAs(head, shown, text string) {
	line, empty := head, true
	write := func() {
		if rest, first := strings.CutPrefix(line, head); first && shown != head {
			line = shown + rest
		}
		w.line(line)
	}
	indent := strings.Repeat(" ", utf8.RuneCountInString(head))
	for _, word := range reportWord.FindAllString(tell.Visible(text), -1) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > reportWidth {
			write()
			line, empty = indent, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	write()
}

// reportWord is what a line is not ended in: also a word that is quoted for a shell
// (chain.ShellWord), which would be another name with a line's end in it.
var reportWord = regexp.MustCompile(`\$?'[^']*'(?:\\''[^']*')*\S*|\S+`)
