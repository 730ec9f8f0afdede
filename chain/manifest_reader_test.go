package chain

import "testing"

// What is read under the lock is what the file says then, though the same file
// was parsed before.
func TestManifestReaderSeesChanges(t *testing.T) {
	d, _ := testDisk(t, 1<<20)
	fs := OpenOptions{}.withDefaults().FS
	var r manifestReader
	first, err := r.load(fs, d.Dir())
	must(t, err)
	if again, err := r.load(fs, d.Dir()); err != nil || again != first {
		t.Errorf("the same file is parsed again (%v)", err)
	}
	must(t, d.Snapshot("one"))
	if now, err := r.load(fs, d.Dir()); err != nil || now.byName("one") == nil || first.byName("one") != nil {
		t.Errorf("a changed file gives the old chain (%v)", err)
	}
}
