#!/bin/sh
# Fuzzes what the shim reads from others.
#
#   integration/fuzz/run.sh [TARGET] [SECONDS]     config, bootstrap or frame; all of them, 60 s each
#
# Coverage comes from LLVM by plain flags of rustc, libFuzzer from its crate: the stable toolchain
# and a C++ compiler are enough. Findings and what was learnt are kept in target/fuzz. Runs as nobody
# where it can: a document names paths of this machine.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$(dirname "$here")")
out=$top/target/fuzz
targets=${1:-config bootstrap frame}
seconds=${2:-60}

mkdir -p "$out"
[ -e "$here/Cargo.lock" ] || cp "$top/Cargo.lock" "$here/Cargo.lock"
RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares" \
    cargo build --release --manifest-path "$here/Cargo.toml" --target-dir "$out/build" --target "$(uname -m)-unknown-linux-gnu" --bins
programs=$out/build/$(uname -m)-unknown-linux-gnu/release

as_nobody=
if [ "$(id -u)" = 0 ]; then
    as_nobody='setpriv --reuid=65534 --regid=65534 --clear-groups --'
fi
mkdir -p /tmp/corten-fuzz-root
trap 'rmdir /tmp/corten-fuzz-root' EXIT
status=0
for target in $targets; do
    case $target in
    config) program=config ;;
    *) program=shim ;;
    esac
    mkdir -p "$out/$target/corpus" "$out/$target/findings"
    [ "$(id -u)" != 0 ] || chown -R 65534:65534 "$out/$target"
    seeds=$here/seeds/$target
    [ -d "$seeds" ] || seeds=
    dict=
    [ "$target" != config ] || dict="-dict=$here/config.dict"
    # The programs lie where nobody may not look.
    run=$(mktemp -d)
    chmod 755 "$run"
    cp "$programs/$program" "$run/fuzz"
    [ -z "$seeds" ] || cp -r "$seeds" "$run/seeds"
    [ -z "$dict" ] || cp "$here/config.dict" "$run/dict" && dict=${dict:+-dict=$run/dict}
    echo "== $target, $seconds s"
    # shellcheck disable=SC2086
    (cd "$out/$target" && CORTEN_FUZZ=$target $as_nobody "$run/fuzz" -max_total_time="$seconds" -timeout=10 \
        -rss_limit_mb=2048 -print_final_stats=1 -max_len=16384 $dict \
        -artifact_prefix=findings/ corpus ${seeds:+"$run/seeds"}) 2>&1 | tee "$out/$target/log" | grep -E '^(==|stat|SUMMARY|thread|Done)|panicked|DONE' || true
    rm -rf "$run"
    [ -z "$(ls "$out/$target/findings")" ] || { echo "FOUND: $(ls "$out/$target/findings")"; status=1; }
done
exit $status
