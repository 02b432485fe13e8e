"""What measurements of a real `dockwarden serve` share: a temporary home with an agent that no limit is in the way of, the supervisor in it, containers, and figures.
Deliberately absent: what is measured."""

import argparse, os, shutil, signal, socket, subprocess, tempfile, time

# An agent with every tool and no limit in the way.
AGENT = """---
name: bench
description: Measures.
tools: {tools}
dockwarden:
  tier: tier_1_read
  limits: {{calls_per_minute: 1000000}}
---
"""


def quantile(values, q):
    return sorted(values)[int((len(values) - 1) * q)] * 1000


def table(rows):
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for n, row in enumerate(rows):
        print("| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths)) + " |")
        if n == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


class Bench:
    def __init__(self, options):
        self.options = options
        self.run = f"bench-{os.getpid()}"
        self.dir = tempfile.mkdtemp(prefix="calls-")
        self.env = {key: os.environ[key] for key in ("PATH", "DOCKER_HOST", "DOCKER_CONTEXT") if key in os.environ}
        self.env |= {"HOME": self.dir, "DOCKWARDEN_HOME": f"{self.dir}/s", "DOCKWARDEN_CONFIG": f"{self.dir}/config"}
        self.processes = []
        root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
        shutil.copytree(f"{root}/agents", f"{self.dir}/config/agents")
        shutil.copytree(f"{root}/prompts", f"{self.dir}/config/prompts")
        os.rename(f"{self.dir}/config/agents/policy.toml", f"{self.dir}/config/policy.toml")
        reads = "status, health, logs, stats, plan, history, backups, audit, operation, approval, agents, memory_search, memory_read"
        with open(f"{self.dir}/config/agents/bench.md", "w") as f:
            f.write(AGENT.format(tools=reads))
        writes = "deploy, scale, restart, cancel, backup, memory_write, rollback, stop, restore, prune"
        with open(f"{self.dir}/config/agents/all.md", "w") as f:
            f.write(AGENT.format(tools=f"{reads}, {writes}").replace("name: bench", "name: all"))

    def spawn(self, argv, **more):
        process = subprocess.Popen(argv, env=self.env, stdin=subprocess.DEVNULL, **more)
        self.processes.append(process)
        return process

    def cli(self, *arguments):
        return subprocess.run([self.options.binary, *arguments], env=self.env, check=True, capture_output=True, timeout=60).stdout

    def serve(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = free.getsockname()
        with open(f"{self.dir}/serve.log", "w") as log:
            self.server = self.spawn([self.options.binary, "serve", "--listen", f"127.0.0.1:{self.address[1]}"], stderr=log)
        start = time.perf_counter()
        for _ in range(200):
            if os.path.exists(f"{self.dir}/s/run/http.addr"):
                return time.perf_counter() - start
            if self.server.poll() is not None:
                break
            time.sleep(0.01)
        raise SystemExit(open(f"{self.dir}/serve.log").read())

    def containers(self, count):
        context = f"{self.dir}/image"
        os.mkdir(context)
        shutil.copy("/usr/bin/busybox", context)
        with open(f"{context}/Dockerfile", "w") as f:
            f.write(f'FROM scratch\nCOPY busybox /busybox\nLABEL dockwarden.test={self.run}\nENTRYPOINT ["/busybox"]\n')
        docker = lambda *a: subprocess.run(["docker", *a], check=True, capture_output=True, timeout=120, env=os.environ | {"DOCKER_BUILDKIT": "0"})
        docker("build", "-q", "-t", self.run, context)
        for n in range(count):
            docker("create", "--label", f"dockwarden.test={self.run}", "--name", f"{self.run}-{n}", self.run, "true")

    def clean(self):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
        mine = subprocess.run(["docker", "ps", "-aq", "--filter", f"label=dockwarden.test={self.run}"], capture_output=True, text=True).stdout.split()
        if mine:
            subprocess.run(["docker", "rm", "-f", *mine], capture_output=True)
        subprocess.run(["docker", "rmi", self.run], capture_output=True)
        shutil.rmtree(self.dir, ignore_errors=True)


def options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True, type=os.path.abspath)
    return parser


def measured(bench):
    try:
        bench.measure()
    finally:
        bench.clean()
