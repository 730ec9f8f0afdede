package export

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"varve/cmd/varve/internal/client"
	"varve/overlay"
	"varve/overlay/hostfs"
	"varve/overlay/qcow2"
)

// seekFile counts how often it is asked for data and holes.
type seekFile struct {
	hostfs.File
	asked int
}

func (f *seekFile) SeekData(off int64) (int64, error) {
	f.asked++
	return f.File.SeekData(off)
}

func (f *seekFile) SeekHole(off int64) (int64, error) {
	f.asked++
	return f.File.SeekHole(off)
}

// An export of a mounted disk asks the mount twice for each run of data, however long
// that and the hole before it are, and copies all of it.
func TestExportAsksOnceForARun(t *testing.T) {
	const size, runs = int64(1) << 40, 20
	path := filepath.Join(t.TempDir(), "view.raw")
	plain, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plain.Close() })
	if err := plain.Truncate(size); err != nil {
		t.Fatal(err)
	}
	want := map[int64][]byte{}
	for i := range int64(runs) {
		data := bytes.Repeat([]byte{byte(1 + i)}, int(i%4*3<<20+5000))
		at := size/runs*i + i<<12
		if _, err := plain.WriteAt(data, at); err != nil {
			t.Fatal(err)
		}
		want[at] = data
	}
	host, err := hostfs.OS().Open(path, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := &seekFile{File: host}
	image, err := qcow2.NewImage(file, "raw")
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	out := filepath.Join(t.TempDir(), "out.raw")
	e := overlay.Export{Source: client.FileView(image).Source, Size: size}
	if err := exportFile(context.Background(), e, out, Options{Format: "raw"}); err != nil {
		t.Fatal(err)
	}
	// Two for each run, and one behind the last.
	if file.asked > 2*runs+1 {
		t.Errorf("the file was asked %d times where data is, for %d runs", file.asked, runs)
	}
	copied, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	if info, err := copied.Stat(); err != nil || info.Size() != size {
		t.Errorf("the export has %v bytes (%v)", info.Size(), err)
	}
	for at, data := range want {
		got := make([]byte, len(data)+4096)
		if _, err := copied.ReadAt(got, at); err != nil && at+int64(len(got)) < size {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:len(data)], data) || len(bytes.TrimLeft(got[len(data):], "\x00")) > 0 {
			t.Errorf("the data at %d is not what was exported", at)
		}
	}
}
