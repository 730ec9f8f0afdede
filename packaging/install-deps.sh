#!/bin/sh
# Installs what the tests and the quickstart need on a Debian machine, and only
# what is missing; says nothing when all is there. Needs root, or sudo.
#
#   install-deps.sh            everything that `make test` needs
#   install-deps.sh --mount    only what mounting and `make quickstart` need
#   install-deps.sh --bench    only what `make bench` needs
#   install-deps.sh --check    install nothing; name what is missing, exit 1
#
# libvirt comes without libvirt-daemon-system: nothing is started on this machine, no
# user and no network is made; the tests start a libvirtd of their own.
#
# A kernel and a static busybox for the test guest are unpacked into
# .cache/guest of the checkout, unless the machine has them: installing them
# would run initramfs and boot-loader hooks, or replace another busybox.
set -eu

top=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
guest=$top/.cache/guest
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin

# command:package
mount_tools='fusermount3:fuse3 losetup:mount fdisk:fdisk sfdisk:fdisk mke2fs:e2fsprogs
	e2fsck:e2fsprogs debugfs:e2fsprogs qemu-img:qemu-utils'
test_tools='qemu-io:qemu-utils qemu-system-x86_64:qemu-system-x86 fio:fio mkfs.xfs:xfsprogs
	mkfs.btrfs:btrfs-progs cpio:cpio depmod:kmod jq:jq setfattr:attr setpriv:util-linux
	fstrim:util-linux strace:strace xz:xz-utils gzip:gzip tar:tar cmp:diffutils file:file
	xmllint:libxml2-utils blkid:util-linux unshare:util-linux libvirtd:libvirt-daemon virsh:libvirt-clients
	/usr/share/OVMF/OVMF_CODE_4M.fd:ovmf'
# manual pages, completion, units and the Debian package; a path is looked for as it is
test_tools="$test_tools man:man-db lexgrog:man-db mandoc:mandoc col:bsdextrautils fish:fish zsh:zsh
	/usr/share/bash-completion/bash_completion:bash-completion systemd-analyze:systemd
	dbus-daemon:dbus-daemon lintian:lintian strings:binutils"
# varve's peers, and what measures them
bench_tools='fio:fio qemu-io:qemu-utils qemu-nbd:qemu-utils qemu-storage-daemon:qemu-system-common
	nbdfuse:libnbd-bin mkfs.xfs:xfsprogs'

mode=install
tools="$mount_tools $test_tools"
guest_wanted=yes
case "${1-}" in
'') ;;
--mount) tools=$mount_tools guest_wanted=no ;;
--bench) tools="$mount_tools $bench_tools" guest_wanted=no ;;
--check) mode=check ;;
*)
	echo "usage: $0 [--mount|--bench|--check]" >&2
	exit 2
	;;
esac

fail() {
	echo "install-deps: $*" >&2
	exit 1
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo DEBIAN_FRONTEND=noninteractive LC_ALL=C "$@"
	else
		fail "installing packages needs root: run this as root, or install sudo"
	fi
}

# missing_tools prints "command:package" of each command that is not there.
missing_tools() {
	for pair in $tools; do
		command -v "${pair%%:*}" >/dev/null || [ -f "${pair%%:*}" ] || echo "$pair"
	done
}

# guest_ready tells whether .cache/guest has what the test guest boots from.
guest_ready() {
	[ "$guest_wanted" = no ] ||
		{ [ -r "$guest/vmlinuz" ] && [ -r "$guest/modules/modules.dep" ] && [ -x "$guest/busybox" ]; }
}

# check_devices fails on what no package can bring.
check_devices() {
	[ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
	[ -e /dev/fuse ] || fail "/dev/fuse is missing: the kernel has no FUSE, or this container was not given the device"
	# Tests mount as ordinary users too. udev gives the device this mode; a machine
	# without udev leaves it root's.
	[ $mode = check ] || [ "$(stat -c %a /dev/fuse)" = 666 ] || as_root chmod 666 /dev/fuse ||
		fail "/dev/fuse can only be opened by root: chmod 666 /dev/fuse"
	[ -e /dev/loop-control ] || as_root modprobe loop 2>/dev/null || true
	[ -e /dev/loop-control ] || fail "/dev/loop-control is missing: the kernel has no loop devices, or this container was not given them"
}

apt_updated=no
apt_update() {
	[ $apt_updated = yes ] || as_root apt-get update -qq || fail "apt-get update failed"
	apt_updated=yes
}

# unpack PACKAGE puts a package's files under .cache/guest/root.
unpack() {
	(
		cd "$guest"
		rm -f ./*.deb
		apt-get download -qq -o APT::Sandbox::User=root "$1" || fail "cannot download package $1"
		dpkg-deb -x ./*.deb root
		rm -f ./*.deb
	)
}

# fetch_guest fills .cache/guest with vmlinuz, modules and busybox.
fetch_guest() {
	rm -rf "$guest"
	mkdir -p "$guest/root"

	version=
	for image in /boot/vmlinuz-*-cloud-amd64; do
		candidate=${image#/boot/vmlinuz-}
		[ -r "$image" ] && [ -r "/lib/modules/$candidate/modules.dep" ] && version=$candidate
	done
	if [ -n "$version" ]; then
		ln -s "/boot/vmlinuz-$version" "$guest/vmlinuz"
		ln -s "/lib/modules/$version" "$guest/modules"
	else
		apt_update
		package=$(apt-cache depends linux-image-cloud-amd64 |
			sed -n 's/^ *Depends: \(linux-image-.*-cloud-amd64\)$/\1/p' | head -n 1)
		[ -n "$package" ] || fail "apt knows no package linux-image-cloud-amd64"
		version=${package#linux-image-}
		unpack "$package"
		modules=root/lib/modules
		[ -d "$guest/$modules" ] || modules=root/usr/lib/modules
		depmod -b "$guest/${modules%/lib/modules}" "$version" || fail "depmod failed for kernel $version"
		ln -s "root/boot/vmlinuz-$version" "$guest/vmlinuz"
		ln -s "$modules/$version" "$guest/modules"
	fi

	if [ "$(dpkg-query -W -f '${Status}' busybox-static 2>/dev/null)" = "install ok installed" ]; then
		ln -s "$(command -v busybox)" "$guest/busybox"
	else
		apt_update
		unpack busybox-static
		busybox=root/bin/busybox
		[ -e "$guest/$busybox" ] || busybox=root/usr/bin/busybox
		ln -s "$busybox" "$guest/busybox"
	fi
	guest_ready || fail "the guest's files in $guest are not complete"
}

# check_mtab makes the file that fusermount3 insists on; a bare container may
# lack it.
check_mtab() {
	[ -e /etc/mtab ] || as_root ln -s /proc/self/mounts /etc/mtab
}

missing=$(missing_tools)

if [ $mode = check ]; then
	check_devices
	[ -z "$missing" ] || fail "missing (command:package): $(echo "$missing" | tr '\n' ' '); run make deps"
	guest_ready || fail "no kernel for the test guest in $guest; run make deps"
	exit 0
fi

if [ -n "$missing" ]; then
	command -v apt-get >/dev/null || fail "no apt-get here; install yourself (command:package): $(echo "$missing" | tr '\n' ' ')"
	packages=$(echo "$missing" | sed 's/.*://' | sort -u | tr '\n' ' ')
	echo "install-deps: installing $packages" >&2
	apt_update
	log=$(mktemp)
	# shellcheck disable=SC2086 # one word per package
	as_root apt-get install -y -qq --no-install-recommends $packages >"$log" 2>&1 </dev/null || {
		cat "$log" >&2
		rm -f "$log"
		fail "apt-get install failed"
	}
	rm -f "$log"
	missing=$(missing_tools)
	[ -z "$missing" ] || fail "still missing (command:package): $(echo "$missing" | tr '\n' ' ')"
fi
check_devices
check_mtab
guest_ready || fetch_guest
