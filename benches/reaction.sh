#!/usr/bin/env bash
# From an event of a real engine to the first call the loop makes because of it, by a proxy between a real `dockwarden serve` and the engine.
# Needs an engine on /var/run/docker.sock of this host, root (to kill processes of containers), the Docker client, python3, a static busybox; two minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo build
triple=$(rustc -vV | sed -n 's/^host: //p')
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/tmp"
# The home is on the disk of the build, not on a tmpfs: an fsync must cost what it costs.
TMPDIR=$(cd "$target/tmp" && pwd) exec python3 benches/reaction.py --binary "$target/$triple/debug/dockwarden" "$@"
