#!/usr/bin/env bash
# The official MCP conformance suite, against the real HTTP door with its guard, tokens and sessions.
#   1. a build with the suite's own tools (cargo feature `conformance`): every check must pass, in both protocol eras;
#   2. the product as it is shipped: everything must pass but what tests/node/expected-failures.yaml names, each with its reason.
# Needs no engine. Takes Node from $PATH when it is recent enough, else from a wheel, kept in the cache directory with the suite.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$ROOT/tests/node/setup.sh"

cd "$ROOT"
step "the product, and a build with the suite's tools"
cargo build --locked --bin dockwarden
work=$(mktemp -d)
pids=()
cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap cleanup EXIT
cp "$(binary_path)" "$work/product"
# Level 0: this build answers a test suite and nothing else, and half of the compile time is the optimiser's.
CARGO_PROFILE_DEV_OPT_LEVEL=0 cargo build --locked --bin dockwarden --features conformance
cp "$(binary_path)" "$work/fixture"
# What is left in the target directory is the product again.
cp "$work/product" "$(binary_path)"

# serve NAME: starts that binary in a home of its own and sets $door to an address that needs no token.
serve() {
  local home=$work/home-$1 port
  port=$(node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })')
  mkdir -p "$home/config/agents"
  # The suite calls faster than an agent may.
  for file in agents/*.md; do sed '/calls_per_minute/d' "$file" >"$home/config/agents/$(basename "$file")"; done
  cp agents/policy.toml "$home/config/policy.toml"
  export DOCKWARDEN_HOME=$home/state DOCKWARDEN_CONFIG=$home/config
  "$work/$1" serve --listen "127.0.0.1:$port" 2>"$home/log" &
  pids+=($!)
  for _ in $(seq 200); do
    "$work/$1" health --self >/dev/null 2>&1 && break
    sleep 0.05
  done
  local token
  token=$("$work/$1" agents token stack-keeper --json | node -p 'JSON.parse(require("fs").readFileSync(0, "utf8")).token') || {
    cat "$home/log" >&2
    return 1
  }
  node tests/node/bearer-proxy.mjs "127.0.0.1:$port" "$token" >"$home/proxy" &
  pids+=($!)
  for _ in $(seq 200); do
    [ -s "$home/proxy" ] && break
    sleep 0.05
  done
  door=http://127.0.0.1:$(cat "$home/proxy")/mcp
}

# suite NAME REVISION MORE...: prints the summary; all of the output when it fails.
suite() {
  local name=$1 revision=$2 out
  shift 2
  out=$work/$name-$revision
  if ! (cd "$NODE_HOME" && node node_modules/.bin/conformance server --url "$door" --requirements "$revision" -o "$out" "$@") >"$out.log" 2>&1; then
    cat "$out.log" >&2
    echo "error: $name, $revision: not conformant" >&2
    return 1
  fi
  printf '%s %s: %s\n' "$name" "$revision" "$(grep '^Total:' "$out.log")"
}

step "with the suite's tools: every check passes"
serve fixture
for revision in 2025-11-25 2026-07-28; do
  suite fixture "$revision"
  grep -q '^Total:.* 0 failed' "$work/fixture-$revision.log"
done
step "as shipped: what needs no fixture passes"
serve product
for revision in 2025-11-25 2026-07-28; do
  suite product "$revision" --expected-failures "$ROOT/tests/node/expected-failures.yaml"
done
