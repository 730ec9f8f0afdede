package prom

import (
	"bytes"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"varve/overlay/procs"
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

// labelForm is one label of a sample.
var labelForm = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"`)

// mostFamilies is how many families of metrics a page may have.
const mostFamilies = 4096

// Parse reads a page and gives each of its samples further labels, which stand before
// its own. What is no page of metrics is an error, and so is what Prometheus would refuse
// the whole page for that it is merged into: a sample that is there twice or has a label
// twice, a value that is no number, a family without an end. A control character is a
// question mark.
func Parse(text []byte, labels ...Label) (*Page, error) {
	var p Page
	var more bytes.Buffer
	writeLabels(&more, labels)
	seen := map[string]bool{} // samples, without their values
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if word, rest, _ := strings.Cut(strings.TrimPrefix(line, "# "), " "); strings.HasPrefix(line, "# ") && (word == "HELP" || word == "TYPE") {
			name, said, _ := strings.Cut(rest, " ")
			if !familyForm.MatchString(name) {
				return nil, notUnderstood(line)
			}
			f := p.family(name)
			said = procs.Printable(said)
			if word == "HELP" {
				f.help = said
			} else {
				f.kind = said
			}
			if f.kind != "" && !slices.Contains(kinds, f.kind) || len(p.families) > mostFamilies {
				return nil, notUnderstood(line)
			}
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		m := sampleForm.FindStringSubmatch(line)
		if m == nil {
			return nil, notUnderstood(line)
		}
		value, _, _ := strings.Cut(strings.Replace(m[3], "\t", " ", 1), " ")
		if _, err := strconv.ParseFloat(value, 64); err != nil {
			return nil, notUnderstood(line)
		}
		m[2] = procs.Printable(m[2])
		names := map[string]bool{}
		for _, l := range labels {
			names[l.Name] = true
		}
		for _, l := range labelForm.FindAllStringSubmatch(m[2], -1) {
			if names[l[1]] {
				return nil, notUnderstood(line)
			}
			names[l[1]] = true
		}
		if key := m[1] + "{" + strings.TrimSuffix(m[2], ","); seen[key] {
			return nil, notUnderstood(line)
		} else {
			seen[key] = true
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
		if len(p.families) > mostFamilies {
			return nil, notUnderstood(line)
		}
		f.samples = append(f.samples, m[1]+all+" "+m[3])
	}
	return &p, nil
}

func notUnderstood(line string) error {
	return fmt.Errorf("not understood as metrics: %.100q", line)
}

var familyForm = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*$`)

// kinds are those of Prometheus' text form.
var kinds = []string{Counter, Gauge, Histogram, "summary", "untyped"}

// Names are those of the page's families.
func (p *Page) Names() []string {
	var list []string
	for _, f := range p.families {
		list = append(list, f.name)
	}
	return list
}

// Kinds are the kinds of metrics by their names, of pages that are to be merged.
type Kinds map[string]string

// Fit notes those of a further page. No name may mean something else than on the pages
// before: then the error says which, and nothing is noted.
func (k Kinds) Fit(p *Page) error {
	all := maps.Clone(k)
	for _, f := range p.families {
		if is := all[f.name]; is == "" {
			all[f.name] = f.kind
		} else if f.kind != "" && f.kind != is {
			return fmt.Errorf("%s has another type or help text than in the other mounts", f.name)
		}
	}
	for name := range all {
		for _, part := range []string{"_bucket", "_sum", "_count"} {
			whole, ok := strings.CutSuffix(name, part)
			if kind := all[whole]; ok && (kind == Histogram || kind == "summary") {
				return fmt.Errorf("%s has another type or help text than in the other mounts", name)
			}
		}
	}
	maps.Copy(k, all)
	return nil
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
