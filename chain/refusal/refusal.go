// Package refusal has the kinds of errors with which a disk says no, and makes errors of such a
// kind whose words say all.
//
// It is what the packages of chain have in common for their callers: fs maps a kind to an errno
// and cmd to an exit code. The package knows nothing of what is refused.
package refusal

import (
	"errors"
	"fmt"
)

// Kinds that callers tell apart with errors.Is.
var (
	ErrExist    = errors.New("exists already")                 // EEXIST
	ErrNotExist = errors.New("does not exist")                 // ENOENT
	ErrInvalid  = errors.New("invalid")                        // EINVAL
	ErrTooLarge = errors.New("too large")                      // EFBIG
	ErrBusy     = errors.New("busy")                           // EBUSY
	ErrChanged  = errors.New("was changed by another program") // a file is not what it was
)

// refusal is an error of a kind, ErrInvalid or the like, whose words say all.
type refusal struct{ kind, reason error }

func (r refusal) Error() string        { return r.reason.Error() }
func (r refusal) Is(target error) bool { return target == r.kind }
func (r refusal) Unwrap() error        { return r.reason }

// Of is an error that is kind for errors.Is, and what reason is too. It reads as reason does.
func Of(kind, reason error) error { return refusal{kind, reason} }

// Invalidf is fmt.Errorf for an error that is ErrInvalid and does not say so.
func Invalidf(format string, args ...any) error {
	return refusal{ErrInvalid, fmt.Errorf(format, args...)}
}

// Changedf is fmt.Errorf for an error that is ErrChanged and does not say so.
func Changedf(format string, args ...any) error {
	return refusal{ErrChanged, fmt.Errorf(format, args...)}
}
