#!/bin/bash
# Installs the chromium that the test of the statistics page drives, from the machine's own Debian, unless it is there.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
	if path=$(command -v "$name"); then
		echo "chromium.sh: $path is there"
		exit 0
	fi
done
"$(dirname "$0")/need.sh" chromium chromium fonts-dejavu-core
chromium --version
