package dirlock

import (
	"errors"
	"testing"

	"varve/overlay/hostfs"
)

func TestClosedInOrder(t *testing.T) {
	dir := t.TempDir()
	check := func(when string, want bool) {
		t.Helper()
		if got, err := ClosedInOrder(dir); got != want || err != nil {
			t.Errorf("%s: %v, %v", when, got, err)
		}
	}
	lock := func() *Lock {
		t.Helper()
		l, err := Take(hostfs.OS(), dir, Options{Exclusive: true, Mountpoint: "/mnt/vm1"})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	check("never locked", true)
	l := lock()
	check("while it is held", false)
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	check("closed", true)

	l = lock()
	l.Failed = errors.New("no luck")
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	check("closed with an error", false)
	if _, _, held, err := Holder(dir); held || err != nil {
		t.Errorf("words without a lock count as a holder (%v)", err)
	}

	l = lock()
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	check("closed by the next holder", true)

	l = lock()
	l.f.Close() // as when its process is killed
	check("after a crash", false)
}
