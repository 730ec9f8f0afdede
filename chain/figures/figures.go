package figures

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"varve/chain/manifest"
	"varve/chain/view"
)

// Figures are what people are told of bytes: how many a view has, how many a layer maps,
// what a delete would give back, and the picture of it all. They look at the layers'
// tables alone, change nothing but what they remember, and hold nobody up. What they are
// told by the operations is only that something is not right any more.
// Safe for concurrent use.
type Figures struct {
	in Source

	counter counter
	mapper  mapper

	mu     sync.Mutex
	byNode map[*view.Node]*nodeFigures // of nodes of the tree; guarded by mu
}

// nodeFigures are what was counted of one node.
type nodeFigures struct {
	view  count // bytes of the view that are data
	own   count // bytes that the layer itself maps
	hides count // bytes of data of the layer directly below that this one hides
	live  liveCount
}

// Source is what figures are made of.
type Source struct {
	// Tree gives the manifest in force and its nodes, by layer id, which are not changed
	// any more; leaf the node that is written, or would be.
	Tree    func() (*manifest.Manifest, map[string]*view.Node)
	Leaf    func() *view.Node
	Readers *view.Grace
	Cache   *view.Cache
	Store   func() // has what was counted recorded, as note gives it
	Log     *slog.Logger
}

func New(s Source) *Figures {
	f := &Figures{in: s, byNode: make(map[*view.Node]*nodeFigures)}
	f.counter.init(f)
	return f
}

// Counting says whether tables are counted in the background.
func (f *Figures) Counting() bool {
	f.counter.mu.Lock()
	defer f.counter.mu.Unlock()
	return f.counter.pass != nil
}

// Close ends what counts in the background.
func (f *Figures) Close() { f.counter.close() }

// of gives what is remembered of a node. For a node outside the tree it is a fresh record
// that nobody else sees.
func (f *Figures) of(n *view.Node) *nodeFigures {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.byNode[n]
	if c == nil {
		c = new(nodeFigures)
		if _, nodes := f.in.Tree(); nodes[n.ID] == n {
			f.byNode[n] = c
		}
	}
	return c
}

// Gone forgets nodes that the tree has not any more.
func (f *Figures) Gone(nodes map[*view.Node]bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n := range nodes {
		delete(f.byNode, n)
	}
}

// Settled is told when the file of a node's layer was brought to rest.
func (f *Figures) Settled(n *view.Node) {
	f.of(n).own.forget()
	f.hidesOthers(n)
}

// Replaced is told when a node has got another file or another parent.
func (f *Figures) Replaced(n *view.Node) {
	c := f.of(n)
	c.live.forget() // it knows the parent that was
	c.own.forget()
	f.hidesOthers(n)
}

// Moving is told before and after a merge moves the content of c down into its parent x.
func (f *Figures) Moving(x, c *view.Node) {
	f.of(x).view.forget()
	f.of(c).live.forget() // it is relative to x
}

// ViewChanged is told when what a node's view has as data, or how much of it is a hole,
// may be another.
func (f *Figures) ViewChanged(n *view.Node) { f.of(n).view.forget() }

// hidesOthers has counted anew what a node's layer hides and what is hidden of it: the
// layer was written, or stands on another one.
func (f *Figures) hidesOthers(n *view.Node) {
	f.of(n).hides.forget()
	m, nodes := f.in.Tree()
	for _, l := range m.Children(n.ID) {
		if on := nodes[l.ID]; on != nil {
			c := f.of(on)
			c.hides.forget()
			c.live.forget()
		}
	}
}

// keep takes over the counts of a layer that does not change any more.
func (c *nodeFigures) keep(l *view.Layer, s *manifest.Counts) {
	c.own.set(l, c.own.forgotten.Load(), s.Own)
	c.view.set(l, c.view.forgotten.Load(), s.View)
	if s.Hides >= 0 {
		c.hides.set(l, c.hides.forgotten.Load(), s.Hides)
	}
}

// Froze is told when the leaf has become a frozen layer, with what OfTheLeaf gave of it;
// nil where that was not known.
func (f *Figures) Froze(n *view.Node, counts *manifest.Counts) {
	c := f.of(n)
	c.live.forget()
	if counts != nil {
		c.keep(n.Layer(), counts)
	}
}

// Believe takes over the counts of the chain.json in force, whose fingerprints were just
// found right.
func (f *Figures) Believe() {
	m, nodes := f.in.Tree()
	in := m.CountedIn()
	for _, l := range m.Layers {
		if s, n := l.Counts, nodes[l.ID]; s != nil && s.Of == in[l.ID] && n.Frozen() {
			f.of(n).keep(n.Layer(), s)
		}
	}
}

// Note puts into m, which is about to be committed, the counts that are known,
// and takes out those that are not right any more. Only of layers that stand in m
// as in the manifest in force, on the same files, nothing of them being written: of
// others it is not sure when they were counted. No operation may change the tree meanwhile.
func (f *Figures) Note(m *manifest.Manifest) {
	inForce, nodes := f.in.Tree()
	in, before := m.CountedIn(), inForce.CountedIn()
	damaged := slices.ContainsFunc(m.Layers, func(l *manifest.Layer) bool { return nodes[l.ID] != nil && nodes[l.ID].Damaged() })
	for _, l := range m.Layers {
		of := in[l.ID]
		if l.Counts != nil && (of == "" || l.Counts.Of != of) {
			l.Counts = nil
		}
		if damaged && pathDamaged(m, nodes, l) {
			l.Counts = nil // the next mount finds the damage when it counts again
			continue
		}
		if of == "" || l.Counts != nil && l.Counts.Hides >= 0 || before[l.ID] != of {
			continue
		}
		if n := nodes[l.ID]; n != nil && n.Frozen() {
			c := f.of(n)
			own, ownKnown := c.own.get(n.Layer())
			view, viewKnown := c.view.get(n.Layer())
			hides, hidesKnown := c.hides.get(n.Layer())
			if !hidesKnown {
				hides = -1
			}
			if ownKnown && viewKnown && (l.Counts == nil || hidesKnown) {
				l.Counts = &manifest.Counts{Own: own, View: view, Hides: hides, Of: of}
			}
		}
	}
}

// Await calls look, and calls it again after each pass in the background, until it says ok:
// countPatience from the start of the pass at most, so that later callers hardly wait.
func (f *Figures) Await(look func(until time.Time) (ok bool, err error)) (ok bool, err error) {
	// One pass may have been under way already, on what was there when it began.
	for range 3 {
		if ok, err = look(time.Now().Add(recountBudget)); ok || err != nil {
			return ok, err
		}
		pass := f.counter.start()
		if pass == nil || !f.counter.await(pass, time.Until(pass.started.Add(countPatience))) {
			return false, nil
		}
		if pass.err != nil {
			return false, pass.err
		}
	}
	return look(time.Now().Add(recountBudget))
}

// CountAll returns when all that can be counted is: Status and the AllocatedBytes
// then tell it. Errors: those of reading the tables, and ctx's cause.
func (f *Figures) CountAll(ctx context.Context) error {
	for range 2 { // the pass under way may have begun before what we want
		p := f.counter.start()
		if p == nil {
			return nil
		}
		f.counter.waiting.Add(1)
		select {
		case <-p.ended:
		case <-ctx.Done():
		}
		f.counter.waiting.Add(-1)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if p.err != nil {
			return p.err
		}
	}
	return nil
}

// OwnKnown is how many bytes a layer itself maps, where that was counted; of the leaf
// what is known of it now.
func (f *Figures) OwnKnown(n *view.Node) (int64, bool) {
	l := n.Layer()
	if l == nil {
		return 0, false
	}
	c := f.of(n)
	if n != f.in.Leaf() || n.Frozen() {
		bytes, ok := c.own.get(l)
		return bytes, ok && n.Frozen()
	}
	c.live.mu.Lock()
	defer c.live.mu.Unlock()
	parent := n.Parent()
	_, err := f.recountLive(&c.live, n, l, parent, time.Now().Add(recountBudget))
	return c.live.mapped, err == nil && c.live.of(l, parent)
}

// Again runs a look at what the tree holds, and once more when it met a layer that was
// closed meanwhile because the tree lost it. A look has a section for each layer, or
// less: one for all would hold up jobs.
func Again(tree func() (*manifest.Manifest, map[string]*view.Node), look func() error) error {
	for {
		before, _ := tree()
		err := look()
		if now, _ := tree(); now == before || !errors.Is(err, os.ErrClosed) {
			return err
		}
	}
}

// pathDamaged says whether a layer or one below it was found damaged.
func pathDamaged(m *manifest.Manifest, nodes map[string]*view.Node, l *manifest.Layer) bool {
	for ; l != nil; l = m.Layer(l.Parent) {
		if n := nodes[l.ID]; n != nil && n.Damaged() {
			return true
		}
	}
	return false
}
