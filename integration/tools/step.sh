#!/bin/bash
# Runs a command and says in one line what it is and how long it took. What the command prints is shown when it fails,
# and on a terminal its latest line meanwhile.
#
#   step.sh LABEL COMMAND...
set -uo pipefail

label=$1
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
began=$(date +%s)
if [ -t 1 ]; then
	printf '  %-15s …' "$label"
	"$@" 2>&1 </dev/null | while IFS= read -r line; do
		printf '%s\n' "$line" >>"$log"
		printf '\r\033[K  %-15s %.60s' "$label" "$line"
	done
	result=${PIPESTATUS[0]}
	printf '\r\033[K'
else
	"$@" >"$log" 2>&1 </dev/null
	result=$?
fi
if [ "$result" != 0 ]; then
	cat "$log" >&2
	printf '  %-15s failed\n' "$label" >&2
	exit "$result"
fi
printf '  %-15s %s s\n' "$label" $(($(date +%s) - began))
