#!/usr/bin/env bash
# Runs a script of this directory with the pinned packages: run.sh SCRIPT ARGUMENTS...
set -euo pipefail
script=${1:?usage: run.sh SCRIPT ARGUMENTS...}
shift
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# Modules are looked for beside the script that names them.
cp "$here"/*.mjs "$NODE_HOME/"
exec node "$NODE_HOME/$script" "$@"
