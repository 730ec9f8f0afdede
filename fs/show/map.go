package show

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"

	"varve/chain"
)

// mapBytes is how long a picture may be.
const mapBytes = 290 << 10

// MapSVG draws where the layers of a disk's chain hold what, as an SVG picture: the
// disk from left to right, a row for each layer, the newest on top, and below them
// the leaf's view in the colours of the layers that it comes from. It is 1,000 pixels
// wide and less than 300 KB long.
func MapSVG(w io.Writer, m *chain.ExtentMap) error {
	layers := len(m.Layers)
	m = joinLayers(m, mapRows)
	var picture []byte
	for columns := mapColumns; ; columns /= 2 {
		d := newMapDrawing(m, columns)
		d.layers = layers
		picture = d.draw()
		if len(picture) <= mapBytes || columns <= leastMapColumns {
			break
		}
	}
	_, err := w.Write(picture)
	return err
}

// Places and sizes in a map, in pixels.
const (
	mapWidth   = 1000
	mapPad     = 20
	mapLeft    = 196 // where the address space begins
	mapSpan    = 636 // how wide it is
	mapHolds   = 908 // right ends of the columns of figures
	mapSeen    = mapWidth - mapPad
	mapTop     = 92
	mapLanes   = 16  // of the view's row: how finely it shows shares
	mapColumns = 700 // at most: a column that is narrower than a pixel would not show
	mapRows    = 256 // at most
	// leastMapColumns is where getting coarser ends.
	leastMapColumns = 40
)

// mapLevels are the shares from which on a column is drawn more strongly: the classes
// q0, q1, … of mapStyle.
var mapLevels = [...]float64{0, 0.1, 0.35, 0.65, 0.92}

// mapDrawing is one attempt at a picture.
type mapDrawing struct {
	m      *chain.ExtentMap
	layers int // before some were joined to rows
	out    bytes.Buffer
	join   int   // bins in a column
	column int64 // guest bytes of a column
	n      int   // columns
	pitch  float64
	bar    float64 // height of a layer's bar
	lane   float64 // height of a lane of the view's row
}

func newMapDrawing(m *chain.ExtentMap, columns int) *mapDrawing {
	d := &mapDrawing{m: m, layers: len(m.Layers), join: 1, column: m.BinBytes}
	bins := len(m.Known)
	for (bins+d.join-1)/d.join > columns {
		d.join *= 2
		d.column *= 2
	}
	d.n = (bins + d.join - 1) / d.join
	switch n := len(m.Layers); {
	case n <= 12:
		d.pitch = 26
	case n <= 40:
		d.pitch = 18
	case n <= 80:
		d.pitch = 13
	case n <= 160:
		d.pitch = 11.5
	case n <= 300:
		d.pitch = 9.5
	default:
		d.pitch = max(2, 2850/float64(n))
	}
	d.bar = d.pitch * 0.72
	d.lane = 3
	if len(m.Layers) > mapMany {
		d.lane = 5
	}
	return d
}

// sum is what a column has of a layer's figures.
func (d *mapDrawing) sum(bins []float32, column int) float64 {
	total := 0.0
	for _, b := range bins[column*d.join : min((column+1)*d.join, len(bins))] {
		total += float64(b)
	}
	return total
}

// capacity is how many guest bytes a column stands for: the last one for less.
func (d *mapDrawing) capacity(column int) float64 {
	return float64(min(d.column, d.m.Size-int64(column)*d.column))
}

func (d *mapDrawing) known(column int) bool {
	for _, k := range d.m.Known[column*d.join : min((column+1)*d.join, len(d.m.Known))] {
		if !k {
			return false
		}
	}
	return true
}

// scale is how wide a column is; the last one of the disk may stick out, and is cut.
func (d *mapDrawing) scale() float64 {
	return mapSpan * float64(d.column) / float64(d.m.Size)
}

func (d *mapDrawing) draw() []byte {
	rows := float64(len(d.m.Layers)) * d.pitch
	view := mapTop + rows + 14
	axis := view + mapLanes*d.lane
	height := axis + 90
	d.head(height)
	d.grid(mapTop, axis)
	for i := range d.m.Layers {
		d.layer(i, mapTop+float64(i)*d.pitch)
	}
	d.view(view)
	d.unknown(mapTop, axis)
	d.legend(axis + 38)
	d.out.WriteString("</svg>\n")
	return d.out.Bytes()
}

func (d *mapDrawing) printf(format string, args ...any) { fmt.Fprintf(&d.out, format, args...) }

// number is a coordinate without digits that nobody sees.
func number(f float64) string {
	s := strconv.FormatFloat(f, 'f', 2, 64)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}

// color is that of a layer, numbered from the top.
func (d *mapDrawing) color(i int) string {
	switch d.m.Layers[i].State {
	case chain.StateLeaf:
		return mapLeafColor
	case chain.StateBase:
		return mapBaseColor
	}
	n := d.between()
	return mapColor(n-i, n)
}

// between is how many layers are neither the leaf nor the base: they stand between them.
func (d *mapDrawing) between() int {
	n := len(d.m.Layers) - 1
	if n > 0 && d.m.Layers[n].State == chain.StateBase {
		n--
	}
	return n
}

func total(bins []float32) int64 {
	sum := 0.0
	for _, b := range bins {
		sum += float64(b)
	}
	return int64(sum)
}

// layer draws a row, top being its upper edge.
func (d *mapDrawing) layer(i int, top float64) {
	l := d.m.Layers[i]
	color, middle := d.color(i), top+d.pitch/2
	d.printf(`<g><title>%s</title><rect class="k" x="%d" y="%s" width="%d" height="%s"/>`, d.text(d.words(l)),
		mapLeft, number(middle-d.bar/2), mapSpan, number(d.bar))
	d.rowText(i, top, color)
	d.printf(`<g transform="translate(%d %s) scale(%s 1)" clip-path="url(#a)" fill="none" stroke="%s">`,
		mapLeft, number(middle), number6(d.scale()), color)
	for k, level := range mapLevels {
		path := d.runs(func(column int) bool {
			share := min(1, d.sum(l.Data, column)/d.capacity(column))
			return share > level && (k+1 == len(mapLevels) || share <= mapLevels[k+1])
		}, 0)
		if path != "" {
			d.printf(`<path class="q%d" stroke-width="%s" d="%s"/>`, k, number(d.bar), path)
		}
	}
	// Zeros are a thin line at the bottom of the row.
	if path := d.runs(func(column int) bool { return d.sum(l.Zero, column) > 0 }, d.bar/2-0.75); path != "" {
		d.printf(`<path stroke-width="1.5" d="%s"/>`, path)
	}
	// What is damaged is red, over the whole height.
	lost := func(column int) bool { return len(l.Lost) > 0 && d.sum(l.Lost, column) > 0 }
	if path := d.runs(lost, 0); path != "" {
		d.printf(`<path stroke="%s" stroke-width="%s" d="%s"/>`, mapDamageColor, number(d.bar), path)
	}
	d.printf("</g></g>\n")
}

// holdsText is what a layer holds, or a view: at least that, where some of it is damaged.
func holdsText(bins, lost []float32) string {
	text := Size(total(bins))
	if total(lost) > 0 {
		return "≥ " + text
	}
	return text
}

// rowText writes a layer's name and figures, where there is room for them.
func (d *mapDrawing) rowText(i int, top float64, color string) {
	l := d.m.Layers[i]
	size := min(12, d.pitch*0.87)
	if size < 7.5 {
		every := int(9/d.pitch) + 1
		if i%every != 0 && i != len(d.m.Layers)-1 {
			return
		}
		size = 8
	}
	baseline := number(top + d.pitch/2 + size*0.36)
	style := ""
	if size < 12 {
		style = fmt.Sprintf(` style="font-size:%spx"`, number(size))
	}
	d.printf(`<rect x="%d" y="%s" width="8" height="%s" fill="%s"/>`, mapPad, number(top+d.pitch/2-d.bar/2), number(d.bar), color)
	weight := ""
	if l.State == chain.StateLeaf {
		weight = ` class="b"`
	}
	d.printf(`<text%s x="%d" y="%s"%s>%s</text>`, weight, mapPad+14, baseline, style, d.text(fit(l.Title(), (mapLeft-mapPad-14-8)/size)))
	d.printf(`<text class="e" x="%d" y="%s"%s>%s</text>`, mapHolds, baseline, style, holdsText(l.Data, l.Lost))
	d.printf(`<text class="e m" x="%d" y="%s"%s>%s</text>`, mapSeen, baseline, style, Size(total(l.Seen)))
}

// words say of a layer what the row shows.
func (d *mapDrawing) words(l chain.MapLayer) string {
	text := l.Title()
	if l.Name != "" || l.State == chain.StateLeaf {
		text += " (" + l.ID + ")"
	}
	text += ": holds " + Size(total(l.Data))
	if zeros := total(l.Zero); zeros > 0 {
		text += ", and zeros over " + Size(zeros)
	}
	if lost := total(l.Lost); lost > 0 {
		text += ", or more: " + Size(lost) + " are damaged and cannot be read"
	}
	text += "; " + Size(total(l.Seen)) + " of it is in the disk as it is now"
	if l.State != chain.StateLeaf {
		text += "; since " + l.Since().Local().Format("2006-01-02 15:04")
	}
	return text
}

// number6 is a scale, which is multiplied with hundreds.
func number6(f float64) string { return strconv.FormatFloat(f, 'g', 6, 64) }

// runs is a path of horizontal lines through the columns of which is says so.
func (d *mapDrawing) runs(is func(column int) bool, y float64) string {
	var path strings.Builder
	at := 0 // where the pen is
	for column := 0; column < d.n; column++ {
		if !d.known(column) || !is(column) {
			continue
		}
		start := column
		for column+1 < d.n && d.known(column+1) && is(column+1) {
			column++
		}
		if path.Len() == 0 {
			fmt.Fprintf(&path, "M%d %sh%d", start, number(y), column+1-start)
		} else {
			fmt.Fprintf(&path, "m%d 0h%d", start-at, column+1-start)
		}
		at = column + 1
	}
	return path.String()
}

// view draws the row of the leaf's view: each column filled from below with what
// comes from each layer, the oldest first.
func (d *mapDrawing) view(top float64) {
	height := mapLanes * d.lane
	all := int64(0)
	for _, l := range d.m.Layers {
		all += total(l.Seen)
	}
	d.printf(`<g><title>%s</title><rect class="k" x="%d" y="%s" width="%d" height="%s"/></g>`+"\n",
		d.text(fmt.Sprintf("disk.raw: %s of %s is data", Size(all), Size(d.m.Size))),
		mapLeft, number(top), mapSpan, number(height))
	d.printf(`<text class="b" x="%d" y="%s">disk.raw</text><text class="m s" x="%d" y="%s">by where it comes from</text>`,
		mapPad, number(top+height/2-3), mapPad, number(top+height/2+12))
	d.printf(`<text class="b e" x="%d" y="%s">%s</text>`+"\n", mapSeen, number(top+height/2+4), Size(all))
	owners := make([][mapLanes]int, d.n) // of each lane from below, a layer plus 1
	for column := range owners {
		if d.known(column) {
			owners[column] = d.lanes(column)
		}
	}
	d.printf(`<g transform="translate(%d %s) scale(%s 1)" clip-path="url(#a)" fill="none" stroke-width="%s">`+"\n",
		mapLeft, number(top), number6(d.scale()), number(d.lane))
	for i, l := range d.m.Layers {
		var path strings.Builder
		for lane := range mapLanes {
			for column := 0; column < d.n; column++ {
				if owners[column][lane] != i+1 {
					continue
				}
				start := column
				for column+1 < d.n && owners[column+1][lane] == i+1 {
					column++
				}
				fmt.Fprintf(&path, "M%d %sh%d", start, number((mapLanes-float64(lane)-0.5)*d.lane), column+1-start)
			}
		}
		if path.Len() > 0 {
			d.printf(`<path stroke="%s" d="%s"><title>%s</title></path>`+"\n", d.color(i), path.String(),
				d.text(l.Title()+": "+Size(total(l.Seen))+" of the disk as it is now"))
		}
	}
	d.printf("</g>\n")
}

// lanes shares a column of the view out among the layers. What there is at all is seen.
func (d *mapDrawing) lanes(column int) (owners [mapLanes]int) {
	capacity := d.capacity(column)
	sum, filled, most, owner := 0.0, 0, 0.0, 0
	for i := len(d.m.Layers) - 1; i >= 0; i-- {
		share := d.sum(d.m.Layers[i].Seen, column) / capacity
		sum += share
		if share > most {
			most, owner = share, i+1
		}
		for ; filled < mapLanes && float64(filled)+0.5 <= sum*mapLanes; filled++ {
			owners[filled] = i + 1
		}
	}
	if filled == 0 {
		owners[0] = owner
	}
	return owners
}

// unknown hatches the columns that were not looked at yet.
func (d *mapDrawing) unknown(top, bottom float64) {
	for column := 0; column < d.n; column++ {
		if d.known(column) {
			continue
		}
		start := column
		for column+1 < d.n && !d.known(column+1) {
			column++
		}
		from, to := float64(start)*d.scale(), min(float64(column+1)*d.scale(), mapSpan)
		d.printf(`<rect class="u" x="%s" y="%s" width="%s" height="%s"><title>not looked at yet</title></rect>`+"\n",
			number(mapLeft+from), number(top), number(to-from), number(bottom-top))
	}
}

// MapComplete says whether a picture that MapSVG has drawn shows all of the disk.
func MapComplete(picture []byte) bool {
	head, _, _ := bytes.Cut(picture, []byte(">"))
	return bytes.Contains(head, []byte(` data-complete="true"`))
}
