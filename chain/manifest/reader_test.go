package manifest

import (
	"testing"

	"varve/overlay/hostfs"
)

// What is read under the lock is what the file says then, though the same file
// was parsed before.
func TestManifestReaderSeesChanges(t *testing.T) {
	fs, dir, m := hostfs.OS(), t.TempDir(), testManifest()
	commit := func(m *Manifest) {
		t.Helper()
		if err := m.Commit(fs, dir); err != nil {
			t.Fatal(err)
		}
	}
	commit(m)
	var r Reader
	first, err := r.Load(fs, dir)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := r.Load(fs, dir); err != nil || again != first {
		t.Errorf("the same file is parsed again (%v)", err)
	}
	m = m.Copy()
	m.Layer("000002").Name = "two"
	commit(m)
	if now, err := r.Load(fs, dir); err != nil || now.ByName("two") == nil || first.ByName("two") != nil {
		t.Errorf("a changed file gives the old chain (%v)", err)
	}
}
