package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The test binary is the watcher as well.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == watchCommand {
		os.Exit(watchMain(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// fixture is a module with a package for each way in which tests end.
var fixture = map[string]string{
	"go.mod": "module fixture\n\ngo 1.26\n",
	"passes/a_test.go": `package passes
import "testing"
func TestPasses(t *testing.T) { t.Run("sub", func(t *testing.T) { t.Log("said by a test that passes") }) }
func TestSkips(t *testing.T) { t.Skip("not today") }
`,
	"fails/a_test.go": `package fails
import "testing"
func TestFails(t *testing.T) {
	t.Log("before the subtests")
	t.Run("good", func(t *testing.T) { t.Log("said by a subtest that passes") })
	t.Run("bad", func(t *testing.T) { t.Error("said by a subtest\nthat fails") })
}
func TestBesideIt(t *testing.T) { t.Log("said by a test that passes") }
`,
	"panics/a_test.go": `package panics
import "testing"
func TestPanics(t *testing.T) { t.Log("said before the panic"); panic("as it happens") }
`,
	"exits/a_test.go": `package exits
import ("os"; "testing"; "fmt")
func TestPasses(t *testing.T) {}
func TestMain(m *testing.M) { m.Run(); fmt.Println("left behind: a mount"); os.Exit(1) }
`,
	"broken/a_test.go": `package broken
import "testing"
func TestBroken(t *testing.T) { undefined() }
`,
	"hangs/a_test.go": `package hangs
import ("testing"; "time")
func TestHangs(t *testing.T) { t.Log("said before it hangs"); waitForNobody() }
func waitForNobody() { time.Sleep(24 * time.Hour) }
`,
	"empty/a.go": "package empty\n",
}

// runFixture runs parts of the fixture and gives whether all passed, and what was printed.
func runFixture(t *testing.T, o options, parts ...part) (bool, string) {
	t.Helper()
	o.dir = t.TempDir()
	for name, text := range fixture {
		path := filepath.Join(o.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	o.watcher, o.lanes = self, max(1, o.lanes)
	var out bytes.Buffer
	passed := newRunner(o, newDisplay(&out, nil)).run(context.Background(), parts)
	return passed, out.String()
}

// has says what of a text is missing, or there and should not be.
func has(t *testing.T, text string, want, not []string) {
	t.Helper()
	for _, w := range want {
		if !regexp.MustCompile("(?m)" + w).MatchString(text) {
			t.Errorf("nothing matches %q", w)
		}
	}
	for _, n := range not {
		if strings.Contains(text, n) {
			t.Errorf("there is %q", n)
		}
	}
	if t.Failed() {
		t.Log("printed:\n" + text)
	}
}

const aWhile = time.Hour

// What passes is one line a package, go test's own, and they are the last.
func TestAllPass(t *testing.T) {
	passed, text := runFixture(t, options{still: aWhile, slowest: 1}, part{title: "good ones", packages: []string{"./passes", "./empty"}})
	if !passed {
		t.Error("it failed")
	}
	has(t, text, []string{
		`^\[0:\d\d\] begins: good ones$`, `passed: good ones, .* 0 of 1 parts are left$`,
		`^3 tests in .* 1 skipped`, `s  fixture/passes\.Test`,
		`\?   \tfixture/empty\t\[no test files\]\nok  \tfixture/passes\t[0-9.]+s\n\z`,
	}, []string{"said by", "=== RUN"})
}

// What fails is printed whole, without what passes beside it; all packages run.
func TestSomeFail(t *testing.T) {
	passed, text := runFixture(t, options{still: aWhile, lanes: 2},
		part{title: "bad ones", packages: []string{"./fails", "./panics", "./exits", "./broken", "./passes"}},
		part{title: "nobody", packages: []string{"./passes"}, flags: []string{"-run=TestOfAnotherName"}},
		part{title: "nowhere", packages: []string{"./nowhere"}},
	)
	if passed {
		t.Error("it passed")
	}
	has(t, text, []string{
		`before the subtests\n.*said by a subtest\n +that fails\n--- FAIL: TestFails/bad .*\n--- FAIL: TestFails `,
		`said before the panic`, `^panic: as it happens`, `^goroutine \d+ `, `a_test\.go:3`,
		`^left behind: a mount$`, `undefined: undefined`, `stat .*nowhere`,
		`^failed: fixture/fails\.TestFails$`, `^failed: fixture/panics\.TestPanics$`, `^failed: fixture/exits$`, `^failed: fixture/broken$`, `^failed: nobody$`, `^failed: \./nowhere$`,
		`^testrun: nobody: no test ran$`, `FAILED: bad ones`, `FAILED: nobody`,
		`^FAIL\tfixture/broken \[build failed\]$`, `^FAIL\tfixture/exits\t`, `^FAIL\tfixture/fails\t`, `^FAIL\tfixture/panics\t`, `^ok  \tfixture/passes\t`,
		`\nFAIL\n\z`,
	}, []string{"said by a subtest that passes", "said by a test that passes"})
}

// A test that hangs is found, by its silence and not by a total, and the stacks show
// where it stands. How long a silence has to be on this machine, so that the test has
// begun before, is tried.
func TestHang(t *testing.T) {
	for still := 2 * time.Second; ; still *= 4 {
		passed, text := runFixture(t, options{still: still}, part{title: "stuck", packages: []string{"./hangs"}})
		if passed {
			t.Fatal("it passed")
		}
		if still < 5*time.Minute && !strings.Contains(text, "said before it hangs") {
			continue // it had not begun
		}
		has(t, text, []string{
			`^--- FAIL: TestHangs`, `said before it hangs`, `has printed nothing for ` + still.String() + `: it hangs`, `SIGQUIT`,
			`fixture/hangs\.waitForNobody`, `^failed: fixture/hangs\.TestHangs$`, `^FAIL\tfixture/hangs\t`, `\nFAIL\n\z`,
		}, nil)
		return
	}
}

// A sign of life counts however often the limit has passed in all.
func TestSlowIsNoHang(t *testing.T) {
	script := "for i in 1 2 3 4 5 6 7 8; do echo alive; sleep 0.25; done; exit 3"
	for still := time.Second; ; still *= 2 {
		var out bytes.Buffer
		code := watcher{still: still, grace: time.Hour, out: &out}.run([]string{"sh", "-c", script})
		if code == 3 && strings.Count(out.String(), "alive") == 8 && !strings.Contains(out.String(), "hangs") {
			return
		}
		if still > 5*time.Minute {
			t.Fatalf("exit code %d:\n%s", code, out.String())
		}
	}
}

// One that does not even print its stacks is killed, and a watched command that
// cannot be started fails.
func TestWatchEnds(t *testing.T) {
	var out bytes.Buffer
	w := watcher{still: time.Millisecond, grace: time.Millisecond, out: &out}
	if code := w.run([]string{"sh", "-c", "trap '' QUIT; while :; do sleep 1; done"}); code != 1 || !strings.Contains(out.String(), "it hangs") {
		t.Errorf("exit code %d:\n%s", code, out.String())
	}
	if code := w.run([]string{"/there/is/none"}); code != 1 || !strings.Contains(out.String(), "/there/is/none") {
		t.Errorf("exit code %d:\n%s", code, out.String())
	}
	if code := watchMain([]string{"-still=1h"}); code != exitUsage {
		t.Errorf("without a command: exit code %d", code)
	}
}

// On a terminal the last line says what is going on, and gives way to what is printed.
func TestDisplay(t *testing.T) {
	var out bytes.Buffer
	d := newDisplay(&out, func() int { return 12 })
	d.say("0123456789abcdef")
	d.print("a line\n")
	d.say("")
	if got, want := out.String(), "\r\x1b[K0123456789a\r\x1b[Ka line\n0123456789a\r\x1b[K"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	out.Reset()
	d = newDisplay(&out, nil)
	d.say("too early")
	d.last = time.Now().Add(-2 * statusEvery)
	d.say("after a minute")
	d.say("too early again")
	if got := out.String(); got != "after a minute\n" {
		t.Errorf("%q", got)
	}
}

// The status names the test that has been running for the longest time.
func TestStatus(t *testing.T) {
	r := newRunner(options{}, newDisplay(&bytes.Buffer{}, nil))
	run := &running{part: part{title: "chain"}, began: time.Now(), results: newResults()}
	r.total, r.running = 3, []*running{run}
	has(t, r.status(), []string{`3 of 3 parts are left \| chain, 0:00: building$`}, nil)
	now := time.Now().Add(-time.Hour)
	run.results.now = func() time.Time { now = now.Add(time.Minute); return now }
	for _, e := range []event{
		{Action: "run", Test: "TestA"}, {Action: "pause", Test: "TestA"},
		{Action: "run", Test: "TestB"}, {Action: "run", Test: "TestB/sub"}, {Action: "run", Test: "TestC"},
	} {
		run.results.take(e)
	}
	has(t, r.status(), []string{`chain, 0:00: TestB 58:00$`}, nil)
	run.results.take(event{Action: "pass", Test: "TestB"})
	run.results.take(event{Action: "pass", Test: "TestC"})
	has(t, r.status(), []string{`chain, 0:00: between tests$`}, nil)
}

// Bad arguments are refused before anything runs, and the parts of a suite can be chosen.
func TestArguments(t *testing.T) {
	for _, args := range [][]string{{}, {"nothing"}, {"test", "fast"}, {"-only=nothing", "test"}, {"-still=0", "test"}, {"-lanes=0", "test"}, {"-what"}} {
		if code := runMain(args, io.Discard); code != exitUsage {
			t.Errorf("%q: exit code %d", args, code)
		}
	}
	if parts := titled(suites["test"], "race detector"); len(parts) == 0 || len(parts) == len(suites["test"]) {
		t.Errorf("%d parts are chosen", len(parts))
	}
	o := options{watcher: "/a b/testrun", still: time.Minute, exec: "sudo env"}
	if got, want := o.watchedExec(), "sudo env '/a b/testrun' watch -still=1m0s"; got != want {
		t.Errorf("-exec %s, want %s", got, want)
	}
}

// Every test of the checkout is in a part of the suite "test", and what a part leaves
// out another one has.
func TestEveryTestIsInAPart(t *testing.T) {
	const root = "../.."
	files, err := filepath.Glob(filepath.Join(root, "*", "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, deeper := range []string{"*/*/*_test.go", "*/*/*/*_test.go", "*/*/*/*/*_test.go"} {
		more, err := filepath.Glob(filepath.Join(root, deeper))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, more...)
	}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(\w+ \*testing\.[TF]\)`)
	used := map[string]bool{}
	n := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		dir, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range declared.FindAllStringSubmatch(string(text), -1) {
			n++
			in := 0
			for _, p := range suites["test"] {
				if p.has("./"+dir, m[1]) {
					used[p.title] = true
					in++
				}
			}
			if in == 0 {
				t.Errorf("%s of %s is in no part", m[1], dir)
			}
		}
	}
	if n < 500 {
		t.Errorf("only %d tests are found", n)
	}
	for _, p := range suites["test"] {
		if !used[p.title] {
			t.Errorf("the part %q has no test", p.title)
		}
	}
}

// has says whether a part runs a test of a package.
func (p part) has(pkg, test string) bool {
	run := true
	for _, f := range p.flags {
		if pattern, ok := strings.CutPrefix(f, "-run="); ok {
			run = run && regexp.MustCompile(pattern).MatchString(test)
		}
		if pattern, ok := strings.CutPrefix(f, "-skip="); ok {
			run = run && !regexp.MustCompile(pattern).MatchString(test)
		}
	}
	if !run {
		return false
	}
	for _, own := range p.packages {
		if below, all := strings.CutSuffix(own, "/..."); own == pkg || all && (pkg == below || strings.HasPrefix(pkg, below+"/")) {
			return true
		}
	}
	return false
}
