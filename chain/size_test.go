package chain

import (
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"1": 1, "512": 512, "0512": 512, "010": 10, "1K": 1 << 10, "2k": 2 << 10, "3KiB": 3 << 10, "4M": 4 << 20, "20G": 20 << 30,
		"20gib": 20 << 30, "20GB": 20 << 30, "20 GiB": 20 << 30, "20Gi": 20 << 30, "20 GB": 20 << 30, "20gb": 20 << 30, "1 G": 1 << 30,
		"1T": 1 << 40, "1.5T": 3 << 39, "1.5G": 3 << 29, "0.5K": 512, ".5K": 512, "1.G": 1 << 30, "1.0": 1, "100B": 100, "64 B": 64,
		"1P": 1 << 50, "1PiB": 1 << 50, "1E": 1 << 60, "1e": 1 << 60, "1EiB": 1 << 60, "1152921504606846976": 1 << 60, "1048576T": 1 << 60,
		"1e9": 1e9, "1E9": 1e9, "1e+9": 1e9, "2.5e3": 2500, "1e3k": 1000 << 10,
		"0x1000": 4096, "0X1f": 31, "0x1B": 27, "0x1e": 30, "0x10k": 16 << 10,
		// Rounded up.
		"10.1G": 10844792423, "0.3K": 308, "0.0000001K": 1, "1.9999999999999999999k": 2048, "0.9999999999999999999E": 1 << 60,
	} {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
	for s, words := range map[string]string{
		"": "no size", " ": "no size", "0": "is 0", "0G": "is 0", "0e5K": "is 0", "-1": "no size", "-1G": "no size", "+1": "begins with a +", "+10G": "begins with a +",
		"G": "no size", ".": "no size", ".G": "no size", "1KK": "unknown unit", "1iB": "unknown unit", "1b": "unknown unit", "1X": "unknown unit", "20 Gbit": "unknown unit",
		"1  G": "unknown unit", "2E": "more than", "1e-3": "no size", "1e999999999": "no size", "1e99": "more than",
		" 1": "no size", "5 ": "no size", "1G ": "no size", "1\n": "no size", "1\t": "no size", "1G;": "no size", "1,5G": "no size", "1,000": "no size", "1_000": "no size", "0x": "unknown unit", "0x1.8p1": "no size",
		"1.5": "whole number", "1.5B": "whole number", "1.5e0": "whole number", "1.2.3K": "no size", "1/2": "no size", "NaN": "no size", "Inf": "no size", "inf": "no size",
		"1152921504606846977": "more than", "1048577T": "more than", "99999999999999999999999999T": "more than", "1.0000000000000000001E": "more than",
		"10000000000000000000000000000000000000000000": "no size", "٣": "no size", "１G": "no size", "1G\x00": "no size", "\xff": "no size",
	} {
		got, err := ParseSize(s)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), words) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %d, %v; want %q", s, got, err, words)
		}
	}
}

// TestParseSizeAsQEMU: what qemu-img takes as a size is the same size here, but that it
// rounds a fraction of a byte down, and then up to whole sectors.
func TestParseSizeAsQEMU(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk")
	for s, takes := range map[string]bool{
		"1000001": true, "010": true, "3K": true, "10.1G": true, "1.5t": true, "1.k": true, "512B": true, "0x40000000": true, "0x10k": true,
		"1,5G": false, "nan": false, "1.5": false, "0x": false, "5 ": false,
	} {
		out, err := exec.Command("qemu-img", "create", "-q", "-f", "raw", file, s).CombinedOutput()
		if (err == nil) != takes {
			t.Errorf("qemu-img create of %q: %v: %s", s, err, out)
			continue
		}
		got, err := ParseSize(s)
		if (err == nil) != takes {
			t.Errorf("%q: %d, %v", s, got, err)
		}
		if !takes {
			continue
		}
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		// As the fraction is rounded in another direction a sector more is possible.
		if sectors := (got + 511) / 512 * 512; sectors != info.Size() && !(strings.Contains(s, ".") && sectors == info.Size()+512) {
			t.Errorf("%q: %d; qemu-img makes a disk of %d", s, got, info.Size())
		}
	}
}

// FuzzParseSize holds each size that is taken against the number that it begins with:
// never less than that, and less than a byte more.
func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"1.5G", "1048577T", "00000.0000iB", "20 GiB", "1e9", "0x10k", ".5k", "1e99", "-1", "1,5G", "NaN"} {
		f.Add(s)
	}
	units := map[string]float64{"": 1, "B": 1}
	for i, letter := range "kmgtpe" {
		for _, behind := range []string{"", "b", "i", "ib"} {
			units[string(letter)+behind] = float64(int64(1) << (10 * (i + 1)))
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		size, err := ParseSize(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || strings.ContainsAny(err.Error(), "\n\r\x00") {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		if size <= 0 || size > maxDiskBytes {
			t.Fatalf("%q: %d", s, size)
		}
		for cut := range len(s) + 1 {
			unit, ok := units[strings.TrimPrefix(s[cut:], " ")]
			if !ok {
				unit, ok = units[strings.ToLower(strings.TrimPrefix(s[cut:], " "))]
			}
			base := 10
			if strings.ContainsAny(s[:cut], "xX") {
				base = 0
			}
			number, _, bad := big.ParseFloat(s[:cut], base, 400, big.ToNearestEven)
			if !ok || bad != nil {
				continue
			}
			exact := new(big.Float).Mul(number, big.NewFloat(unit))
			less := new(big.Float).Sub(new(big.Float).SetInt64(size), exact)
			if low, _ := less.Float64(); low > -1e-9 && low < 1 {
				return
			}
		}
		t.Fatalf("%q is taken for %d", s, size)
	})
}

func TestParseRate(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "max": 0, "100M": 100 << 20, "100 MiB/s": 100 << 20, "1M/s": 1 << 20, "1.5K": 1536, "0.1K": 103, "7": 7, "1e6": 1e6} {
		if got, err := ParseRate(s); err != nil || got != want {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "-1", "fast", "1M/s/s", "/s", "max ", "0K", "0/s", "1M/h", "+1M", "1,5M"} {
		if _, err := ParseRate(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
}
