package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// The two layers of a disk as libvirt 9 writes them.
const (
	libvirtStorage = `{"driver":"file","filename":"/mnt/vm1/disk.raw","aio":"native","node-name":"libvirt-1-storage","cache":{"direct":true,"no-flush":false},"auto-read-only":true,"discard":"unmap"}`
	libvirtFormat  = `{"node-name":"libvirt-1-format","read-only":false,"discard":"unmap","cache":{"direct":true,"no-flush":false},"driver":"raw","file":"libvirt-1-storage"}`
)

func TestParseCommandLine(t *testing.T) {
	raw := func(path string) vmDisk { return vmDisk{Path: path, Format: "raw"} }
	tests := []struct {
		name string
		args string // parted by |
		want []vmDisk
	}{
		{"drive", "-drive|file=/a.raw,format=raw,if=virtio,cache=none,aio=native", []vmDisk{raw("/a.raw")}},
		{"drive without a format", "-drive|file=/a.raw,id=x", []vmDisk{{Path: "/a.raw"}}},
		{"drive with the format as driver", "-drive|driver=qcow2,file=/a", []vmDisk{{Path: "/a", Format: "qcow2"}}},
		{"two dashes", "--drive|file=/a.raw,format=raw", []vmDisk{raw("/a.raw")}},
		{"commas in a name", "-drive|format=raw,file=/a,,b,,,,c=d.raw,id=x", []vmDisk{raw("/a,b,,c=d.raw")}},
		{"nested", "-drive|file.filename=/a.raw,format=raw", []vmDisk{raw("/a.raw")}},
		{"nested with a driver", "-drive|driver=raw,file.driver=file,file.filename=/a.raw", []vmDisk{raw("/a.raw")}},
		{"nested twice", "-drive|driver=raw,file.driver=qcow2,file.file.driver=file,file.file.filename=/a", []vmDisk{{Path: "/a", Format: "qcow2"}}},
		{"a file and its options", "-drive|file=/a.raw,file.locking=off,format=raw", []vmDisk{{Path: "/a.raw", Format: "raw", NoLock: true}}},
		{"the file alone as node", "-drive|driver=file,filename=/a,if=none", []vmDisk{raw("/a")}},
		{"json", `-drive|file=json:{"driver":"raw",,"file":{"driver":"file",,"filename":"/a.raw"}}`, []vmDisk{raw("/a.raw")}},
		{"json with dots", `-drive|file=json:{"driver":"qcow2",,"file.filename":"/a"}`, []vmDisk{{Path: "/a", Format: "qcow2"}}},
		{"readonly", "-drive|file=/a.raw,format=raw,readonly=on", []vmDisk{{Path: "/a.raw", Format: "raw", ReadOnly: true}}},
		{"readonly without a value", "-drive|file=/a.raw,format=raw,readonly", []vmDisk{{Path: "/a.raw", Format: "raw", ReadOnly: true}}},
		{"read-only", "-drive|file=/a.raw,format=raw,read-only=on", []vmDisk{{Path: "/a.raw", Format: "raw", ReadOnly: true}}},
		{"readonly=off", "-drive|file=/a.raw,format=raw,readonly=off", []vmDisk{raw("/a.raw")}},
		{"snapshot", "-drive|file=/a.raw,format=raw,snapshot=on", []vmDisk{{Path: "/a.raw", Format: "raw", ReadOnly: true}}},
		{"snapshot of all", "-hda|/a.raw|-snapshot|-m|1G", []vmDisk{{Path: "/a.raw", ReadOnly: true}}},
		{"unsafe", "-drive|file=/a.raw,format=raw,cache=unsafe", []vmDisk{{Path: "/a.raw", Format: "raw", NoFlush: true}}},
		{"no flush", "-drive|file=/a.raw,format=raw,cache.no-flush=on", []vmDisk{{Path: "/a.raw", Format: "raw", NoFlush: true}}},
		{"writeback", "-drive|file=/a.raw,format=raw,cache=writeback", []vmDisk{raw("/a.raw")}},
		{"protocols", "-drive|file=file:/a.raw,format=raw|-drive|file=nbd:localhost:10809,format=raw|-drive|file=http://x/y", []vmDisk{raw("/a.raw")}},
		{"a colon behind a slash", "-hda|./a:b.raw", []vmDisk{{Path: "/home/vm/a:b.raw"}}},
		{"relative", "-drive|file=vm1/../vm2/disk.raw,format=raw", []vmDisk{raw("/home/vm/vm2/disk.raw")}},
		{"the old words", "-hda|/a|-hdb|/b|-hdc|/c|-hdd|/d|-fda|/e|-cdrom|/f,1.iso",
			[]vmDisk{{Path: "/a"}, {Path: "/b"}, {Path: "/c"}, {Path: "/d"}, {Path: "/e"}, {Path: "/f,1.iso", ReadOnly: true}}},
		{"a path alone", "-nodefaults|-m|2G|/srv/c.raw", []vmDisk{{Path: "/srv/c.raw"}}},
		{"a path with = and , alone", "a=b/c,d.raw", []vmDisk{{Path: "/home/vm/a=b/c,d.raw"}}},
		{"a path between options", "-S|-enable-kvm|x.raw|-display|none", []vmDisk{{Path: "/home/vm/x.raw"}}},
		{"values are no paths", "-m|2G|-smp|2|-unheard-of|/x|-name|vm1|-append|root=/dev/vda|-kernel|/boot/vmlinuz|-serial|stdio", nil},

		{"blockdev", "-blockdev|driver=raw,node-name=disk,discard=unmap,file.driver=file,file.filename=/a.raw,file.cache.direct=on,file.aio=native", []vmDisk{raw("/a.raw")}},
		{"blockdev, the driver without its key", "-blockdev|qcow2,node-name=q,file.driver=file,file.filename=/a", []vmDisk{{Path: "/a", Format: "qcow2"}}},
		{"blockdev by names", "--blockdev|file,node-name=f1,filename=/a.qcow2|--blockdev|qcow2,node-name=q1,file=f1|-device|ide-hd,drive=q1", []vmDisk{{Path: "/a.qcow2", Format: "qcow2"}}},
		{"blockdev that a device has directly", "-blockdev|file,node-name=f1,filename=/a|-device|virtio-blk,drive=f1", []vmDisk{raw("/a")}},
		{"blockdev read only", "-blockdev|raw,node-name=a,read-only=on,file.driver=file,file.filename=/a.raw", []vmDisk{{Path: "/a.raw", Format: "raw", ReadOnly: true}}},
		{"blockdev through a filter", "-blockdev|throttle,throttle-group=g,node-name=t,file.driver=raw,file.file.driver=file,file.file.filename=/a.raw", []vmDisk{raw("/a.raw")}},
		{"blockdev with what is below", "-blockdev|qcow2,node-name=a,file.driver=file,file.filename=/top,backing.driver=raw,backing.file.driver=file,backing.file.filename=/base",
			[]vmDisk{{Path: "/base", Format: "raw", ReadOnly: true}, {Path: "/top", Format: "qcow2"}}},
		{"libvirt", "-blockdev|" + libvirtStorage + "|-blockdev|" + libvirtFormat, []vmDisk{raw("/mnt/vm1/disk.raw")}},
		{"libvirt, read only", "-blockdev|" + libvirtStorage + "|-blockdev|" + strings.Replace(libvirtFormat, `"read-only":false`, `"read-only":true`, 1),
			[]vmDisk{{Path: "/mnt/vm1/disk.raw", Format: "raw", ReadOnly: true}}},
		{"libvirt, unsafe", "-blockdev|" + strings.Replace(libvirtStorage, `"no-flush":false`, `"no-flush":true`, 1) + "|-blockdev|" + libvirtFormat,
			[]vmDisk{{Path: "/mnt/vm1/disk.raw", Format: "raw", NoFlush: true}}},
		{"libvirt, a chain", `-blockdev|{"driver":"file","filename":"/base","node-name":"libvirt-2-storage","auto-read-only":true,"discard":"unmap"}` +
			`|-blockdev|{"node-name":"libvirt-2-format","read-only":true,"driver":"raw","file":"libvirt-2-storage"}` +
			`|-blockdev|{"driver":"file","filename":"/top","node-name":"libvirt-1-storage","auto-read-only":true,"discard":"unmap"}` +
			`|-blockdev|{"node-name":"libvirt-1-format","read-only":false,"driver":"qcow2","file":"libvirt-1-storage","backing":"libvirt-2-format"}`,
			[]vmDisk{{Path: "/base", Format: "raw", ReadOnly: true}, {Path: "/top", Format: "qcow2"}}},
		{"names in a circle", "-blockdev|raw,node-name=a,file=b|-blockdev|raw,node-name=b,file=a,backing=a|-blockdev|raw,node-name=c,file=a", nil},
		{"twice the same, once to write", "-drive|file=/a,format=raw,readonly=on|-drive|file=/a,format=raw", []vmDisk{raw("/a")}},
		{"nothing", "", nil},
		{"not finished", "-drive", nil},
		{"broken", `-blockdev|{"driver":|-drive|file=json:{|-drive|,,,|-drive|file=|-blockdev|`, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := parseCommandLine(qemuSystem, append([]string{"qemu-system-x86_64"}, strings.Split(test.args, "|")...), "/home/vm")
			if !reflect.DeepEqual(c.Disks, test.want) {
				t.Errorf("%q:\ngot  %+v\nwant %+v", test.args, c.Disks, test.want)
			}
		})
	}
}

// TestLibvirtCommandLine reads what libvirt 9.0 gave to QEMU for a domain with
// disk.raw and a layer as a second disk (integration.TestLibvirt).
func TestLibvirtCommandLine(t *testing.T) {
	text, err := os.ReadFile("testdata/libvirt-9.0.args")
	if err != nil {
		t.Fatal(err)
	}
	c := parseCommandLine(qemuSystem, strings.Split(strings.TrimSuffix(string(text), "\n"), "\n"), "/")
	want := []vmDisk{{Path: "/mnt/vm1/disk.raw", Format: "raw"}, {Path: "/mnt/vm1/layers/one.raw", Format: "raw", ReadOnly: true}}
	if c.Name != "vm1" || !reflect.DeepEqual(c.Disks, want) {
		t.Errorf("%s: %+v, not %+v", c.Name, c.Disks, want)
	}
}

func TestParseOtherPrograms(t *testing.T) {
	tests := []struct {
		program string
		args    string
		want    []vmDisk
	}{
		{"qemu-storage-daemon", "--blockdev|driver=file,filename=/a.raw,node-name=a|--export=type=fuse,id=x,node-name=a,mountpoint=/a.raw,writable=on", []vmDisk{{Path: "/a.raw", Format: "raw"}}},
		{"qemu-storage-daemon", "--blockdev=raw,node-name=r,file.driver=file,file.filename=/a.raw|--daemonize", []vmDisk{{Path: "/a.raw", Format: "raw"}}},
		{"qemu-nbd", "-k|/run/x.sock|-r|-f|raw|/a.raw", []vmDisk{{Path: "/a.raw", Format: "raw", ReadOnly: true}}},
		{"qemu-nbd", "--socket=/run/x.sock|-tfraw|--cache=unsafe|a=b.raw", []vmDisk{{Path: "/home/vm/a=b.raw", Format: "raw", NoFlush: true}}},
		{"qemu-nbd", "--format|qcow2|-c|/dev/nbd0|/a", []vmDisk{{Path: "/a", Format: "qcow2"}}},
		{"qemu-nbd", "--image-opts|driver=qcow2,file.filename=/a,file.locking=off", []vmDisk{{Path: "/a", Format: "qcow2", NoLock: true}}},
		{"qemu-nbd", "-s|/a", []vmDisk{{Path: "/a", ReadOnly: true}}},
		{"cloud-hypervisor", "--kernel|/k|--disk|path=/a.raw,readonly=on|path=/b.raw,image_type=Raw|--net|tap=x", []vmDisk{{Path: "/a.raw", ReadOnly: true}, {Path: "/b.raw", Format: "raw"}}},
	}
	for _, test := range tests {
		c := parseCommandLine(programOf(test.program), append([]string{test.program}, strings.Split(test.args, "|")...), "/home/vm")
		if !reflect.DeepEqual(c.Disks, test.want) {
			t.Errorf("%s %q:\ngot  %+v\nwant %+v", test.program, test.args, c.Disks, test.want)
		}
	}
}

func TestNameOfVM(t *testing.T) {
	for value, want := range map[string]string{
		"guest=vm1,debug-threads=on": "vm1", "vm1": "vm1", "vm,,1,process=x": "vm,1", "process=x": "",
	} {
		if got := parseCommandLine(qemuSystem, []string{"kvm", "-name", value}, "").Name; got != want {
			t.Errorf("-name %s: %q, not %q", value, got, want)
		}
	}
}

func TestProgramOf(t *testing.T) {
	for name, want := range map[string]program{
		"qemu-system-x86": qemuSystem, "/usr/bin/qemu-system-aarch64": qemuSystem, "/usr/libexec/qemu-kvm": qemuSystem, "kvm": qemuSystem,
		"qemu-storage-da": qemuStorageDaemon, "qemu-nbd": qemuNBD, "cloud-hyperviso": cloudHypervisor,
		"qemu-img": noProgram, "qemu-ga": noProgram, "bash": noProgram, "": noProgram, "kvm-something": noProgram,
	} {
		if got := programOf(name); got != want {
			t.Errorf("%s: %d, not %d", name, got, want)
		}
	}
}

// TestHostileNames: nodes that name each other in a circle, with as many options as a
// command line holds, are given up: this ends.
func TestHostileNames(t *testing.T) {
	var many strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&many, ",k%d=1", i)
	}
	parseCommandLine(qemuSystem, []string{"qemu", "-blockdev", "raw,node-name=a,file=b,backing=b" + many.String(),
		"-blockdev", "raw,node-name=b,file=a,backing=a" + many.String(), "-blockdev", "raw,file=a"}, "/")
}

// Any user can start a program with any words, and root reads them.
func FuzzCommandLine(f *testing.F) {
	f.Add("-drive\x00file=/a,,b,format=raw,file.locking=off\x00x=y.raw")
	f.Add("-blockdev\x00" + libvirtStorage + "\x00-blockdev\x00" + libvirtFormat)
	f.Add("-blockdev\x00a,node-name=a,file=b,backing=b\x00-blockdev\x00b,node-name=b,file=a,backing=a\x00-blockdev\x00c,file=a")
	f.Add("-drive\x00a.b.c.d.e=1,a.b=2,a=3,file=json:{\"a.b\":{\"a\":1}}")
	f.Add("-fraw\x00--disk\x00path=x")
	f.Fuzz(func(t *testing.T, words string) {
		for p := qemuSystem; p <= cloudHypervisor; p++ {
			for _, d := range parseCommandLine(p, append([]string{"x"}, strings.Split(words, "\x00")...), "/home/vm").Disks {
				if !filepath.IsAbs(d.Path) || filepath.Clean(d.Path) != d.Path {
					t.Errorf("%q gives the path %q", words, d.Path)
				}
			}
		}
	})
}
