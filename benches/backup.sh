#!/usr/bin/env bash
# Backups beside `tar | zstd`, restic and borg, interleaved in one run: first backup, one percent changed, nothing changed, restore, check, peak memory.
# Ours is the worker the supervisor starts for each piece of work, on the same directory. Needs python3 and zstd; restic and borg where they are
# installed (apt-get install restic borgbackup zstd), and is told which are missing. Everything it makes is in a temporary directory and is removed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo build --locked
triple=$(rustc -vV | sed -n 's/^host: //p')
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/tmp"
TMPDIR=$(cd "$target/tmp" && pwd) exec python3 benches/backup.py --binary "$target/$triple/debug/dockwarden" "$@"
