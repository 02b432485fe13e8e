"""The stack both sides deploy, and the two deployers behind one interface: up, update, kill. Six services in three levels: `store` (a volume) and
`cache`, then `api` and `worker`, then `web` (published) and `admin`. Every image is the demo's, FROM scratch."""

import json, os, pathlib, shutil, signal, socket, sqlite3, subprocess, time, urllib.error, urllib.request

# The engine's own check starts after one interval: what a file usually asks for.
HEALTH_S = 2
COMMAND_S = 180
WAIT_S = 60


def compose_file(image, port):
    def service(name, role, upstream, needs, more=""):
        lines = [
            f"  {name}:",
            f"    image: {image}",
            "    restart: unless-stopped",
            "    mem_limit: 64m",
            "    healthcheck: {test: [CMD, /dockwarden, demo-app, check, 'http://127.0.0.1:8080/health'], "
            f"interval: {HEALTH_S}s, timeout: 2s, retries: 3}}",
            f"    environment: {{ROLE: {role}, UPSTREAM: '{upstream}', VERSION: '${{{name.upper()}_VERSION:-1}}', FAIL: '${{{name.upper()}_FAIL:-none}}'}}",
        ]
        if needs:
            lines.append("    depends_on: {" + ", ".join(f"{n}: {{condition: service_healthy}}" for n in needs) + "}")
        return "\n".join(lines) + more

    return "\n".join([
        "x-dockwarden: {monitor_s: 1}",
        "services:",
        service("store", "store", "", [], "\n    volumes: ['visits:/data']"),
        service("cache", "store", "", []),
        service("api", "api", "store:8080", ["store", "cache"]),
        service("worker", "api", "store:8080", ["store"]),
        service("web", "web", "api:8080", ["api"],
                f"\n    ports: ['127.0.0.1:{port}:8080']\n    x-dockwarden: {{strategy: STRATEGY, start_timeout_s: 10}}"),
        service("admin", "web", "api:8080", ["api", "worker"]),
        "volumes: {visits: {}}",
        "",
    ])


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Failed(Exception):
    """A deployer that did not do it."""


class Stack:
    """A project directory with its file and variables, and what the engine has of it."""

    def __init__(self, root, name, image, port):
        self.name, self.port = name, port
        self.dir = pathlib.Path(root) / name
        self.dir.mkdir()
        self.text = compose_file(image, port)
        self.set()

    def set(self, strategy=None, **variables):
        """Writes file and variables anew: what is not given is the default."""
        text = self.text
        text = text.replace("strategy: STRATEGY, ", f"strategy: {strategy}, " if strategy else "")
        (self.dir / "compose.yaml").write_text(text)
        (self.dir / ".env").write_text("".join(f"{k}={v}\n" for k, v in variables.items()))

    def answer(self):
        """What the published port says now: its text, or why there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2) as reply:
                return reply.read().decode().strip()
        except urllib.error.HTTPError as error:
            return f"http {error.code}"
        except OSError:
            return "dead"

    def settled(self, within):
        """The port's answer once it answers, or `dead` when it does not in time."""
        end = time.monotonic() + within
        while (said := self.answer()) == "dead" and time.monotonic() < end:
            time.sleep(0.05)
        return said

    def web_containers(self):
        """Running containers of web."""
        found = set()
        for label in ("com.docker.compose.service=web", "dockwarden.service=web"):
            project = "com.docker.compose.project" if label.startswith("com") else "dockwarden.stack"
            found |= set(docker("ps", "-q", "--filter", f"label={project}={self.name}", "--filter", f"label={label}").split())
        return len(found)

    def remove(self):
        """Everything of it on the engine, by its labels."""
        for label in ("com.docker.compose.project", "dockwarden.stack"):
            pick = ["--filter", f"label={label}={self.name}"]
            for listing, removing in ((["ps", "-aq"], ["rm", "-fv"]), (["network", "ls", "-q"], ["network", "rm"]), (["volume", "ls", "-q"], ["volume", "rm"])):
                ids = docker(*listing, *pick).split()
                if ids:
                    docker(*removing, *ids)
        tags = docker("images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"reference=dockwarden/{self.name}/*").split()
        if tags:
            docker("rmi", *tags)


def docker(*args):
    return run(["docker", *args]).stdout


def run(argv, **options):
    """Runs to the end; a failure is an exception with what it wrote."""
    try:
        result = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_S, **options)
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(map(str, argv))}: not within {COMMAND_S} s") from None
    if result.returncode != 0:
        raise Failed(f"{' '.join(map(str, argv))}: exit {result.returncode}\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    return result


class Compose:
    """Docker Compose v2, the binary that was named."""

    name = "compose"

    def __init__(self, binary, stack):
        self.binary, self.stack = binary, stack

    def argv(self):
        # `--wait` is how Compose says "all healthy", which is what is compared; without a limit it waits for a crash loop for ever.
        return [self.binary, "-p", self.stack.name, "up", "-d", "--wait", "--wait-timeout", str(WAIT_S)]

    def up(self):
        run(self.argv(), cwd=self.stack.dir)

    def begin(self):
        return subprocess.Popen(self.argv(), cwd=self.stack.dir, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def down(self):
        run([self.binary, "-p", self.stack.name, "down", "-v", "--remove-orphans"], cwd=self.stack.dir)

    def kill(self, process):
        process.kill()
        process.wait()

    def after_kill(self):
        """Compose has nothing that comes back."""

    def mend(self):
        self.down()
        self.stack.set()
        self.up()

    def close(self):
        self.stack.remove()


class Dockwarden:
    """A supervisor of its own in a temporary home, used through its command line."""

    name = "dockwarden"

    def __init__(self, binary, stack, root, source):
        self.binary, self.stack = binary, stack
        self.home = pathlib.Path(root) / "home"
        self.config = pathlib.Path(root) / "config"
        (self.config / "agents").mkdir(parents=True)
        (self.config / "prompts").mkdir()
        for agent in (source / "agents").glob("*.md"):
            # A bench calls more often than an agent.
            lines = [l for l in agent.read_text().splitlines() if "calls_per_minute" not in l]
            (self.config / "agents" / agent.name).write_text("\n".join(lines) + "\n")
        shutil.copy(source / "agents" / "policy.toml", self.config / "policy.toml")
        (self.config / "dockwarden.toml").write_text(f'listen = "127.0.0.1:{free_port()}"\n[stacks.{stack.name}]\ndir = "{stack.dir}"\n')
        self.env = {k: v for k, v in os.environ.items() if k in ("PATH", "DOCKER_HOST", "HOME")}
        self.env |= {"DOCKWARDEN_HOME": str(self.home), "DOCKWARDEN_CONFIG": str(self.config)}
        self.log = open(pathlib.Path(root) / "serve.log", "a")
        self.serve = None
        self.start()

    def start(self):
        self.serve = subprocess.Popen([self.binary, "serve"], env=self.env, stdout=self.log, stderr=self.log)
        for _ in range(400):
            if self.serve.poll() is not None:
                raise Failed(f"serve ended with {self.serve.returncode}: see {self.log.name}")
            if subprocess.run([self.binary, "health", "--self"], env=self.env, capture_output=True).returncode == 0:
                return
            time.sleep(0.05)
        self.serve.kill()
        self.serve.wait()
        raise Failed("serve does not answer")

    def argv(self):
        return [self.binary, "deploy", self.stack.name, "--json"]

    def up(self):
        return json.loads(run(self.argv(), env=self.env).stdout)

    def begin(self):
        return subprocess.Popen(self.argv(), env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def down(self):
        run([self.binary, "stop", self.stack.name, "--remove", "--json"], env=self.env)
        self.idle()
        self.stack.remove()

    def idle(self):
        """Waits until no operation is at work."""
        end = time.monotonic() + COMMAND_S
        while self.open_operations():
            if time.monotonic() > end:
                raise Failed("an operation does not end")
            time.sleep(0.05)

    def open_operations(self):
        with self.state() as db:
            return db.execute("SELECT count(*) FROM operation WHERE terminal = 0").fetchone()[0]

    def state(self):
        return sqlite3.connect(f"file:{self.home}/state.db?mode=ro", uri=True)

    def kill(self, process):
        # The supervisor is the deployer; the command line only waits for it.
        self.serve.send_signal(signal.SIGKILL)
        self.serve.wait()
        process.kill()
        process.wait()

    def after_kill(self):
        self.start()
        self.idle()

    def mend(self):
        self.idle()
        self.stack.set()
        self.up()
        self.idle()

    def phases(self):
        """Where the last operation spent its time: ms from its beginning at which each of its journal records was written, by key."""
        with self.state() as db:
            op, began, settled = db.execute("SELECT id, created_at, settled_at FROM operation WHERE verb = 'deploy' ORDER BY created_at DESC LIMIT 1").fetchone()
            steps = db.execute("SELECT phase, key, at FROM step WHERE operation = ? ORDER BY seq", (op,)).fetchall()
        at = lambda text: _nanos(text)
        zero = at(began)
        rows = [(phase, key, round((at(when) - zero) / 1e6, 1)) for phase, key, when in steps]
        return rows, round((at(settled) - zero) / 1e6, 1) if settled else None

    def close(self):
        try:
            self.serve.terminate()
            self.serve.wait(30)
        except subprocess.TimeoutExpired:
            self.serve.kill()
            self.serve.wait()
        self.log.close()
        self.stack.remove()
        claim = docker("ps", "-aq", "--filter", f"name=^dockwarden-claim-{self.stack.name}$").split()
        if claim:
            docker("rm", "-f", *claim)


def _nanos(text):
    """RFC 3339 in UTC with nine digits, as nanoseconds within its day and day number: enough to subtract."""
    date, clock = text.rstrip("Z").split("T")
    hours, minutes, seconds = clock.split(":")
    whole, _, part = seconds.partition(".")
    days = int(time.mktime(time.strptime(date, "%Y-%m-%d")) // 86400)
    return ((days * 24 + int(hours)) * 60 + int(minutes)) * 60 * 10**9 + int(whole) * 10**9 + int(part.ljust(9, "0") or 0)
