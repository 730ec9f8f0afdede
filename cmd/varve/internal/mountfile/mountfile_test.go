package mountfile

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// placeOf is a directory as if it were a mount, with the device of another one.
func placeOf(t *testing.T, dir, device string) Place {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		t.Fatal(err)
	}
	return Place{Root: dir, Device: st.Dev, Name: "/mnt/vm1"}
}

func TestOpen(t *testing.T) {
	const content = "in the mount\n"
	for _, c := range []struct{ plant, file, words string }{
		{"echo in the mount >mnt/status.json", "status.json", ""},
		{"mkdir mnt/layers; echo in the mount >mnt/layers/one.raw", "layers/one.raw", ""},
		{"ln -s $PWD/secret mnt/status.json", "status.json", "/mnt/vm1/status.json is a symbolic link"},
		{"ln -s $PWD/nothing mnt/status.json", "status.json", "/mnt/vm1/status.json is a symbolic link"},
		{"mkdir real; cp secret real/one.raw; ln -s $PWD/real mnt/layers", "layers/one.raw", "/mnt/vm1/layers is a symbolic link"},
		{"mkdir mnt/real; cp secret mnt/real/one.raw; ln -s real mnt/layers", "layers/one.raw", "/mnt/vm1/layers is a symbolic link"},
		{"mkfifo mnt/status.json", "status.json", "/mnt/vm1/status.json is no regular file"},
		{"mknod mnt/status.json c 1 5", "status.json", "/mnt/vm1/status.json is no regular file"},
		{"mkdir mnt/status.json", "status.json", "/mnt/vm1/status.json is no regular file"},
		{"echo >mnt/layers", "layers/one.raw", "/mnt/vm1/layers is no directory"},
		{"touch mnt/status.json; mount --bind /proc/version mnt/status.json", "status.json", "/mnt/vm1/status.json leads out of the mount"},
		{"mkdir mnt/layers; mount -t tmpfs none mnt/layers; cp secret mnt/layers/one.raw", "layers/one.raw", "/mnt/vm1/layers leads out of the mount"},
	} {
		dir := t.TempDir()
		for _, elements := range [][]string{{"status.json"}, {"layers", "one.raw"}} {
			t.Cleanup(func() { unix.Unmount(filepath.Join(dir, "mnt", elements[0]), unix.MNT_DETACH) }) // most are none
		}
		sh := exec.Command("sh", "-ec", "echo secret >secret; mkdir mnt; "+c.plant)
		sh.Dir = dir
		if out, err := sh.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", c.plant, err, out)
		}
		p := placeOf(t, dir+"/mnt", dir)
		text, err := p.Read(100, strings.Split(c.file, "/")...)
		switch {
		case c.words == "" && (err != nil || string(text) != content):
			t.Errorf("%s: %q, %v", c.plant, text, err)
		case c.words != "" && (!errors.Is(err, ErrForeign) || !strings.HasPrefix(err.Error(), c.words) || !strings.HasSuffix(err.Error(), ", so /mnt/vm1 is not a varve mount, although it calls itself one")):
			t.Errorf("%s: %q, %v", c.plant, text, err)
		}
		if f, err := p.Open(os.O_RDWR, strings.Split(c.file, "/")...); err == nil {
			f.Close()
			if c.words != "" {
				t.Errorf("%s: opened to write", c.plant)
			}
		}
	}
}

func TestOpenOfAnotherMount(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/status.json", []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := placeOf(t, dir, "/proc")
	if _, err := other.Read(10, "status.json"); !errors.Is(err, ErrForeign) {
		t.Errorf("by a mount that is another one by now: %v", err)
	}
	p := placeOf(t, dir, dir)
	for _, elements := range [][]string{{".."}, {"layers", "..", "status.json"}, {"./status.json"}, {""}} {
		if _, err := p.Read(10, elements...); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%q: %v", elements, err)
		}
	}
	if _, err := p.Read(10, "nothing"); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/mnt/vm1/nothing") {
		t.Errorf("got %v", err)
	}
	// A descriptor, as of a mount in another mount namespace, and a bind mount of one file.
	fd, err := unix.Open(dir, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	p.Root = "/proc/self/fd/" + itoa(fd)
	if text, err := p.Read(10, "status.json"); err != nil || string(text) != "{}" {
		t.Errorf("%q, %v", text, err)
	}
	p.Root = dir + "/status.json"
	if text, err := p.Read(10); err != nil || string(text) != "{}" {
		t.Errorf("%q, %v", text, err)
	}
	word := p.Errand("a", "b\n")
	if q, elements, err := ParseErrand(word); err != nil || q != p || !slices.Equal(elements, []string{"a", "b\n"}) {
		t.Errorf("%q is %+v %q (%v)", word, q, elements, err)
	}
	if _, _, err := ParseErrand("x"); err == nil {
		t.Error("no error")
	}
}

func itoa(n int) string {
	text, _ := json.Marshal(n)
	return string(text)
}

// Nothing is read to an end that the mount alone decides.
func TestNothingUnboundedIsRead(t *testing.T) {
	dir := t.TempDir()
	p := placeOf(t, dir, dir)
	for _, size := range []int64{MostMap + 1, 1 << 40} {
		if err := os.WriteFile(dir+"/status.json", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(dir+"/status.json", size); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Read(MostMap, "status.json"); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "has more than 1048576 bytes") {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	if err := os.WriteFile(dir+"/metrics", []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := p.Read(5, "metrics"); err != nil || string(text) != "12345" {
		t.Errorf("%q, %v", text, err)
	}
	if text, err := p.Read(4, "metrics"); err == nil {
		t.Errorf("%q", text)
	}
	if names, err := p.Names(); err != nil || len(names) != 2 {
		t.Errorf("%q, %v", names, err)
	}
}

// Whoever goes through a status comes to an end.
func TestStatusOfAStranger(t *testing.T) {
	for text, words := range map[string]string{
		`{"layers":[{"id":"1"},{"id":"2","parent":"1"},{"id":"1","parent":"2"}]}`: `it has two layers "1"`,
		`{"layers":[` + strings.Repeat(`{},`, 1<<20) + `{}]}`:                     "objects and lists",
		`{"layers":[{"id":"`: "unexpected end",
	} {
		if st, err := Status([]byte(text)); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%.60s: %d layers, %v", text, len(st.Layers), err)
		}
	}
	type layer struct {
		ID string `json:"id"`
	}
	var doc struct {
		Layers []layer `json:"layers"`
	}
	for i := range mostLayers + 1 {
		doc.Layers = append(doc.Layers, layer{itoa(i)})
	}
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Status(text); err == nil {
		t.Errorf("%d layers", mostLayers+1)
	}
}
