package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// Backing is what shows through where an overlay says nothing: the view of the
// layer below it. Safe for concurrent use.
type Backing interface {
	// ReadAt fills p from the view; past its end it reads zeros.
	ReadAt(p []byte, off int64) error
	// IsZero says whether the range is known to read as zeros, from metadata
	// alone.
	IsZero(off, length int64) (bool, error)
}

// OverlayOptions are the options of OpenOverlay.
type OverlayOptions struct {
	// Unclean says that the layer was not settled when it was last written:
	// its tables are scanned, refcounts mended, leaks freed.
	Unclean bool
	// unrecovered has a file taken as a crash leaves it, without a recovery, for tests whose
	// file is too long for one.
	unrecovered bool
	// MaxSlices bounds the cached table slices of 4 KiB; 0 for the default.
	// Dirty ones come on top until the next flush.
	MaxSlices int
	// Log gets what is noticed and mended; nil discards.
	Log *slog.Logger
	// Activity counts what this layer does, and others beside it; nil: nobody asks.
	Activity *Activity
}

// ErrFailed says that an earlier write-back failed, so that the file's
// content on the host is unknown until it is opened again (M10).
var ErrFailed = errors.New("an earlier flush failed")

// ErrNotPlain says that a layer of ours holds something that varve does not
// write: somebody used another tool on it. It can be read as a frozen layer,
// but not be written in place (M17).
var ErrNotPlain = errors.New("was changed by another tool")

const (
	sliceEntries     = 256 // L2 entries in a slice
	sliceBytes       = sliceEntries * qcow2.EntrySize
	defaultMaxSlices = 2048
	stripeCount      = 256

	allSub = 0xffffffff // 32 subclusters
)

// Overlay is a layer of ours, opened for writing: the leaf, or a layer that a
// job writes. All methods are safe for concurrent use, except that Settle,
// Grow and SetBacking exclude each other by flushMu.
//
// Locks, in the order in which they are taken: flushMu (and that of the layer
// named by FlushAfter behind it), then punch.running, then a stripe (several for
// Punch, which waits for none but the first), then
// tableMu or loadMu, then slice.mu, then alloc.mu / dirtyMu / punchMu / cacheMu,
// none of which is held while another of the last group is taken.
type Overlay struct {
	file     hostfs.File
	log      *slog.Logger
	activity *Activity

	clusterBits uint32
	subBits     uint32 // of a subcluster in bytes
	tableBits   uint32 // of the entries in an L2 table
	size        atomic.Int64

	// stripes order everything that happens to one guest cluster. In-place
	// writes to allocated subclusters share a stripe; allocation, copy-up,
	// discard and punching own it (M8, M6).
	stripes [stripeCount]sync.RWMutex

	// tables is indexed by L1 index. It grows under tableMu and flushMu.
	tables  atomic.Pointer[[]atomic.Pointer[table]]
	tableMu sync.Mutex                       // creating a table
	index   atomic.Pointer[qcow2.TableIndex] // of tables; changed as they are
	loadMu  [16]sync.Mutex

	alloc allocator

	dirtyMu sync.Mutex
	dirty   []*slice // slices with unpublished entries
	dirtyL1 []int    // L1 entries that are not published
	// dirtyCount is len(dirty), for those who only look.
	dirtyCount atomic.Int64
	changes    atomic.Uint64
	changed    changedSpans

	// flushMu: one flush, growth, header change or settling at a time. Guards
	// the header and what is on disk of the L1 table.
	flushMu  sync.Mutex
	header   *qcow2.Header
	unsynced atomic.Bool // something was written since the last fdatasync
	failed   atomic.Pointer[error]
	before   atomic.Pointer[Overlay] // see FlushAfter

	punch  punchQueue
	cache  sliceCache
	copier Copier
}

// table is an L2 table. host never changes once it is set.
type table struct {
	host   int64
	slices []atomic.Pointer[slice]
	// written has a bit for each slice that a flush has begun to write since the layer
	// was opened; all of them for a table that was made since.
	written atomic.Uint64

	badMu sync.Mutex         // guards bad; held for moments
	bad   map[int64]ownEntry // by their index in the table
}

// slice is a run of 256 entries of an L2 table. Readers load entries without
// a lock: the bitmap first, then the offset, which is set before the first bit
// of the bitmap and never changes (M3).
type slice struct {
	table *table
	index int // within the table
	// What the host could not read of it: why, nil when all was read, which sectors, and
	// when. Set before others see the slice.
	unread  error
	lacks   uint8
	read    time.Time
	offset  [sliceEntries]atomic.Uint64
	bitmap  [sliceEntries]atomic.Uint64
	mu      sync.Mutex // changes of entries, and the flags below
	dirty   bool       // stands in Overlay.dirty
	writing bool       // captured by a flush that has not written it yet
	evicted bool       // no longer reachable: load it again
	used    atomic.Bool
}

// OpenOverlay opens one of our layers read-write and takes its lock
// (LockWritable). ErrNotPlain when it is not as varve writes it, ErrLocked
// when somebody else has it open.
func OpenOverlay(fs hostfs.FS, path string, o OverlayOptions) (*Overlay, error) {
	f, err := fs.Open(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := f.Lock(hostfs.LockWritable); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	ov, err := NewOverlay(f, o)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return ov, nil
}

// NewOverlay takes over a file that is open read-write and locked; Close closes
// it.
func NewOverlay(f hostfs.File, o OverlayOptions) (*Overlay, error) {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if o.Unclean {
		// What a failed write-back left in the page cache is clean and newer
		// than the disk; look at the disk (M10).
		if err := f.DropCache(); err != nil {
			return nil, fmt.Errorf("drop cached pages of %s: %w", f.Name(), err)
		}
	}
	h, size, err := readOwnHeader(f)
	if err != nil {
		return nil, err
	}
	ov := &Overlay{
		file:        f,
		log:         log,
		activity:    o.Activity,
		clusterBits: h.ClusterBits,
		subBits:     h.ClusterBits - 5,
		tableBits:   h.ClusterBits - 4,
		header:      h,
		copier:      Copier{to: f},
	}
	if ov.activity == nil {
		ov.activity = new(Activity)
	}
	ov.cache.limit = o.MaxSlices
	if ov.cache.limit <= 0 {
		ov.cache.limit = defaultMaxSlices
	}
	ov.punch.pending = make(map[int64]*pendingPunch)
	ov.size.Store(h.Size)
	ov.changed.resize(h.Size)
	if o.Unclean {
		if err := recoverOverlay(f, h, log); err != nil {
			return nil, err
		}
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		size = info.Size
	}
	if err := ov.loadL1(); err != nil {
		return nil, err
	}
	if err := ov.alloc.load(f, h, size); err != nil {
		return nil, err
	}
	if !o.unrecovered {
		if err := ov.alloc.checkLast(f); err != nil {
			return nil, err
		}
	}
	if err := ov.noteTables(); err != nil {
		return nil, err
	}
	return ov, nil
}

// readOwnHeader reads a header and judges whether it is one that we write
// (M17).
func readOwnHeader(f hostfs.File) (*qcow2.Header, int64, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	p := make([]byte, 64<<10)
	n, err := f.ReadAt(p, 0)
	if err != nil && err != io.EOF {
		return nil, 0, fmt.Errorf("read header of %s: %w", f.Name(), err)
	}
	h, err := qcow2.ParseHeader(f.Name(), p[:n], info.Size)
	if err != nil {
		return nil, 0, err
	}
	if err := Plain(h); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return h, info.Size, nil
}

// Plain is nil when a layer's header is one that varve writes, else an error
// that says what is not and wraps ErrNotPlain.
func Plain(h *qcow2.Header) error {
	if reason := notPlain(h); reason != "" {
		return fmt.Errorf("%s: %w", reason, ErrNotPlain)
	}
	return nil
}

// notPlain tells what in a header is not of our making; "" for nothing.
func notPlain(h *qcow2.Header) string {
	switch {
	case h.Version != 3 || !h.ExtendedL2():
		return "no extended L2 entries"
	case h.Incompatible != qcow2.IncompatibleExtendedL2:
		return fmt.Sprintf("incompatible features 0x%x", h.Incompatible)
	case h.Compatible != 0:
		return fmt.Sprintf("compatible features 0x%x", h.Compatible)
	case h.RefcountOrder != writeRefcountOrder:
		return "refcounts of another width"
	case h.Snapshots != 0:
		return "internal snapshots"
	case h.ClusterBits > maxOwnClusterBits:
		return fmt.Sprintf("clusters of %d bytes", h.ClusterSize())
	}
	for _, e := range h.Extensions {
		if e.Type != qcow2.ExtensionBackingFormat && e.Type != qcow2.ExtensionFeatureNames {
			return fmt.Sprintf("header extension 0x%08x", e.Type)
		}
	}
	return ""
}

func (o *Overlay) loadL1() error {
	h := o.header
	p := make([]byte, int64(h.L1Entries)*8)
	if err := hostfs.ReadPadded(o.file, p, h.L1Offset); err != nil {
		return fmt.Errorf("read L1 table at 0x%x of %s: %w", h.L1Offset, o.file.Name(), err)
	}
	tables, index := make([]atomic.Pointer[table], h.L1Entries), qcow2.NewTableIndex(int(h.L1Entries))
	for i := range tables {
		e := binary.BigEndian.Uint64(p[i*8:])
		if e == 0 {
			continue
		}
		host := int64(e & qcow2.OffsetMask)
		if err := badOwnL1Entry(e); err != nil {
			return fmt.Errorf("%s: L1 entry %d: %w", o.file.Name(), i, err)
		}
		if host == 0 || host&(o.clusterSize()-1) != 0 {
			return fmt.Errorf("%s: L1 entry %d is 0x%x: %w", o.file.Name(), i, e, qcow2.ErrCorrupt)
		}
		tables[i].Store(o.newTable(host))
		index.Set(i)
	}
	o.tables.Store(&tables)
	o.index.Store(index)
	return nil
}

func (o *Overlay) newTable(host int64) *table {
	return &table{host: host, slices: make([]atomic.Pointer[slice], 1<<o.tableBits/sliceEntries)}
}

func (o *Overlay) clusterSize() int64 { return 1 << o.clusterBits }
func (o *Overlay) subSize() int64     { return 1 << o.subBits }

// Size is the guest size in bytes.
func (o *Overlay) Size() int64 { return o.size.Load() }

// SubclusterSize is the unit of allocation in bytes.
func (o *Overlay) SubclusterSize() int64 { return o.subSize() }

// ClusterSize is the cluster size in bytes.
func (o *Overlay) ClusterSize() int64 { return o.clusterSize() }

// File is the open file. It stays the overlay's.
func (o *Overlay) File() hostfs.File { return o.file }

// Header is a copy of the header as it is on disk.
func (o *Overlay) Header() qcow2.Header {
	o.flushMu.Lock()
	defer o.flushMu.Unlock()
	return *o.header
}

// Failed is the first error of a write-back, or nil. It is sticky: nothing
// that the file holds is certain until it is opened again (M10, D3).
func (o *Overlay) Failed() error {
	if p := o.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// Changes counts the changes of entries since the layer was opened, plus one:
// as long as it stays the same, so does Map's answer.
func (o *Overlay) Changes() uint64 { return o.changes.Load() + 1 }

// Fail makes the layer take no more writes until it is opened again, for a
// reason that lies outside its file.
func (o *Overlay) Fail(err error) { _ = o.fail(err) }

func (o *Overlay) fail(err error) error {
	err = fmt.Errorf("%w: %w", ErrFailed, err)
	o.failed.CompareAndSwap(nil, &err)
	return err
}

// wrote notes that the file has data that is not yet durable. It is called
// after the write and before it is acknowledged.
func (o *Overlay) wrote() {
	if !o.unsynced.Load() {
		o.unsynced.Store(true)
	}
}

// Close closes the file as it is, without settling it: after Settle, or when
// the layer is given up.
func (o *Overlay) Close() error { return o.file.Close() }
