package words

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

const checkout = "../.."

// internal is a line of testdata/internal-errors.txt.
type internal struct {
	line  int
	files string // a pattern of path.Match, or a directory with a slash behind it
	ends  string // what the error ends with, or ""
	text  string // the text, or "" for any
	used  bool
}

func (i *internal) covers(t Text) bool {
	inFiles := strings.HasSuffix(i.files, "/") && strings.HasPrefix(t.File, i.files)
	if !inFiles {
		inFiles, _ = filepath.Match(i.files, t.File)
	}
	return inFiles && (i.ends == "" || i.ends == t.Ends) && (i.text == "" || i.text == t.Text)
}

// readInternal reads the list of internal errors: a reason in lines that begin
// with #, then the lines that it is for, up to an empty one.
func readInternal(t *testing.T) []*internal {
	t.Helper()
	f, err := os.Open("testdata/internal-errors.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var list []*internal
	reason := false
	scanner := bufio.NewScanner(f)
	for n := 1; scanner.Scan(); n++ {
		line := strings.TrimSpace(scanner.Text())
		switch {
		case line == "":
			reason = false
		case strings.HasPrefix(line, "#"):
			reason = true
		default:
			if !reason {
				t.Errorf("internal-errors.txt:%d has no reason above it", n)
			}
			entry := &internal{line: n}
			entry.files, line, _ = strings.Cut(line, " ")
			if ends, ok := strings.CutPrefix(line, "ends with "); ok {
				entry.ends = ends
			} else {
				entry.text = line
			}
			if entry.ends == "" && entry.text == "" {
				t.Errorf("internal-errors.txt:%d names no text", n)
			}
			list = append(list, entry)
		}
	}
	if err := scanner.Err(); err != nil {
		t.Fatal(err)
	}
	return list
}

// documented is a text in the first column of a table of troubleshooting.md.
type documented struct {
	line  int
	text  string
	hosts bool // the host's own words
	later bool // of commands that may not be there yet
	found bool
}

var codeSpan = regexp.MustCompile("`([^`]+)`")

// readTroubleshooting reads the texts that the page explains: the code in the first
// column of its tables, except those whose head says that they are not varve's.
func readTroubleshooting(t *testing.T) []*documented {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(checkout, "docs/troubleshooting.md"))
	if err != nil {
		t.Fatal(err)
	}
	var list []*documented
	kind := ""
	for i, line := range strings.Split(string(page), "\n") {
		if !strings.HasPrefix(line, "| ") {
			kind = ""
			continue
		}
		cells := strings.Split(strings.ReplaceAll(line, `\|`, "\x00"), " | ")
		if kind == "" {
			kind = strings.TrimPrefix(cells[0], "| ")
			continue
		}
		if kind == "what is seen" || strings.HasPrefix(line, "| ---") {
			continue
		}
		if len(cells) != 2 {
			t.Errorf("troubleshooting.md:%d: %d columns", i+1, len(cells))
		}
		spans := codeSpan.FindAllStringSubmatch(cells[0], -1)
		if len(spans) == 0 {
			t.Errorf("troubleshooting.md:%d has no text", i+1)
		}
		for _, span := range spans {
			text := strings.ReplaceAll(span[1], "\x00", "|")
			list = append(list, &documented{line: i + 1, text: text, hosts: kind == "the line ends with", later: kind == "the newer line says"})
		}
	}
	return list
}

// pattern matches the lines that an error of a text makes: the text with words for
// what it leaves open, and other words in front of it or behind it.
func pattern(text string) *regexp.Regexp {
	parts := strings.Split(text, "…")
	for i, part := range parts {
		parts[i] = regexp.QuoteMeta(part)
	}
	return regexp.MustCompile(`^(?:.*: |… )?` + strings.Join(parts, ".+") + `(?:: .*)?$`)
}

// TestEveryErrorIsExplained looks for the text of every error in the source.
func TestEveryErrorIsExplained(t *testing.T) {
	texts, err := Source(checkout, "cmd", "fs", "chain", "overlay")
	if err != nil {
		t.Fatal(err)
	}
	if len(texts) < 300 {
		t.Fatalf("only %d texts of errors found in the source", len(texts))
	}
	explained, list := readTroubleshooting(t), readInternal(t)
	for _, text := range texts {
		known, line := false, pattern(text.Text)
		for _, d := range explained {
			if line.MatchString(d.text) {
				known, d.found = true, true
			}
		}
		for _, i := range list {
			if i.covers(text) {
				i.used = true
				known = true
			}
		}
		if !known {
			t.Errorf("%s is neither in docs/troubleshooting.md (in the first column of a table, with … for what differs) nor in integration/words/testdata/internal-errors.txt", text)
		}
	}
	for _, d := range explained {
		if !d.found && !d.later && !(d.hosts && isErrno(d.text)) {
			t.Errorf("docs/troubleshooting.md:%d explains %q, which no error says", d.line, d.text)
		}
	}
	for _, i := range list {
		if !i.used {
			t.Errorf("internal-errors.txt:%d is about no error that is there", i.line)
		}
	}
}

// isErrno tells whether words are those of an errno.
func isErrno(words string) bool {
	for n := range syscall.Errno(133) {
		if n.Error() == words {
			return true
		}
	}
	return false
}

// TestTextsAreFound: the search sees every way in which an error is made.
func TestTextsAreFound(t *testing.T) {
	dir := t.TempDir()
	source := `package p
func f(err error) {
	_ = fmt.Errorf("read %d bytes of %s: %w", 1, "x", err)
	_ = fmt.Errorf("%w: the base cannot be %s", ErrInvalid, "x")
	_ = fmt.Errorf("table at 0x%04x: %w", 1, overlay.ErrCorrupt)
	_ = errors.New("two " + "pieces")
	_ = invalidf("%.40q is no size", "x")
	_ = wrongUse(cmd, "100 %% of %s", "x")
	_ = refuse(unix.EINVAL, fmt.Sprintf("the command has %d bytes", 1))
	_ = fmt.Errorf("%s: %w", "x", err)
	_ = p.corrupt("L1 entry %d", 1)
	t.Errorf("not an error")
}
`
	if err := os.WriteFile(filepath.Join(dir, "p.go"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	texts, err := Source(dir, ".")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, text := range texts {
		got = append(got, fmt.Sprintf("%d %s|%s", text.Line, text.Text, text.Ends))
	}
	want := []string{
		"3 read … bytes of …|err", "4 the base cannot be …|", "5 table at 0x…|ErrCorrupt", "6 two pieces|",
		"7 … is no size|", "8 100 % of …|", "9 the command has … bytes|", "11 L1 entry …|ErrCorrupt",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("found\n%s\nnot\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
