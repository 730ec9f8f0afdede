package main

import (
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The plot is drawn plainly: two panels with logarithmic axes are less than what
// a plotting library would bring into go.mod.
const (
	panelWidth, panelHeight = 360.0, 260.0
	panelLeft, panelTop     = 70.0, 40.0
	panelGap                = 90.0
)

var depthOf = regexp.MustCompile(`^(.*), depth (\d+)$`)

type point struct{ depth, value float64 }

// curves are a row's medians by depth, of the contestants that have one.
func (r *rowResult) curves() (names []string, points map[string][]point) {
	points = map[string][]point{}
	for _, c := range r.Order {
		m := depthOf.FindStringSubmatch(c)
		value, ok := r.median(c)
		if m == nil || !ok {
			continue
		}
		depth, err := strconv.ParseFloat(m[2], 64)
		if err != nil || depth < 1 || value <= 0 {
			continue
		}
		if !slices.Contains(names, m[1]) {
			names = append(names, m[1])
		}
		points[m[1]] = append(points[m[1]], point{depth, value})
	}
	return names, points
}

// plot writes random read speed against depth as SVG, a panel for each queue
// depth that was measured.
func (r *results) plot(path string) error {
	var svg strings.Builder
	x := panelLeft
	for _, panel := range []struct{ row, title string }{
		{"read-4k-q1", "4 KiB random reads, one at a time"}, {"read-4k-q32", "4 KiB random reads, 32 at a time"},
	} {
		i := slices.IndexFunc(r.Rows, func(row *rowResult) bool { return row.Name == panel.row })
		if i < 0 {
			continue
		}
		r.Rows[i].panel(&svg, x, panel.title)
		x += panelWidth + panelGap
	}
	if svg.Len() == 0 {
		return fmt.Errorf("nothing to plot: neither read-4k-q1 nor read-4k-q32 was measured")
	}
	width, height := x-panelGap+30, panelTop+panelHeight+130
	text := fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" font-family=\"sans-serif\" font-size=\"12\">\n"+
		"<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n%s</svg>\n", width, height, svg.String())
	return os.WriteFile(path, []byte(text), 0o644)
}

func (r *rowResult) panel(svg *strings.Builder, left float64, title string) {
	names, points := r.curves()
	lowest, highest, deepest := math.Inf(1), 0.0, 2.0
	for _, list := range points {
		for _, p := range list {
			lowest, highest, deepest = min(lowest, p.value), max(highest, p.value), max(deepest, p.depth)
		}
	}
	if len(names) == 0 {
		return
	}
	bottom, top := math.Floor(math.Log10(lowest)), math.Ceil(math.Log10(highest))
	top = max(top, bottom+1)
	x := func(depth float64) float64 { return left + panelWidth*math.Log2(depth)/math.Log2(deepest) }
	y := func(value float64) float64 {
		return panelTop + panelHeight*(top-math.Log10(value))/(top-bottom)
	}
	label := func(x, y float64, anchor, text string) {
		fmt.Fprintf(svg, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor, text)
	}
	line := func(x1, y1, x2, y2 float64, stroke string) {
		fmt.Fprintf(svg, "<path d=\"M%.1f %.1fL%.1f %.1f\" stroke=\"%s\"/>\n", x1, y1, x2, y2, stroke)
	}
	label(left, panelTop-15, "start", title)
	for e := bottom; e <= top; e++ {
		line(left, y(math.Pow(10, e)), left+panelWidth, y(math.Pow(10, e)), "#ddd")
		label(left-6, y(math.Pow(10, e))+4, "end", number(math.Pow(10, e))+"/s")
	}
	var ticks []float64
	for _, name := range names {
		for _, p := range points[name] {
			if !slices.Contains(ticks, p.depth) {
				ticks = append(ticks, p.depth)
				label(x(p.depth), panelTop+panelHeight+16, "middle", fmt.Sprint(p.depth))
			}
		}
	}
	label(left+panelWidth/2, panelTop+panelHeight+34, "middle", "files below the writable one")
	colours := []string{"#0b6", "#c33", "#36c", "#a60", "#666"}
	for i, name := range names {
		colour := colours[i%len(colours)]
		list := slices.Clone(points[name])
		slices.SortFunc(list, func(a, b point) int { return int(a.depth - b.depth) })
		var path strings.Builder
		for j, p := range list {
			fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(j, 1)], x(p.depth), y(p.value))
			fmt.Fprintf(svg, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", x(p.depth), y(p.value), colour)
		}
		fmt.Fprintf(svg, "<path d=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n", path.String(), colour)
		at := panelTop + panelHeight + 56 + 18*float64(i)
		line(left, at-4, left+20, at-4, colour)
		label(left+26, at, "start", name)
	}
}
