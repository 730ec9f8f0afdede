package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"varve/chain"
	"varve/cmd/varve/internal/client"
	"varve/cmd/varve/internal/keep"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/where"
	"varve/fs/show"
)

type pruneFlags struct {
	policy     keep.Policy
	all        bool
	aside      keepDuration
	background bool
	dry        dryRun
	rate       rateFlag
}

func newPruneCommand() *cobra.Command {
	var flags pruneFlags
	c := &cobra.Command{
		Use:   "prune DISK --keep-... [--dry-run]",
		Short: "Delete snapshots by age, all but those to be kept",
		Long: `Deletes the automatic snapshots (those of "varve snapshot --auto") that no
--keep flag keeps; with --all, also those that have names of their own. The
flags mean what they mean to "restic forget":

Of each of the last N hours, days, weeks, months or years that have snapshots
the newest snapshot is kept. Where there are fewer than N, the oldest snapshot
is kept too. --keep-within keeps what is younger than that, seen from the newest
snapshot; DURATION is such as 1y5m7d2h. N can be "unlimited". Times are the
host's local ones.

Snapshots that are held, cloned from or open are kept in any case. Each rule
keeps one snapshot at least; a prune without a rule is refused, as is a pattern
that no name matches. A leaf that a revert set aside is forgotten when it was
set aside longer ago than --keep-aside says.

Each byte is copied once at most, however many snapshots go.`,
		Example: `  varve prune /mnt/vm1 --keep-hourly 24 --keep-daily 7 --keep-weekly 4 --dry-run
  varve prune /mnt/vm1 --keep-last 3 --all --keep 'before-*'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := takes("DISK")(cmd, args); err != nil {
				return err
			}
			if flags.policy.Empty() {
				return wrongUse(cmd, "without a rule every snapshot would be deleted; say what to keep, with --keep-last, --keep-daily or the like")
			}
			return flags.dry.check(cmd)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return wrapped(cmd, args[0], prune(cmd, args[0], &flags))
		},
	}
	f := c.Flags()
	for _, rule := range []struct {
		count *int
		name  string
		what  string
	}{
		{&flags.policy.Last, "last", "the last `N`"},
		{&flags.policy.Hourly, "hourly", "the newest of each of the last `N` hours"},
		{&flags.policy.Daily, "daily", "the newest of each of the last `N` days"},
		{&flags.policy.Weekly, "weekly", "the newest of each of the last `N` weeks"},
		{&flags.policy.Monthly, "monthly", "the newest of each of the last `N` months"},
		{&flags.policy.Yearly, "yearly", "the newest of each of the last `N` years"},
	} {
		f.Var(&keepCount{rule.count}, "keep-"+rule.name, "keep "+rule.what)
	}
	f.Var(&keepDuration{d: &flags.policy.Within}, "keep-within", "keep what is younger than `DURATION`, before the newest")
	f.StringArrayVar(&flags.policy.Names, "keep", nil, "keep names like `PATTERN`, with * and ?; can be given several times")
	flags.aside = keepDuration{d: &keep.Duration{Days: 1}}
	f.Var(&flags.aside, "keep-aside", "keep a leaf that was set aside for `DURATION`; 0h for not at all")
	f.BoolVar(&flags.all, "all", false, "also delete snapshots that are not automatic")
	f.BoolVar(&flags.background, "background", false, "return when the deletes are recorded")
	flags.dry.register(f)
	flags.rate.register(f)
	return c
}

// pruneDecision is one line of what a prune decides.
type pruneDecision struct {
	Name string    `json:"name"`
	Time time.Time `json:"time"`
	Keep []string  `json:"keep"` // why it is kept; empty: it goes
}

// pruneDocument is what "prune --dry-run --json" prints. Fields are added, never
// changed in meaning.
type pruneDocument struct {
	Version     int             `json:"version"` // 1
	Snapshots   []pruneDecision `json:"snapshots"`
	ForgetAside bool            `json:"forget_aside"`
	Plan        *chain.Plan     `json:"plan"` // null where nothing goes
}

// prunePlan is what a prune does, decided on a disk as it was looked at: a dry run shows it,
// and any other run carries it out.
type prunePlan struct {
	snapshots   []pruneDecision // newest first
	forgetAside string          // id of the leaf that was set aside and is to go; "" for none
}

// gone are the names of the snapshots that go.
func (p prunePlan) gone() (names []string) {
	for _, d := range p.snapshots {
		if len(d.Keep) == 0 {
			names = append(names, d.Name)
		}
	}
	return names
}

// check fails when a snapshot that is to go is not the one any more that was looked at.
func (p prunePlan) check(d client.Disk) error {
	layers, err := d.Layers()
	if err != nil {
		return err
	}
	return p.checkSnapshots(layers)
}

// checkAside is check, and fails too when another leaf was set aside since.
func (p prunePlan) checkAside(d client.Disk) error {
	layers, err := d.Layers()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(layers, func(l chain.LayerStatus) bool { return l.SetAside && l.ID == p.forgetAside }) {
		return errors.New("the leaf that was set aside is another one than the prune had looked at; nothing was deleted, prune again")
	}
	return p.checkSnapshots(layers)
}

func (p prunePlan) checkSnapshots(layers []chain.LayerStatus) error {
	for _, s := range p.snapshots {
		same := func(l chain.LayerStatus) bool { return l.Name == s.Name && l.Frozen.Equal(s.Time) }
		if len(s.Keep) == 0 && !slices.ContainsFunc(layers, same) {
			return fmt.Errorf("snapshot %s was changed after the prune had looked at it; nothing was deleted, prune again", s.Name)
		}
	}
	return nil
}

func prune(cmd *cobra.Command, arg string, flags *pruneFlags) error {
	t, err := where.Find(arg)
	if err != nil {
		return err
	}
	// A look is ended by an interrupt at once, as long as nothing waits for it.
	var st chain.Status
	err = readTarget(cmd, t, func(d client.Disk) (err error) {
		st, err = d.Status(context.Background())
		return err
	})
	if err != nil {
		return err
	}
	plan, err := flags.plan(st, time.Now())
	switch {
	case err != nil:
		return err
	case flags.dry.on:
		return flags.show(cmd, t, plan)
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	return flags.carryOut(ctx, cmd, t, plan)
}

// plan decides what is done to a disk.
func (flags *pruneFlags) plan(st chain.Status, now time.Time) (prunePlan, error) {
	list, err := flags.decide(st, now)
	return prunePlan{list, flags.forgetsAside(st, now)}, err
}

func (flags *pruneFlags) carryOut(ctx context.Context, cmd *cobra.Command, t where.Target, plan prunePlan) error {
	out := cmd.ErrOrStderr()
	if plan.forgetAside != "" {
		// Waited for: nothing is deleted beside its merge.
		if err := followJob(ctx, cmd, t, func(d client.Disk) (client.Job, error) {
			if err := plan.checkAside(d); err != nil {
				return client.Job{}, err
			}
			return d.Forget()
		}, false, flags.rate); err != nil {
			return err
		}
	}
	names := plan.gone()
	if len(names) == 0 {
		tell.Line(out, "prune %s: nothing to delete, %d kept", t.Name(), len(plan.snapshots))
		return nil
	}
	tell.Line(out, "prune %s: deleting %d of %d snapshots: %s", t.Name(), len(names), len(plan.snapshots), strings.Join(names, " "))
	return followJob(ctx, cmd, t, func(d client.Disk) (client.Job, error) {
		if err := plan.check(d); err != nil {
			return client.Job{}, err
		}
		return d.Delete(names...)
	}, flags.background, flags.rate)
}

// decide says of each snapshot that the prune looks at whether it stays, newest first.
func (flags *pruneFlags) decide(st chain.Status, now time.Time) ([]pruneDecision, error) {
	var snapshots []keep.Snapshot
	for _, l := range st.Layers {
		if l.State == chain.StateFrozen && !l.Foreign && (flags.all || keep.IsAuto(l.Name)) {
			snapshots = append(snapshots, keep.Snapshot{Name: l.Name, Time: l.Frozen.Local()})
		}
	}
	decisions, err := flags.policy.Apply(snapshots, now)
	if err != nil {
		return nil, err
	}
	protected := protectedNames(st)
	list := []pruneDecision{}
	for _, d := range decisions {
		reasons := append(slices.Clone(d.Reasons), protected[d.Name]...)
		list = append(list, pruneDecision{Name: d.Name, Time: d.Time, Keep: append([]string{}, reasons...)})
	}
	return list, nil
}

// protectedNames says of snapshots that cannot be deleted now why.
func protectedNames(st chain.Status) map[string][]string {
	why := make(map[string][]string)
	for _, l := range st.Layers {
		if l.Held {
			why[l.Name] = append(why[l.Name], "held")
		}
		if len(l.Clones) > 0 {
			why[l.Name] = append(why[l.Name], "cloned")
		}
	}
	for _, o := range st.Open {
		file := strings.TrimPrefix(o.File, "layers/")
		for _, l := range st.Layers {
			if l.Name != "" && (file == l.Name+".raw" || strings.HasPrefix(file, l.Name+".d/")) && !slices.Contains(why[l.Name], "open") {
				why[l.Name] = append(why[l.Name], "open")
			}
		}
	}
	return why
}

// forgetsAside gives the id of a leaf that was set aside and has been so for long enough,
// "" for none.
func (flags *pruneFlags) forgetsAside(st chain.Status, now time.Time) string {
	for _, l := range st.Layers {
		if l.SetAside && !l.Frozen.After(flags.aside.before(now)) {
			return l.ID
		}
	}
	return ""
}

func (flags *pruneFlags) show(cmd *cobra.Command, t where.Target, plan prunePlan) error {
	list := plan.snapshots
	doc := pruneDocument{Version: 1, Snapshots: list, ForgetAside: plan.forgetAside != ""}
	if names := plan.gone(); len(names) > 0 {
		err := readTarget(cmd, t, func(d client.Disk) error {
			if err := plan.check(d); err != nil {
				return err
			}
			p, err := d.Plan(chain.OpDelete, names)
			doc.Plan = &p
			return err
		})
		if err != nil {
			return err
		}
	}
	out := cmd.OutOrStdout()
	if flags.dry.json {
		return writeJSON(out, doc)
	}
	if err := writeDecisions(out, list); err != nil {
		return err
	}
	if plan.forgetAside != "" {
		if _, err := fmt.Fprintln(out, "the leaf that was set aside would be forgotten"); err != nil {
			return err
		}
	}
	if doc.Plan == nil {
		_, err := fmt.Fprintln(out, "no snapshot would be deleted; nothing was done")
		return err
	}
	if _, err := fmt.Fprintln(out); err != nil {
		return err
	}
	return writePlan(out, *doc.Plan)
}

func writeDecisions(out io.Writer, list []pruneDecision) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(out, "no snapshots to look at")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SNAPSHOT\tTAKEN\tIS")
	for _, d := range list {
		verdict := "deleted"
		if len(d.Keep) > 0 {
			verdict = "kept: " + strings.Join(d.Keep, ", ")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", show.Printable(d.Name), d.Time.Format("2006-01-02 15:04:05"), verdict)
	}
	return w.Flush()
}

// keepCount is the number of a --keep flag.
type keepCount struct{ n *int }

func (c *keepCount) Type() string { return "N" }

func (c *keepCount) String() string {
	switch {
	case c.n == nil:
		return ""
	case *c.n == keep.Unlimited:
		return "unlimited"
	}
	return strconv.Itoa(*c.n)
}

func (c *keepCount) Set(s string) error {
	if s == "unlimited" {
		*c.n = keep.Unlimited
		return nil
	}
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return errors.New("it is neither a number nor unlimited")
	}
	*c.n = int(n)
	return nil
}

// keepDuration is the length of time of a --keep flag.
type keepDuration struct{ d *keep.Duration }

func (k *keepDuration) Type() string { return "DURATION" }

func (k *keepDuration) String() string {
	if k.d == nil {
		return ""
	}
	return k.d.String()
}

func (k *keepDuration) Set(s string) (err error) {
	*k.d, err = keep.ParseDuration(s)
	return err
}

func (k *keepDuration) before(t time.Time) time.Time { return k.d.Before(t) }
