#!/bin/sh
# `make test`: installs what is missing, builds, and runs every check and every test. Goes on after
# a failure, so that one run tells all of them; the last line is the sum and the exit status says
# whether anything failed.
set -u
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0
failed=0
began=$(date +%s)

say() { printf '\n== %s (%s s)\n' "$*" "$(($(date +%s) - began))"; }

# Runs a check that passes or fails as a whole.
check() {
    name=$1
    shift
    say "$name"
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $name"
    fi
}

# Runs tests and adds their results up. A program that dies without a result is a failure.
tests() {
    name=$1
    shift
    say "$name"
    { "$@" 2>&1; echo "status $?" >"$log.status"; } | tee "$log"
    status=$(sed 's/status //' "$log.status")
    rm -f "$log.status"
    # The sums of cargo's lines, or the one with which a script ends.
    sums=$(awk '/^test result:/ { for (i = 1; i < NF; i++) {
        if ($(i + 1) ~ /^passed/) p += $i; if ($(i + 1) ~ /^failed/) f += $i } }
        /^[0-9]+ passed, [0-9]+ failed$/ { p += $1; f += $3 }
        END { print p + 0, f + 0 }' "$log")
    passed=$((passed + ${sums% *}))
    failed=$((failed + ${sums#* }))
    if [ "$status" != 0 ] && [ "${sums#* }" = 0 ]; then
        failed=$((failed + 1))
        echo "FAILED: $name ended with status $status"
    fi
}

give_up() {
    echo "$passed passed, $((failed + 1)) failed"
    exit 1
}

triple=$(uname -m)-unknown-linux-gnu
key=$(echo "$triple" | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${key}_RUNNER=$PWD/integration/as-root.sh"

say 'packages and reference programs'
integration/setup.sh || give_up
say 'build'
make --no-print-directory build || give_up

check 'format' cargo fmt --all --check
check 'lints' cargo clippy --release --quiet --workspace --all-targets -- -D warnings
check 'building the tests' integration/cargo-test.sh --quiet --no-run
# With what passed tests say: some say why they could not run here.
tests 'unit tests' integration/cargo-test.sh --quiet --exclude corten-integration --no-fail-fast -- --show-output
tests 'behaviour tests: Corten' integration/cargo-test.sh --quiet --test ctr
tests 'behaviour tests: the shim alone' integration/cargo-test.sh --quiet --test shim
tests 'behaviour tests: the CRI' integration/cargo-test.sh --quiet --test cri
tests 'the CRI suite of containerd' make --no-print-directory test-cri-suite
tests 'second kernel' env CORTEN_VM_OPTIONAL=1 integration/vm/run.sh fast
check 'licences and sources' integration/deny.sh
check 'installation' integration/install-test.sh

say 'all done'
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
