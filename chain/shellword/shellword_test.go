package shellword

import (
	"os/exec"
	"strings"
	"testing"
	"unicode"
)

// A shell takes the word for what it was, and a terminal can show it.
func TestQuote(t *testing.T) {
	for name, want := range map[string]string{
		"/img/vm1.qcow2":         "/img/vm1.qcow2",
		"PATH":                   "PATH",
		"Größe-1_2,a=b:c@d%e+f.": "Größe-1_2,a=b:c@d%e+f.",
		"":                       "''",
		"my disk":                "'my disk'",
		"~root/x":                "'~root/x'",
		"x; touch /tmp/pwn #":    "'x; touch /tmp/pwn #'",
		"it's":                   `'it'\''s'`,
		"$(id)`id`\"":            "'$(id)`id`\"'",
		"a\x1b[31m'b\\":          `$'a\033[31m\047b\\'`,
		"\u0080';exit 9;#":       `$'\302\200\047;exit 9;#'`,
		"a\nb\t1":                `$'a\012b\0111'`,
		"not\xffUTF-8 �":         `$'not\377UTF-8 �'`,
		"a\u202eb":               `$'a\342\200\256b'`,
		"a\u00a0b":               `$'a\302\240b'`,
	} {
		got := Quote(name)
		if got != want {
			t.Errorf("%q: %s, not %s", name, got, want)
		}
		if strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q: %q is not printable", name, got)
		}
		out, err := exec.Command("bash", "-c", "printf %s "+got).Output()
		if err != nil || string(out) != name {
			t.Errorf("%q: a shell takes %s for %q, %v", name, got, out, err)
		}
		// The shell of a script need not know $'...', and must run nothing of it.
		out, err = exec.Command("dash", "-c", "printf '%s,' "+got+" end").Output()
		if err != nil || strings.Count(string(out), ",") != 2+strings.Count(name, ",") || !strings.HasSuffix(string(out), ",end,") {
			t.Errorf("%q: dash takes %s for %q, %v", name, got, out, err)
		}
	}
}
