package show

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"varve/chain"
)

// wellFormed parses a picture and gives its text.
func wellFormed(t *testing.T, picture []byte) string {
	t.Helper()
	var text strings.Builder
	d := xml.NewDecoder(bytes.NewReader(picture))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return text.String()
		}
		if err != nil {
			t.Fatalf("not well-formed: %v in\n%.2000s", err, picture)
		}
		if c, ok := token.(xml.CharData); ok {
			text.Write(c)
			text.WriteByte('\n')
		}
	}
}

func drawMap(t *testing.T, m *chain.ExtentMap) []byte {
	t.Helper()
	var got bytes.Buffer
	if err := MapSVG(&got, m); err != nil {
		t.Fatal(err)
	}
	if got.Len() >= 300_000 {
		t.Errorf("%d bytes", got.Len())
	}
	return got.Bytes()
}

// randomMap has layers that hold something in each of their bins, more or less.
func randomMap(layers, bins int, size int64, filled float64) *chain.ExtentMap {
	random := rand.New(rand.NewPCG(1, uint64(layers)))
	m := &chain.ExtentMap{Disk: "/srv/vm1.varve", Size: size, BinBytes: 4096, Known: make([]bool, bins)}
	for m.BinBytes*int64(bins) < size {
		m.BinBytes *= 2
	}
	left := make([]float32, bins)
	for i := range bins {
		m.Known[i], left[i] = true, float32(m.BinBytes)
	}
	for i := range layers {
		l := chain.MapLayer{LayerStatus: chain.LayerStatus{ID: fmt.Sprintf("%06d", layers-i), Name: fmt.Sprint("s", layers-i), State: "frozen",
			Created: time.Unix(1790000000, 0)}}
		switch i {
		case 0:
			l.Name, l.State = "", "leaf"
		case layers - 1:
			l.Name, l.State = "base", "base"
		}
		for k := range bins {
			var data, zero float32
			if random.Float64() < filled {
				data = float32(random.Float64()) * float32(m.BinBytes)
				zero = float32(random.Int64N(2)) * 4096
			}
			seen := min(left[k], data*float32(random.Float64()))
			left[k] -= seen
			l.Data, l.Zero, l.Seen = append(l.Data, data), append(l.Zero, zero), append(l.Seen, seen)
		}
		m.Layers = append(m.Layers, l)
	}
	return m
}

func TestMapSVG(t *testing.T) {
	for _, c := range []struct {
		layers, bins int
		size         int64
		filled       float64
	}{
		{1, 1, 4096, 1}, {3, 640, 20 << 30, 0.5}, {12, 1024, 1 << 40, 0.2}, {128, 1024, 1 << 40, 1},
		{128, 1024, 1 << 40, 0.02}, {1000, 256, 1 << 40, 0.5}, {5000, 32, 1 << 50, 1}, {3, 700, 700*4096 - 1000, 1},
	} {
		m := randomMap(c.layers, c.bins, c.size, c.filled)
		picture := drawMap(t, m)
		text := wellFormed(t, picture)
		if !MapComplete(picture) {
			t.Errorf("%+v: not complete", c)
		}
		for _, want := range []string{"vm1.varve", "disk.raw", "leaf", Size(c.size) + " from left to right"} {
			if !strings.Contains(text, want) {
				t.Errorf("%+v: the picture does not say %q", c, want)
			}
		}
		for i, l := range m.Layers { // a title on hover for each, or for some together
			if (len(m.Layers) <= mapRows || i == 0 || i+1 == len(m.Layers)) && !strings.Contains(text, l.ID) {
				t.Errorf("%+v: no title for layer %s", c, l.ID)
			}
		}
		if bytes.Contains(picture, []byte("NaN")) || bytes.Contains(picture, []byte("Inf")) {
			t.Errorf("%+v: a coordinate is no number", c)
		}
		if dir := os.Getenv("VARVE_PICTURES"); dir != "" { // to be looked at
			name := filepath.Join(dir, fmt.Sprintf("random-%d-%d-%v.svg", c.layers, c.bins, c.filled))
			if err := os.WriteFile(name, picture, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A picture is well-formed whatever a name or a path holds.
func TestMapSVGWithStrangeNames(t *testing.T) {
	for _, name := range []string{`<&>"'`, "a\x00b\x1b[2J", "\xff\xfe", "\ufffe\uffff", "]]>", "<!--", strings.Repeat("w", 128), "ünïcödé 漢字"} {
		m := randomMap(3, 16, 1<<30, 0.5)
		m.Disk = "/srv/" + name
		m.Layers[1].Name = name
		wellFormed(t, drawMap(t, m))
	}
}

// What was not looked at yet is said, and drawn as nothing else.
func TestMapSVGInPieces(t *testing.T) {
	m := randomMap(3, 64, 1<<40, 1)
	for i := 10; i < 64; i++ {
		m.Known[i] = false
	}
	picture := drawMap(t, m)
	if MapComplete(picture) || !strings.Contains(wellFormed(t, picture), "not looked at yet") {
		t.Error("a picture of a part of the disk looks complete")
	}
}

// The view's row is filled with what comes from each layer, from the bottom of the
// chain up, and what there is at all is seen.
func TestMapLanes(t *testing.T) {
	m := randomMap(3, 1, 1<<30, 0)
	d := newMapDrawing(m, mapColumns)
	share := func(i int, of float64) { m.Layers[i].Seen[0] = float32(of * float64(1<<30)) }
	if got := d.lanes(0); got != [mapLanes]int{} {
		t.Errorf("nothing: %v", got)
	}
	share(0, 1e-9)
	if got := d.lanes(0); got != [mapLanes]int{1} {
		t.Errorf("hardly anything: %v", got)
	}
	share(2, 1)
	share(0, 0)
	if got := d.lanes(0); got != [mapLanes]int{3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3} {
		t.Errorf("all of the base: %v", got)
	}
	share(2, 0.5)
	share(1, 0.25)
	share(0, 0.1)
	if got := d.lanes(0); got != [mapLanes]int{3, 3, 3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 0, 0} {
		t.Errorf("some of each: %v", got)
	}
}

// Neighbours in a chain never have the same colour, and of 128 layers no two.
func TestMapColors(t *testing.T) {
	m := randomMap(128, 1, 1<<30, 0)
	d := newMapDrawing(m, mapColumns)
	layers := map[string]int{}
	for i := range m.Layers {
		if other, taken := layers[d.color(i)]; taken {
			t.Errorf("layers %d and %d of 128 have one colour: %s", i, other, d.color(i))
		}
		layers[d.color(i)] = i
	}
	m = randomMap(300, 1, 1<<30, 0)
	d = newMapDrawing(m, mapColumns)
	for i := 1; i < len(m.Layers); i++ {
		if d.color(i) == d.color(i-1) || i > 1 && d.color(i) == d.color(i-2) {
			t.Errorf("layers %d and those above have one colour: %s", i, d.color(i))
		}
	}
}

// Names end before the rows begin, whatever letters they are made of.
func TestMapNamesFit(t *testing.T) {
	for _, c := range []struct {
		name string
		most int // runes that may stay
	}{
		{"before-upgrade", 14}, {"auto-20261122T183000Z", 21}, {strings.Repeat("W", 128), 13}, {strings.Repeat("i", 128), 32},
		{strings.Repeat("\u6f22", 40), 12},
	} {
		const room = (mapLeft - mapPad - 14 - 8) / 12.0
		got := fit(c.name, room)
		if n := utf8.RuneCountInString(got); n > c.most || n < c.most-2 || textWidth(got) > room {
			t.Errorf("%.20s: %q", c.name, got)
		}
	}
}

// Layers that share a row are counted one by one.
func TestMapCountsLayers(t *testing.T) {
	if text := wellFormed(t, drawMap(t, randomMap(1000, 4, 1<<30, 1))); !strings.Contains(text, "1000 layers") {
		t.Errorf("%.200s", text)
	}
}
