package qcow2_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"varve/integration/imagetest"
	"varve/overlay/extent"
	"varve/overlay/hostfs"
)

func newRaw(t *testing.T, name string, flag int) hostfs.File {
	t.Helper()
	f, err := hostfs.OS().Open(filepath.Join(t.TempDir(), name), flag|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return f
}

func TestRawImage(t *testing.T) {
	f := newRaw(t, "disk.raw", os.O_RDWR)
	for _, at := range []int64{0, 64 << 10, 1 << 20} {
		_, err := f.WriteAt(bytes.Repeat([]byte{byte(at>>16) + 1}, 64<<10), at)
		must(t, err)
	}
	const size = 2<<20 + 777
	must(t, f.Truncate(size))
	im := openImage(t, f.Name(), "raw")
	if im.Size() != size || im.Header() != nil || im.Format() != "raw" {
		t.Errorf("size %d, header %v, format %s", im.Size(), im.Header(), im.Format())
	}
	want := []extent.Extent{
		{Start: 0, Length: 128 << 10, Host: 0, Kind: extent.Data},
		{Start: 128 << 10, Length: 896 << 10, Host: 0, Kind: extent.Zero},
		{Start: 1 << 20, Length: 64 << 10, Host: 1 << 20, Kind: extent.Data},
		{Start: 1<<20 + 64<<10, Length: 4<<20 - 1<<20 - 64<<10, Host: 0, Kind: extent.Zero}, // on past the end
	}
	got, err := im.Map(nil, 0, 4<<20)
	must(t, err)
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	got, err = im.Map(nil, 100<<10, 1<<20-100<<10+1)
	must(t, err)
	want = []extent.Extent{{Start: 100 << 10, Length: 28 << 10, Host: 100 << 10, Kind: extent.Data}, {Start: 128 << 10, Length: 896 << 10, Host: 0, Kind: extent.Zero}, {Start: 1 << 20, Length: 1, Host: 1 << 20, Kind: extent.Data}}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if own, err := im.OwnBytes(); err != nil || own != 192<<10 {
		t.Errorf("own bytes %d, %v", own, err)
	}
	content, err := os.ReadFile(f.Name())
	must(t, err)
	judgeContent(t, im, content)
	empty := openImage(t, newRaw(t, "empty", os.O_RDWR).Name(), "raw")
	if got, err = empty.Map(nil, 0, 512); err != nil || !slices.Equal(got, []extent.Extent{{Start: 0, Length: 512, Host: 0, Kind: extent.Zero}}) {
		t.Errorf("map of an empty image: %+v, %v", got, err)
	}
}

// TestRawBlockDevice needs root, as loop devices do.
func TestRawBlockDevice(t *testing.T) {
	f := newRaw(t, "disk.raw", os.O_RDWR)
	_, err := f.WriteAt(bytes.Repeat([]byte{5}, 4096), 8192)
	must(t, err)
	must(t, f.Truncate(3<<20))
	device := strings.TrimSpace(imagetest.Tool(t, "losetup", "--find", "--show", "--read-only", f.Name()))
	t.Cleanup(func() { imagetest.Tool(t, "losetup", "--detach", device) })
	info, err := hostfs.OS().Stat(device)
	must(t, err)
	if info.Size != 3<<20 || info.Mode&os.ModeDevice == 0 {
		t.Errorf("stat: %+v", info)
	}
	im := openImage(t, device, "raw")
	got, err := im.Map(nil, 0, 4<<20)
	must(t, err)
	if want := []extent.Extent{{Start: 0, Length: 3 << 20, Host: 0, Kind: extent.Data}, {Start: 3 << 20, Length: 1 << 20, Host: 0, Kind: extent.Zero}}; !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if own, err := im.OwnBytes(); err != nil || own != 3<<20 {
		t.Errorf("own bytes %d, %v", own, err)
	}
	content, err := os.ReadFile(f.Name())
	must(t, err)
	judgeContent(t, im, content)
}
