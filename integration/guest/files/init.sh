#!/bin/sh
# init of the test guest's root file system. The kernel's messages go to the
# first serial port. On the second it takes one line of shell at a time, runs
# it, and answers with "VARVE done STATUS"; what the line prints comes before.
# A background writer reports "VARVE fsynced NAME SHA256" after it has made a
# file, and "VARVE removed NAME" before it removes one.
PATH=/bin:/sbin
export PATH
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmpfs /run
port=/dev/ttyS1
stty -F $port -echo -icrnl -onlcr

# put NAME KIB writes a file of random bytes, fsyncs it, and says so with its
# digest. What was said before a snapshot must be in the snapshot.
put() {
	dd if=/dev/urandom of="/data/$1" bs=4k count=$(($2 / 4)) conv=fsync 2>/dev/null || return 1
	sum=$(sha256sum "/data/$1") || return 1
	echo "$sum" >>/data/sums
	echo "VARVE fsynced $1 ${sum%% *}" >$port
}

# churn rewrites pieces in the middle of an old file, with and without fsync:
# writes in place, of which no digest is kept.
churn() {
	[ -e /data/churn ] || dd if=/dev/urandom of=/data/churn bs=64k count=32 2>/dev/null
	dd if=/dev/urandom of=/data/churn bs=3k count=5 seek=$(($1 * 7 % 600)) conv=notrunc 2>/dev/null
}

# writer PREFIX writes files until /run/stop is there.
writer() {
	n=0
	while [ ! -e /run/stop ]; do
		n=$((n + 1))
		churn $n
		put "$1.$n" $((4 + n * 28 % 200)) || echo "VARVE failed $1.$n" >$port
		# A bounded number of files: older ones make room, which the file
		# system discards (mounted with -o discard) and uses again.
		old=$((n - 100))
		[ $old -lt 1 ] || {
			echo "VARVE removed $1.$old" >$port
			rm -f "/data/$1.$old"
		}
	done
}
start() {
	rm -f /run/stop
	writer "$1" &
	echo $! >/run/writer
}
stop() {
	touch /run/stop
	wait "$(cat /run/writer)"
}

# verify reads every file again from the disk and checks its digest.
verify() {
	sync
	echo 3 >/proc/sys/vm/drop_caches
	bad=0 good=0
	while read -r sum name; do
		[ -e "$name" ] || continue
		if [ "$(sha256sum "$name" | cut -d' ' -f1)" = "$sum" ]; then
			good=$((good + 1))
		else
			bad=$((bad + 1))
			echo "wrong: $name"
		fi
	done </data/sums
	echo "verified $good"
	[ $bad = 0 ]
}

off() {
	sync
	mount -o remount,ro /
	poweroff -f
}

acpid -l /dev/null -p /run/acpid.pid

exec <$port >$port 2>&1
echo "VARVE ready $(cut -d' ' -f1 /proc/uptime)"
while read -r line; do
	eval "$line"
	echo "VARVE done $?"
done
