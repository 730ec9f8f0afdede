package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// event is a line of go test -json (go doc test2json).
type event struct {
	Action     string
	Package    string
	Test       string
	Output     string
	ImportPath string // of build-output
	Elapsed    float64
}

// results is what is known of a part: it takes events, keeps the output of whatever
// is not known to have passed, and tells the rest.
type results struct {
	packages map[string]*packageResult
	tests    map[testKey]*testState // that have begun and not passed

	ran     int        // tests and subtests
	skipped int        // of these
	times   []testTime // of tests, not subtests
	failed  []string   // "package.Test"
	lines   int        // how many were kept; gives their order
	now     func() time.Time
}

type testKey struct{ pkg, test string }

// packageResult is a package's closing line, and what it printed outside of tests.
type packageResult struct {
	output  []string
	closing string // "ok  \tvarve/chain\t1.2s\n"
	failed  bool
	ended   bool
	ran     int
}

type testState struct {
	began   time.Time
	paused  bool
	ended   bool
	ownLine []line
}

type line struct {
	number int
	text   string
}

type testTime struct {
	name string
	took time.Duration
}

func newResults() *results {
	return &results{packages: map[string]*packageResult{}, tests: map[testKey]*testState{}, now: time.Now}
}

// take takes an event and gives what is to be printed now: of a test or package that
// has failed everything that it printed.
func (r *results) take(e event) string {
	switch e.Action {
	case "build-output":
		return e.Output
	case "build-fail", "bench", "attr", "artifacts":
		return ""
	}
	if e.Test == "" {
		return r.takePackage(e)
	}
	key := testKey{e.Package, e.Test}
	t := r.tests[key]
	if t == nil {
		t = &testState{began: r.now()}
		r.tests[key] = t
	}
	switch e.Action {
	case "run":
		r.ran++
		r.pkg(e.Package).ran++
	case "pause":
		t.paused = true
	case "cont":
		t.paused, t.began = false, r.now()
	case "output":
		if !isFrame(e.Output) {
			r.lines++
			t.ownLine = append(t.ownLine, line{r.lines, e.Output})
		}
	case "skip":
		r.skipped++
		r.done(key, e)
		delete(r.tests, key)
	case "pass":
		r.done(key, e)
		delete(r.tests, key)
	case "fail":
		t.ended = true
		r.failed = append(r.failed, e.Package+"."+e.Test)
		if r.done(key, e) {
			return r.outputOf(key)
		}
	}
	return ""
}

// isFrame says whether a line only says what the events say as well.
func isFrame(s string) bool {
	for _, frame := range []string{"=== RUN ", "=== PAUSE ", "=== CONT ", "=== NAME "} {
		if strings.HasPrefix(s, frame) {
			return true
		}
	}
	return false
}

// done notes how long a test took; true for one that is no subtest.
func (r *results) done(key testKey, e event) bool {
	if strings.Contains(key.test, "/") {
		return false
	}
	took := time.Duration(e.Elapsed * float64(time.Second))
	r.times = append(r.times, testTime{key.pkg + "." + key.test, took})
	return true
}

// outputOf gives what a test and its subtests printed, but those that passed, and
// forgets it.
func (r *results) outputOf(top testKey) string {
	var all []line
	for key, t := range r.tests {
		if key == top || key.pkg == top.pkg && strings.HasPrefix(key.test, top.test+"/") {
			all = append(all, t.ownLine...)
			delete(r.tests, key)
		}
	}
	slices.SortFunc(all, func(a, b line) int { return cmp.Compare(a.number, b.number) })
	var b strings.Builder
	for _, l := range all {
		b.WriteString(l.text)
	}
	return b.String()
}

func (r *results) pkg(name string) *packageResult {
	p := r.packages[name]
	if p == nil {
		p = &packageResult{}
		r.packages[name] = p
	}
	return p
}

func (r *results) takePackage(e event) string {
	p := r.pkg(e.Package)
	switch e.Action {
	case "output":
		if isClosing(e.Output) {
			p.closing = e.Output
		} else if e.Output != "PASS\n" && e.Output != "FAIL\n" {
			p.output = append(p.output, e.Output)
		}
	case "pass", "skip":
		p.ended, p.output = true, nil
	case "fail":
		p.ended, p.failed = true, true
		if p.closing == "" {
			p.closing = "FAIL\t" + e.Package + "\n"
		}
		// A panic, a hang or an os.Exit leaves tests without an end.
		var b strings.Builder
		for _, top := range r.unfinished(e.Package) {
			r.failed = append(r.failed, top.pkg+"."+top.test)
			fmt.Fprintf(&b, "--- FAIL: %s (it did not end)\n%s", top.test, r.outputOf(top))
		}
		if !slices.ContainsFunc(r.failed, func(name string) bool { return strings.HasPrefix(name, e.Package+".") }) {
			r.failed = append(r.failed, e.Package)
		}
		b.WriteString(strings.Join(p.output, ""))
		p.output = nil
		return b.String()
	}
	return ""
}

// isClosing says whether a line is the one that go test prints for a package.
func isClosing(s string) bool {
	for _, begin := range []string{"ok  \t", "FAIL\t", "?   \t", "---\t"} {
		if strings.HasPrefix(s, begin) {
			return true
		}
	}
	return false
}

// unfinished gives the tests of a package, no subtests, that have begun and not ended.
func (r *results) unfinished(pkg string) []testKey {
	var keys []testKey
	for key, t := range r.tests {
		if key.pkg == pkg && !t.ended && !strings.Contains(key.test, "/") {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b testKey) int { return cmp.Compare(a.test, b.test) })
	return keys
}

// longest gives the test, no subtest, that has been running for the longest time.
func (r *results) longest() (name string, began time.Time) {
	for key, t := range r.tests {
		if t.ended || t.paused || strings.Contains(key.test, "/") {
			continue
		}
		if name == "" || t.began.Before(began) {
			name, began = key.test, t.began
		}
	}
	return name, began
}

// closing gives go test's own last lines, in the order of the packages' names.
func (r *results) closing() (lines []string, failed bool) {
	for _, p := range r.packages {
		if p.closing != "" {
			lines = append(lines, p.closing)
		}
		failed = failed || p.failed
	}
	slices.Sort(lines)
	return lines, failed
}
