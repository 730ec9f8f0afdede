package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"varve/chain"
	"varve/chain/bounded"
	"varve/cmd/varve/internal/waiting"
	"varve/fs"
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
	t, err := findTarget(arg)
	if err == nil {
		err = r.showPlan(cmd, t, operation, names)
	}
	return wrapped(cmd, arg, err)
}

func (r *dryRun) showPlan(cmd *cobra.Command, t target, operation chain.Operation, names []string) error {
	p, err := t.plan(cmd.ErrOrStderr(), operation, names)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if r.json {
		return writeJSON(out, p)
	}
	return writePlan(out, p)
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

// plan asks the daemon, or looks at a disk that is not mounted.
func (t target) plan(stderr io.Writer, operation chain.Operation, names []string) (chain.Plan, error) {
	if t.mountpoint == "" {
		d, err := t.open(chain.OpenOptions{ReadOnly: true, Log: warnings(stderr)})
		if err != nil {
			return chain.Plan{}, err
		}
		p, err := d.Plan(operation, names)
		return p, errors.Join(err, d.Close())
	}
	text, err := t.ask("plan", strings.Join(append([]string{operation.String()}, names...), " "))
	if err != nil {
		return chain.Plan{}, err
	}
	var p chain.Plan
	if err := bounded.JSON([]byte(text), &p); err != nil {
		return chain.Plan{}, fmt.Errorf("what control/plan says is not understood: %w", err)
	}
	return p, nil
}

// ask writes a line to a control file and gives the answer.
func (t target) ask(command, line string) (string, error) {
	defer waiting.For(t.readWait())()
	f, err := t.openToWrite("control", command)
	if err != nil {
		return "", err
	}
	defer f.Close() // nothing is held back until then
	text, _, err := t.exchange(f, line)
	if err != nil {
		return "", err
	}
	answer, ok := fs.ParseAnswer(text)
	if !ok {
		return "", fmt.Errorf("%s gave no answer", f.Name())
	}
	return answer, nil
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
