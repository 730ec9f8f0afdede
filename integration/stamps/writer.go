package stamps

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Area is where a set of writers works: whole sectors of a file.
type Area struct {
	File    string // the disk
	Record  string // the directory of the record, which is not on the disk
	First   int64  // the first sector
	Count   int64  // how many
	Writers int
}

// owner is the writer of a sector. In the first half of the area they take
// turns every few sectors, so that several of them meet in one subcluster; in
// the second they write larger pieces.
func (a Area) owner(sector int64) (writer int, end int64) {
	piece := int64(3)
	at := sector - a.First
	if at >= a.Count/2 {
		piece = 96
		at -= a.Count / 2
	}
	end = min(sector-at%piece+piece, a.First+a.Count)
	if sector < a.First+a.Count/2 {
		end = min(end, a.First+a.Count/2)
	}
	return int(at / piece % int64(a.Writers)), end
}

// environment holds the Area and the seed for a process that is to be a writer.
const environment = "VARVE_TEST_STAMPS"

// CodeGone is a writer's exit code when the disk went away.
const CodeGone = 3

type orders struct {
	Area Area
	Seed uint64
}

// Environment makes a process that runs this program, whose main calls Main, a
// writer.
func (a Area) Environment(seed uint64) string {
	text, err := json.Marshal(orders{a, seed})
	if err != nil {
		panic(err) // strings and numbers
	}
	return environment + "=" + string(text)
}

// Main writes, when this process was started to be a writer, until standard
// input ends or the disk refuses; isWriter is false in any other process. The
// exit code is 0 when it was asked to end, CodeGone when the disk went away (its
// daemon was killed), and 1 on any other error.
func Main() (code int, isWriter bool) {
	text := os.Getenv(environment)
	if text == "" {
		return 0, false
	}
	var o orders
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		fmt.Fprintln(os.Stderr, "stamps:", err)
		return 1, true
	}
	var enough atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		enough.Store(true)
	}()
	var wg sync.WaitGroup
	errs := make([]error, o.Area.Writers)
	for i := range errs {
		wg.Go(func() {
			w := &writer{area: o.Area, number: i, rnd: rand.New(rand.NewPCG(o.Seed, uint64(i)))}
			errs[i] = w.run(&enough)
		})
	}
	wg.Wait()
	for _, err := range errs {
		switch {
		case err == nil:
		case errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.ECONNABORTED):
			code = max(code, CodeGone)
		default:
			fmt.Fprintln(os.Stderr, "stamps:", err)
			return 1, true
		}
	}
	return code, true
}

// writer is one of an area's writers. It has a file descriptor, a record and
// sectors of its own.
type writer struct {
	area   Area
	number int
	rnd    *rand.Rand
	disk   *os.File
	rec    *record
	seq    uint64
}

// operation is one write or discard.
type operation struct {
	seq    uint64
	sector int64
	count  int64
	zero   bool
	sync   bool // RWF_DSYNC
}

func (w *writer) run(enough *atomic.Bool) error {
	s, err := load(w.area.Record, w.number, -1, -1)
	if err != nil {
		return err
	}
	w.seq = s.last
	if w.rec, err = openRecord(w.area.Record, w.number); err != nil {
		return err
	}
	if w.disk, err = os.OpenFile(w.area.File, os.O_RDWR, 0); err != nil {
		return err
	}
	for !enough.Load() {
		if err := w.round(); err != nil {
			return err
		}
	}
	return nil
}

// round records some operations, does them, several at a time, records which
// returned, and mostly ends with an fsync.
func (w *writer) round() error {
	ops := make([]operation, 1+w.rnd.IntN(12))
	taken := map[int64]bool{}
	for i := range ops {
		ops[i] = w.pick(taken)
		kind := eventWrite
		if ops[i].zero {
			kind = eventDiscard
		}
		w.rec.add("%s %d %d %d", kind, ops[i].seq, ops[i].sector, ops[i].count)
	}
	if err := w.rec.commit(); err != nil {
		return err
	}
	errs := make([]error, len(ops))
	var wg sync.WaitGroup
	const atOnce = 4
	turn := make(chan struct{}, atOnce)
	for i, op := range ops {
		turn <- struct{}{}
		wg.Go(func() {
			errs[i] = w.do(op)
			<-turn
		})
	}
	wg.Wait()
	for i, op := range ops {
		switch {
		case errs[i] != nil:
		case op.sync:
			w.rec.add("%s %d", eventSynced, op.seq)
		default:
			w.rec.add("%s %d", eventDone, op.seq)
		}
	}
	err := errors.Join(errs...)
	if err == nil && w.rnd.IntN(4) > 0 {
		if err = w.disk.Sync(); err == nil {
			w.rec.add(eventFsync)
		}
	}
	return errors.Join(err, w.rec.commit())
}

// pick chooses sectors of this writer's that no operation of the same round has:
// those run at the same time, and which of two comes last nobody could tell.
func (w *writer) pick(taken map[int64]bool) operation {
	for {
		sector := w.area.First + w.rnd.Int64N(w.area.Count)
		owner, end := w.area.owner(sector)
		if owner != w.number || taken[end] {
			continue
		}
		taken[end] = true
		w.seq++
		op := operation{seq: w.seq, sector: sector, count: 1 + w.rnd.Int64N(end-sector)}
		switch w.rnd.IntN(10) {
		case 0, 1:
			op.zero = true
		case 2:
			op.sync = true
		}
		return op
	}
}

func (w *writer) do(op operation) error {
	off, length := op.sector*Sector, op.count*Sector
	if op.zero {
		mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
		return again(func() error { return unix.Fallocate(int(w.disk.Fd()), mode, off, length) })
	}
	p := make([]byte, length)
	for i := range op.count {
		stamp(p[i*Sector:(i+1)*Sector], op.sector+i, op.seq)
	}
	flags := 0
	if op.sync {
		flags = unix.RWF_DSYNC
	}
	for len(p) > 0 {
		n := 0
		err := again(func() (err error) {
			n, err = unix.Pwritev2(int(w.disk.Fd()), [][]byte{p}, off, flags)
			return err
		})
		if err != nil {
			return fmt.Errorf("write sector %d: %w", op.sector, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// again repeats what Go's own signals interrupt.
func again(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
