package tell

import (
	"fmt"
	"io"

	"varve/chain"
	"varve/overlay/extent"
)

// Created says what Create made, with every file that the disk reads.
func Created(w io.Writer, made chain.Created) {
	switch len(made.Files) {
	case 0:
		Line(w, "made %s, a blank disk", made.Dir)
	case 1:
		f := made.Files[0]
		Line(w, "made %s on %s (%s)", made.Dir, f.Path, f.Format)
	default:
		Line(w, "made %s on a chain of %d files, top first:", made.Dir, len(made.Files))
		Files(w, made.Files)
	}
	Rounded(w, made.Given, made.Size)
	Notes(w, made.Notes)
	Line(w, "%s now holds the only copy of what is written to the disk", made.Dir)
	if len(made.Files) > 0 {
		Line(w, "it needs the image as it is: do not write to it, move it or delete it")
	}
}

// Rounded says that a disk is larger than what was given, where it is.
func Rounded(w io.Writer, given, size int64) {
	if given != size {
		Line(w, "the disk has %d bytes: %d were rounded up to whole sectors of %d, with zeros", size, given, extent.SectorSize)
	}
}

// Files lists the files of others that a disk reads, top first.
func Files(w io.Writer, files []chain.ForeignFile) {
	for _, f := range files {
		about := ""
		if f.About != "" {
			about = ": " + f.About
		}
		fmt.Fprintf(w, "  %s (%s, as %s%s)\n", Visible(f.Path), f.Format, f.Layer, Visible(about))
	}
}

// Notes says what to know of adopted files.
func Notes(w io.Writer, notes []string) {
	for _, note := range notes {
		Line(w, "note: %s", note)
	}
}

// Domains says which of libvirt's domains still have the image on top of a disk that
// was just made.
func Domains(w io.Writer, names []string, mountpoint string) {
	for _, name := range names {
		Line(w, "libvirt's domain %s still has it; \"varve doctor %s\" has the command that gives the domain disk.raw", name, chain.ShellWord(mountpoint))
	}
}
