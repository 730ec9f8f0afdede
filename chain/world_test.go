package chain

import (
	"fmt"
	"maps"
	"slices"

	"varve/chain/manifest"
	"varve/integration/powercut"
)

// world is the state of a disk that a test knows: the leaf (""), the named views, and
// the leaf that was set aside.
type world map[string]*powercut.View

const asideView = "(set aside)"

func (w world) Clone() world {
	c := world{}
	for name, v := range w {
		c[name] = v.Clone()
	}
	return c
}

func (w world) names() []string { return slices.Sorted(maps.Keys(w)) }

func (w world) size() int64 { return w[""].Size }

// worlds are the state of a disk that a test knows, and behind it, while an
// operation is under way, the one to which that leads.
type worlds []world

// write notes one that begins. A snapshot under way may have it or not.
func (ws worlds) write(from, n int64, s powercut.Stamp) {
	for i, w := range ws {
		w[""].Write(from, n, s)
		for name, c := range w {
			if i > 0 && ws[0][name] == nil {
				c.Write(from, n, s)
			}
		}
	}
}

// failed notes that a write failed, in each view that has it.
func (ws worlds) failed(from, n int64, s powercut.Stamp) {
	for _, w := range ws {
		for _, c := range w {
			c.Failed(from, n, s)
		}
	}
}

func (ws worlds) durable(write uint64) {
	for _, w := range ws {
		for _, c := range w {
			c.Durable(write)
		}
	}
}

// any says whether a disk shows one of them.
func (ws worlds) any(d *Disk) error {
	var last error
	for _, w := range ws {
		err := w.check(d, false)
		if err == nil {
			return nil
		}
		if last == nil {
			last = err
		} else {
			last = fmt.Errorf("%w; and %w", last, err)
		}
	}
	return last
}

// simView is a view as check and adopt read it.
func simView(d *Disk, name string) (read powercut.Reader, size int64) {
	if name == "" {
		return d.ReadAt, d.Size()
	}
	m, nodes := d.tree()
	id := m.SetAside
	if name != asideView {
		id = m.ByName(name).ID
	}
	n := nodes[id]
	return func(p []byte, off int64) error {
		section := d.readers.Enter()
		defer d.readers.Exit(section)
		return n.ReadAt(p, off)
	}, n.Size()
}

func (w world) check(d *Disk, exact bool) error {
	m, _ := d.tree()
	have := []string{""}
	for _, l := range m.Layers {
		if l.Name != "" && l.Name != manifest.BaseName {
			have = append(have, l.Name)
		}
	}
	if m.SetAside != "" {
		have = append(have, asideView)
	}
	slices.Sort(have)
	if !slices.Equal(have, w.names()) {
		return fmt.Errorf("there are the views %q, not %q", have, w.names())
	}
	for name, v := range w {
		read, size := simView(d, name)
		if size != v.Size {
			return fmt.Errorf("the view %q has %d bytes, not %d", name, size, v.Size)
		}
		if err := v.Check(read, exact); err != nil {
			return fmt.Errorf("the view %q: %w", name, err)
		}
	}
	return nil
}

// checkViews compares views that something else than a Disk reads.
func (w world) checkViews(views map[string]powercut.Reader) error {
	if have := slices.Sorted(maps.Keys(views)); !slices.Equal(have, w.names()) {
		return fmt.Errorf("there are the views %q, not %q", have, w.names())
	}
	for name, read := range views {
		if err := w[name].Check(read, false); err != nil {
			return fmt.Errorf("the view %q: %w", name, err)
		}
	}
	return nil
}

// adopt takes what the disk has now as what was written last.
func (w world) adopt(d *Disk) error {
	for name, v := range w {
		read, _ := simView(d, name)
		if err := v.Settle(read); err != nil {
			return err
		}
	}
	return nil
}
