#!/bin/bash
# Makes the images that Dockerfile and docker-compose.yml name available: those that are there are used, those that
# can't be pulled are replaced by stand-ins made of this machine's Go, of HAProxy 3.2 and Pebble as `make tools` installs
# them, and of a few programs of this machine. A stand-in keeps paths, users and entry point of what it stands for.
#
#   images.sh              makes them
#   images.sh --remove     removes the stand-ins
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
tools=$(cd "$here/../.." && pwd)/.tools
label=org.spoacme.stand-in

say() { printf 'images.sh: %s\n' "$*"; }
die() { printf 'images.sh: %s\n' "$*" >&2; exit 1; }

# take copies programs and what they are linked with to the same paths below the folder $1.
take() {
	local root=$1 program path
	shift
	for program in "$@"; do
		path=$(command -v "$program")
		install -D "$path" "$root/usr/bin/$program"
		# The loader has a fixed path; the other libraries are found next to it.
		ldd "$path" | grep -o '/[^ ]*' | while read -r library; do
			install -D "$library" "$root$library"
		done
	done
	[ -e "$root/bin" ] || ln -s usr/bin "$root/bin"
}

# rootfs lays out what every stand-in has.
rootfs() {
	mkdir -p "$1/etc/ssl/certs" "$1/root" "$1/var"
	mkdir -m 1777 "$1/tmp"
	echo 'root:x:0:0:root:/root:/bin/bash' >"$1/etc/passwd"
	echo 'root:x:0:' >"$1/etc/group"
}

# load makes the folder $1 the image $2, with the changes that follow.
load() {
	local root=$1 image=$2 change args=()
	shift 2
	for change in "$@" "LABEL $label=true"; do
		args+=(--change "$change")
	done
	tar -C "$root" --owner=0 --group=0 --numeric-owner -c . | docker import "${args[@]}" - "$image" >/dev/null
	say "$image: a stand-in, because it can't be pulled"
}

golang() {
	local root=$1 goroot
	goroot=$(go env GOROOT)
	[ -s /etc/ssl/certs/ca-certificates.crt ] || "$here/need.sh" /etc/ssl/certs/ca-certificates.crt ca-certificates
	take "$root" bash sh mkdir
	cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
	mkdir -p "$root/usr/local/go" "$root/go"
	cp -a "$goroot"/{bin,pkg,src,go.env,VERSION} "$root/usr/local/go/"
	load "$root" "$2" 'ENV PATH=/usr/local/go/bin:/usr/bin' 'ENV GOPATH=/go' 'ENV GOTOOLCHAIN=local' \
		"ENV GOPROXY=$(go env GOPROXY)" "ENV GOSUMDB=$(go env GOSUMDB)" 'WORKDIR /go' 'CMD ["bash"]'
}

haproxy() {
	local root=$1 loader
	"$here/haproxy.sh" "$tools/haproxy" 3.2
	take "$root" bash sh install touch sleep cat ls
	echo 'haproxy:x:99:99::/var/lib/haproxy:/usr/sbin/nologin' >>"$root/etc/passwd"
	echo 'haproxy:x:99:' >>"$root/etc/group"
	mkdir -p "$root/usr/local/sbin" "$root/var/lib/haproxy" "$root/run"
	cp -a "$tools/haproxy/3.2/lib" "$root/usr/local/sbin/lib"
	cp "$tools/haproxy/3.2/haproxy" "$root/usr/local/sbin/haproxy"
	loader=$(basename "$(find "$root/usr/local/sbin/lib" -name 'ld-linux*.so*' | head -n 1)")
	"$here/need.sh" patchelf patchelf
	patchelf --set-interpreter "/usr/local/sbin/lib/$loader" "$root/usr/local/sbin/haproxy"
	load "$root" "$2" 'ENV PATH=/usr/local/sbin:/usr/bin' 'USER haproxy' \
		'CMD ["haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]'
}

pebble() {
	local root=$1 source
	(cd "$here/pebble" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$root/app" github.com/letsencrypt/pebble/v2/cmd/pebble)
	source=$(cd "$here/pebble" && go list -m -f '{{.Dir}}' github.com/letsencrypt/pebble/v2)
	mkdir -p "$root/test"
	cp -r "$source/test/certs" "$source/test/config" "$root/test/"
	chmod -R u+w,go+r "$root/test"
	load "$root" "$2" 'ENTRYPOINT ["/app"]'
}

# provide makes the image $2 with the function $1 unless it is there or can be pulled.
provide() {
	local make=$1 image=$2
	if docker image inspect "$image" >/dev/null 2>&1; then
		say "$image is there"
	elif timeout 120 docker pull -q "$image" >/dev/null 2>&1; then
		say "$image pulled"
	else
		mkdir "$work/$make"
		rootfs "$work/$make"
		"$make" "$work/$make" "$image"
	fi
}

docker info >/dev/null 2>&1 || die "no Docker daemon answers: install and start Docker, and see 'docker info'"
if [ "${1:-}" = --remove ]; then
	docker images --quiet --filter "label=$label=true" | sort -u | xargs --no-run-if-empty docker rmi --force >/dev/null
	exit
fi
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
provide golang golang:1.26-bookworm
provide haproxy haproxy:3.2
provide pebble ghcr.io/letsencrypt/pebble:2.10.1
