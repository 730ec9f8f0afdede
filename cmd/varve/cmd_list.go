package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"varve/chain"
	"varve/chain/mounts"
	"varve/cmd/varve/internal/claim"
	"varve/cmd/varve/internal/client"
	"varve/cmd/varve/internal/progress"
	"varve/cmd/varve/internal/tell"
	"varve/cmd/varve/internal/where"
	"varve/fs/show"
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
			return printStatus(cmd, args[0], asJSON, show.LayerTable)
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
	// Parts are bind mounts of files or directories of mounts that cannot be seen
	// from here.
	Parts []bindStatus `json:"parts"`
	// Elsewhere are mounts that only other mount namespaces of this host have, by the paths
	// that they have there.
	Elsewhere []mountStatus `json:"elsewhere"`
}

// mountStatus is one mount of the host. Where its daemon did not answer, Error
// says why, and size, layers and job are unknown: 0, 0 and null.
type mountStatus struct {
	Mountpoint string           `json:"mountpoint"`
	Disk       string           `json:"disk"`
	UID        int              `json:"uid"`      // who mounted it; -1 where that cannot be told
	Believed   bool             `json:"believed"` // false: the disk is no more than that user's word
	ReadOnly   bool             `json:"read_only"`
	Size       int64            `json:"size"`   // guest bytes
	Layers     int              `json:"layers"` // how many
	Job        *chain.JobStatus `json:"job"`
	Error      string           `json:"error"`
	Binds      []bindStatus     `json:"binds"` // where else it, or a part of it, can be seen
	PID        int              `json:"pid"`   // a process in the mount namespace of the mount; 0: it is in this one

	place mounts.Mount
}

// bindStatus is a further place at which a mount can be seen.
type bindStatus struct {
	Mountpoint string `json:"mountpoint"`
	Part       string `json:"part"` // what of the mount is seen there: "disk.raw"; "" for all of it
	PID        int    `json:"pid"`  // a process in the mount namespace of the place; 0: it is in this one
	Disk       string `json:"disk"`

	place mounts.Mount
}

func listMounts(out io.Writer, asJSON bool) error {
	table, err := mounts.Read()
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	elsewhere, err := mounts.Elsewhere()
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	doc := mountsDocument{Version: 1, Mounts: []mountStatus{}, Parts: []bindStatus{}, Elsewhere: []mountStatus{}}
	for _, m := range table.List() {
		s := mountStatus{Mountpoint: m.Mountpoint, Disk: m.Source, UID: m.UID, ReadOnly: m.ReadOnly, Binds: bindsOf(m.Binds, m.Device)}
		s.Binds = append(s.Binds, bindsOf(elsewhere, m.Device)...)
		s.Believed, s.place = claim.BelievedSoon(context.Background(), m, where.AnswerTime), m
		if m.Reachable() {
			s.ask(m)
		} else {
			s.Error = where.Hidden(m).Error()
		}
		doc.Mounts = append(doc.Mounts, s)
	}
	for _, m := range table.Loose() {
		doc.Parts = append(doc.Parts, bindOf(m))
	}
	for _, place := range where.OnlyElsewhere(table, elsewhere) {
		s := mountStatus{Mountpoint: place.Mountpoint, Disk: place.Source, UID: place.UID, Believed: true, ReadOnly: place.ReadOnly, PID: place.PID, Binds: []bindStatus{}}
		if m, err := place.Reach(); err != nil {
			s.Error = err.Error()
		} else {
			s.ask(m)
			m.Release()
		}
		doc.Elsewhere = append(doc.Elsewhere, s)
	}
	if asJSON {
		return writeJSON(out, doc)
	}
	return writeMounts(out, doc)
}

// ask asks a mount's daemon.
func (s *mountStatus) ask(m mounts.Mount) {
	st, err := where.Target{Arg: m.Mountpoint}.At(m).DocumentSoon()
	if err != nil {
		s.Error = err.Error()
		return
	}
	s.Size, s.Layers, s.Job = st.Size, len(st.Layers), st.Job
}

// bindsOf gives the places that are of a device.
func bindsOf(places []mounts.Mount, device uint64) []bindStatus {
	list := []bindStatus{}
	for _, m := range places {
		if m.Device == device {
			list = append(list, bindOf(m))
		}
	}
	return list
}

func bindOf(m mounts.Mount) bindStatus {
	return bindStatus{Mountpoint: m.Mountpoint, Part: m.Part(), PID: m.PID, Disk: m.Source, place: m}
}

func writeMounts(out io.Writer, doc mountsDocument) error {
	if len(doc.Mounts) == 0 && len(doc.Parts) == 0 && len(doc.Elsewhere) == 0 {
		_, err := fmt.Fprintln(out, "no varve mounts")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MOUNTPOINT\tDISK\tSIZE\tLAYERS\tJOB")
	for _, m := range slices.Concat(doc.Mounts, doc.Elsewhere) {
		if m.PID != 0 {
			m.Mountpoint += fmt.Sprintf(" (in the mount namespace of pid %d)", m.PID)
		}
		disk := tell.Visible(claim.Words(mounts.Mount{Source: m.Disk, UID: m.UID}, m.Believed))
		if m.Error != "" {
			fmt.Fprintf(w, "%s\t%s\t-\t-\t%s\n", tell.Visible(m.Mountpoint), disk, tell.Visible(m.Error))
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", tell.Visible(m.Mountpoint), disk, show.Size(m.Size), m.Layers, tell.Visible(jobWords(m.Job)))
	}
	for _, p := range doc.Parts {
		fmt.Fprintf(w, "%s\t%s\t-\t-\t%s\n", tell.Visible(p.Mountpoint), tell.Visible(p.Disk), tell.Visible(where.PartOf(p.place).Error()))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, m := range doc.Mounts {
		for _, words := range bindWords(m.Binds) {
			if _, err := fmt.Fprintf(out, "%s can also be seen: %s\n", tell.Visible(m.Mountpoint), tell.Visible(words)); err != nil {
				return err
			}
		}
	}
	return nil
}

// bindWords puts further places into words. A host has a mount namespace for each VM
// and container, and what they have at the same path is told once.
func bindWords(binds []bindStatus) []string {
	var words []string
	for i, b := range binds {
		same := func(o bindStatus) bool {
			return b.PID != 0 && o.PID != 0 && o.Part == b.Part && o.Mountpoint == b.Mountpoint
		}
		if slices.ContainsFunc(binds[:i], same) {
			continue
		}
		text, more := b.place.String(), 0
		for _, o := range binds[i+1:] {
			if same(o) {
				more++
			}
		}
		if more > 0 {
			text += fmt.Sprintf(", and in %d more", more)
		}
		words = append(words, text)
	}
	return words
}

// jobWords is a job in a few words: "3 delete 40 %".
func jobWords(j *chain.JobStatus) string {
	switch {
	case j == nil:
		return "-"
	case j.State == chain.JobRunning && j.TotalBytes > 0:
		return fmt.Sprintf("%s %s %d %%", j.ID, j.Kind, progress.Percent(j.DoneBytes, j.TotalBytes))
	default:
		return fmt.Sprintf("%s %s %s", j.ID, j.Kind, j.State)
	}
}

// printStatus prints a disk's status, as a table made by write or as the document.
func printStatus(cmd *cobra.Command, arg string, asJSON bool, write func(io.Writer, chain.Status) error) error {
	return readDisk(cmd, arg, func(d client.Disk) error {
		if asJSON {
			text, err := d.Document(cmd.Context())
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(show.PrintableJSON(text))
			return err
		}
		st, err := d.Status(cmd.Context())
		if err != nil {
			return err
		}
		return write(cmd.OutOrStdout(), st)
	})
}
