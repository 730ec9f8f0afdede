package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func samples(values ...float64) []sample {
	var list []sample
	for _, v := range values {
		list = append(list, sample{Value: v})
	}
	return list
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
		ok     bool
	}{
		{nil, 0, false},
		{[]float64{7}, 7, true},
		{[]float64{9, 1, 4}, 4, true},
		{[]float64{9, 1, 4, 6}, 5, true},
	} {
		r := &rowResult{Samples: map[string][]sample{"c": samples(c.values...)}}
		if got, ok := r.median("c"); got != c.want || ok != c.ok {
			t.Errorf("median of %v: %v, %v", c.values, got, ok)
		}
	}
	// A figure that only some samples have.
	r := &rowResult{Samples: map[string][]sample{"c": {{1, map[string]float64{"x": 3}}, {2, nil}, {3, map[string]float64{"x": 8, "y": 11}}}}}
	if got, ok := r.medianOf("c", "x"); got != 5.5 || !ok {
		t.Errorf("median of x: %v, %v", got, ok)
	}
	if _, ok := r.medianOf("c", "z"); ok {
		t.Error("a figure that nobody has was found")
	}
	if got, ok := r.largestOf("c", "x", "y"); got != 11 || !ok {
		t.Errorf("largest of x and y: %v, %v", got, ok)
	}
	if _, ok := r.largestOf("d", "x"); ok {
		t.Error("a contestant that has no samples has a largest figure")
	}
}

func TestRatio(t *testing.T) {
	r := &rowResult{Samples: map[string][]sample{"a": samples(10, 30, 20), "b": samples(5), "zero": samples(0)}}
	for _, c := range []struct {
		a, b  string
		lower bool
		want  float64
		ok    bool
	}{
		{"a", "b", false, 4, true},
		{"a", "b", true, 0.25, true}, // a takes longer
		{"b", "a", true, 4, true},
		{"a", "none", false, 0, false},
		{"none", "a", false, 0, false},
		{"a", "zero", false, 0, false},
	} {
		r.LowerBetter = c.lower
		if got, ok := r.ratio(c.a, c.b); ok != c.ok || ok && got != c.want {
			t.Errorf("%s against %s, lower is better %v: %v, %v", c.a, c.b, c.lower, got, ok)
		}
	}
	r.LowerBetter = true
	if got, ok := r.quotient("a", "b"); got != 4 || !ok {
		t.Errorf("quotient: %v, %v", got, ok)
	}
}

// judged are the verdicts on one row, by what their target says.
func judged(t *testing.T, row *rowResult) (map[string]verdict, int) {
	t.Helper()
	r := &results{Rows: []*rowResult{row}}
	missed := r.judge()
	if len(r.Targets) == 0 {
		t.Fatalf("%s has no target", row.Name)
	}
	byWhat := map[string]verdict{}
	for _, v := range r.Targets {
		if v.Row != row.Name {
			t.Errorf("a verdict on %s, which was not measured", v.Row)
		}
		byWhat[v.What] = v
	}
	return byWhat, missed
}

func TestVerdicts(t *testing.T) {
	const what = "4 KiB random write in place, queue 32: against qemu-storage-daemon"
	for _, c := range []struct {
		varve, peer      []sample
		reached, missing bool
		outcome          string
	}{
		{samples(300), samples(100), true, false, "reached"},
		{samples(299), samples(100), false, false, "NOT reached"},
		{samples(300), nil, false, true, "NOT MEASURED"},
	} {
		byWhat, _ := judged(t, &rowResult{Name: "write-4k-q32", Samples: map[string][]sample{varve1: c.varve, qsd1: c.peer}})
		v := byWhat[what]
		if v.Reached != c.reached || v.Missing != c.missing {
			t.Errorf("%v against %v: %+v", c.varve, c.peer, v)
		}
		want, _, outcome := v.words()
		if want != "at least 3" || outcome != c.outcome {
			t.Errorf("%v against %v reads %q, %q", c.varve, c.peer, want, outcome)
		}
	}
}

func TestVerdictsOnTwoSizes(t *testing.T) {
	for _, c := range []struct {
		all, quarter float64
		reached      bool
	}{
		{1.5, 1, true},
		{4, 1, false},
		{0.06, 0.02, true}, // 3 times, and 40 ms
		{0.35, 0.1, false},
		{1.2, 0.7, false},
	} {
		byWhat, missed := judged(t, &rowResult{Name: "xfs-flatten-4x", LowerBetter: true,
			Samples: map[string][]sample{varve1: samples(c.all), varve1 + quarterWords: samples(c.quarter)}})
		for _, v := range byWhat {
			if v.Reached != c.reached || v.Value != c.all/c.quarter || (missed == 0) != c.reached {
				t.Errorf("%v s and %v s: %+v, %d missed", c.all, c.quarter, v, missed)
			}
		}
	}
}

func TestVerdictsOnSnapshots(t *testing.T) {
	stalled := func(ms, with, without float64) []sample {
		return []sample{{ms, map[string]float64{"longest ms with": with, "longest ms without": without}}}
	}
	deep := contestant{kind: varveBig, depth: 128}.String()
	byWhat, missed := judged(t, &rowResult{Name: "snapshot-1t-8000", LowerBetter: true, Samples: map[string][]sample{
		contestant{kind: varveBig, depth: 1}.String(): stalled(0.5, 20, 1), deep: stalled(1.5, 31, 1),
		string(rawFile): stalled(0, 10, 30),
	}})
	for what, reached := range map[string]bool{
		"snapshot-1t-8000, depth 1: p99.9 above that without":               true,
		"snapshot-1t-8000, depth 1: longest write against the raw file's":   true,
		"snapshot-1t-8000, depth 128: p99.9 above that without":             false,
		"snapshot-1t-8000, depth 128: longest write against the raw file's": false,
	} {
		if v, ok := byWhat[what]; !ok || v.Missing || v.Reached != reached {
			t.Errorf("%s: %+v", what, v)
		}
	}
	if missed != 2 {
		t.Errorf("%d missed, want 2", missed)
	}
}

// A target of a row that no suite has, or of contestants that do not take part in
// it, would never be judged.
func TestTargetsHaveRows(t *testing.T) {
	b := &bench{options: options{suite: "full", sizeMiB: 1024, disk: "given"}}
	names := map[string]row{}
	for _, r := range b.rows() {
		if _, twice := names[r.name]; twice {
			t.Errorf("two rows are called %s", r.name)
		}
		names[r.name] = r
	}
	for _, target := range targets() {
		r, ok := names[target.row]
		if !ok {
			t.Errorf("%q is judged by %s, which no suite has", target.What, target.row)
			continue
		}
		// Every figure that a row could have: whoever judges it must find his own.
		result := &rowResult{Name: r.name, Samples: map[string][]sample{}}
		var words []string
		for _, c := range r.contestants {
			words = append(words, c.String())
			result.Samples[c.String()] = []sample{{1, map[string]float64{
				"resident MiB": 1, "longest ms with": 1, "longest ms without": 1,
			}}}
		}
		if target.judge != nil {
			_, ok = target.judge(result)
		} else {
			_, ok = result.ratio(target.of, target.to)
		}
		if !ok {
			t.Errorf("%q is of others than take part in %s: %q", target.What, r.name, words)
		}
	}
}

// In one suite two contestants of a row have two names, or they share samples.
func TestContestantsHaveNames(t *testing.T) {
	for _, suite := range []string{"quick", "targets", "full"} {
		b := &bench{options: options{suite: suite, sizeMiB: 1024}}
		for _, r := range b.rows() {
			var seen []string
			for _, c := range r.contestants {
				if slices.Contains(seen, c.String()) {
					t.Errorf("suite %s, %s: two contestants are called %s", suite, r.name, c)
				}
				seen = append(seen, c.String())
			}
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0.00", 1.234: "1.23", 12.34: "12.3", 99.94: "99.9", 123.4: "123", 1234: "1,234", 1234567: "1,234,567"} {
		if got := number(v); got != want {
			t.Errorf("%v is written %q, want %q", v, got, want)
		}
	}
}

func sampleResults() *results {
	row := &rowResult{Name: "read-4k-q1", Unit: "/s", Order: []string{varve1, varve128, qsd1, qsd128, "loopback"},
		Samples: map[string][]sample{
			varve1:     {{20000, map[string]float64{"p50 us": 40, "operations": 9}}, {30000, map[string]float64{"p50 us": 50}}, {10000, nil}},
			varve128:   samples(19000),
			qsd1:       samples(10000),
			"loopback": samples(21000),
		}, Errors: []string{"qemu-storage-daemon, depth 128: start:\nit <did> not"}}
	r := &results{Time: time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC), Machine: "2 processors", Suite: "targets", Rounds: 3, Bytes: 1 << 30, Seconds: 61}
	r.add(row)
	r.judge()
	return r
}

func TestTable(t *testing.T) {
	table := sampleResults().Rows[0].table()
	want := [][]string{
		{"read-4k-q1", "/s", "span", "first against it", "p50 us"},
		{varve1, "20,000", "10,000 to 30,000", "1.00", "45.0"},
		{varve128, "19,000", "19,000 to 19,000", "1.05", ""},
		{qsd1, "10,000", "10,000 to 10,000", "2.00", ""},
		{qsd128, "FAILED", "", "", ""},
		{"loopback", "21,000", "21,000 to 21,000", "0.95", ""},
	}
	if !slices.EqualFunc(table, want, slices.Equal) {
		t.Errorf("table:\n%q\nwant:\n%q", table, want)
	}
	var out bytes.Buffer
	sampleResults().Rows[0].print(&out)
	if s := out.String(); !strings.Contains(s, "FAILED: qemu-storage-daemon, depth 128: start:") || strings.Count(s, "\n") != 9 {
		t.Errorf("printed:\n%s", s)
	}
	out.Reset()
	sampleResults().printTargets(&out)
	line := regexp.MustCompile(`(?m)^4 KiB random read, queue 1: depth 1 against qemu-storage-daemon +at least 1\.4 +2\.00 +reached$`)
	if !line.MatchString(out.String()) || !strings.Contains(out.String(), "NOT MEASURED") {
		t.Errorf("targets:\n%s", &out)
	}
}

// Each table of the markdown has as many cells in every line.
func TestMarkdown(t *testing.T) {
	text := string(sampleResults().asMarkdown())
	cells, tables := 0, 0
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			cells = 0
			continue
		}
		if cells == 0 {
			tables++
			cells = strings.Count(line, "|")
		}
		if strings.Count(line, "|") != cells || !strings.HasSuffix(line, "|") {
			t.Errorf("%q, want %d cells", line, cells-1)
		}
	}
	if tables != 2 {
		t.Errorf("%d tables, want 2:\n%s", tables, text)
	}
	for _, want := range []string{
		"Suite targets, 3 rounds, a disk of 1024 MiB, 61 s in all; 2 processors; 2026-11-25.",
		"| " + varve1 + " | 20,000 | 10,000 to 30,000 | 1.00 | 45.0 |",
		"Failed: qemu-storage-daemon, depth 128: start: it <did> not\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("it lacks %q:\n%s", want, text)
		}
	}
}

// The plot is XML, and has a curve for each who has a depth, with all his points.
func TestPlot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plot.svg")
	if err := sampleResults().plot(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "NaN") || strings.Contains(string(text), "Inf") {
		t.Errorf("it has what is no number:\n%s", text)
	}
	elements := map[string]int{}
	var labels []string
	for d := xml.NewDecoder(bytes.NewReader(text)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v:\n%s", err, text)
		}
		switch token := token.(type) {
		case xml.StartElement:
			elements[token.Name.Local]++
		case xml.CharData:
			labels = append(labels, string(token))
		}
	}
	if elements["circle"] != 3 {
		t.Errorf("%d points, want 3", elements["circle"])
	}
	for _, want := range []string{"varve", "qemu-storage-daemon", "128"} {
		if !slices.Contains(labels, want) {
			t.Errorf("no label %q: %q", want, labels)
		}
	}
	if err := (&results{}).plot(path); err == nil {
		t.Error("nothing was plotted, and nobody said so")
	}
}

func TestParseFio(t *testing.T) {
	const side = `{"iops":5,"bw_bytes":20480,"total_ios":10,"clat_ns":{"max":9000,"percentile":{"50.000000":2000,"99.900000":8000}}}`
	const none = `{"total_ios":0}`
	for name, c := range map[string]struct {
		text string
		ok   bool
	}{
		"reads":  {`fio: a note` + "\n" + `{"jobs":[{"error":0,"read":` + side + `,"write":` + none + `}]}`, true},
		"writes": {`{"jobs":[{"error":0,"read":` + none + `,"write":` + side + `}]}`, true},
		"trims":  {`{"jobs":[{"error":0,"read":` + none + `,"write":` + none + `,"trim":` + side + `}]}`, true},
		"error":  {`{"jobs":[{"error":5,"read":` + side + `,"write":` + none + `}]}`, false},
		"idle":   {`{"jobs":[{"error":0,"read":` + none + `,"write":` + none + `}]}`, false},
		"words":  {`fio: no such engine`, false},
	} {
		r, err := parseFio(c.text)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if want := (fioResult{5, 20480, 10, 2, 8, 9}); c.ok && r != want {
			t.Errorf("%s: %+v, want %+v", name, r, want)
		}
	}
}

func TestLatencyLog(t *testing.T) {
	log, err := readLatencies(strings.NewReader("1000, 30, 1, 4096, 0\n1500, 10, 1, 4096, 0\n2000, 20, 1, 4096, 0\n3999, 5, 0, 4096, 0\n"))
	if err != nil {
		t.Fatal(err)
	}
	at := time.UnixMilli
	for _, c := range []struct {
		windows []window
		want    []int64
	}{
		{nil, nil},
		{[]window{{at(1000), at(2000)}}, []int64{10, 30}},
		{[]window{{at(1000), at(2001)}, {at(1500), at(4000)}}, []int64{5, 10, 20, 30}}, // each once
	} {
		if got := within(log, c.windows); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.windows, got, c.want)
		}
	}
	if _, err := readLatencies(strings.NewReader("1000, x\n")); err == nil {
		t.Error("a broken log was read")
	}
	list := make([]int64, 1001)
	for i := range list {
		list[i] = int64(i) * 1e6
	}
	if got := share(list, 0.999); got != 999 {
		t.Errorf("p99.9 of 0 to 1000 ms is %v", got)
	}
}

func TestParseOptions(t *testing.T) {
	o, err := parse([]string{"-suite", "full", "-only", "^read", "-size", "128"})
	if err != nil || o.suite != "full" || o.sizeMiB != 128 || !o.only.MatchString("read-1m") || o.only.MatchString("touch-read") {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range [][]string{{"-suite", "all"}, {"-size", "100"}, {"-rounds", "0"}, {"-only", "("}, {"word"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}
