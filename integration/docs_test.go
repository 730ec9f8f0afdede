package integration

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocsNameWhatIsThere: the tests that docs/durability.md and docs/inside.md
// name exist, and every line and rule of theirs is cited in code that is no test.
func TestDocsNameWhatIsThere(t *testing.T) {
	tests, code := sources(t, "..")
	name := regexp.MustCompile(`\bTest[A-Z]\w*[A-Za-z0-9]`)
	for doc, number := range map[string]*regexp.Regexp{
		"durability.md": regexp.MustCompile(`(?m)^\| (D\d+) \|`),
		"inside.md":     regexp.MustCompile(`(?m)^\*\*(M\d+)\*\*`),
	} {
		text, err := os.ReadFile(filepath.Join("../docs", doc))
		if err != nil {
			t.Fatal(err)
		}
		names := name.FindAllString(string(text), -1)
		slices.Sort(names)
		for _, test := range slices.Compact(names) {
			whole := "func " + test + "("
			if strings.Contains(string(text), test+"…") { // several that begin so
				whole = "func " + test
			}
			if !strings.Contains(tests, whole) {
				t.Errorf("%s names %s, which is not there", doc, test)
			}
		}
		found := number.FindAllStringSubmatch(string(text), -1)
		if len(found) < 19 {
			t.Errorf("%s has %d numbers", doc, len(found))
		}
		for _, match := range found {
			if !regexp.MustCompile(`//.*\b` + match[1] + `\b`).MatchString(code) {
				t.Errorf("no code cites %s of %s", match[1], doc)
			}
		}
	}
}

// sources gives all test files of a tree as one text, and all others.
func sources(t *testing.T, root string) (tests, code string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && path != root:
			return fs.SkipDir
		case filepath.Ext(path) != ".go":
			return nil
		}
		text, err := os.ReadFile(path)
		if strings.HasSuffix(path, "_test.go") {
			tests += string(text)
		} else if !strings.Contains(path, "/integration/") {
			code += string(text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests, code
}
