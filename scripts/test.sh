#!/usr/bin/env bash
# Every test. Starts an engine when none answers; more arguments go to the integration tests, e.g. a name. Ends in the test runner's own summary.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
install=
if [ "${1:-}" = --install-engine ]; then install=$1; shift; fi

prerequisites
test_prerequisites
ensure_engine "$install"
# The tests bring their own homes; a supervisor of this user's must not leak in.
unset DOCKWARDEN_HOME DOCKWARDEN_CONFIG MCP_MEMORY_PATH MCP_LOG_LEVEL

cd "$ROOT"
cargo build --locked
step "the image of the tests, FROM scratch"
./scripts/image.sh demo --binary "$(binary_path)" >&2
step "unit tests and examples in the documentation"
cargo test --locked --lib --bins
cargo test --locked --doc
step "integration tests"
exec cargo test --locked --test it -- "$@"
