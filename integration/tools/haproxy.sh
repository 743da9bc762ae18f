#!/bin/bash
# Installs the HAProxy versions that spoacme is tested with, each with the C library and the other libraries that it
# was built for, as DIR/<version>/haproxy: an ordinary executable that re-executes itself on a reload.
#
#   haproxy.sh DIR [VERSION...]      versions: 2.2 2.6 3.0 3.2; all of them by default
#
# The packages are Debian's, taken from the mirror that this machine's apt uses already, or from $DEBIAN_MIRROR.
# Nothing is installed on the machine itself, except patchelf and the archive's keyring where they are missing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

say() { printf 'haproxy.sh: %s\n' "$*"; }
die() { printf 'haproxy.sh: %s\n' "$*" >&2; exit 1; }

# suites_of prints the Debian suites that carry a version, the preferred one first.
suites_of() {
	case $1 in
	2.2) echo bullseye ;;
	2.6) echo bookworm ;;
	3.0) echo trixie ;;
	3.2) echo forky sid ;;
	*) die "unknown version $1: use 2.2, 2.6, 3.0 or 3.2" ;;
	esac
}

# mirror prints the address of the Debian archive that this machine's apt is configured with.
mirror() {
	if [ -n "${DEBIAN_MIRROR:-}" ]; then
		echo "$DEBIAN_MIRROR"
		return
	fi
	# shellcheck disable=SC2016 # apt's own variable
	apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' |
		awk '/\/debian\/?$/ && !found { print; found = 1 } END { exit !found }' ||
		die "find a Debian mirror: apt names none; set DEBIAN_MIRROR to one"
}

# works tells whether an installed version runs and is what it should be. It fails for a copy that was moved, because
# the path of the loader is absolute.
works() {
	local dir=$1 version=$2
	[[ -x $dir/haproxy && $("$dir/haproxy" -v 2>/dev/null) == *"version $version."* ]]
}

# apt_in runs an apt tool with sources, lists, cache and package status of its own, below the folder $1. A mirror may be
# frozen, so that its lists are out of date; they are signed all the same.
apt_in() {
	local dir=$1 tool=$2
	shift 2
	(cd "$dir/debs" && "$tool" -qq \
		-o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
		-o Dir::State="$dir/state" -o Dir::State::status="$dir/status" -o Dir::Cache="$dir/cache" \
		-o Acquire::Check-Valid-Until=false -o Acquire::Languages=none -o Acquire::Retries=3 \
		-o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false \
		-o APT::Sandbox::User= -o APT::Install-Recommends=false "$@")
}

# read_lists fetches the package lists of one suite into the folder $1.
read_lists() {
	local dir=$1 suite=$2
	rm -rf "$dir"
	mkdir -p "$dir/debs" "$dir/state/lists/partial" "$dir/cache/archives/partial"
	: >"$dir/status"
	echo "deb [signed-by=$keyring] $(mirror) $suite main" >"$dir/sources.list"
	apt_in "$dir" apt-get -o APT::Update::Error-Mode=any update
}

# packages prints haproxy and the libraries in the closure of its dependencies, so that a library renamed in a moving
# suite is found under its new name.
packages() {
	apt_in "$1" apt-get --simulate --no-install-recommends install haproxy |
		awk '$1 == "Inst" && $2 ~ /^(haproxy|zlib1g|lib.*)$/ && $2 !~ /^lib(pam|perl|semanage|sepol|audit|db5)/ { print $2 }'
}

# assemble downloads and unpacks the packages of suite $2 and lays the executable and its libraries out in $1/out, to
# be renamed to $3.
assemble() {
	local dir=$1 suite=$2 final=$3 list deb loader
	list=$(packages "$dir")
	grep -qx haproxy <<<"$list" || return 1
	say "downloading $(wc -l <<<"$list") packages of $suite"
	# shellcheck disable=SC2086 # one word per package
	apt_in "$dir" apt-get download $list
	for deb in "$dir"/debs/*.deb; do
		dpkg -x "$deb" "$dir/root"
	done
	mkdir -p "$dir/out/lib"
	find "$dir/root" -path '*/lib/*' -name '*.so*' -not -path '*/*-linux-gnu/*/*' -exec cp -a {} "$dir/out/lib/" \;
	loader=$(basename "$(find "$dir/out/lib" -name 'ld-linux*.so*' | head -n 1)")
	cp "$dir/root/usr/sbin/haproxy" "$dir/out/haproxy"
	patchelf --set-interpreter "$final/lib/$loader" "$dir/out/haproxy"
	# DT_RPATH, unlike DT_RUNPATH, also serves the libraries of libraries.
	# shellcheck disable=SC2016 # $ORIGIN is the dynamic linker's
	patchelf --force-rpath --set-rpath '$ORIGIN/lib' "$dir/out/haproxy"
}

install_version() {
	local version=$1 final=$2 suite dir
	dir=$(mktemp -d "$final.XXXXXX")
	# shellcheck disable=SC2064 # the value of now
	trap "rm -rf '$dir'" EXIT
	for suite in $(suites_of "$version"); do
		say "$version: reading the package lists of $suite"
		if ! read_lists "$dir" "$suite"; then
			say "$version: $suite can't be read; its signing key may be newer than this machine's keyring"
			continue
		fi
		if ! assemble "$dir" "$suite" "$final"; then
			say "$version: $suite has no haproxy that can be taken"
			continue
		fi
		rm -rf "$final"
		mv -T "$dir/out" "$final"
		if works "$final" "$version"; then
			say "$version: $("$final/haproxy" -v | head -n 1)"
			rm -rf "$dir"
			trap - EXIT
			return
		fi
		say "$version: haproxy of $suite is another version: $("$final/haproxy" -v 2>&1 | head -n 1)"
		rm -rf "$final"
	done
	die "$version can't be installed: see the lines above; 'apt-get install --only-upgrade debian-archive-keyring' and DEBIAN_MIRROR=… may help"
}

[ $# -ge 1 ] || die "usage: haproxy.sh DIR [VERSION...]"
mkdir -p "$1"
root=$(cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- 2.2 2.6 3.0 3.2

missing=()
for version in "$@"; do
	suites_of "$version" >/dev/null
	works "$root/$version" "$version" || missing+=("$version")
done
if [ ${#missing[@]} -eq 0 ]; then
	say "$* are there"
	exit 0
fi

# Two runs at once would take each other's half-done folders for leftovers.
exec 9>"$root/.lock"
flock 9
"$here/need.sh" patchelf patchelf
"$here/need.sh" "$keyring" debian-archive-keyring
for version in "${missing[@]}"; do
	rm -rf "$root/$version".??????
	works "$root/$version" "$version" || install_version "$version" "$root/$version"
done
