#!/bin/sh
# make quickstart: a small disk image, mounted with varve in ./quickstart, with
# a snapshot and a change after it. make quickstart-clean takes it away again.
# Needs root, or sudo: it attaches loop devices and mounts a file system.
set -eu

top=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
dir=$top/quickstart
image=$dir/vm.raw
disk=$dir/vm.raw.varve
mnt=$dir/mnt
tmp=$dir/tmp
varve=$top/bin/varve
partition=1048576 # bytes: where the image's one partition begins
export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin

if [ "$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi

cd "$top"
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n%s\n' "$*"; }
# run shows a command as a user would type it from the checkout, and runs it.
run() {
	echo "  $ $*" | sed "s#$top/##g"
	"$@"
}

is_mounted() { findmnt -rn --mountpoint "$1" >/dev/null; }

# detach detaches the loop devices on a file in quickstart/.
detach() {
	for device in $(losetup -n -O NAME,BACK-FILE | awk -v d="$dir/" 'index($2, d) == 1 { print $1 }'); do
		$sudo losetup -d "$device"
	done
}

clean() {
	if [ ! -e "$dir" ]; then
		echo "quickstart/ is not there: nothing to clean"
		return
	fi
	if is_mounted "$tmp"; then $sudo umount "$tmp"; fi
	detach
	if is_mounted "$mnt"; then
		$sudo "$varve" umount "$mnt" || {
			echo "quickstart: $mnt is still mounted; stop what uses it, then run make quickstart-clean again" >&2
			exit 1
		}
	fi
	$sudo rm -rf "$dir"
	echo "quickstart/ is gone"
}

failed() {
	status=$?
	[ $status = 0 ] && return
	echo "quickstart: did not finish; make quickstart-clean removes what there is, then try again" >&2
}

start() {
	if [ -e "$dir" ]; then
		echo "quickstart: quickstart/ is there already: go on with it, or run make quickstart-clean first" >&2
		exit 1
	fi
	trap failed EXIT
	"$top/packaging/install-deps.sh" --mount
	make --no-print-directory -s -C "$top" build
	mkdir "$dir" "$dir/files" "$tmp"

	say "A raw image of 64 MiB with a partition and an ext4 file system, as a VM has it:"
	echo "Hello from the base image." >"$dir/files/hello.txt"
	seq 1 50000 >"$dir/files/numbers.txt"
	truncate -s 64M "$image"
	echo "start=2048, type=83" | sfdisk --quiet --label dos "$image"
	mke2fs -q -F -t ext4 -d "$dir/files" -E offset=$partition "$image" 63M
	rm -r "$dir/files"
	run fdisk -l "$image"

	say "Mount it. From now on a VM uses mnt/disk.raw; vm.raw is never written again:"
	mkdir "$mnt"
	run $sudo "$varve" mount "$image" "$mnt"

	say "Take a snapshot:"
	run $sudo "$varve" snapshot "$mnt" before-change

	say "Change a file in the disk, through a loop device:"
	device=$($sudo losetup --find --show --offset $partition "$mnt/disk.raw")
	echo "  \$ losetup --find --show --offset $partition quickstart/mnt/disk.raw    # $device"
	run $sudo mount -t ext4 "$device" "$tmp"
	echo "Hello from the changed disk." | $sudo tee "$tmp/hello.txt" >/dev/null
	echo "  \$ echo Hello from the changed disk. > quickstart/tmp/hello.txt"
	run $sudo umount "$tmp"
	run $sudo losetup -d "$device"

	say "The file in the disk, and in the snapshot:"
	for file in "$mnt/disk.raw" "$mnt/layers/before-change.raw"; do
		echo "  $ debugfs -R 'cat /hello.txt' '$file?offset=$partition'" | sed "s#$top/##g"
		$sudo debugfs -R "cat /hello.txt" "$file?offset=$partition" 2>/dev/null
	done

	say "The chain:"
	run $sudo "$varve" list "$mnt"

	say "It stays mounted. Try next, from this directory:"
	while read -r command; do
		echo "  ${sudo:+$sudo }$command"
	done <<-EOF
		ls -l quickstart/mnt quickstart/mnt/layers            # every layer is a raw file
		cat quickstart/mnt/status                             # the chain as a table
		cmp quickstart/mnt/layers/base.raw quickstart/vm.raw  # the base is as it was
		bin/varve snapshot quickstart/mnt second              # freeze the disk as it is now
		bin/varve revert quickstart/mnt before-change         # hello.txt is as it was
		bin/varve delete quickstart/mnt second                # the snapshot goes
		bin/varve umount quickstart/mnt                       # and see it without varve:
		qemu-img info --backing-chain quickstart/vm.raw.varve/layers/000002.qcow2
		bin/varve mount quickstart/vm.raw quickstart/mnt      # back again
	EOF
	echo "  make quickstart-clean                                 # take it all away"
}

case "${1-}" in
start) start ;;
clean) clean ;;
*)
	echo "usage: $0 start|clean" >&2
	exit 2
	;;
esac
