package mounts

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
)

func TestFromInfo(t *testing.T) {
	table := `36 35 98:0 / / rw,noatime master:1 - ext4 /dev/root rw
90 36 0:50 / /mnt/vm1 rw,nosuid,nodev,relatime - fuse.varve /images/my\040vm,1.varve rw,user_id=1000,group_id=1000,default_permissions
91 36 0:51 / /mnt/with\134back ro,nosuid,nodev - fuse.varve /b.varve ro,user_id=0,group_id=0
92 36 0:52 / /mnt/shared rw,nosuid,nodev - fuse.varve /c.varve rw,context="system_u:object_r:svirt_image_t:s0",user_id=0,group_id=0,allow_other
`
	infos, err := mountinfo.GetMountsFromReader(strings.NewReader(table), func(i *mountinfo.Info) (bool, bool) {
		return i.FSType != FSType, false
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []Mount
	for _, i := range infos {
		got = append(got, fromInfo(i))
	}
	want := []Mount{
		{Mountpoint: "/mnt/vm1", Root: "/", Source: "/images/my vm,1.varve", UID: 1000, Device: 50, ID: 90},
		{Mountpoint: `/mnt/with\back`, Root: "/", Source: "/b.varve", ReadOnly: true, UID: 0, Device: 51, ID: 91},
		{Mountpoint: "/mnt/shared", Root: "/", Source: "/c.varve", AllowOther: true, Context: true, Device: 52, ID: 92},
	}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("mount %d: got %+v, want %+v", i, got[i], want[i])
		}
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		path, dir string
		want      bool
	}{
		{"/a/b", "/a", true}, {"/a", "/a", true}, {"/ab", "/a", false},
		{"/a", "/a/b", false}, {"/a", "/", true}, {"/", "/", true},
	} {
		if got := Within(c.path, c.dir); got != c.want {
			t.Errorf("Within(%q, %q) = %v, want %v", c.path, c.dir, got, c.want)
		}
	}
}

func TestResolve(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"link":           "real",
		"link/../link":   "real",
		"link/new":       "real/new",
		"link/new/deep":  "real/new/deep",
		"missing/a":      "missing/a",
		"real/./x/../y/": "real/y",
	} {
		got, err := Resolve(filepath.Join(dir, in))
		if err != nil {
			t.Errorf("Resolve(%q): %v", in, err)
		}
		if want := filepath.Join(dir, want); got != want {
			t.Errorf("Resolve(%q) = %q, want %q", in, got, want)
		}
	}
}
