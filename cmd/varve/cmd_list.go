package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"varve/chain"
	"varve/cmd/varve/internal/mounts"
	"varve/cmd/varve/internal/progress"
	"varve/fs"
)

func newListCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list [DISK]",
		Aliases: []string{"ls"},
		Short:   "List a disk's layers, or the disks mounted on this host",
		Long: `Lists the layers of a disk. Without DISK it lists the varve mounts of this host,
as far as they can be seen from here.

It changes nothing: a disk that is not mounted is only read.`,
		Example: `  varve list
  varve list /mnt/vm1
  varve list vm1.varve --json | jq -r '.layers[].name'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return takes("DISK")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return listMounts(cmd.OutOrStdout(), asJSON)
			}
			return wrapped(cmd, args[0], show(cmd, args[0], asJSON, fs.LayerTable))
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON; for a disk what status.json says")
	return c
}

// mountsDocument is what "list --json" without a disk prints. Fields are added,
// never changed in meaning.
type mountsDocument struct {
	Version int           `json:"version"` // 1
	Mounts  []mountStatus `json:"mounts"`
}

// mountStatus is one mount of the host. Where its daemon did not answer, Error
// says why, and size, layers and job are unknown: 0, 0 and null.
type mountStatus struct {
	Mountpoint string           `json:"mountpoint"`
	Disk       string           `json:"disk"`
	ReadOnly   bool             `json:"read_only"`
	Size       int64            `json:"size"`   // guest bytes
	Layers     int              `json:"layers"` // how many
	Job        *chain.JobStatus `json:"job"`
	Error      string           `json:"error"`
}

func listMounts(out io.Writer, asJSON bool) error {
	list, err := mounts.List()
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	doc := mountsDocument{Version: 1, Mounts: []mountStatus{}}
	for _, m := range list {
		doc.Mounts = append(doc.Mounts, askMount(m))
	}
	if asJSON {
		return writeJSON(out, doc)
	}
	return writeMounts(out, doc.Mounts)
}

func askMount(m mounts.Mount) mountStatus {
	s := mountStatus{Mountpoint: m.Mountpoint, Disk: m.Source, ReadOnly: m.ReadOnly}
	st, err := target{arg: m.Mountpoint, mountpoint: m.Mountpoint, owner: m.UID}.documentSoon()
	if err != nil {
		s.Error = err.Error()
		return s
	}
	s.Size, s.Layers, s.Job = st.Size, len(st.Layers), st.Job
	return s
}

func writeMounts(out io.Writer, list []mountStatus) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(out, "no varve mounts")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MOUNTPOINT\tDISK\tSIZE\tLAYERS\tJOB")
	for _, m := range list {
		if m.Error != "" {
			fmt.Fprintf(w, "%s\t%s\t-\t-\t%s\n", m.Mountpoint, m.Disk, m.Error)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", m.Mountpoint, m.Disk, fs.HumanSize(m.Size), m.Layers, jobWords(m.Job))
	}
	return w.Flush()
}

// jobWords is a job in a few words: "3 delete 40 %".
func jobWords(j *chain.JobStatus) string {
	switch {
	case j == nil:
		return "-"
	case j.State == jobRunning && j.TotalBytes > 0:
		return fmt.Sprintf("%s %s %d %%", j.ID, j.Kind, progress.Percent(j.DoneBytes, j.TotalBytes))
	default:
		return fmt.Sprintf("%s %s %s", j.ID, j.Kind, j.State)
	}
}

// show prints a disk's status, as a table made by write or as the document.
func show(cmd *cobra.Command, arg string, asJSON bool, write func(io.Writer, chain.Status) error) error {
	t, err := findTarget(arg)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if t.mountpoint != "" {
		text, st, err := t.document()
		if err != nil {
			return err
		}
		if asJSON {
			_, err := out.Write(text)
			return err
		}
		return write(out, st)
	}
	st, err := t.status(cmd)
	if err != nil {
		return err
	}
	if asJSON {
		return fs.JSON(out, st)
	}
	return write(out, st)
}
