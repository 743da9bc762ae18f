#!/bin/bash
# Installs Debian packages unless a program of theirs is there.
#
#   need.sh PROGRAM PACKAGE...      PROGRAM: a command, or the path of a file
#
# As root or with sudo. Where neither is possible it says what to run.
set -euo pipefail

die() { printf 'need.sh: %s\n' "$*" >&2; exit 1; }

[ $# -ge 2 ] || die "usage: need.sh PROGRAM PACKAGE..."
program=$1
shift
case $program in
/*) [ -e "$program" ] && exit ;;
*) command -v "$program" >/dev/null && exit ;;
esac

export DEBIAN_FRONTEND=noninteractive
apt=(apt-get)
if [ "$(id -u)" != 0 ]; then
	# Without a password, or with a terminal to ask for it.
	if ! command -v sudo >/dev/null || ! { sudo -n true || : >/dev/tty; } 2>/dev/null; then
		die "$program is missing: run 'apt-get install $*' as root"
	fi
	apt=(sudo apt-get)
fi
printf 'need.sh: installing %s\n' "$*"
install() {
	"${apt[@]}" install -qq -y --no-install-recommends "$@" </dev/null 2>&1
}
if ! said=$(install "$@"); then
	"${apt[@]}" update -qq </dev/null
	said=$(install "$@") || die "$* can't be installed: $said"
fi
