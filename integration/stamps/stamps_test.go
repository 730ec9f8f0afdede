package stamps

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// area is a small disk of zeros with one writer and a record.
func area(t *testing.T, lines ...string) Area {
	t.Helper()
	a := Area{File: filepath.Join(t.TempDir(), "disk"), Record: t.TempDir(), First: 8, Count: 192, Writers: 1}
	if err := os.WriteFile(a.File, make([]byte, 200*Sector), 0o600); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(lines, "\n") + "\n"
	if err := os.WriteFile(recordFile(a.Record, 0), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// put puts stamps, and zeros for sequence number 0, into sectors.
func (a Area) put(t *testing.T, seq uint64, sectors ...int64) {
	t.Helper()
	f, err := os.OpenFile(a.File, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, sector := range sectors {
		p := make([]byte, Sector)
		if seq > 0 {
			stamp(p, sector, seq)
		}
		if _, err := f.WriteAt(p, sector*Sector); err != nil {
			t.Fatal(err)
		}
	}
}

// Of one sector that was written three times, the second time durably.
func TestJudge(t *testing.T) {
	history := []string{"w 1 10 1", "d 1", "w 2 10 1", "d 2", "f", "w 3 10 1", "z 4 10 1"}
	for _, c := range []struct {
		name string
		put  func(a Area)
		ok   bool
	}{
		{"acknowledged", func(a Area) { a.put(t, 2, 10) }, true},
		{"newer", func(a Area) { a.put(t, 3, 10) }, true},
		{"newer, zeros", func(a Area) { a.put(t, 0, 10) }, true},
		{"older than acknowledged", func(a Area) { a.put(t, 1, 10) }, false},
		{"never issued", func(a Area) { a.put(t, 5, 10) }, false},
		{"written where nothing was", func(a Area) { a.put(t, 2, 10, 11) }, false},
		{"another sector's", func(a Area) {
			p := make([]byte, Sector)
			stamp(p, 11, 2)
			write(t, a.File, 10, p)
		}, false},
		{"torn", func(a Area) {
			p := make([]byte, Sector)
			stamp(p, 10, 2)
			p[400] ^= 1
			write(t, a.File, 10, p)
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := area(t, history...)
			c.put(a)
			v, err := a.Judge(a.File, "")
			if (err == nil) != c.ok {
				t.Fatalf("says %v", err)
			}
			if err != nil {
				return
			}
			// From now on the one that was found is the only one.
			if err := a.Settle(v); err != nil {
				t.Fatal(err)
			}
			if _, err := a.Judge(a.File, ""); err != nil {
				t.Errorf("settled: %v", err)
			}
			for _, seq := range []uint64{2, 3, 0} {
				a.put(t, seq, 10)
				if _, err := a.Judge(a.File, ""); (err == nil) != (v.found[0][10].seq == seq || v.found[0][10].zero && seq == 0) {
					t.Errorf("settled at %+v, then %d: %v", v.found[0][10], seq, err)
				}
			}
		})
	}
}

func write(t *testing.T, file string, sector int64, p []byte) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, sector*Sector); err != nil {
		t.Fatal(err)
	}
}

// A snapshot that returned has what had returned before, and never what was
// issued after it.
func TestJudgeSnapshot(t *testing.T) {
	lines := []string{"w 1 10 1", "d 1", "f", "w 2 10 1", "d 2"}
	after := []string{"w 3 10 1", "d 3"}
	size := func(l []string) Mark { return Mark{int64(len(strings.Join(l, "\n")) + 1)} }
	a := area(t, append(lines, after...)...)
	all := append(lines, after...)
	for _, c := range []struct {
		seq           uint64
		before, after Mark
		returned, ok  bool
	}{
		{2, size(lines), size(lines), true, true},
		{1, size(lines), size(lines), true, false}, // lacks what had returned
		{1, size(lines), size(lines), false, true}, // as after a crash
		{3, size(lines), size(lines), true, false}, // has what came later
		{3, size(lines), size(all), true, true},    // came while it was taken
		{2, size(lines[:3]), size(lines), true, true},
		{1, size(lines[:3]), size(lines), true, true},
		{0, size(lines[:3]), size(lines), false, false}, // acknowledged
	} {
		a.put(t, c.seq, 10)
		if _, err := a.JudgeSnapshot(a.File, "", c.before, c.after, c.returned); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// Owners do not share sectors, and meet within 4 KiB.
func TestOwner(t *testing.T) {
	a := Area{First: 100, Count: 4000, Writers: 3}
	seen := map[int]int{}
	for sector := a.First; sector < a.First+a.Count; sector++ {
		writer, end := a.owner(sector)
		seen[writer]++
		if last, _ := a.owner(end - 1); end <= sector || last != writer || end > a.First+a.Count {
			t.Fatalf("sector %d is of %d up to %d, whose last is of %d", sector, writer, end, last)
		}
	}
	for i := range a.Writers {
		if seen[i] < 1000 {
			t.Errorf("writer %d has %d sectors", i, seen[i])
		}
	}
}
