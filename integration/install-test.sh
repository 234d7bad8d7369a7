#!/bin/sh
# `make install PREFIX=DIR` places the programs, the unit and the config below DIR and touches
# nothing outside of it; what it places works.
set -eu
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() { echo "install: $*"; exit 1; }

touch "$dir/before"
make --no-print-directory install PREFIX="$dir/p" >/dev/null
for file in bin/cortend bin/containerd-shim-corten-v2 lib/systemd/system/cortend.service \
    etc/containerd/config.toml share/man/man8/cortend.8 \
    share/bash-completion/completions/cortend; do
    [ -f "$dir/p/$file" ] || fail "$file is missing"
done
for word in Type=notify Delegate=yes KillMode=process "ExecStart=$dir/p/bin/cortend"; do
    grep -q "^$word" "$dir/p/lib/systemd/system/cortend.service" || fail "the unit lacks $word"
done
"$dir/p/bin/cortend" --version | grep -q corten || fail 'cortend does not tell its version'
"$dir/p/bin/cortend" -c "$dir/p/etc/containerd/config.toml" config dump >/dev/null ||
    fail 'cortend cannot read the config it came with'
"$dir/p/bin/containerd-shim-corten-v2" -v >/dev/null || fail 'the shim does not tell its version'
# Of what the installation could have touched elsewhere, the likeliest places.
found=$(find /usr/local /etc /lib/systemd -newer "$dir/before" -name '*corten*' 2>/dev/null || true)
[ -z "$found" ] || fail "files outside of PREFIX: $found"
