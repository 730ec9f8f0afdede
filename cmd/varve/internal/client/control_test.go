package client

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a command writes into a mount goes nowhere else, whatever answers there: neither a
// control file nor disk.raw may be a link, nor lie behind one.
func TestWritesStayInTheMount(t *testing.T) {
	mnt, _ := mount(t, disk(t, 4<<20))
	at, dir := found(t, mnt), filepath.Dir(mnt)
	victim := filepath.Join(dir, "victim")
	for _, name := range []string{"disk.raw", "control/snapshot"} {
		for _, plant := range []string{"ln -s $PWD/victim fake/" + name, "rmdir fake/control; mkdir real; cp victim real/snapshot; cp victim real/disk.raw; ln -s $PWD/real fake/control"} {
			shell(t, dir, "rm -rf fake real; mkdir -p fake/control; echo precious >victim; "+plant)
			fake := at
			fake.Mountpoint, fake.Mount.Mountpoint = dir+"/fake", dir+"/fake"
			if strings.HasPrefix(plant, "rmdir") {
				name = "control/" + filepath.Base(name)
			}
			f, err := openToWrite(fake, strings.Split(name, "/")...)
			if err == nil {
				f.Close()
				t.Errorf("%s was opened after %q", name, plant)
			}
		}
	}
	if text, err := os.ReadFile(victim); err != nil || string(text) != "precious\n" {
		t.Errorf("%q, %v", text, err)
	}
}
