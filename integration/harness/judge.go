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
	r := Try(t, "qemu-img", "compare", "-f", formatA, "-F", formatB, a, b)
	if r.Code != 0 {
		t.Errorf("qemu-img compare %s %s: exit code %d\n%s", a, b, r.Code, indent(r.Stdout+r.Stderr))
	}
	if sizeA, sizeB := BackingChain(t, a, formatA)[0].Size, BackingChain(t, b, formatB)[0].Size; sizeA != sizeB {
		t.Errorf("%s has %d guest bytes, %s has %d", a, sizeA, b, sizeB)
	}
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
	for _, layer := range status.Layers {
		layers[layer.ID] = layer
		if !layer.Foreign {
			own[layer.File] = true
		}
	}
	for _, layer := range status.Layers {
		if layer.Format == "qcow2" {
			CheckImage(t, layer.File)
		}
		judgeBacking(t, layers, layer)
	}
	for id, view := range views {
		layer, ok := layers[id]
		if !ok {
			t.Errorf("the mount showed a layer %s that the unmounted disk does not have", id)
			continue
		}
		SameContent(t, view, "raw", layer.File, layer.Format)
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

// judgeBacking compares a layer's chain in `varve list` with qemu-img's.
func judgeBacking(t testing.TB, layers map[string]chain.LayerStatus, layer chain.LayerStatus) {
	t.Helper()
	describe := func(file, format string) string { return fmt.Sprintf("%s (%s)", realPath(t, file), format) }

	var listed, found []string
	for id := &layer.ID; id != nil; id = layers[*id].Parent {
		above, ok := layers[*id]
		if !ok {
			t.Fatalf("varve lists a parent %s that it does not list as a layer", *id)
		}
		listed = append(listed, describe(above.File, above.Format))
	}
	for _, image := range BackingChain(t, layer.File, layer.Format) {
		found = append(found, describe(image.File, image.Format))
	}
	if a, b := strings.Join(listed, "\n"), strings.Join(found, "\n"); a != b {
		t.Errorf("layer %s: varve lists\n%s\nqemu-img finds\n%s", layer.ID, indent(a), indent(b))
	}
	if depth := len(listed); layer.Depth != depth {
		t.Errorf("layer %s: varve lists depth %d, its chain has %d layers", layer.ID, layer.Depth, depth)
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
