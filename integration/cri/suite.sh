#!/bin/bash
# Runs containerd's own CRI integration suite against a daemon, on a machine made for it: mount, pid and network namespaces
# of its own, in which registries have their real names (over TLS, served from images of ours), CNI has a bridge, and
# /run, /opt and /var/lib are empty. Outside of them nothing is written but the work folder and cgroups.
#
#   integration/cri/suite.sh corten    [-- flags of the suite: -test.run TestNri]
#   integration/cri/suite.sh reference [-- ...]     stock containerd, which proves the environment
#   CORTEN_RUNTIME=io.containerd.corten.v2 integration/cri/suite.sh reference       our shim below it
#
# Left out, with the reason printed: TestUpgrade*, which upgrade a release of containerd in place and need releases of it.
# The last line is `N passed, N failed`; a failed test names itself. The daemon's log and the suite's are kept on failure.
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
top=$(dirname "$here")
peers=${CORTEN_PEERS_DIR:-$top/target/peers}
ours=${CORTEN_BIN_DIR:-$top/target/release}
under_test=${1:-corten}
[ $# -gt 0 ] && shift
[ "${1:-}" = -- ] && shift
die() { echo "cri-suite: $*" >&2; echo '0 passed, 1 failed'; exit 1; }

case $under_test in
corten) daemon=$ours/cortend runtime=${CORTEN_RUNTIME:-io.containerd.corten.v2} ;;
reference) daemon=$peers/bin/containerd runtime=${CORTEN_RUNTIME:-io.containerd.runc.v2} ;;
*) die "corten or reference, not $under_test" ;;
esac
for program in "$daemon" "$ours/containerd-shim-corten-v2" "$peers/bin/cri-integration.test" "$peers/debian/usr/bin/docker-registry"; do
    [ -x "$program" ] || die "$program is missing: run make build and integration/setup.sh cri"
done

if [ -z "${CORTEN_SUITE_WORK:-}" ]; then
    CORTEN_SUITE_WORK=$(mktemp -d "${TMPDIR:-/tmp}/cri-suite.XXXXXX")
    export CORTEN_SUITE_WORK
    unshare --mount --pid --net --fork --kill-child --mount-proc bash "$0" "$under_test" -- "$@"
    status=$?
    if [ $status = 0 ]; then rm -rf "$CORTEN_SUITE_WORK"; else echo "logs: $CORTEN_SUITE_WORK" >&2; fi
    exit $status
fi

work=$CORTEN_SUITE_WORK
socket=/run/containerd-test/containerd.sock
# A test counts the pipes of a shim, which has those of who started the daemon.
exec </dev/null
for fd in /proc/$$/fd/*; do
    fd=${fd##*/}
    [ "$fd" -gt 2 ] && [ "$fd" != 255 ] && eval "exec $fd>&-"
done

until_works() {
    for _ in $(seq 300); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    die "does not work within 30 s: $*"
}

# --- programs -----------------------------------------------------------------------------------------------------------
# Tests that start a daemon of their own call `containerd`; `docker` is what one test wants of it.
mkdir -p "$work"/{bin,root,etc/cni,etc/ssl/certs,tls,registry}
cd "$work/bin" || exit 1
for name in containerd "$(basename "$daemon")"; do
    printf '#!/bin/sh\nexec %s "$@"\n' "$daemon" >"$name"
done
ln -sf "$peers"/bin/{containerd-shim-runc-v2,containerd-shim-runc-fp-v1,ctr,loopback-v2,runc-fp} "$ours/containerd-shim-corten-v2" .
# Without CAP_SYS_RESOURCE runc cannot give what a sandbox asks for: a negative oom_score_adj.
cat >runc <<T
#!/bin/sh
for a; do case \$previous in --bundle) f=\$a/config.json ;; --process) f=\$a ;; esac; previous=\$a; done
[ -n "\${f:-}" ] && sed -i 's/"oomScoreAdj":-[0-9]*/"oomScoreAdj":0/' "\$f"
exec $peers/bin/runc "\$@"
T
cat >docker <<T
#!/bin/sh
[ "\$1" = pull ] || exec cp "$work/suite/archives/\$(echo "\$2" | tr / _)" "\$4"
T
chmod +x ./*
cd "$work" || exit 1

# --- machine ------------------------------------------------------------------------------------------------------------
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
ln -s "$peers"/debian/usr/lib/cni/* "$peers/bin/cni-bridge-fp" /opt/cni/bin/
mount --bind root /var/lib/containerd-test # a tmpfs has no idmapped mounts

# NAME TYPE BRIDGE MORE
network() {
    cat <<T
{"cniVersion": "1.0.0", "name": "$1", "plugins": [
  {"type": "$2", "bridge": "$3", "isGateway": true, "ipMasq": true, "promiscMode": true, $4
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "2001:4860:4860::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
T
}
network containerd-net bridge cni0 '' >/etc/cni/net.d/10-containerd-net.conflist
network containerd-net-failpoint cni-bridge-fp cni-fp '"capabilities": {"io.kubernetes.cri.pod-annotations": true},' \
    >/etc/cni/fp.d/10-containerd-net.conflist

# --- registry: filled in plain, then served over TLS ---------------------------------------------------------------------
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
registry 127.0.0.1:5000 ''
plain=$!
until_works bash -c '</dev/tcp/127.0.0.1/5000'
"$ours/corten-images" 127.0.0.1:5000 "$work/suite" >images.log 2>&1 || die "no images: $(tail -n 3 images.log)"
kill $plain
registry 127.0.0.1:443 ", tls: {certificate: $work/tls/server.pem, key: $work/tls/server.key}"
until_works bash -c '</dev/tcp/127.0.0.1/443'

# --- daemon and suite ------------------------------------------------------------------------------------------------------
cat >config.toml <<T
version = 3
root = "/var/lib/containerd-test"
state = "/run/containerd-test"
[grpc]
  address = "$socket"
[plugins."io.containerd.cri.v1.runtime"]
  drain_exec_sync_io_timeout = "10s"
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "$runtime"
    sandboxer = "${CORTEN_SANDBOXER:-podsandbox}"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc-fp]
    runtime_type = "runc-fp.v1"
    cni_conf_dir = "/etc/cni/fp.d"
    cni_max_conf_num = 1
    pod_annotations = ["io.containerd.runtime.v2.shim.failpoint.*"]
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = "/run/containerd/s"
[plugins."io.containerd.snapshotter.v1.overlayfs"]
  slow_chown = true
[plugins."io.containerd.nri.v1.nri"]
  disable = false
  socket_path = "/var/run/nri-test.sock"
  plugin_path = "/no/pre-launched/nri/plugins"
T
# Tests end the daemon and wait for it to come back.
while :; do
    "$daemon" --config config.toml --log-level debug
    sleep 2
done >daemon.log 2>&1 &
until_works ctr -a $socket version
# A test of memory.memsw wants to see swap, and uses none.
printf 'Filename Type Size Used Priority\n/none file 65536 0 -2\n' >swaps
echo 'left out: TestUpgrade*: no releases of containerd to upgrade from are built here'
unshare --mount --propagation unchanged sh -c 'mount --make-private /proc; mount --bind swaps /proc/swaps; exec "$@"' - \
    "$peers/bin/cri-integration.test" -test.v -test.timeout 30m -test.skip '^TestUpgrade' -cri-endpoint unix://$socket \
    -containerd-bin "$(basename "$daemon")" -build-dir "$work/bin" -image-list "$work/suite/images.toml" "$@" >suite.log 2>&1
status=$?
grep -E '^--- SKIP' -A 2 suite.log
grep -E '^ *--- FAIL' suite.log
passed=$(grep -c '^--- PASS' suite.log)
failed=$(grep -c '^--- FAIL' suite.log)
# A suite that died names the test it was in.
if [ $status != 0 ] && [ "$failed" = 0 ]; then
    grep -E '^(=== RUN|panic)' suite.log | tail -n 2
    failed=1
fi
echo "$passed passed, $failed failed"
exit $status
