package main

import (
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"varve/chain"
	"varve/fs/show"
)

// watchEvery is how often status --watch looks when nothing else is said.
const watchEvery = time.Second

// mostWatch bounds the pause between two looks: a day.
const mostWatch = 24 * time.Hour

func newStatusCommand() *cobra.Command {
	var asJSON bool
	var every watchValue
	c := &cobra.Command{
		Use:   "status DISK",
		Short: "Show a disk: its layers, who has what open, the job under way",
		Long: `Shows a disk's size, its layers as "varve tree" draws them, who has which of its
files open, and the job under way or the last one, with its rate and the time
left. It is what the mount's own file "status" reads, and with --json what
"status.json" reads.

With --watch it goes on until Ctrl-C: on a terminal it shows the disk as it is,
every second or every SECONDS; elsewhere it prints what there is to be said each
time that it has changed, with --json one line each.

It changes nothing: a disk that is not mounted is only read.`,
		Example: `  varve status /mnt/vm1
  varve status /mnt/vm1 --watch
  varve status vm1.varve --watch=5
  varve status vm1.varve --json | jq .job`,
		Args: func(cmd *cobra.Command, args []string) error {
			_, err := every.apart(cmd, args)
			return err
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			disk, err := every.apart(cmd, args)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("watch") {
				return wrapped(cmd, disk, watchStatus(cmd, disk, asJSON, time.Duration(every)))
			}
			return printStatus(cmd, disk, asJSON, statusTable)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print what status.json says")
	c.Flags().Var(&every, "watch", "go on showing it, and look every `SECONDS` (default 1)")
	c.Flags().Lookup("watch").NoOptDefVal = strconv.Itoa(int(watchEvery / time.Second))
	return c
}

func statusTable(out io.Writer, st chain.Status) error { return show.Table(out, st, treeOptions(out)) }

// watchValue is how long --watch waits between two looks.
type watchValue time.Duration

func (v *watchValue) String() string {
	if *v == 0 {
		return ""
	}
	return time.Duration(*v).String()
}

func (v *watchValue) Type() string { return "seconds" }

func (v *watchValue) Set(s string) error {
	seconds, err := strconv.ParseFloat(s, 64)
	if err != nil || !(seconds >= 0.1) || seconds > mostWatch.Seconds() {
		return fmt.Errorf("%.40q is no number of seconds from 0.1 to %.0f", s, mostWatch.Seconds())
	}
	*v = watchValue(seconds * float64(time.Second))
	return nil
}

// apart finds DISK among the arguments. A number that stands behind --watch without
// "=" comes as one of them.
func (v *watchValue) apart(cmd *cobra.Command, args []string) (disk string, err error) {
	if cmd.Flags().Changed("watch") && len(args) == 2 {
		for i, arg := range args {
			if _, err := strconv.ParseFloat(arg, 64); err != nil {
				continue
			}
			if err := v.Set(arg); err != nil {
				return "", wrongUse(cmd, "--watch: %w", err)
			}
			args = []string{args[1-i]}
			break
		}
	}
	if err := takes("DISK")(cmd, args); err != nil {
		return "", err
	}
	return args[0], nil
}
