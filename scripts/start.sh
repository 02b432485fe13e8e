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

variables: PORT (of the demo, default: a free one from 8080), DEMO_DIR (its project directory, default:
           ~/.local/share/dockwarden/hello), LISTEN (default: `listen` of dockwarden.toml, else 127.0.0.1:7420),
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

DEMO_DIR=${DEMO_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/dockwarden/$DEMO_STACK}

env_value() { { sed -n "s/^$1=//p" "$DEMO_DIR/.env" 2>/dev/null || true; } | head -n 1; }
# Sets one line of the demo's .env; what else somebody wrote there stays.
set_env() {
  local rest
  rest=$(grep -v "^$1=" "$DEMO_DIR/.env" 2>/dev/null || true)
  printf '%s\n' ${rest:+"$rest"} "$1=$2" >"$DEMO_DIR/.env"
}

# The demo is a stack like any other: a project directory, and a table in dockwarden.toml. Sets with_demo to `new` when that file
# changed, to nothing when it is the operator's own.
register_demo() {
  local toml=$DOCKWARDEN_CONFIG/dockwarden.toml entry image port version
  with_demo=yes
  entry=$(printf '[stacks.%s]\ndir = "%s"' "$DEMO_STACK" "$DEMO_DIR")
  case $DEMO_DIR in /*) ;; *) die "DEMO_DIR=$DEMO_DIR is not an absolute path" ;; esac
  seed_config
  if ! grep -qF "dir = \"$DEMO_DIR\"" "$toml" 2>/dev/null; then
    if grep -Eq "^ *(\\[stacks\\.\"?$DEMO_STACK\"?]|\"?$DEMO_STACK\"? *=|stacks *=|stacks\\.)" "$toml" 2>/dev/null; then
      say "the demo is skipped: $toml has a stack $DEMO_STACK of its own, or writes its stacks another way. To have it, write there:"
      say "$entry"
      with_demo=
      return
    fi
    [ -w "$toml" ] || { [ ! -e "$toml" ] && [ -w "$DOCKWARDEN_CONFIG" ]; } ||
      die "$toml cannot be written, and the demo is registered there" "add the lines below as its owner, or leave the demo out: --no-demo" "$entry"
    if [ -s "$toml" ]; then printf '\n\n' >>"$toml"; fi
    printf '%s\n' "$entry" >>"$toml"
    with_demo=new
    say "configuration: the stack $DEMO_STACK ($DEMO_DIR) was added to $toml"
  fi
  step "building the demo image FROM scratch"
  image=$("$ROOT/scripts/image.sh" demo --binary "$BIN")
  mkdir -p "$DEMO_DIR"
  [ -e "$DEMO_DIR/compose.yaml" ] || cp "$ROOT/examples/hello/compose.yaml" "$DEMO_DIR/compose.yaml"
  # The stack keeps its port and version from run to run.
  port=${PORT:-$(env_value PORT)}
  version=$(env_value VERSION)
  [ -n "$port" ] || port=$(free_port)
  set_env PORT "$port"
  set_env IMAGE "$image"
  set_env VERSION "${version:-1}"
}

deploy_demo() {
  local port state operation cli
  port=$(env_value PORT)
  step "deploying $DEMO_DIR by an MCP tools/call as agent stack-keeper"
  mcp_open stack-keeper
  mcp_tool deploy "{\"stack\":\"$DEMO_STACK\",\"reason\":\"start.sh\"}"
  state=$(json_field state "$MCP_RESULT")
  operation=$(json_field operation_id "$MCP_RESULT")
  while [ "$state" = running ] || [ "$state" = queued ]; do
    say "  $operation is $state"
    mcp_tool operation "{\"operation_id\":\"$operation\",\"wait_s\":20}"
    state=$(json_field state "$MCP_RESULT")
  done
  case $state in
    done | monitoring) say "deployed: $state${operation:+, $operation}" ;;
    pending_approval)
      die "the demo waits for a person: something of an earlier try is in the way, e.g. a volume that another home made" \
        "$BIN approvals show $(json_field approval_id "$MCP_RESULT")      shows what; remove that, or approve" \
        "$BIN operators add YOU      once, to be able to approve; or leave the demo out: --no-demo" ;;
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
  cli=$BIN
  [ "$DOCKWARDEN_HOME" = "$HOME/.local/state/dockwarden" ] || cli+=" --home $DOCKWARDEN_HOME"
  say ""
  say "Try it, here or by asking your client for the same:"
  say "  $cli plan $DEMO_STACK --var VERSION=2      what version 2 would change; changes nothing"
  say "  $cli deploy $DEMO_STACK --var VERSION=2    version 2 serves once it has proven itself"
  say "  $cli rollback $DEMO_STACK                  back to the release before"
  say "  $cli deploy $DEMO_STACK --var FAIL=health  a broken release: refused by its health check, the page goes on answering"
  say "  $cli history $DEMO_STACK                   what was; \`audit\` tells who did it"
}

# Before the supervisor starts: it reads dockwarden.toml once.
with_demo=
if demo_wanted; then register_demo; fi
step "starting the supervisor"
before=$(supervisor_pid)
start_supervisor
if [ -n "$with_demo" ]; then
  [ "$with_demo" != new ] || [ -z "$before" ] || [ "$before" != "$(supervisor_pid)" ] ||
    die "the supervisor (pid $before) runs since before $DEMO_STACK was registered" "restart it as you started it (systemctl restart dockwarden), then run this again"
  deploy_demo
fi
"$ROOT/scripts/attach.sh" "$BIN"
