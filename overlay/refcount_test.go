package overlay

import (
	"testing"

	"varve/integration/imagetest"
)

// What a kill leaves is mended at the next open (M7): refcounts of clusters that
// were allocated ahead are 0 again, the file ends behind its last cluster.
func TestLeaksAreMended(t *testing.T) {
	m := newOverlayModel(t, 1, 8<<20, 8<<20, 0)
	m.must(m.write(1, 0, 1<<20))
	_, err := m.o.alloc.take(m.o.file, 3) // never named
	m.must(err)
	m.must(m.write(2, 5<<20, 1<<20))
	m.must(m.o.Flush())
	m.must(m.o.Close()) // killed
	m.open(true)
	m.must(m.o.Close()) // and killed again
	qemuCheck(t, m.path, false)
	m.open(true)
	m.compare()
	m.judge()
}

// A refcount that another tool left too low is raised before the cluster can be
// given out again.
func TestLowRefcountsAreRaised(t *testing.T) {
	m := newOverlayModel(t, 1, 8<<20, 8<<20, 0)
	m.must(m.write(1, 0, 1<<20))
	m.must(m.o.Settle())
	block := m.o.alloc.table[0]
	last := m.o.alloc.next - 1
	m.must(m.o.Close())
	imagetest.Patch(t, m.path, block+2*last, 0, 0)
	m.open(true)
	m.compare()
	m.judge()
}

// Every cluster that was given out lies within the file (M7), also one that
// nothing was written to yet.
func TestReservedClustersLieWithinTheFile(t *testing.T) {
	c := newCrashTest(t)
	c.f.fail = nil
	c.must(c.o.Reserve(0, 512)) // a cluster of which only the beginning is allocated
	c.f.mu.Lock()
	size := c.f.now.size
	c.f.mu.Unlock()
	if end := c.o.alloc.next << crashClusterBits; size < end {
		t.Errorf("the file has 0x%x bytes, clusters are in use up to 0x%x", size, end)
	}
	c.flush()
}
