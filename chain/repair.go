package chain

import (
	"fmt"
	"log/slog"
	"slices"

	"varve/chain/manifest"
)

// repair mends what check found to be mendable. Opening a disk does most of it:
// it removes strays, makes headers follow chain.json and goes through the tables
// of layers that are marked as being written. So the layers of ours whose
// refcounts are to be mended are marked first, durably, before a byte of them is
// written (M16); a crash at any point leaves them marked for the next Open.
func (c *checker) repair(found CheckReport, log *slog.Logger) error {
	m := c.manifest.Copy()
	leaf := m.Layer(m.Leaf)
	closed := !leaf.Writing
	pinned := m.Pinned() // clones know their files as they are
	for _, rec := range m.Layers {
		if !rec.Foreign && !rec.Writing && !pinned[rec.ID] && slices.ContainsFunc(found.Findings, func(f CheckFinding) bool {
			return f.mendable && f.Layer == rec.ID && f.Severity != SeverityNote
		}) {
			log.Info("marking a layer to be mended", "layer", rec.Label())
			m.MarkWriting(rec)
		}
	}
	if m.Job != nil && !m.JobHasWork() {
		log.Info("dropping a job that has nothing to do", "job", m.Job.ID)
		m.Job = nil
	}
	// Also a chain.json.tmp goes with this.
	if err := m.Commit(c.fs, c.dir); err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	// A recorded job is not what a repair is for.
	o := OpenOptions{FS: c.fs, Log: log, HoldJob: true}.withDefaults()
	d, err := openUnderLock(c.dir, o, nil, new(manifest.Reader))
	if err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	if closed {
		// Nobody wrote to the disk: the leaf's file was closed after its last write.
		d.SetModTime(m.Modified)
	}
	if err := d.Close(); err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	return nil
}
