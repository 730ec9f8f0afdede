package chain

import (
	"fmt"

	"varve/chain/manifest"
	"varve/chain/view"
	"varve/overlay"
)

// Between rest and work: a frozen layer becomes writable for a job, and what was
// written comes to rest.

// thaw makes a frozen layer of ours writable, and returns when nobody looks at
// it as an image any more: that takes the file as it was when it was frozen, and
// calls an entry corrupt that names a cluster behind its end of then. Its size is
// whole sectors then, whatever an earlier version gave it (M2).
func (d *Disk) thaw(n *view.Node) (*overlay.Overlay, error) {
	l := n.Layer()
	o := l.Over()
	if o == nil {
		var err error
		if o, err = l.Thaw(d.overlayOptions(false)); err != nil {
			return nil, err
		}
		d.readers.Synchronize()
	}
	if err := d.growWithin(o, l.Size(), n.Backing()); err != nil {
		return nil, fmt.Errorf("give %s whole sectors: %w", l.Path, err)
	}
	return o, nil
}

// settle settles a layer's file and takes its mark away in the record, which
// is to be committed. Called with opMu held; nobody writes the layer.
func (d *Disk) settle(l *manifest.Layer) error {
	return d.settleFile(d.nodes[l.ID].Layer(), l)
}

// settleFile is settle for a record that gets another file.
func (d *Disk) settleFile(file *view.Layer, l *manifest.Layer) error {
	if err := file.Settle(); err != nil {
		return fmt.Errorf("settle %s: %w", l.Label(), err)
	}
	// Holes punched after the last flush, and the time of the last write, are part
	// of the fingerprint: a power cut must not take them back.
	if err := file.File.Sync(); err != nil {
		return fmt.Errorf("settle %s: %w", l.Label(), err)
	}
	print, err := manifest.TakeFingerprint(file.File, l.Format)
	if err != nil {
		return fmt.Errorf("settle %s: %w", l.Label(), err)
	}
	l.Fingerprint, l.Writing = print, false
	if n := d.nodes[l.ID]; n != nil {
		d.figures.Settled(n)
	}
	return nil
}
