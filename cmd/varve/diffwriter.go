package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"varve/chain"
	"varve/fs/show"
)

// diffHead is what is known of a comparison before it begins, diffSum what came of
// it. differing is bytes, of an exact one.
type diffHead struct {
	a, b  chain.DiffView
	disk  string
	exact bool
}

type diffSum struct{ count, bytes, differing int64 }

// diffWriter writes differences as they are found.
type diffWriter interface {
	begin(diffHead) error
	add(chain.Difference) error
	end(diffSum) error
}

// shortList is how many extents are shown on a terminal, whose width is screenWidth.
const (
	shortList   = 20
	screenWidth = 80
)

// diffTable writes for people.
type diffTable struct {
	out    *bufio.Writer
	titles map[string]string
	width  int    // columns; 0: as many as it takes
	most   int64  // extents; 0: all, as they come
	clear  func() // called before the first word is written, where most is set

	head  diffHead
	rows  []chain.Difference // until the end, where most is set
	begun bool               // the columns' names are written
	place int                // columns for a layer's name
}

func (w *diffTable) begin(head diffHead) error {
	head.a, head.b = show.Printable(head.a), show.Printable(head.b)
	w.head = head
	for _, title := range []string{inZeros, inEnd, w.titleOf("A", head.a), w.titleOf("B", head.b)} {
		w.place = max(w.place, utf8.RuneCountInString(title))
	}
	for _, title := range w.titles {
		w.place = max(w.place, utf8.RuneCountInString(title))
	}
	if w.width > 0 {
		w.place = max(12, min(w.place, (w.width-2*w.digits()-3*2)/2))
	}
	return nil
}

// What is shown for a place that is no layer; no snapshot can be called so.
const (
	inZeros = "(zeros)"
	inEnd   = "(end)"
)

func (w *diffTable) titleOf(letter string, v chain.DiffView) string { return letter + ": " + v.Name }

// digits is how many an offset has at most.
func (w *diffTable) digits() int {
	return max(len("LENGTH"), len(strconv.FormatInt(max(w.head.a.Size, w.head.b.Size), 10)))
}

func (w *diffTable) row(start, length, a, b string) error {
	n := w.digits()
	line := fmt.Sprintf("%*s  %*s  %-*s  %s", n, start, n, length, w.place, show.Shorten(show.Printable(a), w.place), show.Shorten(show.Printable(b), w.place))
	_, err := w.out.WriteString(strings.TrimRight(line, " ") + "\n")
	return err
}

func (w *diffTable) add(d chain.Difference) error {
	if w.most == 0 {
		return w.write(d)
	}
	if int64(len(w.rows)) < w.most {
		w.rows = append(w.rows, d)
	}
	return nil
}

func (w *diffTable) write(d chain.Difference) error {
	if !w.begun {
		w.begun = true
		if err := w.row("START", "LENGTH", w.titleOf("A", w.head.a), w.titleOf("B", w.head.b)); err != nil {
			return err
		}
	}
	return w.row(strconv.FormatInt(d.Start, 10), strconv.FormatInt(d.Length, 10), w.in(d.A), w.in(d.B))
}

// in is a place in words.
func (w *diffTable) in(place string) string {
	switch title := w.titles[place]; {
	case place == chain.InZeros:
		return inZeros
	case place == chain.InEnd:
		return inEnd
	case title != "":
		return title
	case strings.HasPrefix(place, chain.InDamage):
		return "? " + w.in(strings.TrimPrefix(place, chain.InDamage))
	}
	return "(" + place + ")" // it came meanwhile
}

func (w *diffTable) end(sum diffSum) error {
	if w.clear != nil {
		w.clear()
	}
	for _, d := range w.rows {
		if err := w.write(d); err != nil {
			return err
		}
	}
	if more := sum.count - int64(len(w.rows)); w.most > 0 && more > 0 {
		fmt.Fprintf(w.out, "… and %s; --all lists them\n", extents(more, "more "))
	}
	a, b := w.head.a, w.head.b
	switch {
	case a.Size > b.Size:
		fmt.Fprintf(w.out, "%s is %s longer than %s; all of that counts as differing\n", a.Name, bytesInWords(a.Size-b.Size), b.Name)
	case b.Size > a.Size:
		fmt.Fprintf(w.out, "%s is %s longer than %s; all of that counts as differing\n", b.Name, bytesInWords(b.Size-a.Size), a.Name)
	}
	switch {
	case sum.count == 0:
		fmt.Fprintf(w.out, "%s and %s are the same\n", a.Name, b.Name)
	case w.head.exact:
		fmt.Fprintf(w.out, "%s with %s; %d bytes of them differ\n", extents(sum.count, ""), bytesInWords(sum.bytes), sum.differing)
	default:
		fmt.Fprintf(w.out, "%s with %s may differ; --exact compares the data\n", extents(sum.count, ""), bytesInWords(sum.bytes))
	}
	return w.out.Flush()
}

func extents(n int64, more string) string {
	if n == 1 {
		return "1 " + more + "extent"
	}
	return fmt.Sprintf("%d %sextents", n, more)
}

// bytesInWords is a number of bytes, and the same in the unit that suits it.
func bytesInWords(n int64) string {
	switch {
	case n == 1:
		return "1 byte"
	case n < 1024:
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%d bytes (%s)", n, show.Size(n))
}

// diffJSON writes one document, an extent a line. Fields are added, never changed
// in meaning.
type diffJSON struct {
	out   *bufio.Writer
	exact bool
	begun bool
}

func (w *diffJSON) begin(head diffHead) error {
	w.exact = head.exact
	view := func(v chain.DiffView) string {
		return fmt.Sprintf(`{"name": %s, "id": %s, "size": %d}`, quoted(v.Name), quoted(v.ID), v.Size)
	}
	_, err := fmt.Fprintf(w.out, "{\n  \"version\": 1,\n  \"disk\": %s,\n  \"a\": %s,\n  \"b\": %s,\n  \"exact\": %t,\n  \"extents\": [",
		quoted(head.disk), view(head.a), view(head.b), head.exact)
	return err
}

func (w *diffJSON) add(d chain.Difference) error {
	comma := ","
	if !w.begun {
		comma = ""
	}
	w.begun = true
	_, err := fmt.Fprintf(w.out, "%s\n    {\"start\": %d, \"length\": %d, \"a\": %s, \"b\": %s}", comma, d.Start, d.Length, quoted(d.A), quoted(d.B))
	return err
}

func (w *diffJSON) end(sum diffSum) error {
	tail := "]"
	if w.begun {
		tail = "\n  ]"
	}
	differing := "null"
	if w.exact {
		differing = strconv.FormatInt(sum.differing, 10)
	}
	fmt.Fprintf(w.out, "%s,\n  \"count\": %d,\n  \"bytes\": %d,\n  \"differing_bytes\": %s\n}\n", tail, sum.count, sum.bytes, differing)
	return w.out.Flush()
}

// quoted is a string as JSON.
func quoted(s string) string {
	text, err := json.Marshal(s)
	if err != nil {
		return `""` // a string can always be written
	}
	return string(show.PrintableJSON(text))
}
