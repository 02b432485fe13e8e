#!/usr/bin/env bash
# Logs of a stack (default: the demo), merged by time; more arguments go to `dockwarden logs`, e.g. -f. --self: the supervisor's own log.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
if [ "${1:-}" = --self ]; then
  shift
  # start.sh writes the one, a supervisor that a client started on demand the other; the newer one speaks of what runs.
  log=
  for file in "$DOCKWARDEN_HOME/serve.log" "$DOCKWARDEN_HOME/log/serve.log"; do
    if [ -e "$file" ] && { [ -z "$log" ] || [ "$file" -nt "$log" ]; }; then log=$file; fi
  done
  [ -n "$log" ] || die "no serve.log in $DOCKWARDEN_HOME or its log/" "nothing was started here yet; a systemd unit logs to: journalctl -u dockwarden"
  exec tail -n 200 "$@" "$log"
fi
need_binary
case ${1:-} in '' | -*) set -- "$DEMO_STACK" "$@" ;; esac
exec "$BIN" logs "$@"
