package chain

import (
	"fmt"
	"math/big"
	"regexp"
	"strings"
)

// maxDiskBytes bounds the sizes that people write: 1 EiB.
const maxDiskBytes = 1 << 60

// maxSizeWords bounds what is read as a size.
const maxSizeWords = 40

// sizeNumber is the number that a size begins with.
var sizeNumber = regexp.MustCompile(`^(?:0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]\+?[0-9]{1,2})?)`)

// ParseSize reads a size as qemu-img and people write it: bytes, or a number with a
// unit, as in 512, 1.5G, 20GB, 20 GiB, 20Gi, 1e9 or 0x1000. Every unit is a power of 1024,
// whatever follows its letter. For GB others disagree (coreutils and libvirt mean powers
// of 1000, docker those of 1024): no disk is to be smaller than was meant, and a
// larger one takes no more space. For the same reason a fraction of a byte is rounded up;
// QEMU rounds it down. The result is more than 0 and at most 1 EiB. ErrInvalid otherwise.
func ParseSize(s string) (int64, error) {
	value, unit, err := splitSize(s)
	switch {
	case err != nil:
		return 0, err
	case value.Sign() == 0:
		return 0, invalidf("the size is 0")
	case unit == 1 && !value.IsInt():
		return 0, invalidf("the size %s is not a whole number of bytes; is a unit missing, as in 1.5G?", s)
	}
	value.Mul(value, new(big.Rat).SetInt64(unit))
	if value.Cmp(new(big.Rat).SetInt64(maxDiskBytes)) > 0 {
		return 0, invalidf("the size %s is more than %d bytes", s, int64(maxDiskBytes))
	}
	bytes := new(big.Int).Quo(value.Num(), value.Denom()).Int64()
	if !value.IsInt() {
		bytes++
	}
	return bytes, nil
}

// splitSize is the number of a size, which is not negative, and its unit in bytes.
func splitSize(s string) (value *big.Rat, unit int64, err error) {
	number := sizeNumber.FindString(s)
	if strings.HasPrefix(s, "+") {
		return nil, 0, invalidf("the size %.40q begins with a +; write the whole size, not what is added to it", s)
	}
	if number == "" || len(s) > maxSizeWords {
		return nil, 0, notSize(s)
	}
	rest := s[len(number):]
	unit, ok := sizeUnit(strings.TrimPrefix(rest, " "))
	switch {
	case strings.HasSuffix(s, " "):
		return nil, 0, notSize(s)
	case ok:
	case strings.Trim(rest, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ") == "":
		return nil, 0, invalidf("the size %.40q has an unknown unit; K, M, G, T, P and E are powers of 1024, and so are KB and KiB", s)
	default:
		return nil, 0, notSize(s)
	}
	if value, ok = new(big.Rat).SetString(withoutZeros(number)); !ok {
		return nil, 0, notSize(s)
	}
	return value, unit, nil
}

func notSize(s string) error {
	return invalidf("%.40q is no size; write bytes, or a number with K, M, G or T, as in 1.5G", s)
}

// withoutZeros takes leading zeros from a decimal number: for math/big they would make it
// an octal one.
func withoutZeros(number string) string {
	if strings.HasPrefix(strings.ToLower(number), "0x") {
		return number
	}
	return "0" + strings.TrimLeft(number, "0")
}

// sizeUnit is what a unit stands for, in bytes: a letter, alone or with B, i or iB behind
// it, in capitals or not; "B" for bytes, but not "b", which is 512 for dd.
func sizeUnit(s string) (bytes int64, ok bool) {
	if s == "" || s == "B" {
		return 1, true
	}
	power := strings.Index("kmgtpe", strings.ToLower(s[:1]))
	if power < 0 {
		return 0, false
	}
	switch strings.ToLower(s[1:]) {
	case "", "b", "i", "ib":
		return 1 << (10 * (power + 1)), true
	}
	return 0, false
}

// ParseRate reads a limit of jobs, bytes per second: a size as ParseSize takes it, with
// or without "/s", or "0" or "max" for none. ErrInvalid.
func ParseRate(s string) (int64, error) {
	if s == "0" || s == "max" {
		return 0, nil
	}
	rate, err := ParseSize(strings.TrimSuffix(s, "/s"))
	if err != nil {
		return 0, fmt.Errorf("a rate is bytes per second, or 0 or max for no limit: %w", err)
	}
	return rate, nil
}
