package chain

import (
	"time"

	"varve/chain/view"
)

// A flatten copies into one layer all that it needs from below. It gives nothing back
// before its end: what it copies other layers may still need.

// flattenLayer copies into a layer all that it needs from below, and takes its
// backing away.
func (d *Disk) flattenLayer(j *job) error {
	n, err := d.prepareFlatten(j)
	if err != nil || n == nil {
		return err
	}
	over, source := n.Layer().Over(), n.Parent()
	held := func(off int64) (int64, error) {
		return source.RegionHeld(&d.readers, off>>view.RegionBits, over.Size())
	}
	part, fill := d.filling(j, over, source, nil)
	settle := func(_, _ int64) error {
		forget := over.Copied()
		if err := over.Flush(); err != nil {
			return err
		}
		forget()
		return nil
	}
	if err := d.copyRegions(j, regionWork{flattenWindows * d.window, over.Size, d.within(source.Next), held, fill, part, over.SubclusterSize(), over, settle}); err != nil {
		return err
	}

	if err := d.begin(); err != nil {
		return err
	}
	defer d.opMu.Unlock()
	m := d.edit()
	rec := m.Layer(n.ID)
	if err := over.SetBacking("", ""); err != nil {
		return err
	}
	rec.Parent = ""
	if n.ID != m.Leaf {
		if err := d.settleFile(n.Layer(), rec); err != nil {
			return err
		}
	}
	m.Job = nil
	known := d.manifest.Mergeable()
	dead := m.RemoveDead()
	d.queueMerge(m, known)
	if err := d.commit(m); err != nil {
		return err
	}
	n.Replace(n.Layer(), nil)
	d.figures.Replaced(n)
	d.dropRegions(n, 0, n.Size())
	d.installWithout(m, dead, nil)
	d.finished(j, m)
	d.changed(Change{Layers: true})
	return nil
}

func (d *Disk) prepareFlatten(j *job) (*view.Node, error) {
	// How much there is to copy, counted before anybody has to wait for us.
	if err := d.CountAll(j.ctx); err != nil {
		return nil, err
	}
	if err := d.begin(); err != nil {
		return nil, err
	}
	defer d.opMu.Unlock()
	m := d.edit()
	rec := m.Layer(j.layer)
	if rec == nil || rec.Parent == "" {
		m.Job = nil
		if err := d.commit(m); err != nil {
			return nil, err
		}
		d.install(m, nil)
		d.finished(j, m)
		return nil, nil
	}
	n := d.nodes[rec.ID]
	total, _, err := d.figures.View(n.Parent(), time.Time{})
	if err != nil {
		return nil, err
	}
	j.totalBytes.Store(total)
	m.Job.Into = rec.ID
	writes := m.MarkWriting(rec)
	if err := d.commit(m); err != nil {
		return nil, err
	}
	d.install(m, nil)
	j.writes.Store(&writes)
	_, err = d.thaw(n)
	return n, err
}
