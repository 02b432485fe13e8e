#!/usr/bin/env bash
# After a change of the source: builds, restarts the supervisor of this home, and deploys the demo again from the new binary when it runs.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
demo=--no-demo
if engine_answers && [ -n "$(docker ps -q --filter "label=com.docker.compose.project=$DEMO_STACK" --filter label=dockwarden.instance)" ]; then demo=--demo; fi
exec "$ROOT/scripts/start.sh" "$demo" "$@"
