// Package show writes what a disk is, for people and for programs: its status as
// tables, as a tree and as JSON, and where its layers hold what as an SVG picture.
//
// It knows chain.Status and chain.ExtentMap, and how wide a terminal is. It opens no
// disk, reads no image, and knows no mount and no command: whoever has a status can
// show it. All functions are safe for concurrent use; their errors are those of the
// writer.
package show
