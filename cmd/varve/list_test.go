package main

import (
	"bytes"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"varve/chain"
	"varve/chain/mounts"
)

func TestWriteMounts(t *testing.T) {
	var out bytes.Buffer
	err := writeMounts(&out, mountsDocument{Mounts: []mountStatus{
		{Mountpoint: "/mnt/vm1", Disk: "/images/ubuntu.raw.varve", Believed: true, Size: 20 << 30, Layers: 3},
		{Mountpoint: "/mnt/vm22", Disk: "/images/d.varve", Believed: true, Size: 1536 << 20, Layers: 128,
			Job: &chain.JobStatus{ID: "7", Kind: "flatten", State: "running", DoneBytes: 1 << 30, TotalBytes: 4 << 30}},
		{Mountpoint: "/mnt/vm3", Disk: "/images/e.varve", Believed: true, Error: "no answer within 5s", Binds: []bindStatus{
			bindOf(mounts.Mount{Mountpoint: "/srv/vm3.raw", Root: "/disk.raw"}),
			bindOf(mounts.Mount{Mountpoint: "/mnt/vm3", Root: "/", PID: 12}),
			bindOf(mounts.Mount{Mountpoint: "/disk.raw", Root: "/disk.raw", PID: 12}),
			bindOf(mounts.Mount{Mountpoint: "/mnt/vm3", Root: "/", PID: 17}),
			bindOf(mounts.Mount{Mountpoint: "/mnt/vm3", Root: "/", PID: 19}),
		}},
		{Mountpoint: "/tmp/m", Disk: "/images/e.varve", UID: 61002, Layers: 1},
	}, Parts: []bindStatus{bindOf(mounts.Mount{Mountpoint: "/srv/only", Root: "/layers", Source: "/images/f.varve", Device: 1})}})
	want := `MOUNTPOINT  DISK                                    SIZE     LAYERS  JOB
/mnt/vm1    /images/ubuntu.raw.varve                20 GiB   3       -
/mnt/vm22   /images/d.varve                         1.5 GiB  128     7 flatten 25 %
/mnt/vm3    /images/e.varve                         -        -       no answer within 5s
/tmp/m      /images/e.varve (claimed by uid 61002)  0 B      1       -
/srv/only   /images/f.varve                         -        -       it is a bind mount of layers of the disk /images/f.varve, whose mount cannot be seen from here
/mnt/vm3 can also be seen: disk.raw at /srv/vm3.raw
/mnt/vm3 can also be seen: all of it at /mnt/vm3 in the mount namespace of pid 12, and in 2 more
/mnt/vm3 can also be seen: disk.raw at /disk.raw in the mount namespace of pid 12
`
	if err != nil || out.String() != want {
		t.Errorf("%v, got\n%swant\n%s", err, out.String(), want)
	}
}

func TestVersionLine(t *testing.T) {
	built := runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
	info := &debug.BuildInfo{Main: debug.Module{Version: "v0.9.0"}, Settings: []debug.BuildSetting{
		{Key: "vcs.revision", Value: "abc123"}, {Key: "vcs.modified", Value: "true"},
	}}
	for _, c := range []struct {
		linked string
		commit string
		info   *debug.BuildInfo
		want   string
	}{
		{"v1.2.3", "", info, "varve v1.2.3 (commit abc123, modified) " + built},
		{"", "def", info, "varve v0.9.0 (commit abc123, modified) " + built},
		{"", "", nil, "varve (devel) (commit unknown) " + built},
		{"v1.2.3", "def", &debug.BuildInfo{}, "varve v1.2.3 (commit def) " + built},
	} {
		if got := versionLine(c.linked, c.commit, c.info); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	if code, out, _ := varve("version"); code != exitDone || !strings.HasPrefix(out, "varve ") || strings.Count(out, "\n") != 1 {
		t.Errorf("code %d, %q", code, out)
	}
}
