#!/usr/bin/env bash
# Builds an image FROM scratch out of Debian's own packages, without any registry: PostgreSQL or Redis, for tests that want a real database.
# Nothing is installed on this machine; the packages come from the mirrors its apt already uses. Prints the image's tag on stdout. An image of
# the same packages is not built again.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

kind=${1:-}
case $kind in
  postgres) roots=() ;;
  redis) roots=(redis-server redis-tools) ;;
  *) echo "usage: scripts/image-debian.sh postgres|redis" >&2; exit 2 ;;
esac
name=dockwarden-test-$kind
engine_answers || die "no engine answers" "scripts/start.sh --no-demo starts one or says what is in the way"
# Another process builds the same image: wait for it instead of building it twice.
exec 9>"${TMPDIR:-/tmp}/$name.lock"
flock 9
for tool in apt-cache apt-get dpkg-deb; do
  command -v "$tool" >/dev/null 2>&1 || die "$tool is missing: these images are made of Debian's packages" "run this test on Debian or Ubuntu"
done
apt-cache show redis-tools >/dev/null 2>&1 || apt-get -qq update >&2 || die "apt has no package lists" "apt-get update"
if [ "$kind" = postgres ]; then
  server=$(apt-cache depends postgresql | sed -n 's/^ *Depends: \(postgresql-[0-9]*\)$/\1/p' | sed 1q)
  [ -n "$server" ] || die "apt knows no PostgreSQL server" "apt-get update"
  roots=("$server" "${server/postgresql-/postgresql-client-}" tzdata)
fi
roots+=(dash coreutils)

# The roots and the libraries below them. The server runs without the rest (perl, debconf, an init system, a compiler for its queries).
packages=" ${roots[*]} " level=("${roots[@]}")
while [ ${#level[@]} -gt 0 ]; do
  below=$(apt-cache depends -i "${level[@]}" | sed -n 's/^ *|\{0,1\}\(Pre\)\{0,1\}Depends: \([a-z0-9.+-]*\)$/\2/p' | sort -u)
  level=()
  for package in $below; do
    case $package in
      libllvm* | *-perl) continue ;;
      lib* | zlib* | gcc-*) ;;
      *) continue ;;
    esac
    case $packages in *" $package "*) ;; *) packages+="$package "; level+=("$package") ;; esac
  done
done
read -ra packages <<<"$packages"

versions=$(apt-cache show --no-all-versions "${packages[@]}" | sed -n 's/^\(Package\|Version\): //p')
hash=$({ echo "$versions"; cat "${BASH_SOURCE[0]}"; } | sha256sum | cut -c1-12)
tag=$name:$hash
if docker image inspect "$tag" >/dev/null 2>&1; then
  echo "$tag"
  exit 0
fi

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
root=$context/root
mkdir -p "$context/debs" "$root/etc" "$root/tmp" "$context/data"
(cd "$context/debs" && apt-get -o APT::Sandbox::User=root -qq download "${packages[@]}") >&2 || die "the packages of $kind cannot be fetched" "apt-get update, then again"
for deb in "$context"/debs/*.deb; do dpkg-deb -x "$deb" "$root"; done
for dir in bin lib lib64 sbin; do
  [ -e "$root/$dir" ] || [ ! -d "$root/usr/$dir" ] || ln -s "usr/$dir" "$root/$dir"
done
[ -e "$root/bin/sh" ] || ln -s dash "$root/bin/sh"
rm -rf "$root"/usr/share/{doc,man,locale,info,lintian,bug} "$root"/usr/share/postgresql/*/man "$root"/usr/lib/postgresql/*/lib/{bitcode,llvmjit*} "$root/etc/apt"
chmod 1777 "$root/tmp"
printf 'root:x:0:0::/:/bin/sh\nservice:x:999:999::/data:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\nservice:x:999:\n' >"$root/etc/group"
case $kind in
  postgres)
    # Sockets in /tmp, so that every client in the container finds the server without a word.
    ln -s "$(cd "$root" && echo usr/lib/postgresql/*/bin)" "$root/pg"
    cat >"$root/entrypoint" <<'END'
#!/bin/sh
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  mkdir -p "$PGDATA"
  chmod 700 "$PGDATA"
  initdb -D "$PGDATA" -U postgres --auth=trust --no-locale -E UTF8
fi
exec postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/tmp -c shared_buffers=16MB -c jit=off "$@"
END
    path=/pg:/usr/bin:/bin environment='PGDATA=/data/pg PGHOST=/tmp PGUSER=postgres' port=5432
    stop='STOPSIGNAL SIGINT' ;;
  redis)
    printf '#!/bin/sh\nexec redis-server --dir /data --bind 0.0.0.0 --protected-mode no "$@"\n' >"$root/entrypoint"
    path=/usr/bin:/bin environment='TZ=UTC' port=6379 stop='' ;;
esac
chmod 755 "$root/entrypoint"
cat >"$context/Dockerfile" <<END
FROM scratch
COPY root /
COPY --chown=999:999 data /data
USER 999:999
ENV PATH=$path $environment
$stop
VOLUME /data
EXPOSE $port
WORKDIR /data
ENTRYPOINT ["/bin/sh", "/entrypoint"]
END
rm -rf "$context/debs"
DOCKER_BUILDKIT=0 docker build --quiet --network none --label "dockwarden.build=$kind-$hash" --tag "$tag" "$context" >/dev/null 2>"$context/log" ||
  { cat "$context/log" >&2; die "docker build of $tag failed"; }
echo "$tag"
