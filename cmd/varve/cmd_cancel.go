package main

import (
	"errors"

	"github.com/spf13/cobra"

	"varve/chain"
)

func newCancelCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cancel DISK [JOB]",
		Short: "Stop a delete or a flatten",
		Long: `Stops the job under way, or only the one with the given number. What was copied
stays copied and every layer reads as before. A delete that was stopped leaves a
layer without a name; "varve delete DISK --unnamed" goes on with it.`,
		Example: `  varve cancel /mnt/vm1
  varve cancel /mnt/vm1 3`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return takes("DISK", "JOB")(cmd, args)
			}
			return takes("DISK")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return wrapped(cmd, args[0], cancelJob(cmd, args))
		},
	}
}

func cancelJob(cmd *cobra.Command, args []string) error {
	t, err := findTarget(args[0])
	if err != nil {
		return err
	}
	id := ""
	if len(args) > 1 {
		id = args[1]
	}
	if t.mountpoint == "" {
		return t.perform(cmd.ErrOrStderr(), operation{direct: func(d *chain.Disk) error {
			if id == "" {
				st, err := d.Status()
				if err != nil {
					return err
				}
				if id, err = runningJob(st); err != nil {
					return err
				}
			}
			return d.Cancel(id)
		}})
	}
	if id == "" {
		_, st, err := t.document()
		if err != nil {
			return err
		}
		if id, err = runningJob(st); err != nil {
			return err
		}
	}
	_, err = t.control("cancel", id)
	return err
}

// runningJob is the id of the job under way.
func runningJob(st chain.Status) (string, error) {
	if st.Job == nil || st.Job.State != chain.JobRunning {
		return "", errors.New("no job is under way")
	}
	return st.Job.ID, nil
}
