#!/usr/bin/env bash
# Runs a command against a second Docker engine of another version, beside the one of this machine: the engine lives in a network and mount namespace
# of its own (a second dockerd in the same network namespace flushes the first one's rules), with its own data, exec root, socket and pid file, and
# ends with the command. The command runs inside of these namespaces, so that it reaches the ports its containers publish.
#
#   scripts/engine26.sh DIR [COMMAND...]       # DIR holds the unpacked engine: usr/sbin/dockerd, usr/bin/docker
#   scripts/engine26.sh /opt/docker26 cargo test --locked --test it
#
# Without COMMAND: a shell. Root is needed; runc and containerd are this machine's where DIR has none. Fetches nothing, and inside there is no way out:
# build before, and let an ordinary run of the tests make the Python environment.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [ "${1:-}" != --inside ]; then
  dir=${1:-}
  [ -n "$dir" ] && shift || { sed -n '2,11p' "$0" | sed 's/^# \{0,1\}//'; exit 2; }
  dir=$(cd "$dir" && pwd)
  [ -x "$dir/usr/sbin/dockerd" ] || die "$dir has no usr/sbin/dockerd" "unpack an engine there, e.g. dpkg -x of Debian's docker.io"
  [ "$(id -u)" = 0 ] || die "an engine needs root" "sudo $0 ..."
  for tool in unshare ip iptables runc containerd; do
    PATH=$dir/usr/sbin:$dir/usr/bin:$PATH command -v "$tool" >/dev/null || die "$tool is missing" "apt-get install util-linux iproute2 iptables runc containerd"
  done
  # Not under /tmp where that is memory: layers and volumes want a disk.
  state=$(mktemp -d "${TMPDIR:-/var/tmp}/dw-engine.XXXXXX")
  code=0
  # --kill-child: whatever happens to this script, nothing of the engine outlives it.
  unshare --net --mount --propagation private --pid --fork --kill-child --mount-proc "$0" --inside "$dir" "$state" "$@" || code=$?
  # Mounts went with their namespace; what is left is files.
  rm -rf --one-file-system "$state" || say "left behind: $state"
  exit $code
fi

shift
dir=$1 state=$2
shift 2
export PATH=$dir/usr/sbin:$dir/usr/bin:$PATH
ip link set lo up
# A private /run: the other engine's sockets and name spaces are not ours to see.
mount -t tmpfs -o mode=755 none /run
mkdir -p /run/netns "$state/data" "$state/exec" "$state/containerd"
[ ! -e /var/run/docker.sock ] || die "/var/run is not /run here: the other engine could be reached"
# The usual place, as containers and files name it; here it is this engine's.
export DOCKER_HOST=unix:///var/run/docker.sock DOCKER_CONFIG=$state/client
unset DOCKER_CONTEXT
mkdir -p "$DOCKER_CONFIG"
# Its own address pool: the same one would do in another network namespace, and messages are easier to tell apart.
dockerd --host "$DOCKER_HOST" --data-root "$state/data" --exec-root "$state/exec" --pidfile "$state/docker.pid" \
  --cgroup-parent "/dockwarden-$$-$RANDOM" --default-address-pool base=10.213.0.0/16,size=24 --log-level warn >"$state/dockerd.log" 2>&1 &
engine=$!
# The first process of a pid namespace ends everything with itself: first the command, then the engine in order.
finish() {
  local left
  left=$(docker ps -aq 2>/dev/null | wc -l) || left=0
  [ "$left" = 0 ] || say "note: $left containers were left on the engine; they go with it"
  kill -TERM "$engine" 2>/dev/null || true
  for _ in $(seq 300); do kill -0 "$engine" 2>/dev/null || break; sleep 0.1; done
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
for _ in $(seq 300); do
  if docker version >/dev/null 2>&1; then break; fi
  kill -0 "$engine" 2>/dev/null || { tail -20 "$state/dockerd.log" >&2; die "dockerd of $dir ended; its log is above"; }
  sleep 0.1
done
docker version --format 'engine {{.Server.Version}} (API {{.Server.APIVersion}}) at '"$DOCKER_HOST" >&2 || { tail -20 "$state/dockerd.log" >&2; die "the engine does not answer"; }
[ $# -gt 0 ] || set -- "${SHELL:-bash}"
code=0
"$@" || code=$?
exit $code
