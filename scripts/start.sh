#!/usr/bin/env bash
# From a fresh clone to a running supervisor with a demo stack, deployed over MCP. Running it again is harmless and fast.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'TEXT'
usage: scripts/start.sh [--no-demo | --demo] [--install-engine]

  --no-demo         supervisor only
  --demo            deploy the demo without asking, also on an engine that already runs containers
  --install-engine  install and start Debian's docker.io although traces of another engine were found

variables: PORT (of the demo, default: a free one from 8080), LISTEN (default 127.0.0.1:7420),
           DOCKWARDEN_HOME, DOCKWARDEN_CONFIG, DOCKER_HOST
TEXT
}

demo=ask install=
for arg in "$@"; do
  case $arg in
    --no-demo) demo=no ;;
    --demo) demo=yes ;;
    --install-engine) install=$arg ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; die "unknown argument $arg" ;;
  esac
done

step "checking prerequisites"
prerequisites
step "building (the first build takes minutes, later ones seconds)"
build
step "looking for an engine"
ensure_engine "$install"
step "starting the supervisor"
start_supervisor

# An engine with other people's containers is somebody's: the demo is asked for there, not assumed.
demo_wanted() {
  local all ours
  [ "$demo" != no ] || return 1
  [ "$demo" != yes ] || return 0
  all=$(docker ps -q | wc -l)
  ours=$(docker ps -q --filter label=dockwarden.instance | wc -l)
  [ "$all" -gt "$ours" ] || return 0
  if [ -t 0 ]; then
    local answer
    read -r -p "This engine already runs $((all - ours)) other container(s). Deploy the demo stack '$DEMO_STACK' beside them? [y/N] " answer
    [[ $answer == [yY]* ]]
  else
    say "This engine already runs $((all - ours)) other container(s): the demo is skipped. Ask for it with $0 --demo"
    return 1
  fi
}

deploy_demo() {
  local image port state operation
  step "building the demo image FROM scratch"
  image=$("$ROOT/scripts/image.sh" demo --binary "$BIN")
  # The stack keeps its port from run to run.
  port=${PORT:-$(cat "$DOCKWARDEN_HOME/demo.port" 2>/dev/null || true)}
  [ -n "$port" ] || port=$(free_port)
  echo "$port" >"$DOCKWARDEN_HOME/demo.port"

  step "deploying examples/hello by an MCP tools/call as agent stack-keeper"
  mcp_open stack-keeper
  mcp_tool deploy "{\"stack\":\"$DEMO_STACK\",\"compose\":$(json_string "$(cat "$ROOT/examples/hello/compose.yaml")"),\"variables\":{\"PORT\":\"$port\",\"IMAGE\":\"$image\"},\"reason\":\"start.sh\"}"
  state=$(json_field state "$MCP_RESULT")
  operation=$(json_field operation_id "$MCP_RESULT")
  while [ "$state" = running ] || [ "$state" = queued ]; do
    say "  $operation is $state"
    mcp_tool operation "{\"operation_id\":\"$operation\",\"wait_s\":20}"
    state=$(json_field state "$MCP_RESULT")
  done
  case $state in
    done | monitoring) say "deployed: $state${operation:+, $operation}" ;;
    *) die "the deploy ended as '${state:-unknown}'" "$MCP_RESULT" ;;
  esac
  mcp_tool health "{\"stack\":\"$DEMO_STACK\"}"
  mcp_close
  "$BIN" health "$DEMO_STACK" >&2
  say ""
  say "http://127.0.0.1:$port/ answers:"
  # /health first: each look at / counts as a visit.
  wait_for 10 http_get "$port" /health >/dev/null || die "the demo does not answer on port $port" "$BIN logs $DEMO_STACK"
  http_get "$port" / | sed 's/^/  /' >&2
}

if demo_wanted; then deploy_demo; fi
"$ROOT/scripts/attach.sh" "$BIN"
