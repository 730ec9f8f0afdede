package chain

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckName(t *testing.T) {
	long := strings.Repeat("x", 128)
	for _, name := range []string{"a", "before-upgrade", "A.b_c-9", "base2", "Base", "_", "0", long} {
		if err := CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\n", "a\x00", "base", "leaf", long + "x", "a:b", "#a"} {
		if err := CheckName(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestLayerNameFor(t *testing.T) {
	long := strings.Repeat("y", 300)
	tests := []struct {
		path, want string
		taken      []string
	}{
		{"/a/snap1.qcow2", "snap1", nil},
		{"/a/vm.snap1", "vm.snap1", nil},
		{"/a/Snap.QCOW2", "Snap", nil},
		{"/a/disk.raw", "disk", nil},
		{"/a/disk.img.qcow2", "disk.img", nil},
		{"/a/my disk (ü).img", "my-disk----", nil},
		{"/a/.hidden.raw", "hidden", nil},
		{"/a/--x.qcow", "x", nil},
		{"/a/.qcow2", "layer", nil},
		{"/a/ä.raw", "layer", nil},
		{"/a/base.qcow2", "base-2", nil},
		{"/a/leaf.raw", "leaf-2", nil},
		{"/a/snap.qcow2", "snap-3", []string{"snap", "snap-2"}},
		{"/a/" + long, long[:128], nil},
		{"/a/" + long + ".raw", long[:126] + "-2", []string{long[:128]}},
		{"/a/\xff.raw", "layer", nil},
	}
	for _, test := range tests {
		taken := map[string]bool{}
		for _, name := range test.taken {
			taken[name] = true
		}
		got := layerNameFor(test.path, taken)
		if got != test.want {
			t.Errorf("%.40q: %q, want %q", test.path, got, test.want)
		}
		if err := CheckName(got); err != nil {
			t.Errorf("%.40q: %v", test.path, err)
		}
	}
}
