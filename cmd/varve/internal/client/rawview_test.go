package client

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"varve/overlay/extent"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// What a rawView remembers is what the file says, in whatever order it is asked.
func TestRawViewAgainstFile(t *testing.T) {
	const size = int64(64 << 20)
	path := filepath.Join(t.TempDir(), "view.raw")
	rnd := rand.New(rand.NewPCG(1, 9))
	content := make([]byte, size)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		at := rnd.Int64N(size-1<<18) &^ 0xffff
		for i := range int64(1 + rnd.IntN(1<<18)) {
			content[at+i] = 1
		}
		if _, err := f.WriteAt(bytes.TrimRight(content[at:at+1<<18], "\x00"), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	image, err := qcow2.OpenImage(hostfs.OS(), path, "raw", hostfs.LockNone)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	view := newRawView(image)
	for range 500 {
		off := rnd.Int64N(size + 1<<20)
		length := 1 + rnd.Int64N(4<<20)
		got, err := view.Map(nil, off, length)
		if err != nil {
			t.Fatal(err)
		}
		want, err := image.Map(nil, off, length)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("[%d, %d): %v, the file has %v", off, off+length, got, want)
		}
		next, err := view.Next(off)
		if err != nil || next < off {
			t.Fatalf("from %d on: %d, %v", off, next, err)
		}
		for _, e := range want {
			if e.Kind == extent.Data && e.Start < next {
				t.Fatalf("from %d on %d is next, and there is data at %d", off, next, e.Start)
			}
		}
	}
}
