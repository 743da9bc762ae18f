#!/bin/bash
# Installs the chromium that the test of the statistics page drives, from the machine's own Debian, unless it is there.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
	if path=$(command -v "$name"); then
		echo "chromium.sh: $path is there"
		exit 0
	fi
done
if [ "$(id -u)" != 0 ]; then
	echo "chromium.sh: chromium is missing: run 'apt-get install chromium' as root" >&2
	exit 1
fi
echo "chromium.sh: installing chromium"
apt-get update -qq || true
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core >/dev/null
chromium --version
