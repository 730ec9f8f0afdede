package show

import (
	"encoding/xml"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"varve/chain"
	"varve/overlay/procs"
)

const mapStyle = `text{font:12px system-ui,"DejaVu Sans",sans-serif;font-variant-numeric:tabular-nums;fill:#1f2328}
.h{font-size:17px;font-weight:600}.m{fill:#59636e}.s{font-size:10.5px}.b{font-weight:600}.e{text-anchor:end}.c{text-anchor:middle}
.p{fill:#fff}.k{fill:#eff1f4}.g{stroke:#c4cad1}.u{fill:url(#u)}
#u path{stroke:#59636e}
.q0{opacity:.54}.q1{opacity:.64}.q2{opacity:.75}.q3{opacity:.87}
@media (prefers-color-scheme:dark){.q0{opacity:.72}.q1{opacity:.79}.q2{opacity:.86}.q3{opacity:.93}text{fill:#e6edf3}.m{fill:#9ba4ae}.p{fill:#0d1117}.k{fill:#1a2028}.g{stroke:#3d444d}#u path{stroke:#9ba4ae}}`

func (d *mapDrawing) head(height float64) {
	m := d.m
	d.printf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%s" viewBox="0 0 %d %s" data-complete="%v">`+"\n",
		mapWidth, number(height), mapWidth, number(height), m.Complete())
	d.printf("<title>%s</title>\n<style>%s</style>\n", d.text(filepath.Base(m.Disk)+": what its layers hold"), mapStyle)
	d.printf(`<defs><pattern id="u" width="6" height="6" patternUnits="userSpaceOnUse"><path d="M0 6L6 0" fill="none"/></pattern>`+
		`<clipPath id="a"><rect x="0" y="-9999" width="%s" height="19998"/></clipPath></defs>`+"\n", number(float64(m.Size)/float64(d.column)))
	d.printf(`<rect class="p" width="%d" height="%s"/>`+"\n", mapWidth, number(height))
	d.printf(`<text class="h" x="%d" y="34">%s</text>`+"\n", mapPad, d.text(fit(filepath.Base(m.Disk), (mapWidth-2*mapPad)/18)))
	words := fmt.Sprintf("%s from left to right, %s", Size(m.Size), plural(d.layers, "layer"))
	if d.layers > 1 {
		words += ", the newest on top"
	}
	if m.Beside > 0 {
		words += fmt.Sprintf("; %s beside this chain not shown", plural(m.Beside, "layer"))
	}
	d.printf(`<text class="m" x="%d" y="55">%s</text>`+"\n", mapPad, d.text(words))
	d.printf(`<text class="m s" x="%d" y="%d">layer</text><text class="m s e" x="%d" y="%d">holds</text><text class="m s e" x="%d" y="%d">in disk.raw</text>`+"\n",
		mapPad, mapTop-8, mapHolds, mapTop-8, mapSeen, mapTop-8)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// mapMany is from how many layers on a picture is so tall that it has the axis at the top too.
const mapMany = 24

// grid draws the axis and its lines.
func (d *mapDrawing) grid(top, bottom float64) {
	step := mapTick(d.m.Size)
	for at := int64(0); at <= d.m.Size; at += step {
		x := number(mapLeft + mapSpan*float64(at)/float64(d.m.Size))
		d.printf(`<path class="g" d="M%s %sV%s"/>`, x, number(top-2), number(bottom+5))
		label := "0"
		if at > 0 {
			label = Size(at)
		}
		d.printf(`<text class="m s c" x="%s" y="%s">%s</text>`, x, number(bottom+18), label)
		if len(d.m.Layers) > mapMany {
			d.printf(`<text class="m s c" x="%s" y="%s">%s</text>`, x, number(top-8), label)
		}
		d.printf("\n")
	}
}

// mapTick is a round distance of marks on the axis: at most eight of them.
func mapTick(size int64) int64 {
	step := int64(512)
	for size/step > 8 {
		step *= 2
	}
	return step
}

// legend says what the marks of the rows mean, and below that how to read the view's.
func (d *mapDrawing) legend(y float64) {
	x := float64(mapLeft)
	label := func(words string) {
		d.printf(`<text class="m s" x="%s" y="%s">%s</text>`, number(x), number(y+10), words)
		x += float64(len(words))*5.6 + 16
	}
	for k := range mapLevels {
		d.printf(`<rect class="q%d" x="%s" y="%s" width="14" height="12" fill="%s"/>`, k, number(x), number(y), mapBaseColor)
		x += 15
	}
	x += 5
	label("hardly any data there, up to full of data")
	d.printf(`<path d="M%s %sh24" fill="none" stroke="%s" stroke-width="1.5"/>`, number(x), number(y+9), mapBaseColor)
	x += 30
	label("zeros: discarded, or written as zeros")
	if d.damaged() {
		d.printf(`<rect x="%s" y="%s" width="14" height="12" fill="%s"/>`, number(x), number(y), mapDamageColor)
		x += 20
		label("damaged")
	}
	if !d.m.Complete() {
		d.printf(`<rect class="u" x="%s" y="%s" width="18" height="12"/>`, number(x), number(y))
		x += 24
		label("not looked at yet")
	}
	x, y = mapLeft, y+19
	label("disk.raw: filled from below, what comes from the oldest layer first")
	if colors := d.between(); colors > len(mapHues) {
		for i := range 12 {
			d.printf(`<rect x="%s" y="%s" width="6" height="12" fill="%s"/>`, number(x), number(y), mapColor(i*(colors-1)/11/4*4, colors))
			x += 6
		}
		x += 5
		label("the darker a colour, the older the layer")
	}
	d.printf("\n")
}

// damaged says whether something of a layer is.
func (d *mapDrawing) damaged() bool {
	return slices.ContainsFunc(d.m.Layers, func(l chain.MapLayer) bool { return total(l.Lost) > 0 })
}

// text is a string as it may stand in XML.
func (d *mapDrawing) text(s string) string {
	var escaped strings.Builder
	xml.EscapeText(&escaped, []byte(procs.Printable(s))) // a Builder's Write never fails
	return escaped.String()
}

// fit shortens a string to what is that wide, in units of the font's size.
func fit(s string, width float64) string {
	for n := utf8.RuneCountInString(s); n > 1 && textWidth(s) > width; n-- {
		s = Shorten(s, n-1)
	}
	return s
}

// textWidth is about how wide a string is, in units of the font's size: rather too much,
// since a viewer may have another font.
func textWidth(s string) (width float64) {
	for _, r := range s {
		switch {
		case strings.ContainsRune("ijl.,:;|'!ftrI()[]- ", r):
			width += 0.42
		case strings.ContainsRune("mwMW@%", r):
			width += 1
		case r > unicode.MaxLatin1 && r != '…':
			width += 1.05
		case unicode.IsUpper(r):
			width += 0.75
		default:
			width += 0.64
		}
	}
	return width
}
