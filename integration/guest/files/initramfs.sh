#!/bin/busybox sh
# init of the initramfs: load the modules for the disk, mount the root file
# system from the partition, go on with the init that is in it.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
while read -r module; do
	/bin/busybox insmod "/modules/$module" || echo "varve-guest: cannot load $module"
done </modules/order
tries=0
until [ -b /dev/vda1 ] || [ $tries = 100 ]; do
	tries=$((tries + 1))
	/bin/busybox usleep 50000
done
/bin/busybox mount -t ext4 -o discard,errors=panic /dev/vda1 /root || {
	echo "varve-guest: cannot mount the root file system"
	/bin/busybox poweroff -f
}
/bin/busybox umount /proc
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
