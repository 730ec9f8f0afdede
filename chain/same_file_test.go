package chain

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/chain/manifest"
	"varve/overlay/hostfs"
)

// TestOneFileTwoLayers: a chain.json in which two layers are one file, by whatever
// names, is refused.
func TestOneFileTwoLayers(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	rawImage(t, filepath.Join(root, "base.raw"), 1<<20)
	qcow2On(t, filepath.Join(root, "top.qcow2"), "base.raw", "raw", 7)
	dir := filepath.Join(root, "vm.varve")
	_, err = Create(dir, CreateOptions{Base: filepath.Join(root, "top.qcow2")})
	must(t, err)
	link := filepath.Join(root, "link.qcow2")
	must(t, os.Link(filepath.Join(root, "top.qcow2"), link))
	m := mustLoad(t, dir)
	twin := m.ByName("adopted").Copy()
	twin.ID, twin.Name, twin.File = manifest.LayerID(m.NewNumber()), "twin", link
	m.Add(twin)
	must(t, m.Commit(hostfs.OS(), dir))
	d, err := Open(dir, OpenOptions{})
	if err == nil {
		d.Close()
	}
	if !errors.Is(err, manifest.ErrCorrupt) || !strings.Contains(err.Error(), "adopted and twin are the same file") {
		t.Errorf("%v", err)
	}
}
