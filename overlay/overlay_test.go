package overlay

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"varve/integration/turn"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
)

// memory is a Backing in memory.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) error {
	clear(p)
	if off < int64(len(m)) {
		copy(p, m[off:])
	}
	return nil
}

func (m memory) IsZero(off, length int64) (bool, error) {
	for i := off; i < min(off+length, int64(len(m))); i++ {
		if m[i] != 0 {
			return false, nil
		}
	}
	return true, nil
}

// overlayModel is a layer over a raw base, and the content that it must have.
type overlayModel struct {
	t     *testing.T
	path  string
	below memory
	want  []byte
	o     *Overlay
	rnd   *rand.Rand
}

func newOverlayModel(t *testing.T, seed uint64, size, baseSize int64, clusterBits uint32) *overlayModel {
	t.Helper()
	m := &overlayModel{t: t, rnd: rand.New(rand.NewPCG(seed, 1))}
	dir := t.TempDir()
	m.path = filepath.Join(dir, "layer.qcow2")
	opts := CreateOptions{Size: size, ClusterBits: clusterBits}
	m.want = make([]byte, extent.WholeSectors(size))
	if baseSize > 0 {
		m.below = make(memory, baseSize)
		for i := range m.below {
			if i>>14%3 != 0 {
				m.below[i] = byte(m.rnd.Uint32())
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "base.raw"), m.below, 0o600); err != nil {
			t.Fatal(err)
		}
		opts.Backing, opts.BackingFormat = "base.raw", "raw"
		copy(m.want, m.below)
	}
	if err := Create(hostfs.OS(), m.path, opts); err != nil {
		t.Fatal(err)
	}
	m.open(false)
	t.Cleanup(func() { m.o.Close() })
	return m
}

func (m *overlayModel) open(unclean bool) {
	m.t.Helper()
	o, err := OpenOverlay(hostfs.OS(), m.path, OverlayOptions{Unclean: unclean, MaxSlices: 2})
	if err != nil {
		m.t.Fatal(err)
	}
	m.o = o
}

func (m *overlayModel) backing() Backing {
	if m.below == nil {
		return nil
	}
	return m.below
}

func (m *overlayModel) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// randomRange is aligned to something, or to nothing.
func (m *overlayModel) randomRange() (off, length int64) {
	size := int64(len(m.want))
	align := []int64{1, 512, 4096, 65536}[m.rnd.IntN(4)]
	off = m.rnd.Int64N(size) / align * align
	length = 1 + m.rnd.Int64N(min(size-off, []int64{4096, 65536, 300000}[m.rnd.IntN(3)]))
	length = min(size-off, (length+align-1)/align*align)
	return off, length
}

func (m *overlayModel) step() string {
	off, n := m.randomRange()
	switch m.rnd.IntN(12) {
	default:
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(m.rnd.Uint32())
		}
		m.must(m.o.WriteAt(p, off, m.backing()))
		copy(m.want[off:], p)
		return fmt.Sprintf("write %d+%d", off, n)
	case 0, 1, 2:
		m.must(m.o.Discard(off, n, m.backing()))
		clear(m.want[off : off+n])
		return fmt.Sprintf("discard %d+%d", off, n)
	case 3:
		m.must(m.o.Flush())
		m.must(m.o.Punch())
		return "flush"
	case 4:
		m.must(m.o.Reserve(off, n))
		return fmt.Sprintf("reserve %d+%d", off, n)
	case 5:
		switch m.rnd.IntN(8) {
		default:
			return "nothing"
		case 0:
		case 1:
			// QEMU shows no part of a sector at the end of a qcow2 file, but does of a raw one.
			size := (int64(len(m.want)) - min(m.rnd.Int64N(256<<10), int64(len(m.want))/2)) &^ 511
			m.want = m.want[:size]
			m.must(m.o.Shrink(size, m.backing()))
			return fmt.Sprintf("shrink to %d", size)
		}
		more := m.rnd.Int64N(1<<20) &^ 511
		m.must(m.o.Grow(int64(len(m.want))+more, m.backing()))
		m.want = append(m.want, make([]byte, more)...)
		return fmt.Sprintf("grow by %d", more)
	}
}

func (m *overlayModel) read() []byte {
	m.t.Helper()
	got := make([]byte, m.o.Size())
	extents, err := m.o.Map(nil, 0, m.o.Size())
	m.must(err)
	var at int64
	for _, e := range extents {
		if e.Start != at {
			m.t.Fatalf("extent at %d, want %d", e.Start, at)
		}
		at = e.End()
		switch p := got[e.Start:e.End()]; {
		case e.Kind == extent.Data:
			m.must(m.o.ReadExtent(p, e, e.Start))
		case e.Kind == extent.Unallocated && m.below != nil:
			m.must(m.below.ReadAt(p, e.Start))
		}
	}
	return got
}

func (m *overlayModel) compare() {
	m.t.Helper()
	got := m.read()
	if !bytes.Equal(got, m.want) {
		for i := range got {
			if got[i] != m.want[i] {
				m.t.Fatalf("first difference at %d of %d: got %02x, want %02x", i, len(got), got[i], m.want[i])
			}
		}
		m.t.Fatalf("%d bytes, want %d", len(got), len(m.want))
	}
}

// judge closes the layer and lets qemu-img judge it.
func (m *overlayModel) judge() {
	m.t.Helper()
	m.must(m.o.Settle())
	m.must(m.o.Close())
	qemuCheck(m.t, m.path, false)
	raw := filepath.Join(m.t.TempDir(), "want.raw")
	m.must(os.WriteFile(raw, m.want, 0o600))
	run(m.t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", m.path, raw)
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// qemuCheck fails on errors, and on leaks unless they are allowed (exit 3).
func qemuCheck(t *testing.T, path string, leaks bool) {
	t.Helper()
	out, err := exec.Command("qemu-img", "check", "-U", path).CombinedOutput()
	var exit *exec.ExitError
	if leaks && err != nil && asExit(err, &exit) && exit.ExitCode() == 3 {
		return
	}
	if err != nil {
		t.Fatalf("qemu-img check %s: %v\n%s", path, err, out)
	}
}

func asExit(err error, target **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError)
	*target = e
	return ok
}

func TestOverlayAgainstModel(t *testing.T) {
	t.Parallel()
	// One of six seeds has its turn.
	first := 1 + uint64(turn.Of(0, 6))
	last := first
	if os.Getenv("VARVE_LONG") != "" {
		first, last = 1, 6
	}
	for _, c := range []struct {
		size, base  int64
		clusterBits uint32
	}{
		{3<<20 + 513, 0, 17},
		{3<<20 + 513, 3<<20 + 513, 17},
		{5 << 20, 2<<20 + 100, 17},      // the base is shorter
		{2<<20 + 1024, 4<<20 + 900, 17}, // the base is longer: growth must not show it
		{3 << 20, 3 << 20, 16},
		{3 << 20, 3 << 20, 14},
	} {
		for seed := first; seed <= last; seed++ {
			t.Run(fmt.Sprintf("%d over %d, cluster bits %d, seed %d", c.size, c.base, c.clusterBits, seed), func(t *testing.T) {
				t.Parallel()
				m := newOverlayModel(t, seed, c.size, c.base, c.clusterBits)
				for i := range 300 {
					what := m.step()
					if i%10 == 0 {
						m.compare()
					}
					switch m.rnd.IntN(60) {
					case 0: // killed: everything flushed must be there
						m.must(m.o.Flush())
						m.must(m.o.Close())
						qemuCheck(t, m.path, true)
						m.open(true)
						m.compare()
					case 1: // closed in good order
						m.judge()
						m.open(false)
						m.compare()
					}
					_ = what
				}
				m.compare()
				m.judge()
			})
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
