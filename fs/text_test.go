package fs

import (
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

func FuzzParseCommand(f *testing.F) {
	for _, s := range []string{"name", "name\n", "# x", "", "a\nb", "a\x00", "\xff", "old new\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		line, err := parseCommand(data)
		if err != nil {
			if errno, _ := errnoOf(err); errno != unix.EINVAL {
				t.Errorf("%q: %v", data, err)
			}
			return
		}
		if line == "" || line[0] == '#' || strings.ContainsAny(line, "\n\x00\r\x1b") || !utf8.ValidString(line) || len(line) > maxCommand {
			t.Errorf("%q gave %q", data, line)
		}
	})
}
