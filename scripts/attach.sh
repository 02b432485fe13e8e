#!/usr/bin/env bash
# Prints what attaches an MCP client to this supervisor, ready to copy. Changes nothing.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
if [ -n "${1:-}" ]; then BIN=$1; else need_binary; fi

agent=${AGENT:-observer}
# A client starts the bridge with its own environment: places that are not the defaults have to be told.
env_flags='' env_json=''
add() { env_flags+="--env $1=$2 "; env_json+="${env_json:+, }\"$1\": $(json_string "$2")"; }
[ "$DOCKWARDEN_HOME" = "$HOME/.local/state/dockwarden" ] || add DOCKWARDEN_HOME "$DOCKWARDEN_HOME"
[ "$DOCKWARDEN_CONFIG" = "$HOME/.config/dockwarden" ] || [ "$DOCKWARDEN_CONFIG" = /etc/dockwarden ] || add DOCKWARDEN_CONFIG "$DOCKWARDEN_CONFIG"
[ -z "${DOCKER_HOST:-}" ] || add DOCKER_HOST "$DOCKER_HOST"
server="\"command\": $(json_string "$BIN"), \"args\": [\"mcp\", \"--agent\", \"$agent\"]${env_json:+, \"env\": {$env_json\}}"

hint=
[ "$agent" != observer ] || hint=", which only reads. One that deploys: AGENT=stack-keeper $0"
# A login by ssh does not have this shell's environment either.
remote=
[ "$DOCKWARDEN_HOME" = "$HOME/.local/state/dockwarden" ] || remote="--home $DOCKWARDEN_HOME "
at=$(http_address)
http="Over HTTP: ${at:-http://127.0.0.1:7420}/mcp with the bearer token that  $BIN agents token $agent  prints once"
if [ -z "$at" ] && [ -n "$(supervisor_pid)" ]; then http="Over HTTP: the running supervisor's door is off (\`listen\` in dockwarden.toml)"; fi

cat <<TEXT

Attach a client as the agent $agent$hint

  Claude Code
    claude mcp add dockwarden --transport stdio ${env_flags}-- $BIN mcp --agent $agent

  Claude Desktop: claude_desktop_config.json
    {"mcpServers": {"dockwarden": {$server}}}

  VS Code: .vscode/mcp.json
    {"servers": {"dockwarden": {"type": "stdio", $server}}}

  Cursor: .cursor/mcp.json
    {"mcpServers": {"dockwarden": {$server}}}

  From another machine, put ssh in front:  ssh -T HOST $BIN ${remote}mcp --agent $agent
  $http
TEXT
