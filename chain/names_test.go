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

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"1": 1, "512": 512, "0512": 512, "1K": 1 << 10, "2k": 2 << 10, "3KiB": 3 << 10, "4M": 4 << 20, "20G": 20 << 30,
		"20gib": 20 << 30, "1T": 1 << 40, "1.5G": 3 << 29, "0.5K": 512, "1.0": 1, "1152921504606846976": 1 << 60, "1048576T": 1 << 60,
	} {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "0", "0G", "-1", "+1", "-1G", "G", "1P", "1GB", "1B", "1KK", "1iB", "1 G", " 1", "1e3", "0x10",
		"1_000", "1.5", "0.3K", ".5G", "1.", "1.G", "1.2.3K", "1/2", "NaN", "Inf", "1152921504606846977", "1048577T",
		"99999999999999999999999999T", "10000000000000000000000000000000000000000000", "1\n", "٣"} {
		if got, err := ParseSize(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	f.Add("1.5G")
	f.Add("1048577T")
	f.Add("00000.0000iB")
	f.Fuzz(func(t *testing.T, s string) {
		size, err := ParseSize(s)
		if err == nil && (size <= 0 || size > maxDiskBytes) || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %d, %v", s, size, err)
		}
	})
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
