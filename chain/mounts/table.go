package mounts

import (
	"fmt"
	"io"
	"os"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Table is the mount table of one mount namespace, in the order in which the kernel
// shows it, which is that of mounting.
type Table []*mountinfo.Info

// Read reads the table of this process's own mount namespace.
func Read() (Table, error) { return readFile("/proc/self/mountinfo") }

func readFile(path string) (Table, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	defer f.Close() // read only
	return parse(f)
}

func parse(r io.Reader) (Table, error) {
	infos, err := mountinfo.GetMountsFromReader(r, nil)
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	return infos, nil
}

// places gives every place of every varve mount, in the table's order.
func (t Table) places() []Mount {
	var list []Mount
	for n, i := range t {
		if i.FSType != FSType {
			continue
		}
		m := fromInfo(i)
		if over := t.over(n); over != nil {
			m.Over, m.OverAt = fmt.Sprintf("%s (%s)", over.Source, over.FSType), over.Mountpoint
		}
		list = append(list, m)
	}
	return list
}

// over is the mount that hides the nth one, or nil. A path leads to a mount from
// parent to parent; it ends elsewhere when a parent has another mount at a place that
// the path goes through, or when the mount has one at its own root.
func (t Table) over(n int) *mountinfo.Info {
	byID := make(map[int]int, len(t)) // places in the table
	for at, i := range t {
		byID[i.ID] = at
	}
	for up, through, left := n, -1, len(t); left > 0; left-- { // no table has a longer path
		for at, other := range t {
			if other.Parent != t[up].ID || at == through || at == up {
				continue
			}
			if through < 0 && other.Mountpoint == t[up].Mountpoint ||
				through >= 0 && at > through && Within(t[through].Mountpoint, other.Mountpoint) {
				return other
			}
		}
		parent, ok := byID[t[up].Parent]
		if !ok || parent == up {
			return nil
		}
		up, through = parent, up
	}
	return nil
}

// List is the function List for this table.
func (t Table) List() []Mount {
	list, _ := t.sorted()
	return list
}

// Loose gives the places of those varve mounts of which this table has no more than
// parts, such as disk.raw alone in a container.
func (t Table) Loose() []Mount {
	_, loose := t.sorted()
	return loose
}

// sorted puts the places of each connection together.
func (t Table) sorted() (list, loose []Mount) {
	places := t.places()
	of := map[uint64][]Mount{}
	for _, m := range places {
		of[m.Device] = append(of[m.Device], m)
	}
	for _, m := range places {
		same, ok := of[m.Device]
		if !ok {
			continue // told already
		}
		delete(of, m.Device)
		main := -1
		for n, one := range same {
			if one.Whole() && (main < 0 || !same[main].Reachable() && one.Reachable()) {
				main = n
			}
		}
		if main < 0 {
			loose = append(loose, same...)
			continue
		}
		found := same[main]
		for n, one := range same {
			if n != main {
				found.Binds = append(found.Binds, one)
			}
		}
		list = append(list, found)
	}
	return list, loose
}

// Main is the function Main for this table.
func (t Table) Main(device uint64) (Mount, bool) {
	for _, m := range t.List() {
		if m.Device == device {
			return m, true
		}
	}
	return Mount{}, false
}

// At is the function At for this table.
func (t Table) At(path string) (Mount, bool) {
	places := t.places()
	for n := len(places) - 1; n >= 0; n-- {
		if places[n].Mountpoint == path {
			return places[n], true
		}
	}
	return Mount{}, false
}

// Numbers are a device's major and minor number, as the kernel writes them: "0:45".
func Numbers(device uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device))
}
