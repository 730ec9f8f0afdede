package chain

import (
	"varve/chain/dirlock"
	"varve/chain/manifest"
	"varve/chain/refusal"
)

// Errors that callers tell apart with errors.Is; fs maps them to errnos, cmd
// to exit codes.
var (
	ErrExist    = refusal.ErrExist    // EEXIST
	ErrNotExist = refusal.ErrNotExist // ENOENT
	ErrInvalid  = refusal.ErrInvalid  // EINVAL
	ErrTooLarge = refusal.ErrTooLarge // EFBIG
	ErrBusy     = refusal.ErrBusy     // EBUSY
	ErrReadOnly = dirlock.ErrReadOnly // EROFS
	ErrChanged  = refusal.ErrChanged  // a fingerprint does not match
	ErrInUse    = dirlock.ErrInUse    // the directory's lock is held
	ErrCorrupt  = manifest.ErrCorrupt // chain.json contradicts itself or cannot be read as one
	ErrNewer    = manifest.ErrNewer   // chain.json was written by a newer varve
)

// invalidf is fmt.Errorf for an error that is ErrInvalid.
func invalidf(format string, args ...any) error { return refusal.Invalidf(format, args...) }
