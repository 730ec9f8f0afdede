package stamps

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// Verdict is what was found in an area.
type Verdict struct {
	Written int // sectors that the record knows
	Newer   int // of them those that have what was issued and not acknowledged
	found   []map[int64]value
}

// Judge compares an area, read from a file that may be a copy, with the record.
// first is a file with what the disk had before the first write; "" for zeros. The
// error names the first few sectors that have neither what was acknowledged nor
// a later value that was issued.
func (a Area) Judge(file, first string) (Verdict, error) {
	return a.judge(file, first, nil, nil, false)
}

// JudgeSnapshot does the same for a view that was frozen between two moments:
// it has nothing that was issued after the second one, and, if the snapshot
// returned, all that had returned at the first.
func (a Area) JudgeSnapshot(file, first string, before, after Mark, returned bool) (Verdict, error) {
	return a.judge(file, first, before, after, returned)
}

func (a Area) judge(file, first string, certain, possible Mark, completed bool) (Verdict, error) {
	var v Verdict
	content, err := a.content(file)
	if err != nil {
		return v, err
	}
	initial := make([]byte, len(content))
	if first != "" {
		if initial, err = a.content(first); err != nil {
			return v, err
		}
	}
	states := make([]*state, a.Writers)
	for i := range states {
		from, to := int64(-1), int64(-1)
		if certain != nil {
			from, to = certain[i], possible[i]
		}
		if states[i], err = load(a.Record, i, from, to); err != nil {
			return v, err
		}
		v.Written += len(states[i].sectors)
		v.found = append(v.found, map[int64]value{})
	}
	var wrong []string
	bad := 0
	for i := range a.Count {
		sector := a.First + i
		p, was := content[i*Sector:(i+1)*Sector], initial[i*Sector:(i+1)*Sector]
		writer, _ := a.owner(sector)
		x := states[writer].sectors[sector]
		allowed := []value{{}}
		if x != nil {
			allowed = x.values
			if completed {
				allowed = x.values[x.done:]
			}
		}
		found, ok := match(p, was, sector, allowed)
		if !ok {
			bad++
			if bad <= 5 {
				wrong = append(wrong, fmt.Sprintf("sector %d (writer %d) has %s, and not one of %s", sector, writer, describe(p, was, sector), describeAll(allowed)))
			}
			continue
		}
		if x != nil {
			v.found[writer][sector] = found
			if found != x.values[0] {
				v.Newer++
			}
		}
	}
	if bad > 0 {
		return v, fmt.Errorf("%s: %d sectors are wrong: %s", file, bad, strings.Join(wrong, "; "))
	}
	return v, nil
}

// match finds the latest of the allowed values that a sector has.
func match(p, was []byte, sector int64, allowed []value) (value, bool) {
	seq, stamped := read(p, sector)
	for i := len(allowed) - 1; i >= 0; i-- {
		v := allowed[i]
		switch {
		case v.zero:
			if isZero(p) {
				return v, true
			}
		case v.seq == 0:
			if string(p) == string(was) {
				return v, true
			}
		case stamped && seq == v.seq:
			return v, true
		}
	}
	return value{}, false
}

func describe(p, was []byte, sector int64) string {
	if seq, ok := read(p, sector); ok {
		return fmt.Sprintf("the stamp %d", seq)
	}
	switch {
	case isZero(p):
		return "zeros"
	case string(p) == string(was):
		return "what it had at first"
	}
	return fmt.Sprintf("%x…", p[:32])
}

func describeAll(values []value) string {
	var words []string
	for _, v := range values {
		word := fmt.Sprint(v.seq)
		if v.zero {
			word += " (zeros)"
		}
		words = append(words, word)
	}
	return "[" + strings.Join(words, " ") + "]"
}

// Settle begins the record anew with what a Judge found after a crash: from now
// on a sector that goes back to anything older is wrong, also where the older
// value was never superseded by an acknowledged one.
func (a Area) Settle(v Verdict) error {
	for writer, found := range v.found {
		s, err := load(a.Record, writer, -1, -1)
		if err != nil {
			return err
		}
		file := recordFile(a.Record, writer)
		if err := os.Rename(file, file+".old"); err != nil && !os.IsNotExist(err) {
			return err
		}
		r, err := openRecord(a.Record, writer)
		if err != nil {
			return err
		}
		for sector, x := range found {
			zero := 0
			if x.zero {
				zero = 1
			}
			r.add("%s %d %d %d", eventFound, sector, x.seq, zero)
		}
		// The sequence goes on, also where its last numbers were lost.
		r.add("%s %d %d %d", eventWrite, s.last, 0, 0)
		if err := r.commit(); err != nil {
			return err
		}
		if err := r.f.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (a Area) content(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	p := make([]byte, a.Count*Sector)
	if _, err := f.ReadAt(p, a.First*Sector); err != nil && err != io.EOF {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return p, nil
}

// JudgeLive does the same for a disk that lives and whose writers have ended:
// each sector has what was written last.
func (a Area) JudgeLive(file, first string) (Verdict, error) {
	return a.judge(file, first, nil, nil, true)
}
