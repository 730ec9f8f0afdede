package main

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"varve/chain"
)

// modeOf tells a file's mode and owner as the kernel does.
func modeOf(t *testing.T, path string) (mode os.FileMode, uid, gid uint32) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return info.Mode().Perm(), st.Uid, st.Gid
}

// A mount that is told nothing is as the last one was: its VM's user gets in again after
// the daemon was killed. What is told, by -o with nothing behind it too, counts alone.
func TestMountRemembersOptions(t *testing.T) {
	dir := hostDir(t)
	image(t, dir+"/vm.raw", 4<<20, 1<<20)
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	disk, raw := dir+"/vm.raw.varve", dir+"/mnt/disk.raw"
	isOurs := func(when string) {
		t.Helper()
		if mode, uid, gid := modeOf(t, raw); mode != 0o660 || uid != 65534 || gid != 65533 {
			t.Errorf("%s: mode %o, owner %d:%d", when, mode, uid, gid)
		}
	}
	isPlain := func(when string) {
		t.Helper()
		if mode, uid, gid := modeOf(t, raw); mode != 0o600 || uid != 0 || gid != 0 {
			t.Errorf("%s: mode %o, owner %d:%d", when, mode, uid, gid)
		}
	}
	const words = "allow_other,uid=65534,gid=65533,umask=007,cache=8388608,job_rate=1048576,noatime"
	must(t, dir, "mount", "vm.raw", "mnt", "--allow-other", "--uid", "65534", "--gid", "65533", "--umask", "007", "--cache", "8M",
		"--job-rate", "1M", "-o", "noatime,nofail,x-systemd.automount")
	isOurs("told")
	if last, err := chain.LastMount(disk); err != nil || last.Options != words || last.Mountpoint != dir+"/mnt" {
		t.Errorf("chain.json has %+v, %v", last, err)
	}

	killed(t, disk)
	says(t, dir, []string{dir + "/mnt"}, "problem stale-mount "+dir+"/mnt: its daemon is gone: whoever opens a file there is told \"Transport endpoint is not connected\"; "+
		"mount it anew with the options that it had: varve mount -o "+chain.ShellWord(words)+" "+disk+" "+dir+"/mnt; ", "note unclean "+disk)
	if r := must(t, dir, "mount", "vm.raw", "mnt"); !strings.Contains(r.stderr, "varve: mount vm.raw: as it was last mounted, with -o "+chain.ShellWord(words)+" (--defaults mounts it without)\n") {
		t.Errorf("says %q", r.stderr)
	}
	isOurs("after a kill")
	if text, err := os.ReadFile(dir + "/mnt/control/rate"); err != nil || !strings.Contains(string(text), "# now: 1048576 ") {
		t.Errorf("the rate is %s, %v", text, err)
	}
	if options := tool(t, dir, "findmnt", "-no", "OPTIONS", "mnt"); !strings.Contains(options, "noatime") || !strings.Contains(options, "allow_other") {
		t.Errorf("the mount has %s", options)
	}
	must(t, dir, "umount", "mnt")

	// A mount for reading is as before, and does not count.
	must(t, dir, "mount", "-r", "vm.raw", "mnt")
	if mode, uid, _ := modeOf(t, raw); mode != 0o660 || uid != 65534 {
		t.Errorf("read-only: mode %o, owner %d", mode, uid)
	}
	must(t, dir, "umount", "mnt")
	must(t, dir, "mount", "-r", "--defaults", "vm.raw", "mnt")
	isPlain("read-only, with the defaults")
	must(t, dir, "umount", "mnt")
	must(t, dir, "mount", "vm.raw", "mnt")
	isOurs("after a mount for reading")
	must(t, dir, "umount", "mnt")

	// Who says something says all, and the next one has that.
	must(t, dir, "mount", "vm.raw", "mnt", "-o", "")
	isPlain("told to have none")
	must(t, dir, "umount", "mnt")
	if r := must(t, dir, "mount", "vm.raw", "mnt"); r.stderr != "" {
		t.Errorf("nothing is remembered, but it says %q", r.stderr)
	}
	isPlain("after one with none")
	must(t, dir, "umount", "mnt")

	must(t, dir, "mount", "vm.raw", "mnt", "--umask", "027")
	must(t, dir, "umount", "mnt")
	must(t, dir, "mount", "vm.raw", "mnt", "--defaults")
	isPlain("with the defaults")
}

// Words that another user can have written into chain.json are not used; neither are those
// that no mount can have left there.
func TestMountMemoryIsNotTrusted(t *testing.T) {
	dir, _ := mounted(t, 4<<20, 1<<20)
	disk := dir + "/vm.raw.varve"
	must(t, dir, "umount", "mnt")
	must(t, dir, "mount", "vm.raw", "mnt", "--umask", "000")
	must(t, dir, "umount", "mnt")
	// Root opens the base with that user's rights.
	tool(t, dir, "chown", "-R", "65534", disk)
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(dir+"/vm.raw", 0o644)); err != nil {
		t.Fatal(err)
	}
	r := must(t, dir, "mount", "vm.raw", "mnt")
	if want := "varve: mount vm.raw: the options of its last mount are not used, for uid 65534 can have changed them; they were: -o umask=000\n"; r.stderr != want {
		t.Errorf("says %q, want %q", r.stderr, want)
	}
	if mode, _, _ := modeOf(t, dir+"/mnt/disk.raw"); mode != 0o600 {
		t.Errorf("mode %o", mode)
	}
	must(t, dir, "umount", "mnt")
	must(t, dir, "mount", "vm.raw", "mnt", "--umask", "000")
	killed(t, disk)
	if _, words := asked(t, dir, "mnt"); !strings.Contains(words, "varve mount "+disk+" "+dir+"/mnt; ") || strings.Contains(words, "umask") {
		t.Errorf("doctor has root mount it with another user's words: %s", words)
	}
	must(t, dir, "umount", "mnt")
	tool(t, dir, "chown", "-R", "0", disk)

	for _, words := range []string{"umask=9", "frobnicate", "disk=/etc", "ro", "format=raw", "fsname=x"} {
		d, err := chain.Open(disk, chain.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.RememberMount(dir+"/mnt", words); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		fails(t, dir, exitFailed, []string{"mount vm.raw: the options of the last mount, ", words, " cannot be used: ", "--defaults"}, "mount", "vm.raw", "mnt")
	}
	must(t, dir, "mount", "vm.raw", "mnt", "--defaults")
	must(t, dir, "umount", "mnt")
	must(t, dir, "mount", "vm.raw", "mnt")
}

// A disk directory may be another user's: a link in it does not make the daemon write
// what that user may not.
func TestMountWritesThroughNoLink(t *testing.T) {
	dir := hostDir(t)
	must(t, dir, "create", "vm.varve", "--size", "1M")
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	link := func(name string) (other string) {
		t.Helper()
		other = dir + "/other-" + name
		if err := os.WriteFile(other, []byte("somebody's"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(other, dir+"/vm.varve/"+name); err != nil {
			t.Fatal(err)
		}
		return other
	}
	reserve := link("reserve")
	must(t, dir, "mount", "vm.varve", "mnt") // there is none then
	must(t, dir, "umount", "mnt")
	if err := os.Remove(dir + "/vm.varve/varve.log"); err != nil {
		t.Fatal(err)
	}
	log := link("varve.log")
	fails(t, dir, exitFailed, []string{"open the log", "vm.varve/varve.log: too many levels of symbolic links"}, "mount", "vm.varve", "mnt")
	for _, other := range []string{reserve, log} {
		if got, err := os.ReadFile(other); string(got) != "somebody's" {
			t.Errorf("%s has %d bytes, %.40q (%v)", other, len(got), got, err)
		}
	}
}
