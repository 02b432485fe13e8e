#!/usr/bin/env bash
# What a call costs over each door, cold start, memory and the size of lists, beside a no-op MCP server and the raw engine, in one run.
# Needs an engine, python3 and about two minutes. Everything it makes is in a temporary home or carries its label, and is removed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo build
noop=$(cargo bench --profile dev --no-run --bench noop --message-format json |
  python3 -c 'import json,sys; print([m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable") and m["target"]["name"] == "noop"][0])')
triple=$(rustc -vV | sed -n 's/^host: //p')
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/tmp"
# The home is on the disk of the build, not on a tmpfs: an fsync must cost what it costs.
TMPDIR=$(cd "$target/tmp" && pwd) exec python3 benches/calls.py --binary "$target/$triple/debug/dockwarden" --noop "$noop" "$@"
