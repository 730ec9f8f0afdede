package chain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"varve/chain/manifest"
	"varve/overlay/hostfs"
)

// CheckOptions are the options of Check.
type CheckOptions struct {
	FS       hostfs.FS     // nil: the host's
	Repair   bool          // mend what can be mended without losing anything
	LockWait time.Duration // how long to wait for another varve to let go
	Log      *slog.Logger  // what Repair does; nil: discard
	// Progress is called with how many of the bytes that the layers' files occupy
	// are looked through; nil for nobody. A repair begins from the start again.
	Progress func(done, total int64)
}

// CheckReport is what Check found, and the document of "varve check --json".
// Fields are added, never changed in meaning.
type CheckReport struct {
	Version  int            `json:"version"` // 1
	Disk     string         `json:"disk"`    // the disk directory's path
	Errors   int64          `json:"errors"`
	Leaks    int64          `json:"leaks"` // leaked clusters
	Layers   []LayerCheck   `json:"layers"`
	Findings []CheckFinding `json:"findings"`
	// Mended are findings of before a repair that are gone after it.
	Mended []CheckFinding `json:"mended"`
}

// LayerCheck counts what is wrong with one layer. Errors may be more than its
// findings, of which only the first are listed.
type LayerCheck struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	State  State  `json:"state"`
	Format string `json:"format"`
	File   string `json:"file"`
	Errors int64  `json:"errors"`
	Leaks  int64  `json:"leaks"`
}

// CheckFinding is one thing that Check noticed.
type CheckFinding struct {
	Severity Severity    `json:"severity"`
	Kind     FindingKind `json:"kind"`
	Layer    string      `json:"layer"` // id; "" for what concerns the whole disk
	File     string      `json:"file"`  // absolute path
	Text     string      `json:"text"`
	WayOut   string      `json:"way_out"` // what to do about it

	mendable bool // by a repair
	blocks   bool // the disk cannot be opened as long as it is so
}

// maxLayerFindings bounds the errors in one image's tables that are listed.
const maxLayerFindings = 1000

// Check looks whether everything holds that a disk's files promise to each other:
// chain.json, the tree, each layer's file, its header, its tables and refcounts,
// its fingerprint, and what else lies in the directory. It holds the directory's
// lock, shared, writes nothing, and works on read-only media. ErrInUse with the
// holder while the disk is mounted; os.ErrNotExist for what is no disk directory.
//
// With Repair it holds the lock exclusively and mends what it can without
// changing any view or writing any foreign file: what the next mount would mend,
// and leaks and refcounts in layers of ours. A crash on the way leaves a disk
// that the next mount, or the next repair, mends. It then checks again and
// reports what is left.
func Check(ctx context.Context, dir string, o CheckOptions) (report CheckReport, err error) {
	if o.FS == nil {
		o.FS = hostfs.OS()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return CheckReport{}, err
	}
	if info, err := o.FS.Stat(dir); err != nil {
		return CheckReport{}, err
	} else if !info.Mode.IsDir() {
		return CheckReport{}, fmt.Errorf("%s: %w: not a disk directory", dir, ErrInvalid)
	}
	var leave func() error
	if o.FS, leave, err = enter(o.FS, dir); err != nil {
		return CheckReport{}, err
	}
	defer func() { err = errors.Join(err, leave()) }()
	// Looked at before it is locked: a directory that is none of ours gets no
	// lock file. A chain.json that is corrupt is a finding.
	if _, err := manifest.Load(o.FS, dir); err != nil && !errors.Is(err, manifest.ErrCorrupt) {
		return CheckReport{}, err
	}
	lock, err := lockDir(o.FS, dir, o.Repair, "", o.LockWait)
	if err != nil {
		return CheckReport{}, err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	c := checker{ctx: ctx, fs: o.FS, dir: dir, progress: o.Progress}
	found, err := c.check()
	if err != nil || !o.Repair || !slices.ContainsFunc(found.Findings, func(f CheckFinding) bool { return f.mendable }) {
		return found, err
	}
	if i := slices.IndexFunc(found.Findings, func(f CheckFinding) bool { return f.blocks }); i >= 0 {
		// A mount would refuse the disk as well.
		found.Findings = append(found.Findings, CheckFinding{
			Severity: SeverityNote, File: dir, Text: "nothing was mended: a mount would refuse the disk for what is said of " + filepath.Base(found.Findings[i].File),
			WayOut: "put that right first, then check with --repair again",
		})
		return found, nil
	}
	if err := c.repair(found, o.Log); err != nil {
		lock.Failed = err
		return found, err
	}
	left, err := c.check()
	if err != nil {
		return found, err
	}
	for _, f := range found.Findings {
		if !slices.ContainsFunc(left.Findings, func(l CheckFinding) bool { return l.Layer == f.Layer && l.Text == f.Text }) {
			left.Mended = append(left.Mended, f)
		}
	}
	return left, nil
}

// checker is one run of Check under the directory's lock.
type checker struct {
	ctx      context.Context
	fs       hostfs.FS
	dir      string
	manifest *manifest.Manifest // nil when it is corrupt
	report   CheckReport

	progress    func(done, total int64)
	done, total int64

	falsified map[string]bool // ids of layers whose file is not what it was
	touched   bool            // the leaf was changed by another program
}

// check looks once through everything.
func (c *checker) check() (CheckReport, error) {
	c.report = CheckReport{Version: 1, Disk: c.dir, Layers: []LayerCheck{}, Findings: []CheckFinding{}, Mended: []CheckFinding{}}
	c.manifest, c.done, c.total, c.touched, c.falsified = nil, 0, 0, false, make(map[string]bool)
	m, err := manifest.Load(c.fs, c.dir)
	switch {
	case errors.Is(err, manifest.ErrCorrupt):
		c.blockf("", filepath.Join(c.dir, manifest.FileName),
			manifest.RestoreWords, "%v", err)
		return c.report, nil
	case err != nil:
		return CheckReport{}, err
	}
	c.manifest = m
	c.planProgress()
	if err := c.checkDirectory(); err != nil {
		return CheckReport{}, err
	}
	c.checkJob()
	seen := make(map[fileIdentity]string)
	for _, rec := range m.Layers {
		if err := c.checkLayer(rec, seen); err != nil {
			return CheckReport{}, err
		}
	}
	slices.SortFunc(c.report.Layers, func(a, b LayerCheck) int { return cmp.Compare(a.ID, b.ID) })
	return c.report, nil
}

// planProgress counts what the layers' files occupy. A file that is not there
// counts nothing.
func (c *checker) planProgress() {
	if c.progress == nil {
		return
	}
	for _, rec := range c.manifest.Layers {
		if info, err := c.fs.Stat(rec.Path(c.dir)); err == nil {
			c.total += info.Blocks
		}
	}
}

func (c *checker) advance(done int64) {
	if c.progress != nil {
		c.progress(min(done, c.total), c.total)
	}
}

func (c *checker) add(f CheckFinding) { c.report.Findings = append(c.report.Findings, f) }

// errorf notes an error; of a layer, it counts as one of its.
func (c *checker) errorf(layer, file, wayOut string, mendable bool, format string, args ...any) {
	c.report.Errors++
	for i := range c.report.Layers {
		if c.report.Layers[i].ID == layer {
			c.report.Layers[i].Errors++
		}
	}
	c.add(CheckFinding{Severity: SeverityError, Layer: layer, File: file, Text: fmt.Sprintf(format, args...), WayOut: wayOut, mendable: mendable})
}

// blockf notes an error that no repair mends and with which no disk is opened.
func (c *checker) blockf(layer, file, wayOut string, format string, args ...any) {
	c.errorf(layer, file, wayOut, false, format, args...)
	c.report.Findings[len(c.report.Findings)-1].blocks = true
}

func (c *checker) notef(layer, file, wayOut string, mendable bool, format string, args ...any) {
	c.add(CheckFinding{Severity: SeverityNote, Layer: layer, File: file, Text: fmt.Sprintf(format, args...), WayOut: wayOut, mendable: mendable})
}
