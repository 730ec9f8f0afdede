package stamps

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The record of one writer is a text file, a line for each event:
//
//	w SEQ SECTOR COUNT   a write of COUNT sectors is issued; written before it is
//	z SEQ SECTOR COUNT   a discard, which leaves zeros, is issued
//	d SEQ                it returned
//	s SEQ                it returned and is durable (RWF_DSYNC)
//	f                    an fsync returned that was called after all the d above
//	o SECTOR SEQ ZERO    what Settle found in a sector after a crash: from now on
//	                     that, and nothing older, is the sector's content
const (
	eventWrite   = "w"
	eventDiscard = "z"
	eventDone    = "d"
	eventSynced  = "s"
	eventFsync   = "f"
	eventFound   = "o"
)

// recordFile is a writer's record in a directory.
func recordFile(dir string, writer int) string {
	return filepath.Join(dir, fmt.Sprintf("writer%d", writer))
}

// record is a record that is being written.
type record struct {
	f   *os.File
	buf []byte
}

func openRecord(dir string, writer int) (*record, error) {
	f, err := os.OpenFile(recordFile(dir, writer), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &record{f: f}, nil
}

func (r *record) add(format string, args ...any) {
	r.buf = append(fmt.Appendf(r.buf, format, args...), '\n')
}

// commit makes what was added durable.
func (r *record) commit() error {
	if _, err := r.f.Write(r.buf); err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	r.buf = r.buf[:0]
	if err := unix.Fdatasync(int(r.f.Fd())); err != nil {
		return fmt.Errorf("sync the record: %w", err)
	}
	return nil
}

// value is what one event puts into one sector.
type value struct {
	seq  uint64
	zero bool
}

// sectorState is what may be in one sector: values[0], which is acknowledged, or
// one of the later ones, in the order in which they were issued.
type sectorState struct {
	values []value
	done   int // index of the last one whose write returned
}

// state is what a record says. A sector that it does not know has what it had
// at first.
type state struct {
	sectors map[int64]*sectorState
	last    uint64 // sequence number
}

// span is the sectors of one event.
type span struct{ sector, count int64 }

// Mark is a moment: how far each writer's record had come, in bytes.
type Mark []int64

// MarkNow is the moment now. Lines that are being written may or may not count.
func MarkNow(dir string, writers int) (Mark, error) {
	m := make(Mark, writers)
	for i := range m {
		info, err := os.Stat(recordFile(dir, i))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		m[i] = info.Size()
	}
	return m, nil
}

// load reads a writer's record. Of what returned or was acknowledged it takes
// the events that were recorded in the first certain bytes, of what was issued
// those in the first possible bytes; -1 for all.
func load(dir string, writer int, certain, possible int64) (*state, error) {
	s := &state{sectors: map[int64]*sectorState{}}
	f, err := os.Open(recordFile(dir, writer))
	if os.IsNotExist(err) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	var from io.Reader = f
	if possible >= 0 {
		from = io.LimitReader(f, possible)
	}
	spans := map[uint64]span{}
	var unsynced []uint64
	at := int64(0)
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		at += int64(len(lines.Text())) + 1
		if possible >= 0 && at > possible {
			break // it was being written at that moment
		}
		believed := certain < 0 || at <= certain
		var kind string
		var a, b, c uint64
		n, _ := fmt.Sscan(lines.Text(), &kind, &a, &b, &c)
		switch {
		case n == 4 && (kind == eventWrite || kind == eventDiscard):
			spans[a] = span{int64(b), int64(c)}
			s.last = max(s.last, a)
			for sector := int64(b); sector < int64(b+c); sector++ {
				s.sector(sector).add(value{seq: a, zero: kind == eventDiscard})
			}
		case n == 4 && kind == eventFound:
			s.sectors[int64(a)] = &sectorState{values: []value{{seq: b, zero: c == 1}}}
			s.last = max(s.last, b)
		case n == 2 && kind == eventDone:
			if believed {
				s.each(spans[a], func(x *sectorState) { x.returned(a) })
				unsynced = append(unsynced, a)
			}
		case n == 2 && kind == eventSynced:
			if believed {
				s.each(spans[a], func(x *sectorState) { x.returned(a); x.acked(a) })
			}
		case n == 1 && kind == eventFsync:
			if believed {
				for _, seq := range unsynced {
					s.each(spans[seq], func(x *sectorState) { x.acked(seq) })
				}
				unsynced = nil
			}
		default:
			return nil, fmt.Errorf("%s: line %q is not understood", f.Name(), lines.Text())
		}
	}
	return s, lines.Err()
}

// sector is a sector's state, at first with what it had before the first write:
// sequence number 0.
func (s *state) sector(n int64) *sectorState {
	x := s.sectors[n]
	if x == nil {
		x = &sectorState{values: []value{{}}}
		s.sectors[n] = x
	}
	return x
}

func (s *state) each(p span, f func(*sectorState)) {
	for sector := p.sector; sector < p.sector+p.count; sector++ {
		f(s.sector(sector))
	}
}

func (x *sectorState) add(v value) { x.values = append(x.values, v) }

func (x *sectorState) index(seq uint64) int {
	for i, v := range x.values {
		if v.seq == seq {
			return i
		}
	}
	return -1
}

// returned: nothing older than seq can be read any more, while the disk lives.
func (x *sectorState) returned(seq uint64) { x.done = max(x.done, x.index(seq)) }

// acked: nothing older than seq can ever be read again.
func (x *sectorState) acked(seq uint64) {
	if i := x.index(seq); i > 0 {
		x.values = x.values[i:]
		x.done = max(0, x.done-i)
	}
}
