package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/chain"
	testpatience "varve/integration/patience"
	"varve/integration/turn"
)

// Adopting an image is no hole: no file is opened that the user was not shown,
// and what a guest writes never decides what is opened.

// traced is what a command under strace said and opened.
type traced struct {
	result
	opened []string // the paths, as they were given to the kernel, of opens that succeeded
	tried  []string // of all
}

// openCall has the directory that a name is relative to, as strace -y shows it, and the name.
var openCall = regexp.MustCompile(`(?:open|openat|openat2)\((?:[A-Z0-9_]+(?:<([^>]*)>)?, )?"((?:[^"\\]|\\.)*)"(\.\.\.)?.*\)\s+= (-?\d+)`)

// trace runs varve in dir under strace. What it mounted at mnt, if that is not
// "", is unmounted after use was called.
func trace(t *testing.T, dir, mnt string, use func(), args ...string) traced {
	t.Helper()
	temp := t.TempDir()
	log, done := filepath.Join(temp, "strace.log"), filepath.Join(temp, "done")
	cmd := command(dir, args...)
	// strace stays as long as the daemon does; a shell tells when varve itself
	// has ended, and how.
	script := `"$@"; echo $? >` + done
	// With --seccomp-bpf only these calls stop the program.
	cmd.Args = append([]string{"strace", "-f", "--seccomp-bpf", "-y", "-q", "-s", "5000", "-e", "trace=open,openat,openat2", "-o", log, "sh", "-c", script, "sh", cmd.Path}, args...)
	var err error
	if cmd.Path, err = exec.LookPath("strace"); err != nil {
		t.Fatal(err)
	}
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	wait := func(what string, there func() bool) {
		t.Helper()
		for deadline := time.Now().Add(testpatience.Hang); !there(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				_ = cmd.Process.Kill()
				t.Fatalf("varve %s: %s does not end", strings.Join(args, " "), what)
			}
		}
	}
	var r traced
	wait("it", func() bool {
		text, err := os.ReadFile(done)
		if err != nil || !strings.HasSuffix(string(text), "\n") {
			return false
		}
		r.code, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err == nil
	})
	if r.code == exitDone && mnt != "" {
		if use != nil {
			use()
		}
		must(t, dir, "umount", mnt)
	}
	wait("its daemon", func() bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	})
	r.stdout, r.stderr = out.String(), notices.ReplaceAllString(words.String(), "")
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	// A call that another thread's line cuts in two is put together again.
	unfinished := map[string]string{}
	for line := range strings.Lines(string(text)) {
		pid, call, _ := strings.Cut(strings.TrimSpace(line), " ")
		call = strings.TrimSpace(call)
		if head, cut := strings.CutSuffix(call, "<unfinished ...>"); cut {
			unfinished[pid] = strings.TrimSpace(head)
			continue
		}
		if rest, resumed := strings.CutPrefix(call, "<... "); resumed {
			_, rest, _ = strings.Cut(rest, "resumed>")
			call = unfinished[pid] + rest
		}
		if strings.HasSuffix(call, "= ?") { // its thread was ended in the middle of it
			continue
		}
		m := openCall.FindStringSubmatch(call)
		if m == nil {
			if strings.Contains(call, "open") && !strings.HasPrefix(call, "---") && !strings.HasPrefix(call, "+++") {
				t.Fatalf("strace says %q", call)
			}
			continue
		}
		path := m[2]
		if path != "" && !filepath.IsAbs(path) {
			path = m[1] + "/" + strings.TrimSuffix(path, ".")
		}
		if path == done {
			continue
		}
		r.tried = append(r.tried, path)
		if !strings.HasPrefix(m[4], "-") {
			r.opened = append(r.opened, path)
		}
	}
	if len(r.opened) == 0 {
		t.Fatalf("strace saw nothing:\n%s", text)
	}
	return r
}

// programsOwn are what varve, and what it runs on, open for themselves.
var programsOwn = []string{"/proc/", "/sys/", "/dev/null", "/dev/fuse", "/dev/urandom", "/etc/ld.so.cache", "/etc/localtime", "/etc/fuse.conf",
	"/lib/", "/lib64/", "/usr/lib/", "/usr/share/zoneinfo/", "/usr/share/locale", "/etc/nsswitch.conf", "/etc/passwd", "/etc/mtab", "/etc/libvirt/", "/var/lib/libvirt/", "/root/.config/libvirt/"}

// connectionControl is the file by which a mount is ended, in a mount of FUSE's control
// file system that has no place.
var connectionControl = regexp.MustCompile(`^/*[0-9]+/abort$`)

// foreignOpened are the opened files that are neither the program's own nor in
// one of the directories, which are the disk's and the mount's. Sorted, each
// once.
func foreignOpened(t *testing.T, paths []string, own ...string) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, path := range paths {
		mine := path == exe || path == "/" || path == "" || path == "/proc" || path == "/etc/group" || strings.HasPrefix(path, os.Getenv("GORACE")) || connectionControl.MatchString(path)
		for _, prefix := range programsOwn {
			mine = mine || strings.HasPrefix(path, prefix)
		}
		if log, found := strings.CutPrefix(os.Getenv("GORACE"), "log_path="); found {
			mine = mine || strings.HasPrefix(path, strings.Fields(log)[0])
		}
		for _, dir := range own {
			mine = mine || path == dir || strings.HasPrefix(path, dir+"/")
		}
		if !mine {
			list = append(list, path)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

var shownFile = regexp.MustCompile(`(?m)^  (/.*) \((?:raw|qcow2), as .*\)$|^varve: made .* on (/.*) \((?:raw|qcow2)\)$`)

// shown are the files that stderr names as those that the disk reads.
func shown(stderr string) []string {
	var list []string
	for _, m := range shownFile.FindAllStringSubmatch(stderr, -1) {
		list = append(list, m[1]+m[2])
	}
	slices.Sort(list)
	return list
}

// TestAdoptionOpensWhatItShows: of each image, create and the mount of the disk, or the
// mounts of the image, whichever have their turn.
func TestAdoptionOpensWhatItShows(t *testing.T) {
	dir := hostDir(t)
	for _, d := range []string{"mnt", "images", "images/deep"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	image(t, dir+"/base.raw", 4<<20, 1<<20)
	image(t, dir+"/other.raw", 4<<20, 1<<20)
	overlay := func(backing, format, path string) {
		tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", format, path)
	}
	overlay("../base.raw", "raw", "images/middle.qcow2")
	overlay("../middle.qcow2", "qcow2", "images/deep/top.qcow2")
	overlay(dir+"/images/middle.qcow2", "qcow2", "absolute.qcow2")
	if err := os.Symlink("base.raw", dir+"/link.raw"); err != nil {
		t.Fatal(err)
	}
	overlay("link.raw", "raw", "onlink.qcow2")
	for n, base := range []string{"base.raw", "images/middle.qcow2", "images/deep/top.qcow2", "absolute.qcow2", "onlink.qcow2"} {
		t.Run(base, func(t *testing.T) {
			disk := fmt.Sprintf("%s/d%d.varve", dir, n)
			temp := fmt.Sprintf("%s/.d%d.varve.creating", dir, n)
			own := []string{disk, temp, dir + "/mnt"}
			long := os.Getenv("VARVE_LONG") != ""
			var want []string
			if long || turn.Of(n, 2) == 0 {
				r := trace(t, dir, "", nil, "create", disk, "--base", base)
				want = shown(r.stderr)
				if r.code != exitDone || len(want) == 0 {
					t.Fatalf("exit %d, %q", r.code, r.stderr)
				}
				if got := foreignOpened(t, r.opened, dir, temp, disk); len(got) > 0 {
					t.Errorf("create opens elsewhere: %q", got)
				}
				// SyncDir of the parent is one of the program's own.
				if got := without(foreignOpened(t, r.opened, own...), dir); !slices.Equal(got, want) {
					t.Errorf("create opens %q, shows %q", got, want)
				}
				r = trace(t, dir, dir+"/mnt", nil, "mount", disk, "mnt")
				if got := without(foreignOpened(t, r.opened, own...), dir); r.code != exitDone || !slices.Equal(got, want) {
					t.Errorf("mount, exit %d, opens %q, the disk's files are %q", r.code, got, want)
				}
				if !long {
					return
				}
			} else if want = shown(must(t, dir, "create", disk, "--base", base).stderr); len(want) == 0 {
				t.Fatal("create shows no file")
			}
			r := trace(t, dir, dir+"/mnt", nil, "mount", "--read-only", base, "mnt")
			if got := without(foreignOpened(t, r.opened, own...), dir); r.code != exitDone || !slices.Equal(got, want) {
				t.Errorf("mount -r, exit %d, opens %q, the disk's files are %q; says %q", r.code, got, want, r.stderr)
			}
			image := filepath.Join(dir, base)
			r = trace(t, dir, dir+"/mnt", nil, "mount", base, "mnt")
			defer os.RemoveAll(image + ".varve")
			own = append(own, image+".varve", filepath.Dir(image)+"/."+filepath.Base(image)+".varve.creating")
			got := without(foreignOpened(t, r.opened, own...), dir, filepath.Dir(image))
			if show := shown(r.stderr); r.code != exitDone || !slices.Equal(got, show) || !slices.Equal(show, want) {
				t.Errorf("mount of the image, exit %d, opens %q, shows %q", r.code, got, show)
			}
		})
	}
}

// without leaves out some paths of a list.
func without(list []string, paths ...string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(path string) bool { return slices.Contains(paths, path) })
}

// TestHostileBackingNames: a header that names what is none of the user's
// business is refused, and what it names is not opened, nor even tried. A raw or
// qcow2 file that it names with its format is no secret: that is what the user
// is shown, and asks for by adopting. The ways in which a name is tried take turns.
func TestHostileBackingNames(t *testing.T) {
	dir := hostDir(t)
	for _, d := range []string{"mnt", "images", "private", "private/dir"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	secret := dir + "/private/shadow"
	if err := os.WriteFile(secret, []byte(strings.Repeat("root:secret\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(dir+"/private/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(dir+"/private/zero", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{"fifo", "zero", "dir", "shadow"} {
		if err := os.Symlink("../private/"+link, dir+"/images/"+link+"-link"); err != nil {
			t.Fatal(err)
		}
	}
	for n, c := range []struct {
		name, format string
		edit         func(t *testing.T, path string)
		says         string
		tried        bool // it is named with a format and looked into
	}{
		{secret, "", nil, "without its format", false},
		{"../private/shadow", "", nil, "without its format", false},
		{"shadow-link", "", nil, "without its format", false},
		{secret, "vmdk", nil, "only raw and qcow2", false},
		{secret, "RAW", nil, "only raw and qcow2", false},
		{secret, "raw\x00", nil, "only raw and qcow2", false},
		{secret, "host_device", nil, "only raw and qcow2", false},
		{`json:{"driver":"raw","file":{"driver":"file","filename":"` + secret + `"}}`, "raw", nil, "are not followed", false},
		{"json:{}", "qcow2", nil, "are not followed", false},
		{"file:" + secret, "raw", nil, "are not followed", false},
		{"nbd:unix:" + secret, "raw", nil, "are not followed", false},
		{"nbd+unix:///?socket=" + secret, "raw", nil, "are not followed", false},
		{"fat:rw:" + dir + "/private", "raw", nil, "are not followed", false},
		{dir + "/private/fifo", "raw", nil, "neither a file nor a block device", false},
		{"../private/fifo", "qcow2", nil, "neither a file nor a block device", false},
		{"fifo-link", "raw", nil, "neither a file nor a block device", false},
		{dir + "/private/zero", "raw", nil, "neither a file nor a block device", false},
		{"zero-link", "qcow2", nil, "neither a file nor a block device", false},
		{dir + "/private/dir", "raw", nil, "is a directory", false},
		{"dir-link", "raw", nil, "is a directory", false},
		{"/dev/stdin", "raw", nil, "neither a file nor a block device", false},
		{"/proc/self/mem", "raw", nil, "is empty", true},
		{secret, "qcow2", nil, "no qcow2 magic", true},
		{"", "", func(t *testing.T, path string) {
			tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+dir+"/private/data,data_file_raw=on", path, "1M")
		}, "external data file", false},
	} {
		t.Run(fmt.Sprintf("%s as %q", strings.ReplaceAll(c.name, dir, ""), c.format), func(t *testing.T) {
			path := fmt.Sprintf("%s/images/hostile%d.qcow2", dir, n)
			if c.edit != nil {
				c.edit(t, path)
			} else {
				hostileQcow2(t, dir, path, c.name, c.format)
			}
			commands := [][]string{
				{"mount", path, "mnt"},
				{"create", dir + "/d.varve", "--base", path},
				{"mount", "--read-only", path, "mnt"},
			}
			if os.Getenv("VARVE_LONG") == "" {
				at := turn.Of(n, len(commands))
				commands = commands[at : at+1]
			}
			for _, args := range commands {
				r := trace(t, dir, "", nil, args...)
				if r.code != exitFailed || !strings.Contains(r.stderr, c.says) || strings.Count(r.stderr, "\n") != 1 {
					t.Errorf("%v: exit %d, %q", args, r.code, r.stderr)
				}
				want := []string{path}
				for _, opened := range without(foreignOpened(t, r.tried, dir+"/mnt", dir+"/d.varve", path+".varve"), want...) {
					if !c.tried || !strings.Contains(r.stderr, opened) {
						t.Errorf("%v opens %s, or tries to", args, opened)
					}
				}
			}
			if left, err := filepath.Glob(dir + "/*.varve"); err != nil || len(left) > 0 {
				t.Errorf("left: %q, %v", left, err)
			}
		})
	}
}

// hostileQcow2 makes an image that names a backing file, as any program but
// qemu-img can.
func hostileQcow2(t *testing.T, dir, path, name, format string) {
	t.Helper()
	tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
	// qcow2 specification, "Header extensions": the format, padded to 8 bytes,
	// then the end of the list. "Header": backing_file_offset at byte 8, its
	// size at byte 16.
	const extensions = 112
	var list []byte
	if format != "" {
		list = binary.BigEndian.AppendUint32(list, 0xe2792aca)
		list = binary.BigEndian.AppendUint32(list, uint32(len(format)))
		list = append(list, format...)
		list = append(list, make([]byte, (8-len(format)%8)%8)...)
	}
	list = append(list, make([]byte, 8)...)
	patch(t, path, extensions, append(list, name...))
	place := binary.BigEndian.AppendUint64(nil, uint64(extensions+len(list)))
	patch(t, path, 8, binary.BigEndian.AppendUint32(place, uint32(len(name))))
}

// TestGuestHeaderIsData: what a guest writes into its disk is data. A qcow2
// header there changes nothing at the next mount, whatever was done to the disk
// in between, and what it names is not opened.
func TestGuestHeaderIsData(t *testing.T) {
	dir := hostDir(t)
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	secret := dir + "/shadow"
	if err := os.WriteFile(secret, []byte(strings.Repeat("root:secret\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	hostileQcow2(t, dir, dir+"/guest.qcow2", secret, "raw")
	header, err := os.ReadFile(dir + "/guest.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	mountedIs := func(what string, use func(), files ...string) {
		t.Helper()
		r := trace(t, dir, dir+"/mnt", func() {
			for _, file := range append(files, "disk.raw") {
				if got := get(t, dir+"/mnt/"+file, 0, len(header)); got != string(header) {
					t.Errorf("%s: %s has not what the guest wrote", what, file)
				}
			}
			if use != nil {
				use()
			}
		}, "mount", "vm.raw", "mnt", "--format", "raw")
		if r.code != exitDone {
			t.Fatalf("%s: exit %d, %q", what, r.code, r.stderr)
		}
		if slices.Contains(r.tried, secret) {
			t.Errorf("%s: %s was opened", what, secret)
		}
		got := without(foreignOpened(t, r.opened, dir+"/vm.raw.varve", dir+"/.vm.raw.varve.creating", dir+"/mnt"), dir)
		if len(got) > 0 && !slices.Equal(got, []string{dir + "/vm.raw"}) {
			t.Errorf("%s: opens %q", what, got)
		}
	}
	control := func(name, line string) {
		t.Helper()
		if err := os.WriteFile(dir+"/mnt/control/"+name, []byte(line), 0); err != nil {
			t.Errorf("%s %s: %v", name, line, err)
		}
		eventually(t, "no job runs", func() bool {
			st := document(t, dir, "mnt")
			return st.Job == nil || st.Job.State != chain.JobRunning
		})
	}
	// A guest that knew what was to come wrote it into the base already.
	base := append(bytes.Clone(header), make([]byte, 4<<20-len(header))...)
	if err := os.WriteFile(dir+"/vm.raw", base, 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, dir, exitFailed, []string{"begins like a qcow2", "--format raw"}, "mount", "vm.raw", "mnt")
	mountedIs("the base", func() { control("snapshot", "one") }, "layers/base.raw")
	mountedIs("after a snapshot", func() {
		put(t, dir+"/mnt", string(header), 0) // into the leaf, too
		control("snapshot", "two")
	}, "layers/base.raw", "layers/one.raw")
	mountedIs("written, and a snapshot", func() { control("revert", "one") }, "layers/two.raw")
	mountedIs("after a revert", func() {
		put(t, dir+"/mnt", string(header), 0)
		control("delete", "one")
	}, "layers/two.raw")
	mountedIs("after a delete", func() { control("flatten", "leaf") }, "layers/two.raw")
	mountedIs("after flattening the leaf", func() { control("flatten", "two") }, "layers/two.raw")
	mountedIs("after flattening the snapshot", nil, "layers/two.raw")
	// The base is written by somebody, and the change accepted: still raw.
	patch(t, dir+"/vm.raw", 2<<20, []byte("changed"))
	must(t, dir, "accept", "vm.raw", "base")
	mountedIs("after accept", nil, "layers/base.raw")
}

// sessionLibvirt gives the test a libvirt of its own user's: a domain that has a file in a format,
// and, by name, snapshots with the file before each and its overlay.
func sessionLibvirt(t *testing.T, domain, file, format string, snapshots map[string][2]string) {
	t.Helper()
	home := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", home)
	disk := func(file string) string {
		return `<devices><disk type="file" device="disk"><driver name="qemu" type="` + format + `"/><source file="` + file + `"/><target dev="vda" bus="virtio"/></disk></devices>`
	}
	write := func(name, text string) {
		path := filepath.Join(home, "libvirt/qemu", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(domain+".xml", "<domain><name>"+domain+"</name>"+disk(file)+"</domain>")
	for name, files := range snapshots {
		write("snapshot/"+domain+"/"+name+".xml", "<domainsnapshot><name>"+name+`</name><disks><disk name="vda" snapshot="external"><source file="`+files[1]+`"/></disk></disks>`+
			"<domain><name>"+domain+"</name>"+disk(files[0])+"</domain></domainsnapshot>")
	}
}

// TestTakeover: what virsh left is adopted by its own names, without a flag, and called as
// virsh calls it; the domain gets disk.raw by what doctor says.
func TestTakeover(t *testing.T) {
	dir := hostDir(t)
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	image(t, dir+"/vm2.qcow2.raw", 4<<20, 1<<20)
	tool(t, dir, "qemu-img", "convert", "-O", "qcow2", "vm2.qcow2.raw", "vm2.qcow2")
	for _, step := range [][3]string{{"vm2.qcow2", "vm2.s1", "1"}, {"vm2.s1", "vm2.s2", "2"}} {
		tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", dir+"/"+step[0], "-F", "qcow2", step[1])
		tool(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P "+step[2]+" 0 64k", step[1])
	}
	fails(t, dir, exitFailed, []string{`vm2.s2 begins like a qcow2 on "` + dir + `/vm2.s1" but is not named .qcow2, and no libvirt domain says what it is; say --format qcow2`}, "mount", "vm2.s2", "mnt")

	sessionLibvirt(t, "vm2", dir+"/vm2.s2", "qcow2", map[string][2]string{"s1": {dir + "/vm2.qcow2", dir + "/vm2.s1"}, "s2": {dir + "/vm2.s1", dir + "/vm2.s2"}})
	r := must(t, dir, "mount", "-r", "vm2.s2", "mnt")
	if !strings.Contains(r.stderr, "/vm2.s1 (qcow2, as s2: libvirt's snapshot s2 of domain vm2)\n") {
		t.Errorf("read-only says\n%s", r.stderr)
	}
	must(t, dir, "umount", "mnt")
	r = must(t, dir, "mount", "vm2.s2", "mnt")
	for _, line := range []string{
		"  " + dir + "/vm2.s2 (qcow2, as adopted: the disk as it was last written)\n  " + dir + "/vm2.s1 (qcow2, as s2: libvirt's snapshot s2 of domain vm2)\n" +
			"  " + dir + "/vm2.qcow2 (qcow2, as base: as s1, libvirt's snapshot s1 of domain vm2)\n",
		"varve: note: " + dir + "/vm2.s2 is read as a qcow2, as libvirt's domain vm2 has it\n",
		"varve: libvirt's domain vm2 still has it; \"varve doctor " + dir + "/mnt\" has the command that gives the domain disk.raw\n",
	} {
		if !strings.Contains(r.stderr, line) {
			t.Errorf("no %q in\n%s", line, r.stderr)
		}
	}
	for layer, want := range map[string]string{"s1": "vm2.qcow2", "s2": "vm2.s1", "adopted": "vm2.s2", "base": "vm2.qcow2"} {
		tool(t, dir, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", "mnt/layers/"+layer+".raw", want)
	}
	must(t, dir, "revert", "mnt", "s1")
	tool(t, dir, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", "mnt/disk.raw", "vm2.qcow2")
	said := vv(t, dir, "doctor", "mnt").stdout
	for _, line := range []string{
		"virsh -c qemu:///session update-device vm2 /dev/stdin --config <<'END'\n<disk type='file' device='disk'>\n  <driver name='qemu' type='raw'/>\n  <source file='" + dir + "/mnt/disk.raw'/>\n  <target dev='vda' bus='virtio'/>\n</disk>\nEND\n",
		"virsh -c qemu:///session snapshot-delete vm2 s1 --metadata\nvirsh -c qemu:///session snapshot-delete vm2 s2 --metadata\n",
	} {
		if !strings.Contains("\n"+said, "\n"+line) {
			t.Errorf("no %q in\n%s", line, said)
		}
	}
	must(t, dir, "umount", "mnt")
	must(t, dir, "check", "vm2.s2")

	// A guest that has written all this into its raw disk has it read as what it is.
	sessionLibvirt(t, "vm2", dir+"/vm3.img", "raw", nil)
	forged, err := os.ReadFile(dir + "/vm2.s2")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/vm3.img", forged, 0o600); err != nil {
		t.Fatal(err)
	}
	traced := trace(t, dir, dir+"/mnt", func() { tool(t, dir, "cmp", "mnt/disk.raw", "vm3.img") }, "mount", "vm3.img", "mnt")
	if traced.code != exitDone || !strings.Contains(traced.stderr, "vm3.img is read as raw, as libvirt's domain vm2 has it") || slices.Contains(traced.tried, dir+"/vm2.s1") {
		t.Errorf("exit %d, tried %q, %s", traced.code, traced.tried, traced.stderr)
	}
}
