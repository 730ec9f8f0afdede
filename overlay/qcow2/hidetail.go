package qcow2

import "varve/overlay/extent"

// HideTail has an image that somebody else made show zeros where the image that it stands
// on has less than a sector at its end, when it is larger itself: QEMU, with which it was
// written, reads zeros there. To be called before anything is read.
func (im *Image) HideTail(below *Image) {
	if im.header == nil || below.header == nil || !extent.Uneven(below.size) {
		return
	}
	start := below.size - below.size%extent.SectorSize
	if im.size-im.size%extent.SectorSize > start {
		im.hidden = extent.Extent{Start: start, Length: extent.SectorSize}
	}
}

// mapHidden is Map of a range that has to do with what is hidden.
func (im *Image) mapHidden(dst []extent.Extent, off, length int64) (_ []extent.Extent, err error) {
	list, end := dst, off+length
	for _, stop := range []int64{im.hidden.Start, im.hidden.End(), end} {
		stop = min(stop, end)
		if stop <= off {
			continue
		}
		first := len(list)
		if list, err = im.mapShown(list, off, stop-off); err != nil {
			return dst, err
		}
		for i := range list[first:] {
			if e := &list[first+i]; off >= im.hidden.Start && stop <= im.hidden.End() && e.Kind == extent.Unallocated {
				e.Kind = extent.Zero
			}
		}
		off = stop
	}
	return list, nil
}
