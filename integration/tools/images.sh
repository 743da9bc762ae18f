#!/bin/bash
# Makes the images that Dockerfile and docker-compose.yml name available: those that are there are used, those that
# can't be pulled are replaced by stand-ins made of this machine's Go, of HAProxy 3.2 and Consul as `make tools`
# installs them, and of a few programs of this machine. A stand-in keeps paths, users and entry point of what it stands for.
#
#   images.sh              makes them
#   images.sh --remove     removes the stand-ins
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
source=$(cd "$here/../.." && pwd)
tools=$source/.tools
label=org.spoacme.stand-in

say() { printf 'images.sh: %s\n' "$*"; }
die() { printf 'images.sh: %s\n' "$*" >&2; exit 1; }

# take copies programs and what they are linked with to the same paths below the folder $1.
take() {
	local root=$1 program path library
	shift
	for program in "$@"; do
		path=$(type -P "$program")
		install -D "$path" "$root/usr/bin/$program"
		# The loader has a fixed path; the other libraries are found next to it. A static program has none.
		for library in $(ldd "$path" 2>/dev/null | grep -o '/[^ ]*'); do
			install -D "$library" "$root$library"
		done
	done
	[ -e "$root/bin" ] || ln -s usr/bin "$root/bin"
}

# rootfs lays out what every stand-in has.
rootfs() {
	mkdir -p "$1/etc/ssl/certs" "$1/root" "$1/var"
	mkdir -m 1777 "$1/tmp"
	printf '%s\n' 'root:x:0:0:root:/root:/bin/bash' 'nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin' >"$1/etc/passwd"
	printf '%s\n' 'root:x:0:' 'nogroup:x:65534:' >"$1/etc/group"
}

# pack makes an archive of the folder $1: everything is root's, but $2 in it, if given, is of user and group $3.
pack() {
	local excluded=()
	[ -z "${2:-}" ] || excluded=(--exclude "$2")
	tar -C "$1" --owner=0 --group=0 --numeric-owner "${excluded[@]}" -cf "$1.tar" .
	[ -z "${2:-}" ] || tar -C "$1" --owner="${3%:*}" --group="${3#*:}" --numeric-owner -rf "$1.tar" "$2"
}

# load makes the folder $1 the image $2, with the changes that follow.
load() {
	local root=$1 image=$2 change args=()
	shift 2
	for change in "$@" "LABEL $label=true"; do
		args+=(--change "$change")
	done
	[ -e "$root.tar" ] || pack "$root"
	docker import "${args[@]}" "$root.tar" "$image" >/dev/null
	rm -rf "$root" "$root.tar"
	say "$image: a stand-in, because it can't be pulled"
}

# copy copies the files of the folder $1 that stdin names to the folder $2.
copy() {
	mkdir -p "$2"
	tar -C "$1" -cT - | tar -C "$2" -x
}

# warm copies the modules of a program, the package $3 of the module in the folder $2, and what this machine has compiled of it,
# below $1, so that its image is built in seconds. An entry of Go's cache is two files: what came out, and a line that leads to it.
warm() {
	local root=$1 modules cache out
	modules=$(go env GOMODCACHE)/cache/download
	cache=$(go env GOCACHE)
	(cd "$2" && go mod download -json) | sed -n "s|^.*\"$modules/\(.*\)\",*\$|\1|p" | copy "$modules" "$root/go/proxy"
	out=$(cd "$2" && CGO_ENABLED=0 go list -deps -export -trimpath -buildvcs=false -f '{{.Export}}' "$3")
	{
		sed -n "s|^$cache/||p" <<<"$out"
		(cd "$cache" && grep -rlF --include='*-a' -f <(sed -n 's|.*/\(.*\)-d$|\1|p' <<<"$out") .)
	} | copy "$cache" "$root/root/.cache/go-build"
}

golang() {
	local root=$1 goroot
	goroot=$(go env GOROOT)
	[ -s /etc/ssl/certs/ca-certificates.crt ] || "$here/need.sh" /etc/ssl/certs/ca-certificates.crt ca-certificates
	take "$root" bash sh mkdir cp chmod
	cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
	(cd "$goroot" && find bin pkg src go.env VERSION \( -path src/cmd -o -name testdata \) -prune -o -type f ! -name '*_test.go' -print) |
		copy "$goroot" "$root/usr/local/go"
	warm "$root" "$source" ./cmd/spoacme
	warm "$root" "$here/pebble" github.com/letsencrypt/pebble/v2/cmd/pebble
	load "$root" "$2" 'ENV PATH=/usr/local/go/bin:/usr/bin' 'ENV GOPATH=/go' 'ENV GOTOOLCHAIN=local' \
		"ENV GOPROXY=file:///go/proxy,$(go env GOPROXY)" "ENV GOSUMDB=$(go env GOSUMDB)" 'WORKDIR /go' 'CMD ["bash"]'
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

consul() {
	local root=$1
	[ -x "$tools/bin/consul" ] || make --no-print-directory -C "$source" tools-consul
	PATH=$tools/bin:$PATH take "$root" consul sh sleep
	echo 'consul:x:100:1000::/home/consul:/sbin/nologin' >>"$root/etc/passwd"
	echo 'consul:x:1000:' >>"$root/etc/group"
	mkdir -p "$root/consul/data" "$root/consul/config"
	pack "$root" ./consul 100:1000
	load "$root" "$2" 'ENV PATH=/usr/bin' 'VOLUME /consul/data' 'ENTRYPOINT ["consul"]' 'CMD ["agent", "-dev", "-client", "0.0.0.0"]'
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
	# The newest first: what was built on a stand-in has its label, and keeps it from being removed.
	docker images --quiet --filter "label=$label=true" | awk '!seen[$0]++' | xargs --no-run-if-empty docker rmi --force >/dev/null
	exit
fi
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
provide golang golang:1.26-bookworm
provide haproxy haproxy:3.2
provide consul hashicorp/consul:1.22
