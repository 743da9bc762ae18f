#!/bin/bash
# Takes one program out of a package of another Debian release. It has to run here without what the package depends on.
#
#   debian-program.sh FILE SUITE PACKAGE PATH WORDS     PATH in the package; WORDS are in what `FILE version` prints
#
# The package comes from the mirror that this machine's apt uses already, or from $DEBIAN_MIRROR. Nothing is installed
# on the machine itself, except the archive's keyring where it is missing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

die() { printf 'debian-program.sh: %s\n' "$*" >&2; exit 1; }

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

works() { [[ -x $1 && $("$1" version 2>/dev/null) == *"$words"* ]]; }

# apt_in runs apt-get with sources, lists, cache and package status of its own, below the folder $1. A mirror may be frozen,
# so that its lists are out of date; they are signed all the same.
apt_in() {
	local dir=$1
	shift
	(cd "$dir" && apt-get -qq \
		-o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
		-o Dir::State="$dir/state" -o Dir::State::status="$dir/status" -o Dir::Cache="$dir/cache" \
		-o Acquire::Check-Valid-Until=false -o Acquire::Languages=none -o Acquire::Retries=3 -o APT::Sandbox::User= \
		-o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false "$@")
}

[ $# -eq 5 ] || die "usage: debian-program.sh FILE SUITE PACKAGE PATH WORDS"
mkdir -p "$(dirname "$1")"
final=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
suite=$2 package=$3 path=$4 words=$5
if works "$final"; then
	echo "debian-program.sh: $final is there"
	exit 0
fi
"$here/need.sh" "$keyring" debian-archive-keyring
dir=$(mktemp -d "$final.XXXXXX")
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/state/lists/partial" "$dir/cache/archives/partial"
: >"$dir/status"
echo "deb [signed-by=$keyring] $(mirror) $suite main" >"$dir/sources.list"
apt_in "$dir" -o APT::Update::Error-Mode=any update
apt_in "$dir" download "$package"
dpkg -x "$dir/$package"_*.deb "$dir/root"
mv -f "$dir/root/$path" "$final"
works "$final" || die "$final does not run here: $("$final" version 2>&1 | head -n 1)"
"$final" version | head -n 1
