package main

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"varve/cmd/varve/internal/manpage"
	"varve/fs"
)

// filesPage is varve(5) but for its first line and the control files, which
// stand where controlFilesMark does.
//
//go:embed varve.5
var filesPage string

// helperPage is mount.fuse.varve(8) but for its first line.
//
//go:embed mount.fuse.varve.8
var helperPage string

const controlFilesMark = ".\\\" CONTROL FILES\n"

// newManCommand makes the manual pages. It is hidden: packages are made with it.
func newManCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write the manual pages",
		Long: `Writes the manual pages into DIR: varve(1), one for each command in section 1,
varve(5), the files of a mount and of a disk directory, and in section 8 those
of the helpers for mount(8) and umount(8).

The date of the pages is SOURCE_DATE_EPOCH, or that of the commit.`,
		Example: `  varve man /usr/local/share/man           # man1/varve-mount.1 and so on`,
		Hidden:  true,
		Args:    takes("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			root.InitDefaultCompletionCmd()
			return wrapped(cmd, args[0], writeManual(root, args[0]))
		},
	}
}

// writeManual writes all pages below dir, in man1, man5 and man8.
func writeManual(root *cobra.Command, dir string) error {
	info, _ := debug.ReadBuildInfo()
	date, err := buildDate(info)
	if err != nil {
		return err
	}
	page := manpage.Page{Version: "varve " + versionNumber(version, info), Date: date}
	for _, section := range []string{"man1", "man5", "man8"} {
		if err := os.MkdirAll(filepath.Join(dir, section), 0o755); err != nil {
			return err
		}
	}
	pages := append([]*cobra.Command{root}, root.Commands()...)
	for _, c := range pages {
		if c.HasParent() && !c.IsAvailableCommand() || c.Name() == "help" {
			continue
		}
		page.ExitStatus, page.SeeAlso = exitStatus(c), []string{"varve(5)"}
		if c == root {
			page.SeeAlso = append(page.SeeAlso, "qemu-img(1)", "mount(8)")
		}
		if err := writePage(filepath.Join(dir, "man1", manpage.Name(c)+".1"), func(w io.Writer) error { return page.Write(w, c) }); err != nil {
			return err
		}
	}
	before, after, found := strings.Cut(filesPage, controlFilesMark)
	if !found {
		return errors.New("varve(5) has no place for the control files")
	}
	for path, text := range map[string]string{
		"man5/varve.5":                page.Title("varve", 5) + before + controlFiles() + after,
		"man8/" + mountHelper + ".8":  page.Title(mountHelper, 8) + helperPage,
		"man8/" + umountHelper + ".8": page.Title(umountHelper, 8) + helperPage,
	} {
		err := writePage(filepath.Join(dir, path), func(w io.Writer) error {
			_, err := io.WriteString(w, text)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// exitStatus are the exit codes that a command can end with.
func exitStatus(c *cobra.Command) [][2]string {
	rows := [][2]string{
		{strconv.Itoa(exitDone), "Done."},
		{strconv.Itoa(exitFailed), "Failed; one line on standard error says what, on which disk, and where it is known the way out."},
		{strconv.Itoa(exitUsage), "Wrong usage."},
	}
	if c.Name() == "check" {
		rows[1][1] = "Errors were found, or the check failed."
		rows = append(rows, [2]string{strconv.Itoa(exitLeaks), "Leaks were found, and nothing worse."})
	}
	return rows
}

// controlFiles are the control files of this program, with what they take.
func controlFiles() string {
	var b strings.Builder
	for _, f := range fs.ControlFiles() {
		fmt.Fprintf(&b, ".TP\n.B control/%s\nWrite %s.\nFor example: %s\n", manpage.Escape(f.Name), manpage.Escape(f.Usage), manpage.Escape(f.Example))
	}
	return b.String()
}

func writePage(path string, write func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// buildDate is the day that the pages are of: SOURCE_DATE_EPOCH where it is set
// (reproducible-builds.org), else that of the commit, where it is known.
func buildDate(info *debug.BuildInfo) (time.Time, error) {
	if epoch := os.Getenv("SOURCE_DATE_EPOCH"); epoch != "" {
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH is %q, not a number of seconds", epoch)
		}
		return time.Unix(seconds, 0), nil
	}
	if info != nil {
		for _, s := range info.Settings {
			if s.Key == "vcs.time" {
				return time.Parse(time.RFC3339, s.Value)
			}
		}
	}
	return time.Time{}, nil
}
