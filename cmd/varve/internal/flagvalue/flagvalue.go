// Package flagvalue has the values that flags of several commands take, read as the control
// files of a mount read them.
package flagvalue

import (
	"fmt"
	"strconv"

	"varve/chain"
)

// Size is a number of bytes, 0 when it was not given.
type Size int64

func (v *Size) Set(s string) error {
	n, err := chain.ParseSize(s)
	if err != nil {
		return err
	}
	*v = Size(n)
	return nil
}

func (v *Size) String() string {
	if *v == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*v), 10)
}
func (*Size) Type() string { return "SIZE" }

// Rate is bytes per second, 0 for no limit.
type Rate int64

func (v *Rate) Set(s string) error {
	n, err := chain.ParseRate(s)
	if err != nil {
		return err
	}
	*v = Rate(n)
	return nil
}

func (v *Rate) String() string {
	if *v == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*v), 10)
}
func (*Rate) Type() string { return "RATE" }

// CheckFormat checks a --format or format= value.
func CheckFormat(format string) error {
	switch format {
	case "", "raw", "qcow2":
		return nil
	}
	return fmt.Errorf("the format %q is neither raw nor qcow2", format)
}
