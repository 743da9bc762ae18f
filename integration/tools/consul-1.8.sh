#!/bin/bash
# Installs Debian bullseye's Consul 1.8.7, the oldest server that spoacme is tested with (64 operations in a
# transaction), as DIR/consul-1.8.
#
#   consul-1.8.sh DIR
#
# The package comes from the mirror that this machine's apt uses already, or from $DEBIAN_MIRROR. Nothing is installed
# on the machine itself, except the archive's keyring where it is missing.
set -euo pipefail

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
suite=bullseye

die() { printf 'consul-1.8.sh: %s\n' "$*" >&2; exit 1; }

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

works() { [[ -x $1 && $("$1" version 2>/dev/null) == *"Consul v1.8."* ]]; }

# apt_in runs apt-get with sources, lists, cache and package status of its own, below the folder $1.
apt_in() {
	local dir=$1
	shift
	(cd "$dir" && apt-get -qq \
		-o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
		-o Dir::State="$dir/state" -o Dir::State::status="$dir/status" -o Dir::Cache="$dir/cache" \
		-o Acquire::Languages=none -o Acquire::Retries=3 -o APT::Sandbox::User= \
		-o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false "$@")
}

[ $# -eq 1 ] || die "usage: consul-1.8.sh DIR"
mkdir -p "$1"
final=$(cd "$1" && pwd)/consul-1.8
if works "$final"; then
	echo "consul-1.8.sh: $final is there"
	exit 0
fi
if [ ! -e "$keyring" ]; then
	[ "$(id -u)" = 0 ] || die "$keyring is missing: run 'apt-get install debian-archive-keyring' as root"
	apt-get install -qq -y --no-install-recommends debian-archive-keyring >/dev/null
fi
dir=$(mktemp -d "$final.XXXXXX")
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/state/lists/partial" "$dir/cache/archives/partial"
: >"$dir/status"
echo "deb [signed-by=$keyring] $(mirror) $suite main" >"$dir/sources.list"
apt_in "$dir" -o APT::Update::Error-Mode=any update
apt_in "$dir" download consul
dpkg -x "$dir"/consul_*.deb "$dir/root"
mv -f "$dir/root/usr/bin/consul" "$final"
works "$final" || die "$final does not run here: $("$final" version 2>&1 | head -n 1)"
"$final" version | head -n 1
