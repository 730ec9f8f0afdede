// Package extent is the vocabulary for guest space: an Extent says what a layer holds in
// a run of guest bytes, a List collects extents in order, and a disk is a whole number of
// sectors. It knows no image format and no file, does no I/O, and imports nothing.
package extent
