#!/usr/bin/env bash
# Prints what attaches an MCP client to this supervisor, ready to copy. Changes nothing.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
if [ -n "${1:-}" ]; then BIN=$1; else need_binary; fi

agent=${AGENT:-stack-keeper}
# A client starts the bridge with its own environment: places that are not the defaults have to be told.
env_flags='' env_json=''
add() { env_flags+="--env $1=$2 "; env_json+="${env_json:+, }\"$1\": $(json_string "$2")"; }
[ "$DOCKWARDEN_HOME" = "$HOME/.local/state/dockwarden" ] || add DOCKWARDEN_HOME "$DOCKWARDEN_HOME"
[ "$DOCKWARDEN_CONFIG" = "$HOME/.config/dockwarden" ] || [ "$DOCKWARDEN_CONFIG" = /etc/dockwarden ] || add DOCKWARDEN_CONFIG "$DOCKWARDEN_CONFIG"
[ -z "${DOCKER_HOST:-}" ] || add DOCKER_HOST "$DOCKER_HOST"
server="\"command\": $(json_string "$BIN"), \"args\": [\"mcp\", \"--agent\", \"$agent\"]${env_json:+, \"env\": {$env_json\}}"

cat <<TEXT

Attach a client (agent: $agent; AGENT=observer $0 for one that only reads)

  Claude Code
    claude mcp add --transport stdio ${env_flags}dockwarden -- $BIN mcp --agent $agent

  Claude Desktop: claude_desktop_config.json
    {"mcpServers": {"dockwarden": {$server}}}

  VS Code: .vscode/mcp.json
    {"servers": {"dockwarden": {"type": "stdio", $server}}}

  Cursor: .cursor/mcp.json
    {"mcpServers": {"dockwarden": {$server}}}

  From another machine, put ssh in front:  ssh HOST $BIN mcp --agent $agent
  Over HTTP: http://${LISTEN:-127.0.0.1:7420}/mcp with the bearer token that  $BIN agents token $agent  prints once
TEXT
