package manifest

import (
	"errors"
	"strings"
	"testing"

	"varve/chain/refusal"
)

func TestCheckName(t *testing.T) {
	long := strings.Repeat("x", 128)
	for _, name := range []string{"a", "before-upgrade", "A.b_c-9", "base2", "Base", "_", "0", long} {
		if err := CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\n", "a\x00", "base", "leaf", long + "x", "a:b", "#a"} {
		if err := CheckName(name); !errors.Is(err, refusal.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestLegalName(t *testing.T) {
	long := strings.Repeat("y", 300)
	tests := []struct {
		name, want string
		taken      []string
	}{
		{"s1", "s1", nil},
		{"vm.s1.qcow2", "vm.s1.qcow2", nil},
		{"my disk (ü)", "my-disk----", nil},
		{".hidden", "hidden", nil},
		{"--x", "x", nil},
		{"ä", "layer", nil},
		{"base", "base-2", nil},
		{"leaf", "leaf-2", nil},
		{"snap", "snap-3", []string{"snap", "snap-2"}},
		{long, long[:128], nil},
		{long, long[:126] + "-2", []string{long[:128]}},
		{"\xff", "layer", nil},
	}
	for _, test := range tests {
		taken := map[string]bool{}
		for _, name := range test.taken {
			taken[name] = true
		}
		got := LegalName(test.name, taken)
		if got != test.want {
			t.Errorf("%.40q: %q, want %q", test.name, got, test.want)
		}
		if err := CheckName(got); err != nil {
			t.Errorf("%.40q: %v", test.name, err)
		}
	}
}
