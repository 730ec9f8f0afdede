package chain

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"varve/chain/manifest"
	"varve/chain/shellword"
	"varve/overlay"
	"varve/overlay/check"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// fileIdentity tells one file on the host from another, whatever its names.
type fileIdentity struct{ device, inode uint64 }

// checkLayer checks one layer's file and what chain.json says of it. Its error
// ends the check; what is wrong with the layer is a finding.
func (c *checker) checkLayer(rec *manifest.Layer, seen map[fileIdentity]string) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	m, path := c.manifest, rec.Path(c.dir)
	c.report.Layers = append(c.report.Layers, LayerCheck{
		ID: rec.ID, Name: rec.Name, State: m.State(rec), Format: rec.Format, File: path,
	})
	share := int64(0)
	if info, err := c.fs.Stat(path); err == nil {
		share = info.Blocks
	}
	defer func() {
		c.done += share
		c.advance(c.done)
	}()
	if rec.Writing {
		what := "the disk was not unmounted cleanly; its tables are looked through at the next mount"
		if rec.ID != m.Leaf {
			what = "it was being written when varve was stopped"
		}
		c.notef(rec.ID, path, byMount, true, "%s", what)
	}
	f, ok := c.openForCheck(rec, path)
	if !ok {
		return nil
	}
	defer f.Close() // read only
	if info, err := f.Stat(); err == nil {
		identity := fileIdentity{info.Device, info.Inode}
		if other, taken := seen[identity]; taken {
			c.errorf(rec.ID, path, "give each layer its own file again, from a backup", false, "it is the same file as that of %s", other)
		}
		seen[identity] = rec.Label()
	}
	c.checkMarks(rec, path)
	c.checkFingerprint(rec, path, f)
	if rec.Format != formatQcow2 {
		c.checkSize(rec, path, f, nil)
		return nil
	}
	return c.checkImage(rec, path, f, share)
}

// openForCheck opens a layer's file and locks it as a mount would, so that
// nobody writes it meanwhile.
func (c *checker) openForCheck(rec *manifest.Layer, path string) (hostfs.File, bool) {
	fail := func(err error) (hostfs.File, bool) {
		wayOut := "make the file readable again, or put it back from a backup"
		switch {
		case errors.Is(err, os.ErrNotExist):
			wayOut = "put it back where it was"
			if !rec.Foreign {
				wayOut = "put it back from a backup"
			}
			err = errors.New("the file is not there")
		case errors.Is(err, hostfs.ErrLocked):
			wayOut = "stop what has it open, then check again"
		case errors.Is(err, os.ErrPermission):
			wayOut = "check as a user who may read it"
		}
		c.blockf(rec.ID, path, wayOut, "%s", withoutPath(err, path))
		return nil, false
	}
	if err := checkFile(c.fs, path); err != nil {
		return fail(err)
	}
	f, err := c.fs.Open(path, os.O_RDONLY, 0)
	if err != nil {
		return fail(err)
	}
	err = f.Lock(hostfs.LockFrozen)
	if errors.Is(err, hostfs.ErrLocked) {
		f.Close()
		return fail(err)
	}
	if err != nil {
		c.notef(rec.ID, path, "make sure that nobody writes it meanwhile", false, "it cannot be locked: %v", err)
	}
	return f, true
}

// withoutPath is an error's text without the file's path before it, which the
// finding has already.
func withoutPath(err error, path string) string {
	return strings.TrimPrefix(err.Error(), path+": ")
}

// checkMarks looks at the bits of a header with which a program says that the file is not
// in order. They come before all that follows from what they say.
func (c *checker) checkMarks(rec *manifest.Layer, path string) {
	if rec.Format != formatQcow2 {
		return
	}
	h, err := qcow2.ReadHeader(c.fs, path)
	switch {
	case errors.Is(err, qcow2.ErrMarkedCorrupt):
		c.blockf(rec.ID, path, c.imageWayOut(rec, false), "it is marked corrupt: a program found its tables wrong and stopped writing it")
	case err == nil && h.Incompatible&qcow2.IncompatibleDirty != 0:
		c.notef(rec.ID, path, c.imageWayOut(rec, false), false, "%s", dirtyWords)
	}
}

// dirtyWords is what the dirty bit says (qcow2 specification, "incompatible_features").
const dirtyWords = "it is marked dirty: who wrote it was killed, and its refcounts may be wrong; what it shows is right"

// checkFingerprint compares a layer's file with what it was (M16).
func (c *checker) checkFingerprint(rec *manifest.Layer, path string, f hostfs.File) {
	if rec.Writing || rec.Fingerprint == nil {
		return
	}
	now, err := manifest.TakeFingerprint(f, rec.Format)
	if err != nil {
		c.blockf(rec.ID, path, "put it back from a backup", "it cannot be read: %v", err)
		return
	}
	if now.Unread > 0 {
		c.errorf(rec.ID, path, salvageWords, false, "the host cannot read it at 0x%x", now.Unread)
	}
	// Another inode or device, of a restored file, is nothing to act on.
	changes, _ := rec.Fingerprint.Compare(now)
	switch {
	case len(changes) == 0:
	case rec.ID == c.manifest.Leaf:
		c.touched = true
		c.notef(rec.ID, path, byMount, true, "the leaf was changed by another program since it was closed (%s)", strings.Join(changes, ", "))
	default:
		c.falsified[rec.ID] = true
		c.blockf(rec.ID, path, rec.AcceptWords(c.dir), "it was changed: %s; affected: %s",
			strings.Join(changes, ", "), c.manifest.FalsifiedBy(rec))
	}
}

// checkSize compares the guest size that chain.json has with the file's.
func (c *checker) checkSize(rec *manifest.Layer, path string, f hostfs.File, h *qcow2.Header) {
	if rec.ID == c.manifest.Leaf || rec.Writing || rec.Name == "" {
		// The leaf's own header decides. An unnamed layer has no view that anybody
		// sees, and a merge that was stopped may have made it larger.
		return
	}
	size := int64(0)
	if h != nil {
		size = manifest.ViewSize(rec.Format, h.Size)
	} else if info, err := f.Stat(); err == nil {
		size = info.Size
	}
	if size != rec.Size {
		c.errorf(rec.ID, path, rec.AcceptWords(c.dir), false, "the file is a disk of %d bytes, chain.json says %d", size, rec.Size)
	}
}

// checkWhole says it when a header's size is no whole number of sectors (M2).
func (c *checker) checkWhole(rec *manifest.Layer, path string, h *qcow2.Header) {
	if !extent.Uneven(h.Size) {
		return
	}
	if rec.Foreign || c.manifest.Pinned()[rec.ID] || overlay.Plain(h) != nil {
		c.notef(rec.ID, path, "nothing has to be done; varve shows them, and a layer of varve's on it has its own copy of them", false, "%s", unevenWords(h.Size))
		return
	}
	c.errorf(rec.ID, path, byMount, !c.falsified[rec.ID], "%s; an earlier version made it so", unevenWords(h.Size))
}

// checkImage checks header, tables and refcounts of a qcow2 layer.
func (c *checker) checkImage(rec *manifest.Layer, path string, f hostfs.File, share int64) error {
	before := c.done
	result, err := check.Run(c.ctx, f, rec.Format, check.Options{MaxProblems: maxLayerFindings, Progress: func(done, total int64) {
		if total > 0 {
			c.advance(before + int64(float64(share)*float64(done)/float64(total)))
		}
	}})
	if c.ctx.Err() != nil {
		return c.ctx.Err()
	}
	switch {
	case errors.Is(err, qcow2.ErrMarkedCorrupt):
		return nil // checkMarks has said so
	case errors.Is(err, qcow2.ErrUnsupported):
		c.blockf(rec.ID, path, headerWayOut(err, rec.Foreign), "%s", withoutPath(err, path))
		return nil
	case err != nil:
		c.blockf(rec.ID, path, c.imageWayOut(rec, false), "%s", withoutPath(err, path))
		return nil
	}
	h, err := qcow2.ReadHeader(c.fs, path)
	if err != nil {
		return err
	}
	c.checkSize(rec, path, f, h)
	c.checkWhole(rec, path, h)
	c.checkBacking(rec, path, h)
	mendable := false
	if !rec.Foreign {
		err := overlay.Mendable(f)
		mendable = err == nil && !c.falsified[rec.ID]
		switch {
		case errors.Is(err, overlay.ErrNotPlain) && rec.ID == c.manifest.Leaf:
			c.notef(rec.ID, path, "the next mount keeps it as a frozen layer and puts a new leaf on top", false, "%s", withoutPath(err, path))
		case errors.Is(err, overlay.ErrNotPlain):
			c.notef(rec.ID, path, "nothing has to be done; varve only reads it", false, "%s", withoutPath(err, path))
		case err != nil && (rec.Writing || rec.ID == c.manifest.Leaf && c.touched):
			c.blockf(rec.ID, path, c.imageWayOut(rec, false), "%s", withoutPath(err, path))
		}
	}
	c.addProblems(rec, path, h, result, mendable)
	return nil
}

// addProblems takes over what check.Run found; leaks as one finding.
func (c *checker) addProblems(rec *manifest.Layer, path string, h *qcow2.Header, result check.Result, mendable bool) {
	counted := &c.report.Layers[len(c.report.Layers)-1]
	counted.Errors += result.Errors
	counted.Leaks += result.Leaks
	c.report.Errors += result.Errors
	c.report.Leaks += result.Leaks
	wayOut := c.imageWayOut(rec, mendable)
	listed := int64(0)
	for _, p := range result.Problems {
		if !p.Leak {
			can := mendable && p.Refcount
			kind := KindTable
			if p.Refcount {
				kind = KindRefcount
			}
			c.add(CheckFinding{Severity: SeverityError, Kind: kind, Layer: rec.ID, File: path, Text: p.Text, WayOut: c.imageWayOut(rec, can), mendable: can})
			listed++
		}
	}
	if more := result.Errors - listed; more > 0 {
		c.add(CheckFinding{Severity: SeverityError, Layer: rec.ID, File: path, Text: fmt.Sprintf("%d more errors", more), WayOut: wayOut, mendable: mendable})
	}
	if result.Leaks == 0 {
		return
	}
	text := fmt.Sprintf("%d leaked clusters of %s: used less often than their refcounts say", result.Leaks, clusterWords(h))
	if result.Leaks == 1 {
		text = fmt.Sprintf("1 leaked cluster of %s: used less often than its refcount says", clusterWords(h))
	}
	switch {
	case mendable && rec.Writing:
		text += "; after a crash that is to be expected"
	case !mendable:
		wayOut = "it costs space only; leave it as it is"
	}
	c.add(CheckFinding{Severity: SeverityLeak, Layer: rec.ID, File: path, Text: text, WayOut: wayOut, mendable: mendable})
}

func clusterWords(h *qcow2.Header) string {
	if h.ClusterSize() < 1024 {
		return fmt.Sprintf("%d bytes", h.ClusterSize())
	}
	return fmt.Sprintf("%d KiB", h.ClusterSize()>>10)
}

// checkBacking compares the backing file that a header names with chain.json.
func (c *checker) checkBacking(rec *manifest.Layer, path string, h *qcow2.Header) {
	if rec.Foreign {
		if err := sameBacking(c.manifest, rec, h); err != nil {
			c.errorf(rec.ID, path, "put the header back with qemu-img rebase -u, then \"varve accept\"", false, "%v", err)
		}
		return
	}
	name, format := c.manifest.Layer(rec.Parent).BackingName()
	if h.BackingName == name && h.BackingFormat == format {
		return
	}
	text := fmt.Sprintf("its header names the backing file %q (%s), chain.json %q (%s)", h.BackingName, h.BackingFormat, name, format)
	// A crash may come between the two, and both give the same view (M15).
	if c.manifest.Layer(c.manifest.Leaf).Writing || rec.Writing {
		c.notef(rec.ID, path, byMount, true, "%s", text)
		return
	}
	if overlay.Plain(h) != nil {
		c.errorf(rec.ID, path, "set it with qemu-img rebase -u, then \"varve accept\"", false, "%s", text)
		return
	}
	c.errorf(rec.ID, path, byMount, !c.falsified[rec.ID], "%s", text)
}

// imageWayOut is what to do about errors in an image's tables.
func (c *checker) imageWayOut(rec *manifest.Layer, mendable bool) string {
	switch {
	case mendable:
		return "a check with --repair mends it"
	case rec.Foreign:
		return "the file is not varve's: put it back from a backup; or, with a copy of it made: " + foreignRepair(c.dir, rec)
	}
	return salvageWords
}

// salvageWords is the way out of a layer that cannot be read everywhere.
const salvageWords = "put the file back from a backup, or save what can be read of a view with varve export --skip-damaged"

// foreignRepair is how a file of others is repaired that a disk reads, in order.
func foreignRepair(dir string, rec *manifest.Layer) string {
	return fmt.Sprintf("qemu-img check -r all %s && varve accept %s %s", shellword.Quote(rec.File), shellword.Quote(dir), shellword.Quote(rec.Argument()))
}
