package qcow2

import (
	"errors"
	"fmt"
	"io"

	"varve/overlay/extent"
	"varve/overlay/hostfs"
)

// mapRaw maps [pos, limit), within the file, of a raw image: its host offsets
// are its guest offsets, its holes are zeros. Nothing of it is Unallocated,
// nothing is below it.
func (im *Image) mapRaw(list *extent.List, pos, limit int64) error {
	for pos < limit {
		start, end, err := im.nextRawData(pos, limit)
		if err != nil {
			return err
		}
		list.Add(extent.Zero, pos, start, 0)
		list.Add(extent.Data, start, end, start)
		pos = end
	}
	return nil
}

// nextRawData finds the first run of data in [pos, limit); an empty one at
// limit when there is none. Positions from the host that make no sense (of a
// file system that forgets them, or a file that shrinks) become data, and so does what
// it cannot tell of for a damage of its own: reading then tells.
func (im *Image) nextRawData(pos, limit int64) (start, end int64, err error) {
	start, found, err := im.nextRawStart(pos, limit)
	if err != nil || !found {
		return start, start, err
	}
	end, err = im.file.SeekHole(start)
	if err != nil && !errors.Is(err, io.EOF) && !hostfs.CannotRead(err) {
		return 0, 0, im.noHoles(start, err)
	}
	if err != nil || end <= start || end > limit {
		end = limit
	}
	return start, end, nil
}

// nextRawStart is where the first run of data in [pos, limit) begins; limit when there
// is none.
func (im *Image) nextRawStart(pos, limit int64) (start int64, found bool, err error) {
	start, err = im.file.SeekData(pos)
	if errors.Is(err, io.EOF) {
		return limit, false, nil
	}
	if hostfs.CannotRead(err) {
		return pos, true, nil
	}
	if err != nil {
		return 0, false, im.noHoles(pos, err)
	}
	if start = max(start, pos); start >= limit {
		return limit, false, nil
	}
	return start, true, nil
}

func (im *Image) noHoles(pos int64, err error) error {
	return fmt.Errorf("find the holes from 0x%x on of %s: %w", pos, im.file.Name(), err)
}

func (im *Image) rawDataBytes() (int64, error) {
	total := int64(0)
	for pos := int64(0); pos < im.size; {
		start, end, err := im.nextRawData(pos, im.size)
		if err != nil {
			return 0, err
		}
		total += end - start
		pos = end
	}
	return total, nil
}
