package refusal

import (
	"errors"
	"fmt"
	"os"
	"testing"
)

// A refusal is of its kind and of what it is made of, and no word of the kind is in it.
func TestRefusal(t *testing.T) {
	err := fmt.Errorf("open: %w", Of(ErrNotExist, &os.PathError{Op: "stat", Path: "/x", Err: os.ErrPermission}))
	if !errors.Is(err, ErrNotExist) || !errors.Is(err, os.ErrPermission) || errors.Is(err, ErrInvalid) {
		t.Errorf("%v is of other kinds", err)
	}
	if want := "open: stat /x: permission denied"; err.Error() != want {
		t.Errorf("%q, not %q", err, want)
	}
	if err := Invalidf("the name %q", "x"); !errors.Is(err, ErrInvalid) || err.Error() != `the name "x"` {
		t.Errorf("%q", err)
	}
}
