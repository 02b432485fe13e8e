"""Measures a real `dockwarden serve` in a temporary home: calls over both doors, cold start, memory, sizes, and many callers at once. Run by calls.sh.

The same blocking client calls dockwarden and a no-op rmcp server in turns, so that both see the same machine; what counts is the
difference and the ratio. Deliberately absent: deploys and anything else whose time is the engine's."""

import json, os, socket, subprocess, sys, threading, time

from harness import Bench, measured, options, quantile, table

PROTOCOL = "2025-11-25"
INIT = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": {"name": "bench", "version": "0"}}


class Stdio:
    """An MCP client over a process's stdin and stdout."""

    def __init__(self, argv, env):
        self.process = subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.id = 0
        self.request("initialize", INIT)
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def send(self, message):
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def request(self, method, params):
        self.id += 1
        self.send({"jsonrpc": "2.0", "id": self.id, "method": method, "params": params})
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit("the server closed the connection")
            reply = json.loads(line)
            if reply.get("id") == self.id:
                return reply

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)


class Wire:
    """HTTP/1.1 on one kept connection, TCP or unix."""

    def __init__(self, address):
        self.host = "localhost"
        if isinstance(address, tuple):
            self.host = f"{address[0]}:{address[1]}"
            self.socket = socket.create_connection(address)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(address)
        self.file = self.socket.makefile("rb")

    def exchange(self, method, path, headers=(), body=b""):
        head = [f"{method} {path} HTTP/1.1", f"Host: {self.host}", f"Content-Length: {len(body)}", *headers]
        self.socket.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        status = int(self.file.readline().split()[1])
        found = {}
        while (line := self.file.readline().strip()) != b"":
            key, _, value = line.decode().partition(":")
            found[key.lower()] = value.strip()
        if found.get("transfer-encoding") == "chunked":
            out = b""
            while (size := int(self.file.readline(), 16)) != 0:
                out += self.file.read(size)
                self.file.readline()
            self.file.readline()
        else:
            out = self.file.read(int(found.get("content-length", 0)))
        return status, found, out


class Http:
    """An MCP client over Streamable HTTP, with a session as today's clients have one."""

    def __init__(self, address, token=None):
        self.wire = Wire(address)
        self.headers = ["Content-Type: application/json", "Accept: application/json, text/event-stream"]
        if token:
            self.headers.append(f"Authorization: Bearer {token}")
        self.id = 0
        self.request("initialize", INIT)
        self.post({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def post(self, message):
        status, headers, body = self.wire.exchange("POST", "/mcp", self.headers, json.dumps(message).encode())
        if status >= 300:
            raise SystemExit(f"HTTP {status}: {body[:300]}")
        if "mcp-session-id" in headers and not any(h.startswith("Mcp-Session-Id") for h in self.headers):
            self.headers += [f"Mcp-Session-Id: {headers['mcp-session-id']}", f"MCP-Protocol-Version: {PROTOCOL}"]
        return headers, body

    def request(self, method, params):
        self.id += 1
        headers, body = self.post({"jsonrpc": "2.0", "id": self.id, "method": method, "params": params})
        if headers["content-type"].startswith("text/event-stream"):
            data = [line[5:].strip() for line in body.split(b"\n") if line.startswith(b"data:")]
            body = [d for d in data if d][-1]
        reply = json.loads(body)
        assert reply["id"] == self.id
        return reply

    def close(self):
        # The session ends with its client, as the protocol asks: otherwise it counts until it has idled out.
        try:
            self.wire.exchange("DELETE", "/mcp", self.headers)
        except (IndexError, OSError):
            # The supervisor had closed a connection that was idle: the session idles out.
            print("a session could not be ended: its connection was closed", file=sys.stderr)
        self.wire.socket.close()


class Shared:
    """Many callers on one stdio connection: requests go out as they come, each reply to who asked."""

    def __init__(self, client):
        self.client, self.lock, self.waiting = client, threading.Lock(), {}
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.client.process.stdout:
            reply = json.loads(line)
            if (waiting := self.waiting.pop(reply.get("id"), None)) is not None:
                waiting[1] = reply
                waiting[0].set()

    def request(self, method, params):
        waiting = [threading.Event(), None]
        with self.lock:
            self.client.id += 1
            self.waiting[self.client.id] = waiting
            self.client.send({"jsonrpc": "2.0", "id": self.client.id, "method": method, "params": params})
        waiting[0].wait()
        return waiting[1]


def together(clients, seconds, action):
    """Every client calls again and again in a thread of its own; seconds each call took, and calls a second. The threads share one interpreter: at
    many callers it is the client that is measured, for both servers alike, so only the ratio counts."""
    took, begin = [], threading.Barrier(len(clients) + 1)

    def caller(client):
        mine = []
        begin.wait()
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            action(client)
            mine.append(time.perf_counter() - start)
        took.append(mine)

    threads = [threading.Thread(target=caller, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    begin.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    all_of_them = [t for mine in took for t in mine]
    return all_of_them, len(all_of_them) / (time.perf_counter() - start)


def tool(client, name, arguments=None):
    reply = client.request("tools/call", {"name": name, "arguments": arguments or {}})
    result = reply.get("result")
    if result is None or result.get("isError"):
        raise SystemExit(f"{name}: {json.dumps(reply)[:500]}")
    return result


def fsync_once(file):
    # One page rewritten in place: the cheapest there is. A file that grows costs a commit of the file system's journal more.
    os.pwrite(file, b"\7" * 4096, 0)
    os.fdatasync(file)


def in_turns(count, actions, turn=25):
    """Runs every action `count` times, `turn` of each after the other; seconds each took."""
    took = {name: [] for name in actions}
    for action in actions.values():
        for _ in range(5):
            action()
    done = 0
    while done < count:
        for name, action in actions.items():
            for _ in range(turn):
                start = time.perf_counter()
                action()
                took[name].append(time.perf_counter() - start)
        done += turn
    return took


def memory(pid):
    with open(f"/proc/{pid}/status") as f:
        fields = dict(line.split(":", 1) for line in f)
    return {key: int(fields[key].split()[0]) / 1024 for key in ("VmRSS", "RssAnon", "RssFile")} | {"Threads": int(fields["Threads"])}


def tokens(value):
    """Characters by four: an estimate; no tokenizer is used."""
    return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False)) // 4


class Calls(Bench):
    def measure(self):
        n = self.options.n
        rows = [("what", "p50", "p99", "beside", "p50", "difference", "ratio", "goal")]
        ms = lambda v: f"{v:.3f} ms"

        def row(what, took, beside, base, fsync, goal):
            ours, theirs = quantile(took, 0.5), quantile(base, 0.5)
            rows.append((what, ms(ours), ms(quantile(took, 0.99)), beside, ms(theirs), ms(ours - theirs), f"{ours / theirs:.2f}", goal(ours, theirs, fsync)))

        ready = self.serve()
        print(f"serve answers after {ready * 1000:.0f} ms; idle for {self.options.idle} s ...", file=sys.stderr)
        time.sleep(self.options.idle)
        idle = memory(self.server.pid)
        token = json.loads(self.cli("agents", "token", "bench", "--json"))["token"]
        noop = self.spawn([self.options.noop, "http"], stdout=subprocess.PIPE)
        host, _, port = noop.stdout.readline().decode().strip().rpartition(":")
        bridge = lambda agent="bench": Stdio([self.options.binary, "mcp", "--agent", agent], self.env)
        clients = {
            "stdio": (bridge(), Stdio([self.options.noop], self.env)),
            "HTTP": (Http(self.address, token), Http((host, int(port)))),
        }
        file = os.open(f"{self.dir}/s/fsync", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(file, bytes(4096))
        os.fsync(file)
        within = lambda ours, bound: f"{ours:.2f} of {bound:.2f} ms: {'met' if ours <= bound else 'MISSED'}"
        overhead = lambda ours, theirs, fsync: within(ours - theirs, 0.5 + fsync)
        took = {}
        for door, (ours, theirs) in clients.items():
            took = in_turns(n, {
                "noop": lambda: tool(theirs, "noop"),
                "fsync": lambda: fsync_once(file),
                "agents": lambda: tool(ours, "agents"),
                "memory_read": lambda: tool(ours, "memory_read", {"key": "none"}),
                "refused": lambda: ours.request("tools/call", {"name": "nosuch", "arguments": {}}),
                "list": lambda: ours.request("tools/list", {}),
            })
            fsync = quantile(took["fsync"], 0.5)
            for name in ("agents", "memory_read", "refused"):
                row(f"{name} over {door}", took[name], f"no-op over {door}", took["noop"], fsync, overhead)
            row(f"tools/list over {door}", took["list"], f"no-op over {door}", took["noop"], fsync, lambda *_: "-")
        rows.append(("one fsync", ms(fsync), ms(quantile(took["fsync"], 0.99)), "", "", "", "", "-"))

        self.containers(20)
        engine = Wire("/var/run/docker.sock")
        took = in_turns(min(n, 200), {
            "raw": lambda: json.loads(engine.exchange("GET", "/containers/json?all=1")[2]),
            "fsync": lambda: fsync_once(file),
            **{door: (lambda ours: lambda: tool(ours, "status"))(ours) for door, (ours, _) in clients.items()},
        })
        fsync = quantile(took["fsync"], 0.5)
        for door in clients:
            row(f"status, 20 containers, {door}", took[door], "raw list", took["raw"], fsync, lambda o, t, f: within(o, 1.5 * t + f))
        listed = tool(clients["stdio"][0], "status")

        starts = []
        for _ in range(self.options.starts):
            start = time.perf_counter()
            client = bridge()
            starts.append(time.perf_counter() - start)
            client.close()
        rows.append(("cold start of the bridge", ms(quantile(starts, 0.5)), ms(quantile(starts, 0.99)), "", "", "", "", within(quantile(starts, 0.5), 50)))
        table(rows)

        print()
        self.crowd(token, (host, int(port)), bridge)

        sizes = {}
        for agent in ("observer", "deployer", "stack-keeper", "all"):
            client = bridge(agent)
            sizes[agent] = client.request("tools/list", {})["result"]["tools"]
            client.close()
        for ours, theirs in clients.values():
            ours.close()
            theirs.close()
        print()
        table([("tools/list", "tools", "tokens, characters / 4"), *((a, len(t), tokens(t)) for a, t in sizes.items())])
        largest = sorted(sizes["all"], key=tokens, reverse=True)
        print("largest: " + ", ".join(f"{t['name']} {tokens(t)}" for t in largest[:8]))
        print(f"status of 20 containers: {tokens(listed['content'][0]['text'])} tokens as text, {tokens(listed['structuredContent'])} structured")
        print()
        time.sleep(self.options.idle)
        after = memory(self.server.pid)
        print(f"memory of serve: idle {idle['VmRSS']:.1f} MiB (anonymous {idle['RssAnon']:.1f}, file {idle['RssFile']:.1f}, {idle['Threads']} threads); "
              f"idle after the calls {after['VmRSS']:.1f} MiB (anonymous {after['RssAnon']:.1f}, file {after['RssFile']:.1f}, {after['Threads']} threads)")


    def crowd(self, token, noop, bridge):
        """1, 16 and 64 callers at once: a call that does next to nothing and `status` of 20 containers, beside the no-op server and the raw engine."""
        rows = [("callers", "what", "p50", "p99", "calls/s", "beside", "p50", "calls/s", "rate")]
        ms = lambda v: f"{v:.3f} ms"
        idle = lambda client: tool(client, "memory_read", {"key": "none"})
        status = lambda client: tool(client, "status")
        raw = lambda wire: json.loads(wire.exchange("GET", "/containers/json?all=1")[2])
        for callers in self.options.callers:
            shared = {"ours": Stdio([self.options.binary, "mcp", "--agent", "bench"], self.env), "noop": Stdio([self.options.noop], self.env)}
            one = {name: Shared(client) for name, client in shared.items()}
            http = {"ours": [Http(self.address, token) for _ in range(callers)], "noop": [Http(noop) for _ in range(callers)]}
            engine = [Wire("/var/run/docker.sock") for _ in range(callers)]
            doors = {"stdio": ([one["ours"]] * callers, [one["noop"]] * callers), "HTTP": (http["ours"], http["noop"])}
            for door, (ours, theirs) in doors.items():
                for what, action, base, beside, basis in (("memory_read", idle, theirs, f"no-op over {door}", lambda c: tool(c, "noop")), ("status", status, engine, "raw list", raw)):
                    took, rate = together(ours, self.options.seconds, action)
                    other, base_rate = together(base, self.options.seconds, basis)
                    rows.append((callers, f"{what} over {door}", ms(quantile(took, 0.5)), ms(quantile(took, 0.99)), f"{rate:.0f}", beside, ms(quantile(other, 0.5)), f"{base_rate:.0f}", f"{rate / base_rate:.2f}"))
            for client in (*shared.values(), *http["ours"], *http["noop"]):
                client.close()
            for wire in engine:
                wire.socket.close()
        table(rows)
        if self.options.sessions:
            before = memory(self.server.pid)
            wire = Wire(self.address)
            headers = ["Content-Type: application/json", "Accept: application/json, text/event-stream"]
            # One token may open 256.
            tokens = [json.loads(self.cli("agents", "token", "bench", "--label", f"sessions-{n}", "--json"))["token"] for n in range(-(-self.options.sessions // 250))]
            for n in range(self.options.sessions):
                body = json.dumps({"jsonrpc": "2.0", "id": n, "method": "initialize", "params": INIT}).encode()
                status, _, reply = wire.exchange("POST", "/mcp", [*headers, f"Authorization: Bearer {tokens[n // 250]}"], body)
                if status != 200:
                    raise SystemExit(f"session {n}: HTTP {status}: {reply[:300]}")
            after = memory(self.server.pid)
            print(f"{self.options.sessions} sessions: {after['VmRSS']:.1f} MiB (anonymous {after['RssAnon']:.1f}); before them {before['VmRSS']:.1f} MiB (anonymous {before['RssAnon']:.1f})")
            wire.socket.close()


def main():
    parser = options()
    parser.add_argument("--noop", required=True, type=os.path.abspath)
    parser.add_argument("--n", type=int, default=500, help="calls of each kind")
    parser.add_argument("--starts", type=int, default=40, help="cold starts of the bridge")
    parser.add_argument("--callers", type=lambda text: [int(n) for n in text.split(",")], default=[1, 16, 64], help="callers at once")
    parser.add_argument("--seconds", type=float, default=2, help="how long each of them calls")
    parser.add_argument("--sessions", type=int, default=1000, help="HTTP sessions to open beside those in use; the cap is 1,024, and 256 of one token")
    parser.add_argument("--idle", type=int, default=30, help="seconds to wait before memory is read")
    measured(Calls(parser.parse_args()))


if __name__ == "__main__":
    main()
