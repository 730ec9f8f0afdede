#!/bin/sh
# Installs what `make build man` has made, or takes it away again.
#
#   install.sh install|uninstall
#
# DESTDIR is put before every path (for packages); PREFIX is /usr/local. Programs
# of others look in one place only for what is theirs, whatever PREFIX says:
# mount(8) in /sbin for its helpers, varve@.service in /etc/varve.
set -eu

top=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
DESTDIR=${DESTDIR-}
PREFIX=${PREFIX-/usr/local}
case $PREFIX in
/*) ;;
*)
	echo "install: PREFIX is $PREFIX; it must begin with /" >&2
	exit 2
	;;
esac
PREFIX=${PREFIX%/}
units=$PREFIX/lib/systemd/system
doc=$PREFIX/share/doc/varve
zsh=$PREFIX/share/zsh/site-functions
# Debian's zsh keeps that folder for the administrator.
[ "$PREFIX" = /usr ] && zsh=/usr/share/zsh/vendor-completions

# files prints "mode source destination" of each file, the source below the
# checkout.
files() {
	echo "755 bin/varve $PREFIX/bin/varve"
	echo "644 bin/completion/varve.bash $PREFIX/share/bash-completion/completions/varve"
	echo "644 bin/completion/_varve $zsh/_varve"
	echo "644 bin/completion/varve.fish $PREFIX/share/fish/vendor_completions.d/varve.fish"
	for page in "$top"/bin/man/man?/*; do
		[ -e "$page" ] || continue
		section=$(basename "$(dirname "$page")")
		echo "644 bin/man/$section/${page##*/} $PREFIX/share/man/$section/${page##*/}"
	done
	for unit in "$top"/packaging/systemd/*.service "$top"/packaging/systemd/*.timer; do
		echo "644 packaging/systemd/${unit##*/} $units/${unit##*/}"
	done
	for page in "$top"/docs/*; do
		[ -f "$page" ] && echo "644 docs/${page##*/} $doc/${page##*/}"
	done
	echo "644 README.md $doc/README.md"
	echo "644 packaging/systemd/vm1.conf $doc/examples/vm1.conf"
	echo "644 packaging/systemd/README /etc/varve/README"
	echo "644 packaging/needrestart.conf /etc/needrestart/conf.d/varve.conf"
}

# links prints "target link" of each symbolic link.
links() {
	echo "$PREFIX/bin/varve /usr/sbin/mount.fuse.varve"
	echo "$PREFIX/bin/varve /usr/sbin/umount.fuse.varve"
}

# reload lets a running systemd see the units, unless this is for a package.
reload() {
	if [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; then
		systemctl daemon-reload || true
	fi
}

install_all() {
	[ -e "$top/bin/varve" ] && [ -e "$top/bin/man/man1/varve.1" ] || {
		echo "install: bin/varve or bin/man is missing; run make build man first" >&2
		exit 1
	}
	files | while read -r mode source destination; do
		# Not over the running program's file: a mount goes on with the old one.
		install -D -m "$mode" "$top/$source" "$DESTDIR$destination.new"
		case $destination in
		"$units"/*) sed -i "s#/usr/bin/varve#$PREFIX/bin/varve#" "$DESTDIR$destination.new" ;;
		/etc/*) # the administrator's own changes stay
			if [ -e "$DESTDIR$destination" ]; then
				rm "$DESTDIR$destination.new"
				continue
			fi
			;;
		esac
		mv -f "$DESTDIR$destination.new" "$DESTDIR$destination"
	done
	links | while read -r target link; do
		mkdir -p "$DESTDIR${link%/*}"
		ln -sfn "$(realpath -ms --relative-to="${link%/*}" "$target")" "$DESTDIR$link"
	done
	reload
}

uninstall_all() {
	if [ -z "$DESTDIR" ] && findmnt -rn -t fuse.varve -o TARGET >/dev/null; then
		echo "uninstall: a varve disk is mounted at $(findmnt -rn -t fuse.varve -o TARGET | head -n 1); varve umount it first" >&2
		exit 1
	fi
	{ files | sed 's/^[^ ]* [^ ]* //'; links | sed 's/^[^ ]* //'; } | while read -r path; do
		rm -f "$DESTDIR$path"
	done
	# The disks of /etc/varve are the administrator's.
	for dir in "$doc/examples" "$doc" /etc/varve; do
		rmdir "$DESTDIR$dir" 2>/dev/null || true
	done
	reload
}

case "${1-}" in
install) install_all ;;
uninstall) uninstall_all ;;
*)
	echo "usage: $0 install|uninstall" >&2
	exit 2
	;;
esac
