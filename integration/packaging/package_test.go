package packaging

import (
	"fmt"
	"strings"
	"testing"

	"varve/integration/harness"
)

// TestPackageLife installs the package, uses it as an administrator does, upgrades
// it under a mount that is in use, and removes it.
func TestPackageLife(t *testing.T) {
	older, _ := firstDeb(t)
	newer := makeDeb(t, checkoutCopy(t), "1.1.0")
	s := newSystem(t)
	s.copyIn(older, "/older.deb")
	s.copyIn(newer, "/newer.deb")

	s.run("dpkg -i /older.deb")
	if v := s.run("varve version"); !strings.HasPrefix(v, "varve v1.0.0 ") {
		t.Errorf("varve version: %s", v)
	}
	s.run("dpkg --verify varve; test -x /sbin/mount.fuse.varve; test -x /sbin/umount.fuse.varve")
	for _, page := range []string{"man -w varve", "man -w varve mount", "man -w 5 varve"} {
		s.run(page)
	}
	s.run("dpkg -s varve | grep -q '^Status: install ok installed$'")
	usedByMount(t, s)

	// A mount in use, an upgrade, and the same mount with the new program.
	s.run(`
mkdir -p /srv /mnt/vm1; cd /srv
truncate -s 64M vm1.raw; printf base | dd of=vm1.raw conv=notrunc status=none
varve mount vm1.raw /mnt/vm1
printf before | dd of=/mnt/vm1/disk.raw conv=notrunc,fsync status=none`)
	daemon := strings.TrimSpace(s.run("sed -n 's/.*msg=mounted.* pid=\\([0-9]*\\).*/\\1/p' /srv/vm1.raw.varve/varve.log"))
	s.run("kill -0 " + daemon)
	s.run(`
exec 3<>/mnt/vm1/disk.raw
dpkg -i /newer.deb
printf during >&3
exec 3>&-`)
	if v := s.run("varve version"); !strings.HasPrefix(v, "varve v1.1.0 ") {
		t.Errorf("varve version after the upgrade: %s", v)
	}
	log := s.run("cat /srv/vm1.raw.varve/varve.log")
	if want := "version=\"varve v1.0.0 (commit " + commit + ")"; !strings.Contains(log, want) || strings.Contains(log, "v1.1.0") || strings.Count(log, "msg=mounted") != 1 {
		t.Errorf("the mount did not live on; its log says\n%s", log)
	}
	if got := s.run("head -c 6 /mnt/vm1/disk.raw"); got != "during" {
		t.Errorf("disk.raw has %q", got)
	}
	s.run("varve snapshot /mnt/vm1 upgraded; varve list /mnt/vm1 | grep -q upgraded; cat /mnt/vm1/status >/dev/null")

	// Removing it now is refused; then it is not.
	r := s.try("dpkg -r varve")
	if want := "varve: a disk is mounted at /mnt/vm1; unmount it first: varve umount /mnt/vm1\n"; r.Code == 0 || !strings.Contains(r.Stderr, want) {
		t.Errorf("removed under a mount: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	s.run("varve status /mnt/vm1; varve umount /mnt/vm1; varve check /srv/vm1.raw")
	harness.Eventually(t, limit, func() error { // its parent has to take note of it
		if s.try("kill -0 "+daemon).Code == 0 {
			return fmt.Errorf("the daemon of 1.0.0 (pid %s) still runs after varve umount", daemon)
		}
		return nil
	})
	s.run("printf 'DISK=/srv/vm1.raw\\nMOUNTPOINT=/mnt/vm1\\n' >/etc/varve/vm1.conf; dpkg -r varve")
	left := s.run("dpkg -L varve; find / -xdev -newer /older.deb -name '*varve*' -not -path '/var/lib/dpkg/*' -not -path '/var/tmp/*' -not -path '/var/log/*' -not -path '/tmp/*' | sort")
	for line := range strings.Lines(left) {
		switch line = strings.TrimSpace(line); {
		case strings.HasPrefix(line, "/etc"), strings.HasPrefix(line, "/srv/"), line == "/.":
		default:
			t.Errorf("dpkg -r leaves %s", line)
		}
	}
	s.run("dpkg -P varve; test -e /etc/varve/vm1.conf; test ! -e /etc/varve/README; test ! -e /etc/needrestart/conf.d/varve.conf; test -e /srv/vm1.raw.varve/chain.json")
	if r := s.try("dpkg -s varve"); r.Code == 0 {
		t.Errorf("purged, and dpkg knows it still:\n%s", r.Stdout)
	}
}

// usedByMount uses mount(8), umount(8) and fstab, as installed.
func usedByMount(t *testing.T, s *system) {
	t.Helper()
	s.run(`
mkdir -p /srv /mnt/one /mnt/two; cd /srv
varve create one.varve --size 8M
varve create two.varve --size 8M
mount -t fuse.varve one.varve /mnt/one -o noatime,umask=022,uhelper=fuse.varve
findmnt -n -o SOURCE,FSTYPE,OPTIONS /mnt/one`)
	if got := s.run("findmnt -rn -o SOURCE,FSTYPE /mnt/one"); got != "/srv/one.varve fuse.varve\n" {
		t.Errorf("mounted: %s", got)
	}
	if got := s.run("findmnt -rn -o OPTIONS /mnt/one; stat -c %a /mnt/one/disk.raw"); !strings.Contains(got, "noatime") || !strings.HasSuffix(got, "\n644\n") {
		t.Errorf("mounted with %s", got)
	}

	// umount(8) says who uses it, and comes back when all is written.
	r := s.try("exec 3<>/mnt/one/disk.raw; umount /mnt/one 3>&-")
	if r.Code == 0 || !strings.Contains(r.Stderr, "varve: umount /mnt/one: it is in use: disk.raw is open (pid ") {
		t.Errorf("umount of a mount in use: exit code %d, %q", r.Code, r.Stderr)
	}
	s.run(`
dd if=/dev/urandom of=/root/bytes bs=1M count=4 status=none
dd if=/root/bytes of=/mnt/one/disk.raw bs=1M conv=notrunc status=none
umount /mnt/one
# Nobody holds the disk now, and what was never flushed by its writer is there.
varve check /srv/one.varve
varve export /srv/one.varve leaf /root/copy.raw
cmp -n 4194304 /root/bytes /root/copy.raw`)

	s.run(`
printf '%s\n' '/srv/one.varve /mnt/one fuse.varve noauto,uhelper=fuse.varve,umask=077 0 0' \
	'/srv/two.varve /mnt/two fuse.varve nofail,ro,x-systemd.mount-timeout=infinity,x-systemd.before=libvirtd.service 0 0' >/root/fstab
mount -T /root/fstab /mnt/one
mount -T /root/fstab -a
mount -T /root/fstab -a
test "$(findmnt -rn -t fuse.varve | wc -l)" = 2
findmnt -rn -o OPTIONS /mnt/two | grep -q '^ro,'
umount -a -t fuse.varve
test -z "$(findmnt -rn -t fuse.varve)"`)

	s.run(`
mount -t fuse.varve /srv/one.varve /mnt/one
exec 3<>/mnt/one/disk.raw
umount -l /mnt/one
test -z "$(findmnt -rn -t fuse.varve)"
printf late >&3
exec 3>&-
mount -t fuse.varve /srv/one.varve /mnt/one
test "$(head -c 4 /mnt/one/disk.raw)" = late
umount -f /mnt/one`)

	// As systemd calls it, the helper is found without an option; and without both
	// the disk can be mounted again at once all the same.
	r = s.try("mount -t fuse.varve /srv/one.varve /mnt/one; exec 3<>/mnt/one/disk.raw; umount -c /mnt/one")
	if r.Code == 0 || !strings.Contains(r.Stderr, "varve: umount /mnt/one: it is in use: ") {
		t.Errorf("umount -c of a mount in use: exit code %d, %q", r.Code, r.Stderr)
	}
	s.run("umount /mnt/one; mount -t fuse.varve /srv/one.varve /mnt/one; umount /mnt/one; varve check /srv/one.varve")

	for script, want := range map[string]string{
		"mount -t fuse.varve /srv/none.varve /mnt/one":                 "varve: mount /srv/none.varve: no such image or disk directory\n",
		"mount -t fuse.varve /srv/one.varve /mnt/none":                 "varve: mount /srv/one.varve: the mountpoint /mnt/none does not exist; make it with mkdir\n",
		"mount -t fuse.varve /srv/one.varve /mnt/one -o frob":          `varve: mount: unknown mount option "frob"`,
		"mount -t fuse.varve -o remount,ro /srv/one.varve /mnt/one":    "varve: mount.fuse.varve: a mount cannot be changed; ",
		"mount -t fuse.varve /srv/one.varve /mnt/one -o subtype=other": "varve: mount: ",
	} {
		r := s.try(script)
		if r.Code == 0 || !strings.HasPrefix(r.Stderr, want) || strings.Count(r.Stderr, "\n") != 1 {
			t.Errorf("%s: exit code %d, %q", script, r.Code, r.Stderr)
		}
	}
}
