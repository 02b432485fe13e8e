#!/usr/bin/env bash
# Logs of a stack (default: the demo), merged by time; more arguments go to `dockwarden logs`, e.g. -f. --self: the supervisor's own log.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
if [ "${1:-}" = --self ]; then
  shift
  [ -e "$DOCKWARDEN_HOME/serve.log" ] || die "no $DOCKWARDEN_HOME/serve.log" "start.sh writes it; a systemd unit logs to: journalctl -u dockwarden"
  exec tail -n 200 "$@" "$DOCKWARDEN_HOME/serve.log"
fi
need_binary
case ${1:-} in '' | -*) set -- "$DEMO_STACK" "$@" ;; esac
exec "$BIN" logs "$@"
