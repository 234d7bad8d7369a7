# The machine on which containerd's CRI suite and `make bench-cri` run: mount, pid and network namespaces of its own, in
# which registries have their real names (over TLS, served from images of ours), CNI has a bridge, and /run, /opt and
# /var/lib are empty. Outside of them nothing is written but the work folder and cgroups.
#
# Sourced by a program in bash, which sets `me`, its name, and calls: `need`, `enter`, then what it wants of the rest.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
top=$(dirname "$here")
peers=${CORTEN_PEERS_DIR:-$top/target/peers}
ours=${CORTEN_BIN_DIR:-$top/target/release}
# Set in there.
work=${CORTEN_MACHINE:-}

die() { echo "$me: $*" >&2; echo '0 passed, 1 failed'; exit 1; }

until_works() {
    for _ in $(seq 300); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    die "does not work within 30 s: $*"
}

# Programs that must be there.
need() {
    for program; do
        [ -x "$program" ] || die "$program is missing: run make build and integration/setup.sh cri"
    done
}

# Runs the program again with these arguments in namespaces of its own, and returns its status; only in there it returns
# without one, and the work folder is $work. Logs are kept on failure.
enter() {
    [ -n "$work" ] && return
    work=$(mktemp -d "${TMPDIR:-/tmp}/$me.XXXXXX")
    CORTEN_MACHINE=$work unshare --mount --pid --net --fork --kill-child --mount-proc bash "$0" "$@"
    status=$?
    if [ $status = 0 ]; then rm -rf "$work"; else echo "logs: $work" >&2; fi
    exit $status
}

# Leaves what shims inherit of whoever started us: a test counts the pipes of a shim.
close_files() {
    exec </dev/null
    for fd in /proc/$$/fd/*; do
        fd=${fd##*/}
        [ "$fd" -gt 2 ] && [ "$fd" != 255 ] && eval "exec $fd>&-"
    done
}

# NAME TYPE BRIDGE MORE: a CNI configuration.
network() {
    cat <<T
{"cniVersion": "1.0.0", "name": "$1", "plugins": [
  {"type": "$2", "bridge": "$3", "isGateway": true, "ipMasq": true, "promiscMode": true, $4
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "2001:4860:4860::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
T
}

# Mounts, names, certificates and CNI. What lies in $work/bin is in PATH, $work/root is on a file system with idmapped mounts.
make_machine() {
    close_files
    mkdir -p "$work"/{bin,root,etc/cni,etc/ssl/certs,tls,registry}
    cd "$work" || exit 1
    mount --make-rshared /
    ip link set lo up
    echo "127.0.0.1 localhost $(hostname) ghcr.io registry.k8s.io" >etc/hosts
    (
        cd tls || exit 1
        openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 9 -subj /CN=test-ca
        openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=test-registry
        echo subjectAltName=DNS:ghcr.io,DNS:registry.k8s.io >names
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out server.pem -days 9
    ) >tls/log 2>&1
    cat /etc/ssl/certs/ca-certificates.crt tls/ca.pem >etc/ssl/certs/ca-certificates.crt
    export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PATH=/usr/local/bin:$PATH
    mount -t overlay overlay -o "lowerdir=$work/etc:/etc" /etc
    mount -t overlay overlay -o "lowerdir=$work/bin:/usr/local/bin" /usr/local/bin
    for dir in /run /opt /var/lib /etc/cni; do mount -t tmpfs tmpfs $dir; done
    mkdir -p /run/netns /opt/cni/bin /etc/cni/net.d /etc/cni/fp.d /var/lib/containerd-test
    ln -s "$peers"/debian/usr/lib/cni/* /opt/cni/bin/
    mount --bind root /var/lib/containerd-test # a tmpfs has no idmapped mounts
    network containerd-net bridge cni0 '' >/etc/cni/net.d/10-containerd-net.conflist
}

# ADDRESS TLS
registry() {
    cat >registry.yml <<T
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: "$1"$2}
T
    OTEL_TRACES_EXPORTER=none "$peers/debian/usr/bin/docker-registry" serve registry.yml >>registry.log 2>&1 &
}

# The suite's images under their real names: filled in plain, then served over TLS. $work/suite is what the suite is told.
serve_images() {
    registry 127.0.0.1:5000 ''
    plain=$!
    until_works bash -c '</dev/tcp/127.0.0.1/5000'
    "$ours/corten-images" 127.0.0.1:5000 "$work/suite" >images.log 2>&1 || die "no images: $(tail -n 3 images.log)"
    kill $plain
    registry 127.0.0.1:443 ", tls: {certificate: $work/tls/server.pem, key: $work/tls/server.key}"
    until_works bash -c '</dev/tcp/127.0.0.1/443'
}
