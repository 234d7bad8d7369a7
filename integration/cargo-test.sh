#!/bin/sh
# `cargo test --release --workspace`, so that it compiles little: every run of tests goes through here.
#
#   integration/cargo-test.sh [ARGUMENTS OF CARGO TEST]
#
# The whole workspace is named in each run, so that all of them agree on the features of every library and share
# what is built; narrow a run by target (`--test ctr`, `--lib`), not by package. The libraries of others are those
# of the release build. Our own crates are compiled unoptimised, which takes a fifth of the time, and with the
# checks of a debug build; the programs that the behaviour tests start are not built here but by `make build`.
set -eu
cd "$(dirname "$0")/.."

config=
for manifest in $(sed -n '/^members/,/^]/s|^ *"\(.*\)",*$|\1/Cargo.toml|p' Cargo.toml); do
    name=$(sed -n 's/^name = "\(.*\)"$/\1/p' "$manifest" | head -n 1)
    for setting in opt-level=0 debug-assertions=true overflow-checks=true; do
        config="$config --config profile.release.package.$name.$setting"
    done
done
# shellcheck disable=SC2086
exec cargo test --release --workspace $config "$@"
