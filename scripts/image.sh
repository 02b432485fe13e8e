#!/usr/bin/env bash
# Builds an image FROM scratch out of the binary cargo has already built, without any registry: a context is prepared and handed to the
# engine's own builder. Prints the image's tag on stdout. An image of the same binary is not built again.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() { echo "usage: scripts/image.sh demo|supervisor [--binary PATH] [--tag TAG]" >&2; exit 2; }
kind=${1:-}
[ $# -eq 0 ] || shift
tag=''
while [ $# -gt 0 ]; do
  case $1 in
    --binary) BIN=${2:?--binary needs a path}; shift 2 ;;
    --tag) tag=${2:?--tag needs a tag}; shift 2 ;;
    *) usage ;;
  esac
done
case $kind in
  demo) name=dockwarden-hello dockerfile=$ROOT/examples/hello/Dockerfile ;;
  supervisor) name=dockwarden dockerfile=$ROOT/Dockerfile ;;
  *) usage ;;
esac
[ -n "${BIN:-}" ] || { prerequisites; build; }
engine_answers || die "no engine answers" "scripts/start.sh --no-demo starts one or says what is in the way"

# Everything that goes into the image counts, the configuration too.
inputs=("$BIN" "$dockerfile")
[ "$kind" = demo ] || inputs+=("$ROOT"/agents/* "$ROOT"/prompts/*)
hash=$(cat "${inputs[@]}" | sha256sum | cut -c1-12)
[ -n "$tag" ] || tag=$name:$hash
if [ "$(docker image inspect --format '{{index .Config.Labels "dockwarden.build"}}' "$tag" 2>/dev/null)" = "$kind-$hash" ]; then
  echo "$tag"
  exit 0
fi

context=$(mktemp -d)
trap 'rm -rf "$context" "$context.log"' EXIT
# Debug information is for the host's stack traces; the image goes without. strip comes with every C compiler.
if ! strip -o "$context/dockwarden" "$BIN" 2>/dev/null; then cp "$BIN" "$context/dockwarden"; fi
chmod 755 "$context/dockwarden"
cp "$dockerfile" "$context/Dockerfile"
case $kind in
  demo) mkdir "$context/data" ;;
  supervisor)
    ca=/etc/ssl/certs/ca-certificates.crt
    [ -r "$ca" ] || die "no CA bundle at $ca" "apt-get install ca-certificates"
    cp "$ca" "$context/ca-certificates.crt"
    home=$context/var/lib/dockwarden
    mkdir -p "$home/backups" "$home/memory" "$context/root/etc/dockwarden" "$context/root/tmp"
    chmod 1777 "$context/root/tmp"
    # For TZ of backup schedules; without tzdata here the image knows UTC only, and the supervisor says so.
    if [ -d /usr/share/zoneinfo ]; then
      mkdir -p "$context/root/usr/share"
      cp -rL /usr/share/zoneinfo "$context/root/usr/share/"
      rm -rf "$context"/root/usr/share/zoneinfo/{posix,right}
    fi
    for agent in "$ROOT"/agents/*.md; do mkdir "$home/memory/$(basename "$agent" .md)"; done
    chmod -R go= "$home"
    cp -r "$ROOT/agents" "$ROOT/prompts" "$context/root/etc/dockwarden/"
    mv "$context/root/etc/dockwarden/agents/policy.toml" "$context/root/etc/dockwarden/policy.toml" ;;
esac
# The classic builder needs no BuildKit plugin, which Debian's docker.io does not bring.
DOCKER_BUILDKIT=0 docker build --quiet --network none --label "dockwarden.build=$kind-$hash" --tag "$tag" "$context" >/dev/null 2>"$context.log" ||
  { cat "$context.log" >&2; die "docker build of $tag failed"; }
# Old builds of the same image go, except the newest three; one in use stays because the engine refuses.
docker images --filter "label=dockwarden.build" --format '{{.Repository}}:{{.Tag}}' "$name" | tail -n +4 | while read -r old; do
  # A build out of the cache is as old as its first one: the tag asked for may be among the old ones.
  [ "$old" = "$tag" ] || docker rmi "$old" >/dev/null 2>&1 || true
done
echo "$tag"
