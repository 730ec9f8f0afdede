// Package prom writes metrics in Prometheus' text form (exposition formats, "Text
// format details"). The client library has all of it and a registry beside, for
// which a daemon per disk would pay twice its size; what is needed of it is here,
// and held against the library's own linter in the tests. Which metrics there are stands in
// fs/chainmetrics.go (of a disk) and fs/metrics.go (of a mount).
package prom

import (
	"bytes"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"

	"varve/overlay/measure"
)

// Kinds of metrics.
const (
	Counter   = "counter"
	Gauge     = "gauge"
	Histogram = "histogram"
)

// Label is a name with a value of any text.
type Label struct{ Name, Value string }

// Text is a page of metrics.
type Text struct{ page bytes.Buffer }

// WriteTo writes the page.
func (t *Text) WriteTo(w io.Writer) (int64, error) { return t.page.WriteTo(w) }

// Page is the page as somebody else reads it.
func (t *Text) Page() (*Page, error) { return Parse(t.page.Bytes()) }

// Family is all samples of one name. Its HELP and TYPE are written with the first
// sample, and not without one.
type Family struct {
	text             *Text
	name, kind, help string
	begun            bool
}

// Family begins a family; the samples of the one before are complete.
func (t *Text) Family(name, kind, help string) *Family {
	return &Family{text: t, name: name, kind: kind, help: help}
}

// Int writes a sample.
func (f *Family) Int(value int64, labels ...Label) {
	f.sample("", strconv.FormatInt(value, 10), labels)
}

// Bool writes 1 or 0.
func (f *Family) Bool(value bool, labels ...Label) {
	n := int64(0)
	if value {
		n = 1
	}
	f.Int(n, labels...)
}

// Seconds writes a duration.
func (f *Family) Seconds(value time.Duration, labels ...Label) {
	f.sample("", float(value.Seconds()), labels)
}

// Time writes a moment, as seconds since 1970.
func (f *Family) Time(value time.Time, labels ...Label) {
	f.sample("", float(float64(value.UnixMilli())/1000), labels)
}

// Distribution writes a histogram of durations.
func (f *Family) Distribution(d measure.Distribution, labels ...Label) {
	labels = append(labels[:len(labels):len(labels)], Label{Name: "le"})
	le := &labels[len(labels)-1]
	sum := int64(0)
	for i, n := range d.Buckets {
		sum += n
		le.Value = float(math.Inf(1))
		if i < len(d.Buckets)-1 {
			le.Value = float(measure.Bound(i).Seconds())
		}
		f.sample("_bucket", strconv.FormatInt(sum, 10), labels)
	}
	labels = labels[:len(labels)-1]
	f.sample("_sum", float(d.Sum.Seconds()), labels)
	f.sample("_count", strconv.FormatInt(sum, 10), labels)
}

func (f *Family) sample(suffix, value string, labels []Label) {
	p := &f.text.page
	if !f.begun {
		f.begun = true
		p.WriteString("# HELP " + f.name + " " + helpEscapes.Replace(f.help) + "\n# TYPE " + f.name + " " + f.kind + "\n")
	}
	p.WriteString(f.name + suffix)
	if len(labels) > 0 {
		p.WriteByte('{')
		writeLabels(p, labels)
		p.WriteByte('}')
	}
	p.WriteString(" " + value + "\n")
}

var (
	helpEscapes  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	labelEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

func writeLabels(p *bytes.Buffer, labels []Label) {
	for i, l := range labels {
		if i > 0 {
			p.WriteByte(',')
		}
		// A path may be any bytes, a page must be UTF-8.
		p.WriteString(l.Name + `="` + labelEscapes.Replace(visible(strings.ToValidUTF8(l.Value, "\uFFFD"))) + `"`)
	}
}

// visible has what a terminal would not show as text, but obey, written as in Go; a line
// break has a form of its own on a page. What differs stays different, as far as nobody
// writes such words.
func visible(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r == '\n' || unicode.IsPrint(r) || r == unicode.ReplacementChar {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

func float(v float64) string {
	if math.IsInf(v, 1) {
		return "+Inf"
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}
