#!/bin/sh
# Checks the licences and sources of every crate that the build uses, by deny.toml. The tool is built
# once into target/tools (about a minute on two cores, unoptimised). Advisories are not checked here: they
# need a database from the network (`cargo deny check advisories` where there is one).
#
#   integration/deny.sh             install the tool when it is missing, then check
#   integration/deny.sh --if-built  check only when the tool is there already
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
tool=$top/target/tools/bin/cargo-deny

if [ ! -x "$tool" ]; then
    if [ "${1:-}" = --if-built ]; then
        echo "deny: no cargo-deny in target/tools; skipped"
        exit 0
    fi
    echo "deny: building cargo-deny into target/tools (once, about a minute)"
    build=$(mktemp -d)
    trap 'rm -rf "$build"' EXIT
    # What it saves by being fast is less than what making it fast costs.
    CARGO_TARGET_DIR=$build CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0 \
        cargo install --quiet cargo-deny --version '^0.20' --locked --root "$top/target/tools"
fi
cd "$top"
# cargo-deny reads the manifests of crates for every platform; a build downloads only its own.
cargo fetch --quiet
exec "$tool" --offline --log-level warn check --hide-inclusion-graph licenses bans sources
