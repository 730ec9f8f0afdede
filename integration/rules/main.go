// Command rules breaks the rules of docs/inside.md one by one and sees a test
// fail each time. It changes no file of the tree: each mutant is built by means
// of the go command's build overlay.
//
//	go run ./integration/rules [-rule M4] [-parallel 2] [-v]
//
// First every test that is named runs without a mutation, and must pass. A
// mutant that no test notices, one that does not compile and one whose place in
// the code is gone are failures. `make test-rules` runs it.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"varve/integration/patience"
)

// mutant breaks a rule.
type mutant struct {
	rule  string // M1 to M23
	what  string // is broken, in words
	edits []edit
	tests []string // of which at least one must fail, as package.Test
	hangs bool     // a test that does not end counts as one that fails
}

// edit replaces a text that occurs exactly once in a file of the tree.
type edit struct{ file, old, new string }

// Time-outs end tests that hang: of a mutant, and of the tree as it is, where
// all tests of a package run at once. What a mutant has made impossible its tests
// wait for no longer than mutantPatience.
const (
	mutantTimeout   = 10 * time.Minute
	baselineTimeout = 2 * time.Hour
	mutantPatience  = time.Minute
)

func main() {
	rule := flag.String("rule", "", "only the mutants of one rule")
	only := flag.String("what", "", "only the mutants whose description matches a regular expression")
	parallel := flag.Int("parallel", 2, "how many mutants are tried at a time")
	execWith := flag.String("exec", "", "run the tests by this command, as go test does")
	verbose := flag.Bool("v", false, "show what the failing tests print")
	flag.Parse()
	match, err := regexp.Compile(*only)
	if err == nil {
		var chosen []mutant
		for _, m := range allMutants() {
			if (*rule == "" || m.rule == *rule) && match.MatchString(m.what) {
				chosen = append(chosen, m)
			}
		}
		env, remove := inMemory()
		err = run(chosen, *parallel, &tester{exec: *execWith, env: env, verbose: *verbose})
		remove()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "rules:", err)
		os.Exit(1)
	}
}

// run tries all mutants and prints the table.
func run(mutants []mutant, parallel int, t *tester) error {
	if len(mutants) == 0 {
		return errors.New("no such mutant")
	}
	for _, m := range mutants {
		if _, err := m.sources("."); err != nil {
			return fmt.Errorf("%s, %s: %w", m.rule, m.what, err)
		}
	}
	if err := t.baseline(mutants); err != nil {
		return err
	}
	fmt.Println("| rule | what was broken | test that failed | seconds |")
	fmt.Println("| --- | --- | --- | --- |")
	results := make([]chan result, len(mutants))
	for i := range results {
		results[i] = make(chan result, 1)
	}
	next := make(chan int, len(mutants))
	for i := range mutants {
		next <- i
	}
	close(next)
	for range max(1, parallel) {
		go func() {
			for i := range next {
				results[i] <- t.try(mutants[i])
			}
		}()
	}
	bad := 0
	for i, m := range mutants {
		r := <-results[i]
		fmt.Printf("| %s | %s | %s | %.0f |\n", m.rule, m.what, r.verdict, r.took.Seconds())
		if !r.noticed {
			bad++
		}
	}
	fmt.Printf("\n%d mutants, %d noticed\n", len(mutants), len(mutants)-bad)
	if bad > 0 {
		return fmt.Errorf("%d of %d mutants are not noticed", bad, len(mutants))
	}
	return nil
}

// sources gives the changed files by their paths below root.
func (m *mutant) sources(root string) (map[string]string, error) {
	changed := map[string]string{}
	for _, e := range m.edits {
		text, known := changed[e.file]
		if !known {
			p, err := os.ReadFile(filepath.Join(root, e.file))
			if err != nil {
				return nil, err
			}
			text = string(p)
		}
		if n := strings.Count(text, e.old); n != 1 {
			return nil, fmt.Errorf("%s has %d places like %q, not one: the row is stale", e.file, n, e.old)
		}
		changed[e.file] = strings.Replace(text, e.old, e.new, 1)
	}
	return changed, nil
}

// byPackage sorts tests, as package.Test, by packages.
func byPackage(tests []string) map[string][]string {
	sorted := map[string][]string{}
	for _, test := range tests {
		pkg, name, _ := strings.Cut(test, ".")
		if !slices.Contains(sorted[pkg], name) {
			sorted[pkg] = append(sorted[pkg], name)
		}
	}
	return sorted
}

type tester struct {
	exec    string
	env     []string
	verbose bool
	print   sync.Mutex
}

// test runs some tests of a package, on the tree or on a build overlay.
func (t *tester) test(pkg string, names []string, overlay string) (output string, err error) {
	timeout, env := baselineTimeout, append(os.Environ(), t.env...)
	args := []string{"test", "-count=1", "-vet=off", "-v", "-run", "^(" + strings.Join(names, "|") + ")$"}
	if overlay != "" {
		timeout = mutantTimeout
		args = append(args, "-overlay", overlay)
		env = append(env, patience.Variable+"="+mutantPatience.String())
	}
	args = append(args, "-timeout", timeout.String())
	if t.exec != "" {
		args = append(args, "-exec", t.exec)
	}
	cmd := exec.Command("go", append(args, "./"+pkg)...)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// inMemory has the tests work in memory, where there is a place for that and the
// caller has not named another: a disk would have to keep every fsync of every
// mutant, which takes most of the time.
func inMemory() (env []string, remove func()) {
	if os.Getenv("TMPDIR") == "" {
		if dir, err := os.MkdirTemp("/dev/shm", "varve-rules"); err == nil {
			remove = func() { os.RemoveAll(dir) }
			if err := os.Chmod(dir, 0o777|os.ModeSticky); err == nil { // tests become other users
				return []string{"TMPDIR=" + dir}, remove
			}
			remove()
		}
	}
	return nil, func() {}
}

// baseline runs every test that a mutant names without a mutation.
func (t *tester) baseline(mutants []mutant) error {
	var all []string
	for _, m := range mutants {
		all = append(all, m.tests...)
	}
	for pkg, names := range byPackage(all) {
		out, err := t.test(pkg, names, "")
		if err != nil {
			return fmt.Errorf("%s fails without a mutation: %w\n%s", pkg, err, out)
		}
		for _, name := range names {
			if !strings.Contains(out, "--- PASS: "+name+" ") {
				return fmt.Errorf("%s has no test %s, or did not run it", pkg, name)
			}
		}
	}
	return nil
}

type result struct {
	noticed bool
	verdict string
	took    time.Duration
}

var (
	failedTest = regexp.MustCompile(`(?m)^--- FAIL: (\S+)`)
	begunTest  = regexp.MustCompile(`(?m)^=== (?:RUN|CONT)\s+(\S+)`)
)

// try runs a mutant's tests until one of them fails.
func (t *tester) try(m mutant) (r result) {
	start := time.Now()
	defer func() { r.took = time.Since(start) }()
	overlay, remove, err := m.overlay()
	if err != nil {
		return result{verdict: "BROKEN: " + err.Error()}
	}
	defer remove()
	for pkg, names := range byPackage(m.tests) {
		out, err := t.test(pkg, names, overlay)
		if t.verbose && err != nil {
			t.print.Lock()
			fmt.Fprintf(os.Stderr, "%s: %s\n%s\n", m.rule, m.what, out)
			t.print.Unlock()
		}
		switch {
		case err == nil:
		case strings.Contains(out, "[build failed]") || strings.Contains(out, "[setup failed]"):
			return result{verdict: "BROKEN: it does not compile: " + lineWith(out, ".go:")}
		case strings.Contains(out, "panic: test timed out"):
			if m.hangs {
				return result{noticed: true, verdict: last(begunTest, out) + " (hangs)"}
			}
			return result{verdict: "BROKEN: a test hangs"}
		default:
			if failed := failedTest.FindStringSubmatch(out); failed != nil {
				return result{noticed: true, verdict: failed[1]}
			}
			if !strings.Contains(out, "panic: ") && !strings.Contains(out, "fatal error: ") {
				return result{verdict: "BROKEN: go test fails and no test does: " + strings.TrimSpace(out)}
			}
			return result{noticed: true, verdict: last(begunTest, out) + " (panic)"}
		}
	}
	return result{verdict: "NONE"}
}

func last(re *regexp.Regexp, s string) string {
	all := re.FindAllStringSubmatch(s, -1)
	if len(all) == 0 {
		return "?"
	}
	return all[len(all)-1][1]
}

func lineWith(s, part string) string {
	for line := range strings.Lines(s) {
		if strings.Contains(line, part) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// overlay writes the changed files, and the list of them for go test -overlay.
func (m *mutant) overlay() (list string, remove func(), err error) {
	changed, err := m.sources(".")
	if err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp("", "mutant")
	if err != nil {
		return "", nil, err
	}
	remove = func() { os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			remove()
		}
	}()
	replace := map[string]string{}
	for file, text := range changed {
		path, err := filepath.Abs(file)
		if err != nil {
			return "", nil, err
		}
		replace[path] = filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(replace[path], []byte(text), 0o600); err != nil {
			return "", nil, err
		}
	}
	p, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", nil, err
	}
	list = filepath.Join(dir, "overlay.json")
	return list, remove, os.WriteFile(list, p, 0o600)
}
