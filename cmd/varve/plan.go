package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"varve/chain"
	"varve/cmd/varve/internal/client"
	"varve/fs/show"
)

// dryRun is --dry-run of a command that changes layers, and --json for what it says.
type dryRun struct{ on, json bool }

func (r *dryRun) register(f *pflag.FlagSet) {
	f.BoolVar(&r.on, "dry-run", false, "change nothing; say what would be done and what it costs")
	f.BoolVar(&r.json, "json", false, "with --dry-run: print JSON")
}

// check refuses --json alone.
func (r *dryRun) check(cmd *cobra.Command) error {
	if r.json && !r.on {
		return wrongUse(cmd, "--json is for --dry-run")
	}
	return nil
}

// show prints what an operation on the disk that arg names would do.
func (r *dryRun) show(cmd *cobra.Command, arg string, operation chain.Operation, names ...string) error {
	return readDisk(cmd, arg, func(d client.Disk) error {
		p, err := d.Plan(operation, names)
		if err != nil {
			return err
		}
		if r.json {
			return writeJSON(cmd.OutOrStdout(), p)
		}
		return writePlan(cmd.OutOrStdout(), p)
	})
}

func writeJSON(out io.Writer, v any) error {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := out.Write(show.PrintableJSON(text.Bytes()))
	return err
}

// writePlan writes a plan for people.
func writePlan(out io.Writer, p chain.Plan) error {
	p = show.Printable(p)
	var text strings.Builder
	layer := func(what string, l chain.PlanLayer) {
		name := chain.Title("", l.Name, l.ID)
		if p.Operation == chain.OpRevert && l.Name == "" && l.OwnBytes == 0 {
			name = "the leaf, to which nothing was written"
		}
		fmt.Fprintf(&text, "  %-10s %s (holds %s itself, %s on the host)\n", what, name, show.Size(l.OwnBytes), show.Size(l.HostBytes))
	}
	if p.Operation == chain.OpDelete && len(p.Gone)+len(p.Waiting) == 0 {
		_, err := fmt.Fprintln(out, "there is no snapshot whose delete fits on the host and gives anything back")
		return err
	}
	fmt.Fprintf(&text, "%s would\n", p.Operation)
	for _, l := range p.Gone {
		layer("remove", l)
	}
	if p.SetAside != nil {
		l := *p.SetAside
		l.Name = "the leaf"
		layer("set aside", l)
	}
	for _, l := range p.Waiting {
		layer("unname", l)
	}
	if len(p.Waiting) > 0 {
		text.WriteString("             (kept until one layer at most stands on it, and no clone)\n")
	}
	fmt.Fprintf(&text, "  %-10s %s\n", "copy", show.Size(p.CopyBytes))
	need := show.Size(p.LeastBytes)
	if p.HostFree >= 0 {
		need += " on the host at least; it has " + show.Size(p.HostFree) + " free"
		if p.ExtraBytes > p.LeastBytes {
			need += fmt.Sprintf("\n%13swith more free, up to %s are used", "", show.Size(p.ExtraBytes))
		}
	}
	fmt.Fprintf(&text, "  %-10s %s\n", "need", need)
	if p.FreedBytes >= 0 {
		fmt.Fprintf(&text, "  %-10s %s in the end\n", "free", show.Size(p.FreedBytes))
	} else {
		fmt.Fprintf(&text, "  %-10s %s more in the end\n", "use", show.Size(-p.FreedBytes))
	}
	chains := func(title string, list [][]string) {
		for _, c := range list {
			line := title
			for i, name := range c {
				if i > 0 {
					name = "> " + name
				}
				if len(line)+1+len(name) > reportWidth && strings.TrimSpace(line) != "" {
					text.WriteString(line + "\n")
					line = strings.Repeat(" ", len(title)+1)
				}
				line += " " + name
			}
			text.WriteString(line + "\n")
		}
	}
	chains("before", p.Before)
	chains("after ", p.After)
	if len(p.Before) == 0 && len(p.After) == 0 {
		text.WriteString("no chain changes\n")
	}
	text.WriteString("nothing was done\n")
	_, err := io.WriteString(out, text.String())
	return err
}
