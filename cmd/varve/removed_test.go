package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestUmountKeepsWhatWasRemoved: what removes files beneath a mount (a cleaner of /tmp, a
// hand that slips) takes nothing from the disk while the daemon has them open. So umount
// does not end that, and says how to get it out.
func TestUmountKeepsWhatWasRemoved(t *testing.T) {
	for _, what := range []string{"layers/000003.qcow2", "."} {
		t.Run(filepath.Base(what), func(t *testing.T) {
			dir, mnt := mounted(t, 8<<20, 1<<20)
			put(t, mnt, "first", 1<<20)
			must(t, dir, "snapshot", "mnt", "one")
			put(t, mnt, "second", 2<<20)
			if err := os.RemoveAll(filepath.Join(dir, "vm.raw.varve", what)); err != nil {
				t.Fatal(err)
			}
			fails(t, dir, exitFailed, []string{"vm.raw.varve/", "copy disk.raw", "--lazy"}, "umount", "mnt")
			if what != "." {
				if r := vv(t, dir, "doctor", "mnt"); r.code != exitFailed || !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), "do not unmount the disk: its daemon still has the file open") {
					t.Errorf("doctor: exit %d, says %s", r.code, r.stdout)
				}
			}
			tool(t, dir, "cp", "--sparse=auto", "mnt/disk.raw", "rescued.raw")
			must(t, dir, "umount", "--lazy", "mnt")
			rescued, err := os.ReadFile(dir + "/rescued.raw")
			if err != nil {
				t.Fatal(err)
			}
			for off, text := range map[int]string{1 << 20: "first", 2 << 20: "second"} {
				if !bytes.HasPrefix(rescued[off:], []byte(text)) {
					t.Errorf("%q is not rescued", text)
				}
			}
		})
	}
}
