#!/usr/bin/env bash
# Exit 0 when the supervisor answers and everything it keeps is healthy; says what is not.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_binary
"$BIN" health --self
exec "$BIN" health "$@"
