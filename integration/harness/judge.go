package harness

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/chain"
)

// CheckImage runs qemu-img check on an image of a disk that was unmounted
// cleanly: no error, no corruption, no leak.
func CheckImage(t testing.TB, file string) {
	t.Helper()
	r := Try(t, "qemu-img", "check", "-f", "qcow2", file)
	if r.Code != 0 {
		t.Errorf("qemu-img check %s: exit code %d\n%s", file, r.Code, indent(r.Stdout+r.Stderr))
	}
}

// CheckImageAfterCrash allows leaks (M7), and nothing else.
func CheckImageAfterCrash(t testing.TB, file string) {
	t.Helper()
	const onlyLeaks = 3
	if r := Try(t, "qemu-img", "check", "-f", "qcow2", file); r.Code != 0 && r.Code != onlyLeaks {
		t.Errorf("qemu-img check %s: exit code %d\n%s", file, r.Code, indent(r.Stdout+r.Stderr))
	}
}

// ImageInfo is what qemu-img info tells of one image of a chain.
type ImageInfo struct {
	File   string `json:"filename"`
	Format string `json:"format"`
	Size   int64  `json:"virtual-size"` // guest bytes
}

// BackingChain is qemu-img info --backing-chain, top first.
func BackingChain(t testing.TB, file, format string) []ImageInfo {
	t.Helper()
	out := Run(t, "qemu-img", "info", "--output=json", "--backing-chain", "-f", format, file)
	var images []ImageInfo
	if err := json.Unmarshal([]byte(out), &images); err != nil {
		t.Fatalf("parse qemu-img info of %s: %v", file, err)
	}
	return images
}

// SameContent fails the test unless two images have the same guest size and,
// as qemu-img compare reads them, the same content.
func SameContent(t testing.TB, a, formatA, b, formatB string) {
	t.Helper()
	sameContent(t, a, formatA, guestSize(t, a, formatA), b, formatB, guestSize(t, b, formatB))
}

func sameContent(t testing.TB, a, formatA string, sizeA int64, b, formatB string, sizeB int64) {
	t.Helper()
	r := Try(t, "qemu-img", "compare", "-f", formatA, "-F", formatB, a, b)
	if r.Code != 0 {
		t.Errorf("qemu-img compare %s %s: exit code %d\n%s", a, b, r.Code, indent(r.Stdout+r.Stderr))
	}
	if sizeA != sizeB {
		t.Errorf("%s has %d guest bytes, %s has %d", a, sizeA, b, sizeB)
	}
}

// guestSize is an image's size in bytes: of a raw file its length, to a whole sector, and
// of everything else what qemu-img info says.
func guestSize(t testing.TB, file, format string) int64 {
	t.Helper()
	if format == "raw" {
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
			return (info.Size() + 511) &^ 511
		}
	}
	return BackingChain(t, file, format)[0].Size
}

// Judge checks the files of a disk that was unmounted cleanly against what
// varve says of it and against views that SaveViews took from the mount:
// qemu-img finds no error and no leak, the backing chain of each layer is the
// one that varve lists, each view reads the same from the files, and layers/
// holds no file that no layer owns.
func Judge(t testing.TB, disk string, views map[string]string) {
	t.Helper()
	status := List(t, disk)
	layers := map[string]chain.LayerStatus{}
	own := map[string]bool{}
	stoodOn := map[string]bool{} // of which another layer's chain has all
	for _, layer := range status.Layers {
		layers[layer.ID] = layer
		if !layer.Foreign {
			own[layer.File] = true
		}
		if layer.Parent != nil {
			stoodOn[*layer.Parent] = true
		}
	}
	sizes := map[string]int64{} // of the layers' images, by id
	for _, layer := range status.Layers {
		if layer.Format == "qcow2" {
			CheckImage(t, layer.File)
		}
		if !stoodOn[layer.ID] {
			judgeBacking(t, layers, layer, sizes)
		}
	}
	for id := range layers {
		if sizes[id] == 0 {
			t.Errorf("layer %s is in no backing chain that qemu-img finds", id)
		}
	}
	for id, view := range views {
		layer, ok := layers[id]
		if !ok {
			t.Errorf("the mount showed a layer %s that the unmounted disk does not have", id)
			continue
		}
		sameContent(t, view, "raw", guestSize(t, view, "raw"), layer.File, layer.Format, sizes[id])
	}

	dir := filepath.Join(disk, "layers")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		file := filepath.Join(dir, entry.Name())
		if !own[file] {
			t.Errorf("%s belongs to no layer", file)
		}
		delete(own, file)
	}
	for file := range own {
		t.Errorf("varve lists %s, which is not there", file)
	}
}

// judgeBacking compares the chain of a layer on which no other stands, and with it those of
// all below, in `varve list` with qemu-img's: each file, its format as the header above it
// has it, and how deep it is. It notes the size of each layer's image, in bytes.
func judgeBacking(t testing.TB, layers map[string]chain.LayerStatus, top chain.LayerStatus, sizes map[string]int64) {
	t.Helper()
	describe := func(file, format string) string { return fmt.Sprintf("%s (%s)", realPath(t, file), format) }

	var ids, listed, found []string
	for id := &top.ID; id != nil; id = layers[*id].Parent {
		layer, ok := layers[*id]
		if !ok {
			t.Fatalf("varve lists a parent %s that it does not list as a layer", *id)
		}
		ids, listed = append(ids, *id), append(listed, describe(layer.File, layer.Format))
	}
	for i, image := range BackingChain(t, top.File, top.Format) {
		found = append(found, describe(image.File, image.Format))
		if i < len(ids) {
			sizes[ids[i]] = image.Size
		}
	}
	if a, b := strings.Join(listed, "\n"), strings.Join(found, "\n"); a != b {
		t.Errorf("layer %s: varve lists\n%s\nqemu-img finds\n%s", top.ID, indent(a), indent(b))
	}
	for i, id := range ids {
		if depth := len(ids) - i; layers[id].Depth != depth {
			t.Errorf("layer %s: varve lists depth %d, its chain has %d layers", id, layers[id].Depth, depth)
		}
	}
}

// realPath resolves symbolic links; qemu-img prints names as headers give them.
func realPath(t testing.TB, file string) string {
	t.Helper()
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		t.Fatal(err)
	}
	return real
}
