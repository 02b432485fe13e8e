#!/usr/bin/env bash
# Backs up the volumes of a stack (default: the demo).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_binary
[ $# -gt 0 ] || set -- "$DEMO_STACK"
exec "$BIN" backup "$@"
