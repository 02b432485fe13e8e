#!/usr/bin/env bash
# Docker Compose v2 and dockwarden on the same stack in turns: cold deploy, no-op, update under load, broken release, killed deployer.
# Fetches nothing: COMPOSE names a docker-compose v2 binary. Needs an engine, the Docker client and python3 3.11. Ports are on loopback only; what it makes
# is removed. More arguments go to side_by_side.py, e.g. `--rounds 5 --strategies front,hold,handover` or `--only cold,profile`.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib.sh"
[ -x "${COMPOSE:-}" ] || die "COMPOSE does not name a docker-compose v2 binary" "e.g. COMPOSE=/usr/libexec/docker/cli-plugins/docker-compose $0"
python3 -c 'import asyncio; asyncio.timeout' 2>/dev/null || die "python3 3.11 or newer is needed"
need_binary
engine_answers || die "no engine answers" "scripts/start.sh --no-demo starts one or says what is in the way"
image=$("$ROOT/scripts/image.sh" demo --binary "$BIN")
# Not on a tmpfs: an fsync must cost what it costs.
export TMPDIR=${TMPDIR:-/var/tmp}
exec python3 "$ROOT/benches/side_by_side/side_by_side.py" --compose "$COMPOSE" --binary "$BIN" --image "$image" "$@"
