// Package shellword writes words for people to paste into a shell.
package shellword

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Quote is a path or a name as a word of a command to paste into a shell: plain
// where nothing in it means anything to a shell, quoted otherwise. What cannot be
// printed is written as a number, $'\033', so that the word is fit for a terminal. A
// shell that does not know $'...' (dash) takes that for another name, but for one word.
func Quote(s string) string {
	plain, printable := s != "", true
	for i, r := range s {
		_, size := utf8.DecodeRuneInString(s[i:])
		plain = plain && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("@%+=:,./_-", r))
		printable = printable && unicode.IsPrint(r) && (r != utf8.RuneError || size > 1)
	}
	switch {
	case !printable:
		return "$'" + numbered(s) + "'"
	case plain:
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// numbered is the inside of $'...'. It has no quote, not even as \': a shell that does not
// know $'...' would end the word there and run what follows.
func numbered(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == '\\':
			b.WriteString(`\\`)
		case r != '\'' && unicode.IsPrint(r) && (r != utf8.RuneError || size > 1):
			b.WriteString(s[:size])
		default:
			for _, c := range []byte(s[:size]) {
				fmt.Fprintf(&b, `\%03o`, c)
			}
		}
		s = s[size:]
	}
	return b.String()
}
