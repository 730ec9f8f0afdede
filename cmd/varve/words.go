package main

import (
	"fmt"
	"io"

	"varve/chain"
	"varve/overlay/extent"
)

// sayCreated says what Create made, with every file that the disk reads.
func sayCreated(w io.Writer, made chain.Created) {
	switch len(made.Files) {
	case 0:
		say(w, "made %s, a blank disk", made.Dir)
	case 1:
		f := made.Files[0]
		say(w, "made %s on %s (%s)", made.Dir, f.Path, f.Format)
	default:
		say(w, "made %s on a chain of %d files, top first:", made.Dir, len(made.Files))
		sayFiles(w, made.Files)
	}
	sayRounded(w, made.Given, made.Size)
	sayNotes(w, made.Notes)
	say(w, "%s now holds the only copy of what is written to the disk", made.Dir)
	if len(made.Files) > 0 {
		say(w, "it needs the image as it is: do not write to it, move it or delete it")
	}
}

// sayRounded says that a disk is larger than what was given, where it is.
func sayRounded(w io.Writer, given, size int64) {
	if given != size {
		say(w, "the disk has %d bytes: %d were rounded up to whole sectors of %d, with zeros", size, given, extent.SectorSize)
	}
}

// sayFiles lists the files of others that a disk reads, top first.
func sayFiles(w io.Writer, files []chain.ForeignFile) {
	for _, f := range files {
		about := ""
		if f.About != "" {
			about = ": " + f.About
		}
		fmt.Fprintf(w, "  %s (%s, as %s%s)\n", visible(f.Path), f.Format, f.Layer, visible(about))
	}
}

// sayNotes says what to know of adopted files.
func sayNotes(w io.Writer, notes []string) {
	for _, note := range notes {
		say(w, "note: %s", note)
	}
}

// sayDomains says which of libvirt's domains still have the image on top of a disk that
// was just made.
func sayDomains(w io.Writer, names []string, mountpoint string) {
	for _, name := range names {
		say(w, "libvirt's domain %s still has it; \"varve doctor %s\" has the command that gives the domain disk.raw", name, chain.ShellWord(mountpoint))
	}
}

// checkFormat checks a --format or format= value.
func checkFormat(format string) error {
	switch format {
	case "", "raw", "qcow2":
		return nil
	}
	return fmt.Errorf("the format %q is neither raw nor qcow2", format)
}
