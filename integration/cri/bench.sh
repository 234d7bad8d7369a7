#!/bin/bash
# Measures the CRI of Corten beside that of stock containerd, on the machine that the CRI suite runs on: `make bench-cri`.
# Prints a table (integration/bench/cri.rs) and never fails for a figure.
set -u
me=cri-bench
. "$(dirname "$0")/machine.sh"
need "$ours"/{cortend,containerd-shim-corten-v2,corten-images,corten-bench-cri} \
    "$peers"/bin/{containerd,containerd-shim-runc-v2,runc,ctr} "$peers/debian/usr/bin/docker-registry"
enter
mkdir -p "$work/bin"
ln -s "$peers"/bin/{containerd-shim-runc-v2,ctr,runc} "$ours/containerd-shim-corten-v2" "$work/bin"
make_machine
serve_images

# NAME PROGRAM: its socket and pid, as the bench wants them.
start() {
    cat >"$1.toml" <<T
version = 3
root = "/var/lib/containerd-test/$1"
state = "/run/$1"
[grpc]
  address = "/run/$1/c.sock"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.nri.v1.nri"]
  disable = true
T
    "$2" --config "$1.toml" >"$1.log" 2>&1 &
    sides+=("$1=/run/$1/c.sock=$!")
    until_works ctr -a "/run/$1/c.sock" version
}
sides=()
start Corten "$ours/cortend"
start containerd "$peers/bin/containerd"
"$ours/corten-bench-cri" "${sides[@]}"
