package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// rowResult is a row with what was measured.
type rowResult struct {
	Name        string              `json:"name"`
	Unit        string              `json:"unit"`
	LowerBetter bool                `json:"lower_is_better,omitempty"`
	Order       []string            `json:"contestants"`
	Samples     map[string][]sample `json:"samples"`
	Errors      []string            `json:"errors,omitempty"`
}

// results are a run's.
type results struct {
	Time    time.Time    `json:"time"`
	Machine string       `json:"machine"`
	Suite   string       `json:"suite"`
	Rounds  int          `json:"rounds"`
	Bytes   int64        `json:"disk_bytes"`
	Seconds float64      `json:"seconds"` // of the whole run
	Rows    []*rowResult `json:"rows"`
	Targets []verdict    `json:"targets"`
	o       options
}

func newResults(o options) *results {
	return &results{Time: time.Now().UTC(), Machine: machine(), Suite: o.suite, Rounds: o.rounds, Bytes: o.sizeMiB << 20, o: o}
}

// machine says what the figures are of.
func machine() string {
	words := []string{fmt.Sprint(runtime.NumCPU(), " processors")}
	for _, command := range [][]string{{"uname", "-r"}, {"qemu-storage-daemon", "--version"}, {"fio", "--version"}} {
		if out, err := exec.Command(command[0], command[1:]...).Output(); err == nil {
			first, _, _ := strings.Cut(string(out), "\n")
			words = append(words, first)
		}
	}
	return strings.Join(words, "; ")
}

func (r *results) add(row *rowResult) { r.Rows = append(r.Rows, row) }

// median of a contestant's values; ok is false when it has none.
func (r *rowResult) median(contestant string) (value float64, ok bool) {
	return median(r.Samples[contestant], func(s sample) (float64, bool) { return s.Value, true })
}

func (r *rowResult) medianOf(contestant, more string) (value float64, ok bool) {
	return median(r.Samples[contestant], func(s sample) (float64, bool) { v, ok := s.More[more]; return v, ok })
}

// largestOf is the largest of some figures in all of a contestant's samples.
func (r *rowResult) largestOf(contestant string, more ...string) (value float64, ok bool) {
	for _, s := range r.Samples[contestant] {
		for _, name := range more {
			if v, found := s.More[name]; found {
				value, ok = max(value, v), true
			}
		}
	}
	return value, ok
}

func median(samples []sample, of func(sample) (float64, bool)) (float64, bool) {
	var values []float64
	for _, s := range samples {
		if v, ok := of(s); ok {
			values = append(values, v)
		}
	}
	if len(values) == 0 {
		return 0, false
	}
	slices.Sort(values)
	middle := len(values) / 2
	if len(values)%2 == 0 {
		return (values[middle-1] + values[middle]) / 2, true
	}
	return values[middle], true
}

// quotient of two medians, whichever is better.
func (r *rowResult) quotient(a, b string) (float64, bool) {
	x, ok := r.median(a)
	y, ok2 := r.median(b)
	return x / y, ok && ok2 && y > 0
}

// ratio says how many times as good a is as b.
func (r *rowResult) ratio(a, b string) (float64, bool) {
	x, ok := r.median(a)
	y, ok2 := r.median(b)
	if r.LowerBetter {
		x, y = y, x
	}
	return x / y, ok && ok2 && y > 0
}

// table is the row's lines: contestant, median, span, ratio to the first, and
// what else was measured.
func (r *rowResult) table() [][]string {
	var more []string
	for _, list := range r.Samples {
		for _, s := range list {
			for name := range s.More {
				if name != "operations" && !slices.Contains(more, name) {
					more = append(more, name)
				}
			}
		}
	}
	slices.Sort(more)
	lines := [][]string{append([]string{r.Name, r.Unit, "span", "first against it"}, more...)}
	for _, c := range r.Order {
		value, ok := r.median(c)
		if !ok {
			lines = append(lines, append([]string{c, "FAILED", "", ""}, make([]string, len(more))...))
			continue
		}
		lowest, highest := value, value
		for _, s := range r.Samples[c] {
			lowest, highest = min(lowest, s.Value), max(highest, s.Value)
		}
		ratio := ""
		if x, ok := r.ratio(r.Order[0], c); ok {
			ratio = fmt.Sprintf("%.2f", x)
		}
		line := []string{c, number(value), number(lowest) + " to " + number(highest), ratio}
		for _, name := range more {
			text := ""
			if v, ok := r.medianOf(c, name); ok {
				text = number(v)
			}
			line = append(line, text)
		}
		lines = append(lines, line)
	}
	return lines
}

// number has three digits or more, with commas between thousands.
func number(v float64) string {
	switch {
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func (r *rowResult) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, line := range r.table() {
		fmt.Fprintln(t, strings.Join(line, "\t"))
	}
	_ = t.Flush()
	for _, e := range r.Errors {
		fmt.Fprintln(w, "FAILED:", e)
	}
	fmt.Fprintln(w)
}

func (r *results) printTargets(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "target\twanted\tmeasured\t")
	for _, v := range r.Targets {
		want, got, outcome := v.words()
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", v.What, want, got, outcome)
	}
	_ = t.Flush()
}

// write makes the files that were asked for.
func (r *results) write() error {
	if r.o.json != "" {
		data, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(r.o.json, append(data, '\n'), 0o644); err != nil {
			return err
		}
	}
	if r.o.plot != "" {
		if err := r.plot(r.o.plot); err != nil {
			return err
		}
	}
	if r.o.markdown != "" {
		if err := os.WriteFile(r.o.markdown, r.asMarkdown(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (r *results) asMarkdown() []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, "Suite %s, %d rounds, a disk of %d MiB, %.0f s in all; %s; %s.\n\n", r.Suite, r.Rounds,
		r.Bytes>>20, r.Seconds, r.Machine, r.Time.Format("2006-01-02"))
	out.WriteString("| target | wanted | measured | |\n| --- | --- | ---: | --- |\n")
	for _, v := range r.Targets {
		want, got, outcome := v.words()
		fmt.Fprintf(&out, "| %s | %s | %s | %s |\n", v.What, want, got, outcome)
	}
	for _, row := range r.Rows {
		out.WriteString("\n")
		for i, line := range row.table() {
			fmt.Fprintf(&out, "| %s |\n", strings.Join(line, " | "))
			if i == 0 {
				fmt.Fprintf(&out, "| --- |%s\n", strings.Repeat(" ---: |", len(line)-1))
			}
		}
		for _, e := range row.Errors {
			fmt.Fprintf(&out, "\nFailed: %s\n", strings.ReplaceAll(e, "\n", " "))
		}
	}
	return out.Bytes()
}
