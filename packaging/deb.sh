#!/bin/sh
# Makes bin/varve_VERSION_ARCH.deb of what `make build man` has made, with nfpm.
#
#   deb.sh NFPM COMMAND...     the command that runs nfpm
#
# VERSION is that of the program; DEB_VERSION and DEBFULLNAME, DEBEMAIL may be set
# for another version and maintainer of the package.
set -eu

top=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$top"
umask 022
GO=${GO-go}
export LC_ALL=C TZ=UTC

# deb_version makes a version that dpkg sorts rightly of what git describe says:
# v1.2.3-5-gabc is newer than v1.2.3, a bare commit older than any release.
deb_version() {
	case $1 in
	v[0-9]*) echo "$1" | sed 's/^v//; s/-\([0-9]*\)-g/+\1.g/; s/-dirty$/+dirty/; s/-/~/g' ;;
	*) echo "0~$(git rev-list --count HEAD 2>/dev/null || echo 0).$(echo "$1" | tr -c 'A-Za-z0-9.\n' '.')" ;;
	esac
}

export DEB_VERSION="${DEB_VERSION:-$(deb_version "${VERSION:-unknown}")}"
export DEB_MAINTAINER="${DEBFULLNAME:-The varve authors} <${DEBEMAIL:-varve@packages.invalid}>"
DEB_ARCH=$($GO env GOARCH)
export DEB_ARCH
# The same commit makes the same package, byte for byte.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

stage=bin/deb
root=$stage/root
doc=$root/usr/share/doc/varve
rm -rf "$stage"
mkdir -p "$root"
DESTDIR=$top/$root PREFIX=/usr packaging/install.sh install
mv "$root/etc" "$stage/etc" # dpkg keeps changes in there

# linked prints the text of the licences of what is linked into the program, as
# their owners ask, in the form of Debian's copyright files.
linked() {
	$GO version -m bin/varve | awk '$1 == "dep" { print $2, $3 }' | while read -r module version; do
		dir=$($GO list -m -f '{{.Dir}}' "$module")
		stanza "$module" "$version" "$dir"
	done
	stanza "Go's standard library" "$($GO env GOVERSION)" "$($GO env GOROOT)"
}

# ours LICENCE prints a licence without the whole text of the GPL, of which some modules leave
# the choice: Debian has that already, and varve takes the other one.
ours() {
	awk '/^Full text of gpl-2.0.txt:/ { print "GPL version 2: see /usr/share/common-licenses/GPL-2"; exit } { print }' "$1"
}

# stanza NAME VERSION DIR
stanza() {
	license=
	for file in "$3"/LICENSE "$3"/License "$3"/LICENSE.txt "$3"/LICENSE.md "$3"/COPYING; do
		[ -e "$file" ] && license=$file && break
	done
	[ -n "$license" ] || {
		echo "deb: $1 has no licence file in $3" >&2
		return 1
	}
	copyright=$(ours "$license" | grep -i '^ *copyright .*[0-9][0-9][0-9][0-9]' | sed 's/^ *//; 2,$s/^/ /')
	printf '\nFiles: usr/bin/varve\nComment: %s %s, linked into it\n' "$1" "$2"
	printf 'Copyright: %s\n' "${copyright:-the authors of $1}"
	if sed '/./q' "$license" | grep -q 'Apache License'; then
		echo 'License: Apache-2.0'
	else
		printf 'License: %s\n' "that of $1"
		# Parts of some modules are under it as well; Debian has its text already.
		ours "$license" | awk '/^ *Apache License *$/ { skip = 1; print "Apache License 2.0, see /usr/share/common-licenses/Apache-2.0" }
			!skip { print }
			skip && /limitations under the License/ { skip = 0 }' |
			sed 's/\r$//; s/[[:space:]]*$//; s/^$/./; s/^/ /'
	fi
	if [ -e "$3/NOTICE" ]; then
		echo "Comment: its NOTICE file says:"
		sed 's/[[:space:]]*$//; s/^$/./; s/^/ /' "$3/NOTICE"
	fi
}

{
	cat packaging/deb/copyright
	linked
	printf '\nLicense: Apache-2.0\n The whole text is in /usr/share/common-licenses/Apache-2.0.\n'
} >"$doc/copyright"

{
	echo "varve ($DEB_VERSION) unstable; urgency=medium"
	echo
	echo "  * Built from ${VERSION:-unknown}; README.md and the other pages say what it does."
	echo
	echo " -- $DEB_MAINTAINER  $(date -R -d "@$SOURCE_DATE_EPOCH")"
} >"$doc/changelog"
gzip -9n "$doc/changelog"
install -D -m 644 packaging/deb/lintian-overrides "$root/usr/share/lintian/overrides/varve"
find "$root/usr/share/man" -type f -exec gzip -9n {} +
find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

package=bin/varve_${DEB_VERSION}_$DEB_ARCH.deb
"$@" package --config packaging/nfpm.yaml --packager deb --target "$package" >/dev/null
rm -rf "$stage"
echo "$package"
