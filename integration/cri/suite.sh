#!/bin/bash
# Runs containerd's own CRI integration suite against a daemon, on a machine made for it (machine.sh).
#
#   integration/cri/suite.sh corten    [-- flags of the suite: -test.run TestNri]
#   integration/cri/suite.sh reference [-- ...]     stock containerd, which proves the environment
#   CORTEN_RUNTIME=io.containerd.corten.v2 integration/cri/suite.sh reference       our shim below it
#   CORTEN_SANDBOXER=shim integration/cri/suite.sh corten       pods without a pause container only
#
# Corten is tried with both sandboxers, one after the other, stock with podsandbox. What cannot be asked here is left out, and
# each test of it printed with the reason. The last line is `N passed, N failed`; a failed test names itself. The daemon's
# log and the suite's are kept on failure.
set -u
me=cri-suite
. "$(dirname "$0")/machine.sh"
under_test=${1:-corten}
[ $# -gt 0 ] && shift
[ "${1:-}" = -- ] && shift

case $under_test in
corten) daemon=$ours/cortend runtime=${CORTEN_RUNTIME:-io.containerd.corten.v2} sandboxers='shim podsandbox' ;;
reference) daemon=$peers/bin/containerd runtime=${CORTEN_RUNTIME:-io.containerd.runc.v2} sandboxers=podsandbox ;;
*) die "corten or reference, not $under_test" ;;
esac
need "$daemon" "$ours/containerd-shim-corten-v2" "$ours/corten-images" "$peers/bin/cri-integration.test" \
    "$peers/debian/usr/bin/docker-registry"

sandboxers=${CORTEN_SANDBOXER:-$sandboxers}
# A machine for each.
if [ "${sandboxers#* }" != "$sandboxers" ]; then
    out=$(mktemp)
    trap 'rm -f "$out"' EXIT
    passed=0 failed=0 ended=0
    for sandboxer in $sandboxers; do
        CORTEN_SANDBOXER=$sandboxer bash "$0" "$under_test" -- "$@" >"$out" || ended=1
        sed '$d' "$out"
        sums=$(tail -n 1 "$out" | sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p')
        sums=${sums:-0 1}
        echo "$under_test with sandboxer $sandboxer: ${sums% *} passed, ${sums#* } failed"
        passed=$((passed + ${sums% *})) failed=$((failed + ${sums#* }))
    done
    echo "$passed passed, $failed failed"
    exit $ended
fi
sandboxer=$sandboxers
enter "$under_test" -- "$@"

# --- what is left out -----------------------------------------------------------------------------------------------------
skip=
# TESTS REASON; TESTS as -test.skip takes them.
leave_out() {
    echo "left out: $1: $2"
    skip=${skip:+$skip|}$1
}
old='needs releases of containerd from before, which are not built here'
leave_out '^TestUpgrade' "$old"
leave_out '^TestIssue10467$' "$old"
# It asks no daemon: it calls the puller of containerd that is linked into the suite itself.
leave_out '^TestCRIImagePullTimeout$/^HoldingContentOpenWriter' \
    'holds manifests by the digests of an image on ghcr.io, and images made here have others'
if [ "$sandboxer" = shim ]; then
    none='loads the task of the pause container, and these pods have none'
    leave_out '^TestKillShimPublishesTaskExitAndDeleteEvents$' "$none"
    leave_out '^TestShutdownShimWhenPauseExitsBeforeWorkload$' "$none"
    leave_out '^TestContainerdRestart$' "$none"
fi

# Tests that lose races of their own on a busy machine, with stock containerd too: they are tried up to three times. They
# send a signal without waiting until their script has set its trap.
racy='^Test(Default)?ContainerStopSignals?$'

# --- programs -----------------------------------------------------------------------------------------------------------
# Tests that start a daemon of their own call `containerd`; `docker` is what one test wants of it.
mkdir -p "$work/bin"
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

make_machine
ln -s "$peers/bin/cni-bridge-fp" /opt/cni/bin/
network containerd-net-failpoint cni-bridge-fp cni-fp '"capabilities": {"io.kubernetes.cri.pod-annotations": true},' \
    >/etc/cni/fp.d/10-containerd-net.conflist
serve_images

# Stock containerd has options of runc's for the handler of that name, and hands them to no other runtime in its form.
handler=runc
[ "$under_test/$runtime" = reference/io.containerd.corten.v2 ] && handler=corten

# --- daemon and suite ------------------------------------------------------------------------------------------------------
socket=/run/containerd-test/containerd.sock
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
    default_runtime_name = "$handler"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.$handler]
    runtime_type = "$runtime"
    sandboxer = "$sandboxer"
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
# LOG FLAGS: one run of the suite.
run() {
    log=$1
    shift
    unshare --mount --propagation unchanged sh -c 'mount --make-private /proc; mount --bind swaps /proc/swaps; exec "$@"' - \
        "$peers/bin/cri-integration.test" -test.v -test.timeout 30m -cri-endpoint unix://$socket \
        -containerd-bin "$(basename "$daemon")" -build-dir "$work/bin" -image-list "$work/suite/images.toml" "$@" >"$log" 2>&1
}
# LOG: how often tests of a whole run failed in it.
failures() { grep -c "^--- FAIL" "$1"; }
if [ $# = 0 ]; then
    run suite.log -test.skip "$skip|$racy"
    status=$?
    # The suite's own deadlines are short, and it was written for a machine that does nothing else. A test that fails on
    # a busy one is tried once more, alone, and named; what is wrong fails again. Many failures are no accident.
    count=$(failures suite.log)
    if grep -q "^FAIL$" suite.log && [ "$count" -ge 1 ] && [ "$count" -le 3 ]; then
        again=$(sed -n 's/^--- FAIL: \([^ ]*\).*/\1/p' suite.log | paste -sd'|')
        echo "tried once more: $again:"
        grep -E -A 4 '^ +(--- FAIL|Error|.*_test\.go:[0-9]+:)' suite.log | head -n 40
        sed -i '/^ *--- FAIL/d' suite.log
        run again.log -test.run "^($again)\$" -test.skip "$skip"
        status=$?
        cat again.log >>suite.log
    fi
    for try in 1 2 3; do
        run racy.log -test.run "$racy" && break
        echo "try $try of 3 failed: $racy"
        [ $try != 3 ] || status=1
    done
    cat racy.log >>suite.log
else
    run suite.log -test.skip "$skip" "$@"
    status=$?
fi
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
