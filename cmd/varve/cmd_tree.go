package main

import (
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"varve/chain"
	"varve/cmd/varve/internal/progress"
	"varve/fs/show"
)

func newTreeCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "tree DISK",
		Short: "Show a disk's layers as a tree, with what a delete would free",
		Long: `Shows a disk's layers as a tree, the oldest on top and the leaf at the bottom:
what each one holds itself (OWN), takes on the host (ON HOST), and what deleting
it would give back on the host (FREES; "?" while that is being counted). What is
held, cloned, set aside by a revert or being worked on is said below it.

What stands on a layer goes on in the same column; where several do, the way to
the leaf goes straight on and the others are branches. There are colours on a
terminal, unless NO_COLOR is set.

It changes nothing: a disk that is not mounted is only read.`,
		Example: `  varve tree /mnt/vm1
  varve tree vm1.varve --json | jq '.layers[] | {name, frees_bytes}'`,
		Args: takes("DISK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			write := func(out io.Writer, st chain.Status) error { return show.Tree(out, st, treeOptions(out)) }
			return printStatus(cmd, args[0], asJSON, write)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print what status.json says")
	return c
}

// treeOptions are what out can show.
func treeOptions(out io.Writer) show.TreeOptions {
	o := show.TreeOptions{ASCII: !speaksUTF8()}
	if progress.IsTerminal(out) {
		o.Color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
		if width, _, err := term.GetSize(int(out.(*os.File).Fd())); err == nil && width > 0 {
			o.Width = max(width, 40)
		}
	}
	return o
}

// speaksUTF8 says whether the locale has more than ASCII (locale(7): the first one of
// these that is set counts).
func speaksUTF8() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if value := strings.ToLower(os.Getenv(name)); value != "" {
			return strings.Contains(value, "utf-8") || strings.Contains(value, "utf8")
		}
	}
	return false
}
