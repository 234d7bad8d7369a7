#!/bin/sh
# Runs the suites inside of the machine, in the words of cargo's tests; the last line is the sum.
export PATH=/corten/bin:/corten/peers/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TMPDIR=/tmp CORTEN_BIN_DIR=/corten/bin CORTEN_PEERS_DIR=/tmp/peers
export RUST_BACKTRACE=0
modprobe -a overlay loop veth bridge tun ip_tables 2>/dev/null
chmod 1777 /tmp
mkdir -p /tmp/peers /var/lib /var/run
ln -sf /corten/peers/bin /tmp/peers/bin
ln -sf /corten/peers/debian /tmp/peers/debian
. /corten/lane.env

passed=0
failed=0
log=/run/lane.log

# Adds what the log says to the sums; $1 is the status of the program that wrote it.
add() {
    set -- $(awk '/^test result:/ { for (i = 1; i < NF; i++) {
        if ($(i + 1) ~ /^passed/) p += $i; if ($(i + 1) ~ /^failed/) f += $i } }
        END { print p + 0, f + 0 }' $log) "$1"
    passed=$((passed + $1))
    failed=$((failed + $2))
    if [ "$3" != 0 ] && [ "$2" = 0 ]; then
        failed=$((failed + 1))
        echo "FAILED: ended with status $3"
    fi
}

run() {
    echo "== $* ($(cut -d. -f1 /proc/uptime) s)"
    { "$@" 2>&1; echo $? >$log.status; } | tee $log
    add "$(cat $log.status)"
}

# The engine's own cases tell no sums: each that began and did not end the program has passed.
engine() {
    echo "== the engine's containers ($(cut -d. -f1 /proc/uptime) s)"
    { /corten/tests/containers "$@" 2>&1; echo $? >$log.status; } | tee $log
    cases=$(grep -c '^case ' $log)
    if [ "$(cat $log.status)" = 0 ]; then
        echo "test result: ok. $cases passed; 0 failed" | tee $log
    else
        echo "test result: FAILED. $((cases - 1)) passed; 1 failed" | tee $log
    fi
    add 0
}

ctr() {
    run /corten/tests/ctr --test-threads "$THREADS" "$@"
}

shim() {
    run /corten/tests/shim --test-threads "$THREADS" "$@"
}

cri() {
    run /corten/tests/cri --test-threads "$THREADS" "$@"
}

echo "lane $LANE: Linux $(uname -r), $(cat /proc/1/comm) as init, $(nproc) processors, \
cgroups: $(grep -c cgroup2 /proc/mounts) v2 $(grep -c '^cgroup ' /proc/mounts) v1, \
lsm $(cat /sys/kernel/security/lsm 2>/dev/null)"
if [ -n "$ONLY" ]; then
    # shellcheck disable=SC2086
    case $ONLY in shim* | cri*) $ONLY ;; *) ctr $ONLY ;; esac
else
    . "/corten/lane-$LANE.sh"
fi
echo "$passed passed, $failed failed in the machine ($(cut -d. -f1 /proc/uptime) s)"
