package show

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"varve/chain"
)

// branchedStatus is a disk with all that a tree can show.
func branchedStatus() chain.Status {
	at := time.Date(2026, 11, 22, 18, 30, 0, 0, time.Local)
	bytes := func(n int64) *int64 { return &n }
	id := func(s string) *string { return &s }
	layer := func(number int, name string, state chain.State, parent int, own, host int64, frees *int64) chain.LayerStatus {
		l := chain.LayerStatus{
			ID: fmt.Sprintf("%06d", number), Name: name, State: state, Created: at.Add(time.Duration(number) * time.Hour),
			OwnBytes: own, Counted: true, HostBytes: host, Frees: frees, Format: "qcow2",
		}
		if parent > 0 {
			l.Parent = id(fmt.Sprintf("%06d", parent))
		}
		return l
	}
	st := chain.Status{Version: 1, Disk: "/srv/vm1.varve", Size: 20 << 30, Leaf: "000011", Layers: []chain.LayerStatus{
		layer(1, "base", "base", 0, 4<<30, 4<<30+1<<28, bytes(0)),
		layer(2, "before-upgrade", "frozen", 1, 300<<20, 301<<20, bytes(0)),
		layer(3, "try-1", "frozen", 2, 12<<20, 13<<20, bytes(4<<20)),
		layer(4, "try-1-again", "frozen", 3, 1<<20, 2<<20, bytes(0)),
		layer(5, "", "unnamed", 4, 1<<20, 2<<20, bytes(2<<20)),
		layer(6, "try-1-other", "frozen", 4, 2<<20, 3<<20, bytes(3<<20)),
		layer(7, "", "unnamed", 2, 64<<20, 65<<20, bytes(0)),
		layer(8, "try-2", "frozen", 7, 1<<20, 2<<20, nil),
		layer(9, "try-3", "frozen", 7, 1<<20, 2<<20, bytes(2<<20)),
		layer(10, "after-upgrade", "frozen", 2, 700<<20, 701<<20, bytes(12<<20)),
		layer(11, "", "leaf", 10, 5<<20, 6<<20, bytes(0)),
	}}
	st.Layers[0].Foreign = true
	st.Layers[1].Held, st.Layers[1].Clones = true, []string{"/srv/clones/ci-1.varve", "/srv/clones/ci-2.varve"}
	st.Layers[2].Held = true
	st.Layers[4].SetAside = true
	st.Layers[7].Counted = false
	st.Job = &chain.JobStatus{ID: "3", Kind: "flatten", Layer: "000010", State: "running", DoneBytes: 1 << 30, TotalBytes: 4 << 30, SecondsLeft: bytes(133)}
	return st
}

const branchedTree = `/srv/vm1.varve, 20 GiB

LAYER                 OWN   ON HOST   FREES  SINCE
■ base              4 GiB  4.25 GiB       -  2026-11-22 19:30
● before-upgrade  300 MiB   301 MiB     0 B  2026-11-22 20:30
│   held for its clone /srv/clones/ci-1.varve
│   held for its clone /srv/clones/ci-2.varve
├─● try-1          12 MiB    13 MiB   4 MiB  2026-11-22 21:30
│ │   held
│ ● try-1-again     1 MiB     2 MiB     0 B  2026-11-22 22:30
│ ├─○ (000005)      1 MiB     2 MiB   2 MiB  2026-11-22 23:30
│ │     the leaf that the last revert set aside
│ ● try-1-other     2 MiB     3 MiB   3 MiB  2026-11-23 00:30
├─○ (000007)       64 MiB    65 MiB     0 B  2026-11-23 01:30
│ │   deleted, but needed by what stands on it
│ ├─● try-2        ~1 MiB     2 MiB       ?  2026-11-23 02:30
│ ● try-3           1 MiB     2 MiB   2 MiB  2026-11-23 03:30
● after-upgrade   700 MiB   701 MiB  12 MiB  2026-11-23 04:30
│   being flattened, 25 %, 2 min 10 s left
◆ leaf              5 MiB     6 MiB       -  2026-11-23 05:30
`

func drawTree(t *testing.T, st chain.Status, o TreeOptions) string {
	t.Helper()
	var got bytes.Buffer
	if err := Tree(&got, st, o); err != nil {
		t.Fatal(err)
	}
	return got.String()
}

func TestLayerTree(t *testing.T) {
	if got := drawTree(t, branchedStatus(), TreeOptions{}); got != branchedTree {
		t.Errorf("got\n%s\nwant\n%s", got, branchedTree)
	}
	ascii := drawTree(t, branchedStatus(), TreeOptions{ASCII: true})
	same := strings.NewReplacer("■", "#", "●", "*", "○", "o", "◆", "@", "│", "|", "├─", "|-").Replace(branchedTree)
	if ascii != same {
		t.Errorf("in ASCII\n%s\nwant\n%s", ascii, same)
	}
	color := drawTree(t, branchedStatus(), TreeOptions{Color: true})
	if plain := regexp.MustCompile("\x1b\\[[0-9;]*m").ReplaceAllString(color, ""); plain != branchedTree || plain == color {
		t.Errorf("in colours without colours\n%s", plain)
	}
	if strings.Count(color, "\x1b[0m") != strings.Count(color, "\x1b[")/2 {
		t.Error("a colour is not ended")
	}
}

// A straight chain stays in one column, however long.
func TestLongTree(t *testing.T) {
	st := chain.Status{Disk: "/srv/vm1.varve", Size: 1 << 40, Leaf: "000129"}
	for i := 1; i <= 129; i++ {
		l := chain.LayerStatus{ID: fmt.Sprintf("%06d", i), Name: fmt.Sprintf("nightly-%d", i), State: "frozen", Counted: true}
		if i > 1 {
			parent := fmt.Sprintf("%06d", i-1)
			l.Parent = &parent
		}
		if i == 129 {
			l.Name, l.State = "", "leaf"
		}
		st.Layers = append(st.Layers, l)
	}
	got := drawTree(t, st, TreeOptions{})
	lines := strings.Split(strings.TrimSpace(got), "\n")
	if len(lines) != 129+3 {
		t.Fatalf("%d lines", len(lines))
	}
	for _, line := range lines[3:131] {
		if !strings.HasPrefix(line, "● nightly-") {
			t.Errorf("indented: %s", line)
		}
	}
}

// Whatever the names and however many branches, a line fits, and every layer has one.
func TestTreeFits(t *testing.T) {
	st := chain.Status{Disk: "/" + strings.Repeat("a-long-directory/", 12) + "vm1.varve", Size: 1 << 60, Leaf: "000081"}
	// Each layer has two on it, and the older one has all the rest: the deepest tree.
	for i := 1; i <= 81; i++ {
		l := chain.LayerStatus{ID: fmt.Sprintf("%06d", i), Name: fmt.Sprintf("%s-%d", strings.Repeat("name", 20), i), State: "frozen",
			Counted: true, OwnBytes: 1023 << 30, HostBytes: 1023 << 30, Held: i%3 == 0}
		if i > 1 {
			parent := fmt.Sprintf("%06d", i-1)
			if i > 40 {
				parent = fmt.Sprintf("%06d", 81-i)
			}
			l.Parent = &parent
		}
		if i == 81 {
			l.Name, l.State = "", "leaf"
			parent := "000001"
			l.Parent = &parent
		}
		if i%5 == 0 {
			l.Clones = []string{"/" + strings.Repeat("clones/", 20) + "x\x1b[2J.varve"}
		}
		st.Layers = append(st.Layers, l)
	}
	for _, o := range []TreeOptions{{}, {ASCII: true}, {Width: 60}, {Width: 200}} {
		got := drawTree(t, st, o)
		width := o.Width
		if width == 0 {
			width = 80
		}
		for line := range strings.Lines(got) {
			if n := utf8.RuneCountInString(line) - 1; n > max(width, 74) {
				t.Errorf("%+v: %d columns: %s", o, n, line)
			}
			if o.ASCII && strings.ContainsFunc(line, func(r rune) bool { return r > 126 || r < ' ' && r != '\n' }) {
				t.Errorf("not ASCII: %q", line)
			}
		}
		for i := 1; i < 81; i++ {
			if !regexp.MustCompile(fmt.Sprintf(`(?m)[^0-9]%d +1023 GiB`, i)).MatchString(got) {
				t.Errorf("%+v: layer %d is not in\n%s", o, i, got)
				break
			}
		}
	}
}

// After a flatten several layers have no backing.
func TestTreeWithTwoBottoms(t *testing.T) {
	st := branchedStatus()
	st.Layers[9].Parent = nil
	got := drawTree(t, st, TreeOptions{})
	_, last, found := strings.Cut(got, "\n\n● after-upgrade ")
	if !found || !strings.Contains(last, "◆ leaf") || strings.Contains(last, "base") {
		t.Errorf("got\n%s", got)
	}
}

func TestTimeLeft(t *testing.T) {
	for seconds, want := range map[int64]string{
		0: "0 s", 59: "59 s", 60: "1 min", 133: "2 min 10 s", 599: "10 min", 1000: "17 min", 3569: "59 min",
		3590: "1 h", 7500: "2 h 10 min", 86399: "1 d", 90000: "1 d 1 h", 1 << 30: "12427 d 14 h",
	} {
		if got := humanTime(seconds); got != want {
			t.Errorf("%d seconds: %q, want %q", seconds, got, want)
		}
	}
	seconds := int64(5)
	j := chain.JobStatus{ID: "1", Kind: "delete", Layer: "000009", State: "running", DoneBytes: 1, TotalBytes: 3, Rate: 1 << 20, SecondsLeft: &seconds}
	if line := jobLine(chain.Status{}, j); !strings.HasSuffix(line, ", 1 MiB/s, 5 s left") {
		t.Error(line)
	}
	j.State = "done"
	if left := timeLeft(j); left != "" {
		t.Error(left)
	}
}
