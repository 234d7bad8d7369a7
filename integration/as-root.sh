#!/bin/sh
# Runs a command as root: directly, or by sudo after saying so. Cargo's runner for tests that make
# containers.
[ "$(id -u)" = 0 ] && exec "$@"
echo "needs root, using sudo: $*" >&2
exec sudo --preserve-env=PATH,HOME,CORTEN_UNDER_TEST,CORTEN_RUNTIME,CORTEN_PEERS_DIR,CORTEN_BIN_DIR,CORTEN_KEEP "$@"
