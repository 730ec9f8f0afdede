package chain

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"testing"
	"time"

	"varve/chain/manifest"
	"varve/integration/bulk"
	"varve/integration/interleave"
	"varve/integration/patience"
	"varve/integration/turn"
)

var everyCall = flag.Int("everycall.stride", 0, "the test of every call of a job stops at each how manieth one; 0 for the default")

// callStride is the flag's value or its default.
func callStride() int {
	switch {
	case *everyCall > 0:
		return *everyCall
	case os.Getenv("VARVE_LONG") != "":
		return 1
	case testing.Short():
		return 71
	default:
		return 37
	}
}

// jobCase is a job and the disk that it runs on.
type jobCase struct {
	mergeCase
	flatten string // the layer to be flattened; "" for the delete of "one"
}

// TestEveryCallOfAJob stops a job at its calls to the host, one after the other,
// lets something else come, and looks at every view: meanwhile, when the job has
// ended, and after the disk was closed and opened again (M14).
func TestEveryCallOfAJob(t *testing.T) {
	stride := callStride()
	var cases []jobCase
	for _, m := range mergeCases {
		cases = append(cases, jobCase{mergeCase: m})
	}
	frozen, leaf := mergeCases[2], mergeCases[3]
	frozen.name, leaf.name = "flatten of a frozen layer", "flatten of the leaf"
	cases = append(cases, jobCase{frozen, "two"}, jobCase{leaf, manifest.LeafName})
	for i, c := range cases {
		for k, action := range []string{"write", "snapshot", "grow", "cancel", "close"} {
			if testing.Short() && k != i%5 {
				continue
			}
			t.Run(c.name+", "+action, func(t *testing.T) {
				runs := 0
				// Other places for each pair, so that a stride leaves out others.
				for n := 1 + turn.Of(i+5*k, stride); c.run(t, action, n); n += stride {
					runs++
				}
				t.Logf("%d places", runs)
			})
		}
	}
}

// everyView is what every view has to show.
type everyView map[string][]byte

func (v everyView) check(d *Disk) error {
	for name, want := range v {
		read, size := d.ReadAt, d.Size()
		if name != "" {
			m, _ := d.tree()
			view, err := d.OpenView(context.Background(), m.ByName(name).ID, Opener{})
			if err != nil {
				return err
			}
			defer view.Close()
			read, size = view.ReadAt, view.Size()
		}
		if size != int64(len(want)) {
			return fmt.Errorf("the view %q has %d bytes, want %d", name, size, len(want))
		}
		at, err := bulk.Differ(read, want)
		if err != nil {
			return err
		}
		if at >= 0 {
			return fmt.Errorf("the view %q differs at %d", name, at)
		}
	}
	return nil
}

// run is false when the job has fewer calls than n.
func (c jobCase) run(t *testing.T, action string, n int) bool {
	d, fs := c.build(t)
	views := everyView{"": make([]byte, d.Size())}
	must(t, d.ReadAt(views[""], 0))
	for i := range c.above {
		name := []string{"two", "three"}[i]
		views[name] = viewOf(t, d, name)
	}
	calls := 0
	stop := fs.StopAt(t, func(call interleave.Call) bool {
		switch call.Op {
		case "write", "sync", "punch", "truncate", "allocate", "rename", "remove", "syncdir":
			if !call.Done {
				calls++
			}
			return !call.Done && calls == n
		}
		return false
	})
	job := interleave.Start(t, func() error {
		var id string
		var err error
		if c.flatten == "" {
			id, err = d.Delete("one")
		} else {
			id, err = d.Flatten(c.flatten)
		}
		if err != nil {
			return err
		}
		_, err = d.WaitJob(context.Background(), id)
		return err
	})
	for end := time.Now().Add(patience.Hang); !stop.Passed(); time.Sleep(time.Millisecond) {
		if job.Returned() && !stop.Passed() {
			must(t, job.Wait())
			return false
		}
		if time.Now().After(end) {
			t.Fatal("the job neither ends nor comes to the place")
		}
	}
	where := fmt.Sprintf("call %d", n)
	meanwhile := maps.Clone(views)
	if action == "write" || action == "grow" {
		delete(meanwhile, "")
	}
	check := func(when string) {
		t.Helper()
		if err := views.check(d); err != nil {
			t.Fatalf("%s, %s: %v", where, when, err)
		}
	}
	read := interleave.Start(t, func() error {
		if action == "close" {
			return nil
		}
		return meanwhile.check(d)
	})
	other := interleave.Start(t, func() error { return act(d, action) })
	read.Settles()
	other.Settles()
	stop.Go()
	if err := read.Wait(); err != nil {
		t.Fatalf("%s, meanwhile: %v", where, err)
	}
	err := other.Wait()
	if action == "cancel" && errors.Is(err, ErrNotExist) { // recorded no more, or not yet
		err = nil
	}
	must(t, err)
	views.act(action)
	if err := job.Wait(); err != nil && !(action == "close" && errors.Is(err, ErrBusy)) {
		t.Fatal(err)
	}
	if action == "close" {
		d = openWatched(t, fs, d.Dir())
	}
	if j := d.lastJob(); j != nil {
		<-j.done
		if s := j.status(); s.State == JobFailed || s.State == JobRunning {
			t.Fatalf("%s: the job: %+v", where, s)
		}
	}
	check("when the job has ended")
	must(t, act(d, "write")) // it goes where it has to go by now
	views.act("write")
	check("after further writes")
	if action == "cancel" {
		id, err := d.DeleteUnnamed()
		finish(t, d, id, err)
		check("after the merge went on")
	}
	must(t, d.Close())
	d = openWatched(t, fs, d.Dir())
	check("after it was opened again")
	must(t, d.Close())
	return true
}

// writtenMeanwhile are places in both layers and in neither, of 3,000 bytes.
var writtenMeanwhile = []int64{100, 32 << 10, 4<<20 + 300, 4<<20 + 40<<10, 6 << 20, 7<<20 + 5}

// discardedMeanwhile is a place of 8 KiB.
const discardedMeanwhile = 4<<20 + 50<<10

// act does what comes while the job stands.
func act(d *Disk, action string) error {
	switch action {
	case "write":
		for i, off := range writtenMeanwhile {
			if err := d.WriteAt(bytes.Repeat([]byte{byte(20 + i)}, 3000), off); err != nil {
				return err
			}
		}
		if err := d.Discard(discardedMeanwhile, 8192); err != nil {
			return err
		}
		return d.Flush()
	case "snapshot":
		return d.Snapshot("meanwhile")
	case "grow":
		return d.Resize(20 << 20)
	case "cancel":
		if j := d.lastJob(); j != nil {
			return d.Cancel(j.id)
		}
		return ErrNotExist
	case "close":
		return d.Close()
	}
	return errors.New("no such action: " + action)
}

// act does the same to the views.
func (v everyView) act(action string) {
	switch action {
	case "write":
		v[""] = bytes.Clone(v[""])
		for i, off := range writtenMeanwhile {
			copy(v[""][off:], bytes.Repeat([]byte{byte(20 + i)}, 3000))
		}
		clear(v[""][discardedMeanwhile : discardedMeanwhile+8192])
	case "snapshot":
		v["meanwhile"] = v[""]
	case "grow":
		v[""] = append(bytes.Clone(v[""]), make([]byte, 20<<20-len(v[""]))...)
	}
}
