package check

import (
	"context"
	"fmt"

	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// Options are the options of Check.
type Options struct {
	// Progress is called with the bytes of tables that were looked through and
	// their sum, which is known from the start; nil for nobody.
	Progress func(done, total int64)
	// MaxProblems bounds CheckResult.Problems; 0 for 100. The counts go on.
	MaxProblems int

	// maxClusters is how many clusters are counted in one pass; 0 for
	// checkWindow.
	maxClusters int64
}

// checkWindow bounds the memory of Check: 4 bytes for a cluster that is in
// use, so 64 MiB at most for their counts. A file with more clusters than this
// (1 TiB at 64 KiB) is gone through once for each such part of it. On top come
// a cluster, the refcount table (8 MiB at most), some 100 bytes for each internal
// snapshot and bitmap, and the list of problems.
const checkWindow = 16 << 20

// maxCheckedClusters is how many clusters a file may have at most, as in QEMU:
// a sparse file of some exabytes would else be gone through for ever.
const maxCheckedClusters = 1<<31 - 1

const defaultMaxProblems = 100

// Problem is something in an image that is not as the format wants it.
type Problem struct {
	Leak     bool   // space is lost, nothing else; otherwise an error
	Refcount bool   // it is the refcount that is wrong, not what uses the cluster
	Offset   int64  // host offset in bytes of what is wrong
	Text     string // in words, without the file's name
}

// Result says what Check found.
type Result struct {
	// Errors counts broken promises: an entry that breaks a rule, a cluster that
	// is used more often than its refcount says, tables that overlap.
	Errors int64
	// Leaks counts clusters whose refcount is higher than their uses. They cost
	// space and harm nothing.
	Leaks int64
	// Problems are the first of both, at most MaxProblems. Leaked clusters
	// that follow each other are one problem.
	Problems []Problem
	// UsedClusters is how many clusters of the file are in use.
	UsedClusters int64
}

// Check goes through all metadata of an image, "raw" or "qcow2", and says what
// in it contradicts the format or itself: header, L1 and L2 tables, also those
// of internal snapshots, bitmaps, refcounts. It reads only, and takes no lock:
// the image must not be written meanwhile. Of a raw image there is nothing to
// check.
//
// Its verdict is that of qemu-img check; where it differs on purpose,
// TestCheckAgainstQEMU says why. The memory is bounded, see checkWindow.
//
// The error is for what could not be checked at all: the header's, as of
// ParseHeader (ErrCorrupt, ErrUnsupported), the host's, the context's. What the
// tables have wrong is in the result. Safe for concurrent use.
func Run(ctx context.Context, f hostfs.File, format string, o Options) (Result, error) {
	switch format {
	case qcow2.FormatRaw:
		return Result{}, nil
	case qcow2.FormatQcow2:
	default:
		return Result{}, fmt.Errorf("%s: image format %q: %w", f.Name(), format, qcow2.ErrUnsupported)
	}
	info, err := f.Stat()
	if err != nil {
		return Result{}, err
	}
	h, err := qcow2.HeaderOf(f, info.Size)
	if err != nil {
		return Result{}, err
	}
	c := newChecker(ctx, f, h, info.Size, o)
	if c.counts.end > maxCheckedClusters {
		return Result{}, fmt.Errorf("%s: more than %d clusters: %w", f.Name(), int64(maxCheckedClusters), qcow2.ErrUnsupported)
	}
	if err := c.readRefcountTable(); err != nil {
		return Result{}, err
	}
	if err := c.readDirectories(); err != nil {
		return Result{}, err
	}
	window := o.maxClusters
	if window <= 0 {
		window = checkWindow
	}
	passes := (c.counts.end + window - 1) / window
	if err := c.planProgress(passes); err != nil {
		return Result{}, err
	}
	for low := int64(0); low < c.counts.end; low += window {
		c.first = low == 0
		c.counts.reset(low, window)
		if err := c.countUses(); err != nil {
			return Result{}, err
		}
		if err := c.compareRefcounts(low+window >= c.counts.end); err != nil {
			return Result{}, err
		}
	}
	c.endLeaks()
	return c.result, nil
}

// checker is one run of Check.
type checker struct {
	ctx      context.Context
	file     hostfs.File
	h        *qcow2.Header
	l2       qcow2.EntryFormat
	fileSize int64

	refcountTable []uint64 // as it stands in the file, up to its last entry
	badBlock      []bool   // by index: its refcounts cannot be known
	l1Tables      []l1Table
	ranges        []namedRange // other metadata
	bitmaps       []bitmapTable

	counts useCounts
	buf    []byte // one cluster, for L2 tables and refcount blocks
	piece  []byte // of other tables
	first  bool   // the first pass: what is wrong with entries is told once

	result      Result
	maxProblems int
	leak        leakRun

	progress    func(done, total int64)
	done, total int64
}

// l1Table is the active L1 table, or that of an internal snapshot.
type l1Table struct {
	name            string
	offset, entries int64
	active          bool
}

// namedRange is a range of the file that something other than L1 and L2 tables
// names.
type namedRange struct {
	name           string
	offset, length int64
}

func newChecker(ctx context.Context, f hostfs.File, h *qcow2.Header, fileSize int64, o Options) *checker {
	c := &checker{
		ctx: ctx, file: f, h: h, fileSize: fileSize,
		l2:          qcow2.EntryFormat{Version: h.Version, ClusterBits: h.ClusterBits, Extended: h.ExtendedL2(), FileSize: fileSize},
		buf:         make([]byte, h.ClusterSize()),
		piece:       make([]byte, 64<<10),
		maxProblems: o.MaxProblems,
		progress:    o.Progress,
		first:       true,
	}
	if c.maxProblems <= 0 {
		c.maxProblems = defaultMaxProblems
	}
	// A range may end less than a cluster past the end of the file.
	c.counts.end = (fileSize+h.ClusterSize()-1)>>h.ClusterBits + 1
	return c
}

// errorf notes an error.
func (c *checker) errorf(offset int64, format string, args ...any) {
	c.result.Errors++
	if len(c.result.Problems) < c.maxProblems {
		c.result.Problems = append(c.result.Problems, Problem{Offset: offset, Text: fmt.Sprintf(format, args...)})
	}
}

// refcountErrorf notes a refcount that is an error.
func (c *checker) refcountErrorf(offset int64, format string, args ...any) {
	n := len(c.result.Problems)
	c.errorf(offset, format, args...)
	if len(c.result.Problems) > n {
		c.result.Problems[n].Refcount = true
	}
}

// leakRun is leaked clusters that follow each other.
type leakRun struct {
	first, n       int64
	refcount, uses uint64
}

// leaked notes a leaked cluster. They come in the order of the file.
func (c *checker) leaked(cluster int64, refcount, uses uint64) {
	c.result.Leaks++
	l := &c.leak
	if l.n > 0 && cluster == l.first+l.n && refcount == l.refcount && uses == l.uses {
		l.n++
		return
	}
	c.endLeaks()
	c.leak = leakRun{cluster, 1, refcount, uses}
}

func (c *checker) endLeaks() {
	l := c.leak
	c.leak = leakRun{}
	if l.n == 0 || len(c.result.Problems) >= c.maxProblems {
		return
	}
	at := l.first << c.h.ClusterBits
	text := fmt.Sprintf("cluster at 0x%x: refcount %d, used %s", at, l.refcount, times(l.uses))
	if l.n > 1 {
		text = fmt.Sprintf("%d clusters from 0x%x on: refcount %d, used %s", l.n, at, l.refcount, times(l.uses))
	}
	c.result.Problems = append(c.result.Problems, Problem{Leak: true, Refcount: true, Offset: at, Text: text})
}

func times(n uint64) string {
	switch n {
	case 0:
		return "not at all"
	case 1:
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// planProgress counts the tables that are to be read.
func (c *checker) planProgress(passes int64) error {
	if c.progress == nil {
		return nil
	}
	tables := int64(0)
	w := qcow2.Walk{File: c.file, Header: c.h, L1: func(int64, uint64) (bool, error) {
		tables++
		return false, c.ctx.Err()
	}, Unread: func(string, int64, int64, error) error { return nil }}
	for _, t := range c.l1Tables {
		if err := w.Run(t.offset, t.entries); err != nil {
			return err
		}
	}
	blocks := int64(0)
	for i, e := range c.refcountTable {
		if e != 0 && !c.badBlock[i] {
			blocks++
		}
	}
	c.total = (tables*passes + blocks) * c.h.ClusterSize()
	return nil
}

// advance tells that a table was read.
func (c *checker) advance() {
	if c.progress != nil {
		c.done += c.h.ClusterSize()
		c.progress(min(c.done, c.total), c.total)
	}
}
