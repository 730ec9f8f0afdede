package export

import (
	"fmt"
	"io"

	"varve/cmd/varve/internal/output"
	"varve/cmd/varve/internal/tell"
	"varve/fs"
	"varve/overlay"
	"varve/overlay/qcow2"
)

// sayLost lists the places that an export could not read, and gives ErrSkipped; nil when
// there are none.
func sayLost(stderr io.Writer, what, out string, s *overlay.Salvage, size int64) error {
	lost := s.Lost()
	if len(lost) == 0 {
		return nil
	}
	partitions := fs.PartitionsOf(s.ReadAt, size)
	total := int64(0)
	for _, l := range lost {
		total += l.Length
		where := ""
		if name := partitions.At(l.Start); name != "" {
			where = " (" + name + ")"
		}
		tell.Line(stderr, "%s: %d bytes at %d%s cannot be read, and are zeros: %v", what, l.Length, l.Start, where, l.Reason)
	}
	place := "in " + out
	if out == output.Stdout {
		place = "in what was written"
	}
	n := tell.Count(int64(len(lost)), "place", "places")
	tell.Line(stderr, "%s: %s of %d bytes in all could not be read, and are zeros %s", what, n, total, place)
	return ErrSkipped
}

// damageHint adds to the error of an export that met damage what would go on.
func damageHint(err error) error {
	if !qcow2.IsDamage(err) {
		return err
	}
	return fmt.Errorf("%w; --skip-damaged writes zeros for what cannot be read, and lists it", err)
}
