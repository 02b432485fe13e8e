"""How soon the loop acts. A proxy passes everything between `dockwarden serve` and the engine's socket and notes two moments on its own clock: when the engine's
event (`die` of a container, or its health check failing) comes out of the engine, and when the loop's first call that changes a container because of it goes in. Run by
reaction.sh. Deliberately absent: how long the engine then takes."""

import json, os, re, shutil, socket, subprocess, threading, time

from harness import Bench, measured, options, quantile, table

ENGINE = "/var/run/docker.sock"
SERVICE = """
x-dockwarden: {{monitor_s: 0, heal: restart}}
services:
{services}
"""
# Not restarted by the engine: the loop is to do it. Healthy while /well is there.
ONE = """  {name}:
    image: {image}
    command: [sh, -c, "/busybox touch /well; while :; do /busybox sleep 3600; done"]
    restart: "no"
    mem_limit: 16m
    cpus: 0.2
    healthcheck: {{test: [CMD, /busybox, test, -e, /well], interval: 2s, timeout: 2s, retries: 1}}
"""


class Proxy:
    """A unix socket that passes bytes on to the engine's, and notes when what went by."""

    CALL = re.compile(rb"POST (?:/v[0-9.]+)?/containers/([0-9a-zA-Z_.-]+)/(start|stop|restart|kill)[? ]")
    CREATE = re.compile(rb"POST (?:/v[0-9.]+)?/containers/create")

    def __init__(self, path):
        self.path, self.events, self.calls, self.lock = path, {}, [], threading.Lock()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(64)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            engine = socket.socket(socket.AF_UNIX)
            engine.connect(ENGINE)
            for pair in ((client, engine, self.asked), (engine, client, self.told)):
                threading.Thread(target=self.pump, args=pair, daemon=True).start()

    def pump(self, source, target, look):
        try:
            while data := source.recv(65536):
                look(data, time.perf_counter())
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def asked(self, data, now):
        for found in self.CALL.finditer(data):
            with self.lock:
                self.calls.append((now, found.group(1).decode()))

    def told(self, data, now):
        if b'"Type":"container"' not in data:
            return
        for line in data.split(b"\n"):
            start = line.find(b"{")
            try:
                event = json.loads(line[start:]) if start >= 0 else {}
            except ValueError:
                continue
            action = event.get("Action", "")
            if action == "die" or action == "health_status: unhealthy":
                with self.lock:
                    self.events.setdefault(event["Actor"]["ID"], []).append((now, action))


class Reaction(Bench):
    def docker(self, *arguments):
        return subprocess.run(["docker", "-H", f"unix://{ENGINE}", *arguments], check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    def deploy(self, services):
        self.containers(0)
        # The image of containers() is busybox alone, which is its entrypoint, too.
        text = SERVICE.format(services="".join(ONE.format(name=name, image=self.run) for name in services))
        wanted = {"stack": self.run, "compose": text, "environment": "development", "timeout_s": 55}
        done = json.loads(self.cli("call", "deploy", "--agent", "stack-keeper", "--input", json.dumps(wanted), "--json"))
        if done.get("state") not in ("done", "monitoring"):
            raise SystemExit(f"the stack was not deployed: {json.dumps(done)[:1000]}")

    def well(self, service):
        """The container of a service once it is healthy and nothing is at work on the stack."""
        for _ in range(600):
            name = f"{self.run}-{service}-1"
            seen = subprocess.run(["docker", "inspect", name, "--format", "{{.Id}} {{.State.Pid}} {{.State.Health.Status}}"], capture_output=True, text=True).stdout.split()
            if len(seen) == 3 and seen[2] == "healthy":
                return seen[0], int(seen[1])
            time.sleep(0.1)
        raise SystemExit(f"{service} is not well again:\n{open(f'{self.dir}/serve.log').read()[-3000:]}")

    def measure(self):
        self.env["DOCKER_HOST"] = f"unix://{self.dir}/engine.sock"
        proxy = Proxy(f"{self.dir}/engine.sock")
        policy = f"{self.dir}/config/agents/warden.md"
        text = open(policy).read()
        with open(policy, "w") as f:
            # Its limit of an hour is for real failures, not for a bench.
            f.write(text.replace("max_per_hour: 60", "max_per_hour: 100000"))
        with open(f"{self.dir}/config/policy.toml") as f:
            rules = f.read()
        with open(f"{self.dir}/config/policy.toml", "w") as f:
            f.write(re.sub(r"allowed_registries = \[", 'allowed_registries = ["docker.io/library", "local", ', rules, count=1))
        self.serve()
        # In turns: the loop pauses longer before each further act on one service, and has five for each.
        services = [f"s{n}" for n in range(self.options.services)]
        self.deploy(services)
        for service in services:
            self.well(service)
        # After boot and after its start the loop waits a while on purpose.
        time.sleep(self.options.settle)
        took = {"ended": [], "unhealthy": []}
        for n in range(self.options.services * self.options.rounds):
            service = services[n % len(services)]
            kind = "ended" if (n + n // len(services)) % 2 == 0 else "unhealthy"
            container, pid = self.well(service)
            with proxy.lock:
                proxy.events.pop(container, None)
                proxy.calls.clear()
            if kind == "ended":
                # From inside of the host, past the engine: as a crash is.
                os.kill(pid, 9)
            else:
                self.docker("exec", container, "/busybox", "rm", "/well")
            for _ in range(600):
                with proxy.lock:
                    event = next(iter(proxy.events.get(container, [])), None)
                    call = next((at for at, of in proxy.calls if event and at > event[0] and (container.startswith(of) or of in (container, f"{self.run}-{service}-1"))), None)
                if call:
                    took[kind].append(call - event[0])
                    break
                time.sleep(0.05)
            else:
                raise SystemExit(f"nothing was done about {service} ({kind}): {event}\n{open(f'{self.dir}/serve.log').read()[-3000:]}")
            self.well(service)
        rows = [("event", "n", "p50", "p99", "most", "goal")]
        ms = lambda v: f"{v:.1f} ms"
        for kind, times in (*took.items(), ("all", took["ended"] + took["unhealthy"])):
            p50 = quantile(times, 0.5)
            rows.append((kind, len(times), ms(p50), ms(quantile(times, 0.99)), ms(max(times) * 1000), f"p50 {'met' if p50 < 50 else 'MISSED'}: 50 ms"))
        table(rows)
        host, port = self.address
        with socket.create_connection((host, port)) as s:
            s.sendall(f"GET /metrics HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
            text = b"".join(iter(lambda: s.recv(65536), b"")).decode()
        print("\n".join(line for line in text.splitlines() if line.startswith("dockwarden_heal_reaction_seconds")))

    def clean(self):
        try:
            super().clean()
        finally:
            for kind, remove in (("ps -aq", ["rm", "-f", "-v"]), ("network ls -q", ["network", "rm"])):
                found = subprocess.run(["docker", *kind.split(), "--filter", f"label=dockwarden.stack={self.run}"], capture_output=True, text=True).stdout.split()
                if found:
                    subprocess.run(["docker", *remove, *found], capture_output=True)
            subprocess.run(["docker", "rmi", self.run], capture_output=True)
            shutil.rmtree(self.dir, ignore_errors=True)


def main():
    parser = options()
    parser.add_argument("--services", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4, choices=range(1, 5), help="events of each service, by turns an end and a failing health check")
    parser.add_argument("--settle", type=int, default=25, help="seconds before the first event")
    measured(Reaction(parser.parse_args()))


if __name__ == "__main__":
    main()
