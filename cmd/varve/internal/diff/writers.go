package diff

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

// head is what is known of a comparison before it begins, sum what came of
// it. differing is bytes, of an exact one.
type head struct {
	a, b  chain.DiffView
	disk  string
	exact bool
}

type sum struct{ count, bytes, differing int64 }

// writer writes differences as they are found.
type writer interface {
	begin(head) error
	add(chain.Difference) error
	end(sum) error
}

// shortList is how many extents are shown on a terminal, whose width is screenWidth.
const (
	shortList   = 20
	screenWidth = 80
)

// table writes for people.
type table struct {
	out    *bufio.Writer
	titles map[string]string
	width  int    // columns; 0: as many as it takes
	most   int64  // extents; 0: all, as they come
	clear  func() // called before the first word is written, where most is set

	head  head
	rows  []chain.Difference // until the end, where most is set
	begun bool               // the columns' names are written
	place int                // columns for a layer's name
}

func (w *table) begin(h head) error {
	h.a, h.b = show.Printable(h.a), show.Printable(h.b)
	w.head = h
	for _, title := range []string{inZeros, inEnd, w.titleOf("A", h.a), w.titleOf("B", h.b)} {
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

func (w *table) titleOf(letter string, v chain.DiffView) string { return letter + ": " + v.Name }

// digits is how many an offset has at most.
func (w *table) digits() int {
	return max(len("LENGTH"), len(strconv.FormatInt(max(w.head.a.Size, w.head.b.Size), 10)))
}

func (w *table) row(start, length, a, b string) error {
	n := w.digits()
	line := fmt.Sprintf("%*s  %*s  %-*s  %s", n, start, n, length, w.place, show.Shorten(show.Printable(a), w.place), show.Shorten(show.Printable(b), w.place))
	_, err := w.out.WriteString(strings.TrimRight(line, " ") + "\n")
	return err
}

func (w *table) add(d chain.Difference) error {
	if w.most == 0 {
		return w.write(d)
	}
	if int64(len(w.rows)) < w.most {
		w.rows = append(w.rows, d)
	}
	return nil
}

func (w *table) write(d chain.Difference) error {
	if !w.begun {
		w.begun = true
		if err := w.row("START", "LENGTH", w.titleOf("A", w.head.a), w.titleOf("B", w.head.b)); err != nil {
			return err
		}
	}
	return w.row(strconv.FormatInt(d.Start, 10), strconv.FormatInt(d.Length, 10), w.in(d.A), w.in(d.B))
}

// in is a place in words.
func (w *table) in(place string) string {
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

func (w *table) end(s sum) error {
	if w.clear != nil {
		w.clear()
	}
	for _, d := range w.rows {
		if err := w.write(d); err != nil {
			return err
		}
	}
	if more := s.count - int64(len(w.rows)); w.most > 0 && more > 0 {
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
	case s.count == 0:
		fmt.Fprintf(w.out, "%s and %s are the same\n", a.Name, b.Name)
	case w.head.exact:
		fmt.Fprintf(w.out, "%s with %s; %d bytes of them differ\n", extents(s.count, ""), bytesInWords(s.bytes), s.differing)
	default:
		fmt.Fprintf(w.out, "%s with %s may differ; --exact compares the data\n", extents(s.count, ""), bytesInWords(s.bytes))
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

// document writes one document, an extent a line. Fields are added, never changed
// in meaning.
type document struct {
	out   *bufio.Writer
	exact bool
	begun bool
}

func (w *document) begin(h head) error {
	w.exact = h.exact
	view := func(v chain.DiffView) string {
		return fmt.Sprintf(`{"name": %s, "id": %s, "size": %d}`, quoted(v.Name), quoted(v.ID), v.Size)
	}
	_, err := fmt.Fprintf(w.out, "{\n  \"version\": 1,\n  \"disk\": %s,\n  \"a\": %s,\n  \"b\": %s,\n  \"exact\": %t,\n  \"extents\": [",
		quoted(h.disk), view(h.a), view(h.b), h.exact)
	return err
}

func (w *document) add(d chain.Difference) error {
	comma := ","
	if !w.begun {
		comma = ""
	}
	w.begun = true
	_, err := fmt.Fprintf(w.out, "%s\n    {\"start\": %d, \"length\": %d, \"a\": %s, \"b\": %s}", comma, d.Start, d.Length, quoted(d.A), quoted(d.B))
	return err
}

func (w *document) end(s sum) error {
	tail := "]"
	if w.begun {
		tail = "\n  ]"
	}
	differing := "null"
	if w.exact {
		differing = strconv.FormatInt(s.differing, 10)
	}
	fmt.Fprintf(w.out, "%s,\n  \"count\": %d,\n  \"bytes\": %d,\n  \"differing_bytes\": %s\n}\n", tail, s.count, s.bytes, differing)
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
