package fs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/chain"
)

// A layer can be given to a VM's user while it is mounted, keeps that through a rename,
// and never becomes writable.
func TestLayerOwner(t *testing.T) {
	dir, d, _ := mounted(t, mib, Options{Umask: 0o077})
	if err := d.Snapshot("one"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, nameLayers, "one.raw")
	other := filepath.Join(dir, nameLayers, "base.raw")
	was := stat(t, path)
	if err := os.Chown(path, 65534, 65533); err != nil {
		t.Fatal(err)
	}
	if st := stat(t, path); st.Uid != 65534 || st.Gid != 65533 || st.Mode != was.Mode {
		t.Errorf("mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
	if err := os.Chmod(path, 0o4676); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, -1, 7); err != nil {
		t.Fatal(err)
	}
	if st := stat(t, path); st.Mode != unix.S_IFREG|0o444 || st.Uid != 65534 || st.Gid != 7 {
		t.Errorf("mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
	if f, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
		f.Close()
		t.Error("it was opened for writing")
	}
	if st := stat(t, other); st.Uid != was.Uid || st.Gid != was.Gid || st.Mode != was.Mode {
		t.Errorf("the other layer has mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
	renamed := filepath.Join(dir, nameLayers, "two.raw")
	if err := os.Rename(path, renamed); err != nil {
		t.Fatal(err)
	}
	d.tell()(chain.Change{Layers: true})
	if st := stat(t, renamed); st.Uid != 65534 || st.Mode != unix.S_IFREG|0o444 {
		t.Errorf("renamed it has mode %o, owner %d", st.Mode, st.Uid)
	}
}

// What is known of a layer goes with it.
func TestLayerOwnersAreForgotten(t *testing.T) {
	var o layerOwners
	owner := fileOwner{mode: 0o400, uid: 1, gid: 2}
	for node := range uint64(4) {
		o.set(node, &fuse.SetAttrInCommon{Valid: fuse.FATTR_UID, Owner: fuse.Owner{Uid: 65534}}, owner)
	}
	o.keep(func(node uint64) bool { return node == 2 })
	for node := range uint64(4) {
		want := uint32(1)
		if node == 2 {
			want = 65534
		}
		if is := o.of(node, owner).uid; is != want {
			t.Errorf("layer %d belongs to %d, want %d", node, is, want)
		}
	}
	if len(o.files) != 1 {
		t.Errorf("%d are remembered", len(o.files))
	}
}
