#!/usr/bin/env bash
# Stops the supervisor of this home. Stacks keep running; --demo stops the demo stack first (its volume stays).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
case ${1:-} in
  '') ;;
  --demo) need_binary; "$BIN" stop "$DEMO_STACK" ;;
  *) echo "usage: scripts/stop.sh [--demo]" >&2; exit 2 ;;
esac
stop_supervisor
