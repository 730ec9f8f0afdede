package prom

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
)

// Page is a page of metrics that somebody else has written, perhaps another version
// of this program.
type Page struct{ families []*pageFamily }

type pageFamily struct {
	name, help, kind string // help and kind as the line says it, "" without one
	samples          []string
}

// sampleForm is a line with a sample; labels and a time may be absent.
var sampleForm = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\.)*",?)*)\})?[ \t]+(\S+(?:[ \t]+-?\d+)?)$`)

// Parse reads a page and gives each of its samples further labels, which stand before
// its own. What is no page of metrics is an error.
func Parse(text []byte, labels ...Label) (*Page, error) {
	var p Page
	var more bytes.Buffer
	writeLabels(&more, labels)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if word, rest, _ := strings.Cut(strings.TrimPrefix(line, "# "), " "); strings.HasPrefix(line, "# ") && (word == "HELP" || word == "TYPE") {
			name, said, _ := strings.Cut(rest, " ")
			f := p.family(name)
			if word == "HELP" {
				f.help = said
			} else {
				f.kind = said
			}
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		m := sampleForm.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("not understood as metrics: %.100q", line)
		}
		all := more.String()
		if all != "" && m[2] != "" {
			all += ","
		}
		all += m[2]
		if all != "" {
			all = "{" + all + "}"
		}
		f := p.owner(m[1])
		f.samples = append(f.samples, m[1]+all+" "+m[3])
	}
	return &p, nil
}

// family is the family of that name, begun if there is none.
func (p *Page) family(name string) *pageFamily {
	for _, f := range p.families {
		if f.name == name {
			return f
		}
	}
	f := &pageFamily{name: name}
	p.families = append(p.families, f)
	return f
}

// owner is the family that a sample belongs to: samples follow the lines that name
// their family, those of a histogram with a word behind it.
func (p *Page) owner(sample string) *pageFamily {
	if n := len(p.families); n > 0 {
		last := p.families[n-1]
		switch strings.TrimPrefix(sample, last.name) {
		case "", "_bucket", "_sum", "_count":
			return last
		}
	}
	return p.family(sample)
}

// Merge puts pages together: each family once, in the order in which they first come,
// with the samples of all pages.
func Merge(pages ...*Page) []byte {
	var all Page
	for _, p := range pages {
		for _, f := range p.families {
			to := all.family(f.name)
			if to.help == "" {
				to.help = f.help
			}
			if to.kind == "" {
				to.kind = f.kind
			}
			to.samples = append(to.samples, f.samples...)
		}
	}
	var out bytes.Buffer
	for _, f := range all.families {
		if len(f.samples) == 0 {
			continue
		}
		if f.help != "" {
			out.WriteString("# HELP " + f.name + " " + f.help + "\n")
		}
		if f.kind != "" {
			out.WriteString("# TYPE " + f.name + " " + f.kind + "\n")
		}
		for _, s := range f.samples {
			out.WriteString(s + "\n")
		}
	}
	return out.Bytes()
}
