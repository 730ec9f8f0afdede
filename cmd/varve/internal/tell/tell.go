// Package tell writes what a command has to say to people: one line each, on standard error.
//
// What is said is others' words too, names of files and of programs, so nothing that a terminal
// would obey goes out as it is (Visible). It knows chain's results that several commands tell
// in the same words, and no command, flag or exit code.
package tell

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Line writes one line for people, beginning with the program's name. What
// several errors that were joined say on lines of their own is put on one. Names of
// others stand in it, of files and of programs.
func Line(w io.Writer, format string, args ...any) {
	text := strings.TrimSpace(fmt.Sprintf(format, args...))
	fmt.Fprintf(w, "varve: %s\n", Visible(strings.ReplaceAll(text, "\n", "; ")))
}

// Visible has what a terminal would not show as text, but obey, written as in Go: names
// and headers may hold anything.
func Visible(s string) string {
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], string(utf8.RuneError)):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// Count is a number of things in words.
func Count(n int64, one, many string) string {
	switch n {
	case 0:
		return "no " + many
	case 1:
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
