# Shared by the scripts beside it; sourced, never run. Finds prerequisites, the engine and the supervisor, and says what it found.
# Deliberately absent: anything a tool of dockwarden does. The scripts only put tools and cargo behind one command each.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export DOCKWARDEN_HOME=${DOCKWARDEN_HOME:-${XDG_STATE_HOME:-$HOME/.local/state}/dockwarden}
if [ -z "${DOCKWARDEN_CONFIG:-}" ]; then
  if [ -d /etc/dockwarden ]; then DOCKWARDEN_CONFIG=/etc/dockwarden; else DOCKWARDEN_CONFIG=${XDG_CONFIG_HOME:-$HOME/.config}/dockwarden; fi
fi
export DOCKWARDEN_CONFIG
DEMO_STACK=hello

say() { printf '%s\n' "$*" >&2; }
step() { printf '\n==> %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$1" >&2
  shift
  while [ $# -gt 0 ]; do printf '  %s\n' "$1" >&2; shift; done
  exit 1
}

# ---- prerequisites ------------------------------------------------------------------------------------------------------------

# What a build needs, checked all at once: one run tells everything that is missing.
prerequisites() {
  local missing=() free_mb mem_mb need have rustup="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
  need=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$ROOT/Cargo.toml")
  [ "$(uname -s)" = Linux ] || missing+=("Linux: dockwarden runs where the engine runs; use a Linux host or VM")
  if ! command -v cargo >/dev/null 2>&1; then missing+=("a Rust toolchain ($need or later; rustup takes the pinned one by itself): $rustup")
  else
    # In the tree: there rustup chooses, or fetches, the toolchain that rust-toolchain.toml pins.
    have=$(cd "$ROOT" && cargo --version | sed -n 's/^cargo \([0-9.]*\).*/\1/p' || true)
    if [ -z "$have" ]; then missing+=("a cargo that runs: \`cargo --version\` failed, its message is above; rustup toolchain install $(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$ROOT/rust-toolchain.toml")")
    elif [ "$(printf '%s\n' "$need" "$have" | sort -V | head -n 1)" != "$need" ]; then missing+=("a newer Rust toolchain: cargo $have ($(command -v cargo)) is too old, $need is needed; rustup has it: $rustup"); fi
  fi
  command -v cc >/dev/null 2>&1 || missing+=("a C compiler (SQLite is compiled in): apt-get install gcc libc6-dev")
  [ ${#missing[@]} -eq 0 ] || die "prerequisites are missing:" "${missing[@]}"
  mem_mb=$(($(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo) / 1024))
  free_mb=$(df -Pm "$ROOT" | awk 'NR==2 {print $4}')
  [ "$mem_mb" -ge 3500 ] || say "note: $mem_mb MB of memory; the build wants 4 GB. If it is killed: CARGO_BUILD_JOBS=1 $0"
  [ -x "$(binary_path)" ] || [ "$free_mb" -ge 10000 ] || say "note: $free_mb MB free under $ROOT; build, images and backups want 10 GB."
}

# What the tests need besides: Debian's names, and what each brings. As root on a Debian they are installed, elsewhere all that is missing is told.
test_prerequisites() {
  local missing=() package program tools=(
    restic:restic busybox-static:/usr/bin/busybox ca-certificates:/etc/ssl/certs/ca-certificates.crt
    openssh-client:ssh openssh-server:/usr/sbin/sshd util-linux:nsenter bsdutils:script coreutils:sha256sum
  )
  [ "$(uname -m)" = x86_64 ] || die "the tests bring a program of their own in x86-64 machine code; this machine is $(uname -m)" "dockwarden itself builds and runs here: ./scripts/start.sh"
  [ "$(id -u)" = 0 ] || die "the tests need root: they mount, change owners, look into volumes and start engines and namespaces of their own" "run them in a virtual machine, or: sudo -E $0"
  python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
  for package in "${tools[@]}"; do
    program=${package#*:}
    command -v "$program" >/dev/null 2>&1 || [ -e "$program" ] || missing+=("${package%%:*}")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null 2>&1 || die "the tests need more (Debian's names of the packages):" "${missing[@]}"
  step "installing what the tests need: ${missing[*]}"
  apt-get update -qq >&2 || say "note: apt-get update failed; going on with the lists that are there"
  # RUNLEVEL: an SSH server is a program of the tests here, and no service.
  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2 || say "note: apt-get could not install them; the tests that lack one fail by name"
}

binary_path() {
  # .cargo/config.toml always builds for an explicit target, so the folder of the host's triple is part of the path.
  local triple
  triple=$(cd "$ROOT" && rustc -vV | sed -n 's/^host: //p')
  printf '%s/%s/debug/dockwarden\n' "${CARGO_TARGET_DIR:-$ROOT/target}" "$triple"
}

# Builds and sets BIN. One profile for everything: what start.sh builds is what the tests and the images use.
build() {
  (cd "$ROOT" && cargo build --locked) >&2 || die "the build failed; the compiler's message is above"
  BIN=$(binary_path)
  [ -x "$BIN" ] || die "cargo built no $BIN" "is CARGO_BUILD_TARGET or build.target set in your cargo configuration?"
}

# BIN for the thin wrappers: an installed or built binary, else a build.
need_binary() {
  if [ -n "${DOCKWARDEN_BIN:-}" ]; then BIN=$DOCKWARDEN_BIN
  elif command -v cargo >/dev/null 2>&1 && [ -x "$(binary_path)" ]; then BIN=$(binary_path)
  elif command -v dockwarden >/dev/null 2>&1; then BIN=$(command -v dockwarden)
  else prerequisites; build; fi
}

# ---- engine -------------------------------------------------------------------------------------------------------------------

engine_answers() { command -v docker >/dev/null 2>&1 && timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# Every trace of a Docker or Podman that somebody set up, one a line. A docker *client* alone is none: it cannot run a container.
engine_traces() {
  local f p u
  [ -z "${DOCKER_HOST:-}" ] || echo "DOCKER_HOST=$DOCKER_HOST"
  [ -z "${DOCKER_CONTEXT:-}" ] || echo "DOCKER_CONTEXT=$DOCKER_CONTEXT"
  f=${DOCKER_CONFIG:-$HOME/.docker}
  if grep -qs '"currentContext"' "$f/config.json" || ls -A "$f/contexts/meta" 2>/dev/null | grep -q .; then echo "client context in $f"; fi
  for f in /var/run/docker.sock /run/podman/podman.sock /run/user/*/docker.sock /run/user/*/podman/podman.sock "$HOME/.docker/run/docker.sock" "$HOME/.docker/desktop/docker.sock"; do
    # /var/run is /run; a killed dockerd leaves its socket behind, which is still a trace of one.
    if [ -S "$f" ]; then echo "socket $f"; fi
  done
  for p in dockerd podman dockerd-rootless.sh; do
    if command -v "$p" >/dev/null 2>&1; then echo "program $(command -v "$p")"; fi
  done
  for u in docker.service docker.socket podman.service podman.socket snap.docker.dockerd.service; do
    for f in /etc/systemd/system /lib/systemd/system "$HOME/.config/systemd/user"; do
      if [ -e "$f/$u" ]; then echo "unit $f/$u"; fi
    done
  done
  if command -v dpkg-query >/dev/null 2>&1; then
    # shellcheck disable=SC2016
    dpkg-query -W -f '${db:Status-Abbrev}package ${Package}\n' docker.io docker-ce docker-ce-rootless-extras docker-desktop moby-engine podman podman-docker 2>/dev/null | sed -n 's/^ii *//p'
  elif command -v rpm >/dev/null 2>&1; then
    rpm -q docker-ce moby-engine podman docker 2>/dev/null | grep -v 'not installed' | sed 's/^/package /'
  fi
  return 0
}

# Makes an engine answer, or explains. $1 = --install-engine when the caller was told to.
ensure_engine() {
  local traces found mark=$DOCKWARDEN_HOME/engine-by-start
  if engine_answers; then
    say "engine: $(docker version --format 'Docker {{.Server.Version}}, API {{.Server.APIVersion}}')${DOCKER_HOST:+ at $DOCKER_HOST}"
    return
  fi
  traces=$(engine_traces)
  if [ -n "$traces" ] && [ "${1:-}" != --install-engine ] && ! command -v docker >/dev/null 2>&1; then
    mapfile -t found <<<"$traces"
    die "there is no docker client on PATH, and these scripts ask the engine with it. Found of an engine:" "${found[@]}" \
      "Install the client: apt-get install docker-cli (before Debian 13 it is part of docker.io), or podman-docker for Podman"
  fi
  if [ -n "$traces" ] && [ "${1:-}" != --install-engine ] && [ ! -e "$mark" ]; then
    mapfile -t found <<<"$traces"
    die "no engine answers, but this machine has one set up; it is yours, so nothing was changed. Found:" "${found[@]}" \
      "Start it (systemctl start docker), or let this script install and start Debian's: $0 --install-engine" \
      "If it runs under another user, you may lack rights: usermod -aG docker \$USER, or set DOCKER_HOST."
  fi
  [ -z "${DOCKER_HOST:-}${DOCKER_CONTEXT:-}" ] || die "DOCKER_HOST or DOCKER_CONTEXT is set and does not answer" "unset it, or start the engine it names"
  [ "$(id -u)" = 0 ] || die "no engine answers and only root may install one" "sudo apt-get install docker.io && sudo usermod -aG docker \$USER, then log in again"
  if ! command -v dockerd >/dev/null 2>&1 || ! command -v docker >/dev/null 2>&1; then install_engine; fi
  mkdir -p "$DOCKWARDEN_HOME" && chmod 700 "$DOCKWARDEN_HOME"
  # What we installed or were told to start we may start again without being asked twice.
  : >"$mark"
  start_engine
}

install_engine() {
  step "installing Debian's docker.io"
  command -v apt-get >/dev/null 2>&1 || die "no engine answers and this is not a Debian" "install Docker or Podman by your distribution's means and run this again"
  local packages=(docker.io iptables)
  apt-get update -qq >&2 || say "note: apt-get update failed; going on with the lists that are there"
  # From Debian 13 on the client is a package of its own.
  if apt-cache show docker-cli >/dev/null 2>&1; then packages+=(docker-cli); fi
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >&2 || die "apt-get could not install ${packages[*]}; its message is above"
}

# Is process $1 alive and named $2? A pid file alone proves nothing after a kill or a reboot.
pid_is() { [ -n "${1:-}" ] && [ "$(cat "/proc/$1/comm" 2>/dev/null)" = "$2" ]; }

start_engine() {
  local log=$DOCKWARDEN_HOME/dockerd.log attempt pid
  step "starting the engine"
  if [ -d /run/systemd/system ]; then
    systemctl start docker >&2 || die "systemctl start docker failed" "journalctl -u docker -n 50"
    wait_for 60 engine_answers || die "the engine was started but does not answer" "journalctl -u docker -n 50"
    return
  fi
  for attempt in 1 2; do
    # A killed dockerd leaves its pid file; the next one refuses to start when any process has that number now.
    pid=$(cat /var/run/docker.pid 2>/dev/null || true)
    if [ -e /var/run/docker.pid ] && ! pid_is "$pid" dockerd; then
      say "removing the stale /var/run/docker.pid of a dockerd that is gone"
      rm -f /var/run/docker.pid
    fi
    if ! pid_is "$pid" dockerd; then
      setsid nohup dockerd >>"$log" 2>&1 </dev/null &
      pid=$!
    fi
    if wait_for 60 engine_answers; then clean_half_dead; return; fi
    # Second try without its left-over containerd: one that hangs on a task of the killed engine keeps every new dockerd from starting.
    if [ "$attempt" = 1 ] && ! pid_is "$pid" dockerd; then
      pid=$(cat /var/run/docker/containerd/containerd.pid 2>/dev/null || true)
      if pid_is "$pid" containerd; then
        say "dockerd ended; stopping the containerd it left behind and trying again"
        kill "$pid" 2>/dev/null || true
        wait_for 10 eval "! pid_is $pid containerd" || kill -9 "$pid" 2>/dev/null || true
      fi
    fi
  done
  say "last lines of $log:"
  tail -n 15 "$log" >&2
  die "dockerd does not answer" "in a container it needs to be privileged; see $log"
}

# Containers that a killed engine left as neither running nor gone: state dead or removing never leaves by itself.
clean_half_dead() {
  local ids
  ids=$(docker ps -aq --filter status=dead --filter status=removing 2>/dev/null || true)
  [ -z "$ids" ] || { say "removing containers the killed engine left half removed: $ids"; docker rm -f $ids >/dev/null 2>&1 || say "note: some could not be removed yet"; }
}

# wait_for SECONDS COMMAND...: until the command succeeds; five looks a second.
wait_for() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.2
  done
}

# ---- supervisor ---------------------------------------------------------------------------------------------------------------

# Puts the shipped agents, prompts and policy where the supervisor looks, once; what is there is the operator's and stays.
seed_config() {
  [ ! -d "$DOCKWARDEN_CONFIG/agents" ] || return 0
  mkdir -p "$DOCKWARDEN_CONFIG/agents" "$DOCKWARDEN_CONFIG/prompts"
  chmod 700 "$DOCKWARDEN_CONFIG"
  cp "$ROOT"/agents/*.md "$DOCKWARDEN_CONFIG/agents/"
  cp "$ROOT"/prompts/*.md "$DOCKWARDEN_CONFIG/prompts/"
  [ -e "$DOCKWARDEN_CONFIG/policy.toml" ] || cp "$ROOT/agents/policy.toml" "$DOCKWARDEN_CONFIG/policy.toml"
  say "configuration: the shipped agents, prompts and policy were copied to $DOCKWARDEN_CONFIG; edit them there"
}

supervisor_answers() { "$BIN" health --self >/dev/null 2>&1; }
# The supervisor of this home, whoever started it: its lock file names it.
supervisor_pid() {
  local pid
  pid=$(cat "$DOCKWARDEN_HOME/supervisor.lock" 2>/dev/null || true)
  if pid_is "$pid" dockwarden; then echo "$pid"; fi
}
# What a supervisor reads once, at its start: the binary, and dockwarden.toml.
start_stamp() { printf '%s %s\n' "$(stat -c '%n %s %Y %i' "$BIN")" "$(cksum 2>/dev/null <"$DOCKWARDEN_CONFIG/dockwarden.toml" || echo none)"; }

# Address of the HTTP door as the running supervisor wrote it down, with its scheme; empty when none runs or its door is off.
http_address() {
  local at=
  if [ -n "$(supervisor_pid)" ]; then at=$(cat "$DOCKWARDEN_HOME/run/http.addr" 2>/dev/null || true); fi
  case $at in '' | *://*) printf '%s' "$at" ;; *) printf 'http://%s' "$at" ;; esac
}

# Starts `serve` detached; a running one of an older build or dockwarden.toml is replaced, another one is left alone.
start_supervisor() {
  local pid started log=$DOCKWARDEN_HOME/serve.log
  mkdir -p "$DOCKWARDEN_HOME" && chmod 700 "$DOCKWARDEN_HOME"
  seed_config
  pid=$(supervisor_pid)
  if [ -n "$pid" ]; then
    started=$(cat "$DOCKWARDEN_HOME/serve.build" 2>/dev/null || true)
    if tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q -- '--idle-exit'; then
      say "a client started the running supervisor on demand: replacing it by one that stays (stacks keep running)"
      stop_supervisor
    elif [ "${started%% *}" = "$pid" ] && [ "$started" != "$pid $(start_stamp)" ]; then
      say "the running supervisor is of an older build, or dockwarden.toml changed since: restarting it (stacks keep running)"
      stop_supervisor
    elif wait_for 30 supervisor_answers; then
      say "supervisor: already running (pid $pid)"
      return
    else
      die "the supervisor (pid $pid) of $DOCKWARDEN_HOME runs but does not answer" "$BIN doctor" "scripts/logs.sh --self"
    fi
  fi
  # Without LISTEN it is `listen` of dockwarden.toml that counts.
  setsid nohup "$BIN" serve ${LISTEN:+--listen "$LISTEN"} >>"$log" 2>&1 </dev/null &
  pid=$!
  echo "$pid $(start_stamp)" >"$DOCKWARDEN_HOME/serve.build"
  if ! wait_for 30 eval "supervisor_answers || ! kill -0 $pid 2>/dev/null" || ! supervisor_answers; then
    say "last lines of $log:"
    tail -n 15 "$log" >&2
    die "the supervisor did not start" "$BIN doctor" "if the port is taken: LISTEN=127.0.0.1:7421 $0, or \`listen\` in dockwarden.toml"
  fi
  local at
  at=$(http_address)
  say "supervisor: pid $pid, ${at:-HTTP off}, log $log"
}

stop_supervisor() {
  local pid
  pid=$(supervisor_pid)
  if [ -z "$pid" ]; then say "no supervisor runs for $DOCKWARDEN_HOME"; return 0; fi
  kill "$pid"
  wait_for 30 eval "! kill -0 $pid 2>/dev/null" || die "the supervisor (pid $pid) did not end within 30 s" "its operation goes on; see $DOCKWARDEN_HOME/serve.log"
  say "supervisor: pid $pid ended"
}

# ---- MCP over stdio, in bash: a fresh machine has neither Python nor jq ------------------------------------------------------------

json_string() {
  local s=$1
  s=${s//\\/\\\\}
  s=${s//\"/\\\"}
  s=${s//$'\t'/\\t}
  s=${s//$'\r'/\\r}
  s=${s//$'\n'/\\n}
  printf '"%s"' "$s"
}

# json_field KEY JSON: the first string value of KEY. Enough for ids and states, which never hold escapes.
json_field() {
  local re="\"$1\"[[:space:]]*:[[:space:]]*\"([^\"\\\\]*)\""
  if [[ $2 =~ $re ]]; then printf '%s' "${BASH_REMATCH[1]}"; fi
}

mcp_open() {
  coproc MCP { exec "$BIN" mcp --agent "$1" 2>>"$DOCKWARDEN_HOME/mcp.log"; }
  MCP_ID=0
  mcp_request initialize '{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"start.sh","version":"1"}}'
  printf '%s\n' '{"jsonrpc":"2.0","method":"notifications/initialized"}' >&"${MCP[1]}"
}

# mcp_request METHOD PARAMS: sets MCP_REPLY to the answer with our id; notifications in between are passed over.
mcp_request() {
  local line
  MCP_ID=$((MCP_ID + 1))
  printf '{"jsonrpc":"2.0","id":%d,"method":"%s","params":%s}\n' "$MCP_ID" "$1" "$2" >&"${MCP[1]}"
  while IFS= read -r -t 120 line <&"${MCP[0]}"; do
    case $line in
      '{"jsonrpc":"2.0","method":'*) ;;
      *"\"id\":$MCP_ID,"*'"result":'* | *"\"id\":$MCP_ID,"*'"error":'* | *'"result":'*"\"id\":$MCP_ID}" | *'"error":'*"\"id\":$MCP_ID}") MCP_REPLY=$line; return 0 ;;
    esac
  done
  tail -n 5 "$DOCKWARDEN_HOME/mcp.log" >&2 2>/dev/null || true
  die "the MCP server gave no answer to $1" "$BIN doctor"
}

# mcp_tool TOOL ARGUMENTS: sets MCP_RESULT to the structured content; a tool error is shown and ends the script.
mcp_tool() {
  mcp_request tools/call "{\"name\":\"$1\",\"arguments\":$2}"
  case $MCP_REPLY in
    *'"error":{'*'"code":-'* | *'"isError":true'*)
      say "$1 was not done:"
      printf '%b\n' "$(sed -n 's/.*"text":"\(\([^"\\]\|\\.\)*\)".*/\1/p' <<<"$MCP_REPLY" | sed 's/\\"/"/g')" >&2
      die "the reply was: $(cut -c1-2000 <<<"$MCP_REPLY")" ;;
  esac
  MCP_RESULT=${MCP_REPLY#*'"structuredContent":'}
}

mcp_close() {
  local pid=${MCP_PID:-}
  # End of input is how a stdio client says goodbye.
  eval "exec ${MCP[1]}>&-"
  [ -z "$pid" ] || wait "$pid" 2>/dev/null || true
}

# ---- network ------------------------------------------------------------------------------------------------------------------

port_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
free_port() {
  local p
  for p in $(seq 8080 8180); do
    if ! port_taken "$p"; then echo "$p"; return; fi
  done
  die "no free port from 8080 to 8180 on 127.0.0.1" "PORT=<a free one> $0"
}
http_get() {
  local body
  exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
  printf 'GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n' "$2" >&3
  body=$(cat <&3)
  exec 3>&-
  case $body in *' 200 '*) sed '1,/^\r*$/d' <<<"$body" ;; *) printf '%s\n' "$body" >&2; return 1 ;; esac
}
