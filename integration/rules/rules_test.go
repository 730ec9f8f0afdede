package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const root = "../.."

// Each row of the table has its one place in the code and names tests that are
// there; each rule has rows. The mutants themselves are make test-rules.
func TestTable(t *testing.T) {
	rows := map[string]int{}
	known := map[string]bool{}
	for _, m := range allMutants() {
		rows[m.rule]++
		if _, err := m.sources(root); err != nil {
			t.Errorf("%s, %s: %v", m.rule, m.what, err)
		}
		if known[m.rule+m.what] {
			t.Errorf("%s, %s: there are two such rows", m.rule, m.what)
		}
		known[m.rule+m.what] = true
		if len(m.tests) == 0 {
			t.Errorf("%s, %s: no test", m.rule, m.what)
		}
		for pkg, names := range byPackage(m.tests) {
			for _, name := range names {
				if !hasTest(t, pkg, name) {
					t.Errorf("%s, %s: there is no %s in %s", m.rule, m.what, name, pkg)
				}
			}
		}
	}
	for n := 1; n <= 23; n++ {
		if rule := fmt.Sprintf("M%d", n); rows[rule] < 2 {
			t.Errorf("%s has %d mutants, want two at least", rule, rows[rule])
		}
	}
}

func hasTest(t *testing.T, pkg, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		p, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(p), "\nfunc "+name+"(t *testing.T) {") {
			return true
		}
	}
	return false
}

// A row whose place is gone, or is there twice, is stale and says so.
func TestStaleRows(t *testing.T) {
	for _, old := range []string{"this text is nowhere", "return"} {
		m := one("M1", "nothing", "chain/view/grace.go", old, "x", "chain.TestNames")
		if _, err := m.sources(root); err == nil || !strings.Contains(err.Error(), "stale") {
			t.Errorf("%q: %v", old, err)
		}
	}
	if _, err := (&mutant{edits: []edit{{"chain/none.go", "a", "b"}}}).sources(root); err == nil {
		t.Error("a file that is not there")
	}
}

// What the table calls noticed: a test that fails. What it does not: a mutant
// that changes nothing, one that does not compile, one whose test hangs.
func TestVerdicts(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds tests")
	}
	t.Chdir(root)
	for _, c := range []struct {
		new     string
		noticed bool
		verdict string
	}{
		{"n < 0 {", true, "TestJSON"},
		{"n > mostValues { // the same", false, "NONE"},
		{"n > most {", false, "BROKEN: it does not compile"},
	} {
		// A package that is built fast.
		m := one("M1", c.new, "chain/bounded/bounded.go", "n > mostValues {", c.new, "chain/bounded.TestJSON")
		r := new(tester).try(m)
		if r.noticed != c.noticed || !strings.HasPrefix(r.verdict, c.verdict) {
			t.Errorf("%s: %+v", c.new, r)
		}
	}
	if err := new(tester).baseline([]mutant{{tests: []string{"chain/bounded.TestNobodyWrote"}}}); err == nil {
		t.Error("a test that is not there passes")
	}
}
