"""Docker Compose v2 and dockwarden on the same six-service stack, in turns, in one run. Prints medians, ratios and a table; `--json FILE` keeps the raw
numbers. Started by run.sh; everything it makes carries the two stacks' names and is removed, also after Ctrl-C."""

import argparse, datetime, json, os, pathlib, signal, statistics, subprocess, sys, tempfile, time

from stack import Compose, Dockwarden, Failed, Stack, docker, free_port, run

HERE = pathlib.Path(__file__).resolve().parent
SETTLE_S = 5
# Longer than an update takes; a change that outlasts it is told in its row.
LOAD_S = 15


def timed(work):
    began = time.monotonic()
    work()
    return time.monotonic() - began


def say(text):
    print(text, file=sys.stderr, flush=True)


class Load:
    """The load generator as a process beside: our own interpreter must not slow it."""

    def __init__(self, port, seconds, rate):
        argv = [sys.executable, HERE / "load.py", str(port), str(seconds), str(rate), "/health"]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    def result(self):
        out, _ = self.process.communicate(timeout=120)
        return json.loads(out)


def loaded(side, rate, seconds, change):
    """Runs a change under load; gives the load's summary, how long the change took and how it ended."""
    load = Load(side.stack.port, seconds, rate)
    time.sleep(1)
    ended = "ok"
    began = time.monotonic()
    try:
        change()
    except Failed as error:
        ended = str(error).splitlines()[0][-120:]
    took = time.monotonic() - began
    result = load.result()
    if isinstance(side, Dockwarden):
        side.idle()
    return result | {"took_s": round(took, 3), "ended": ended, "outlasted_load": took > seconds - 1}


def cold(sides, rounds):
    times = {s.name: [] for s in sides}
    for n in range(rounds):
        for side in sides if n % 2 == 0 else reversed(sides):
            if n or side.stack.answer() != "dead":
                side.down()
            side.stack.set()
            times[side.name].append(timed(side.up))
            say(f"  cold {side.name} {times[side.name][-1]:.2f} s")
            if isinstance(side, Dockwarden):
                side.idle()
    return times


def noop(sides, rounds):
    times = {s.name: [] for s in sides}
    for n in range(rounds):
        for side in sides if n % 2 == 0 else reversed(sides):
            times[side.name].append(timed(side.up))
    return times


def updates(sides, strategies, rounds, rate):
    compose, ours = sides
    rows = {}
    version = 1
    for n in range(rounds):
        for key, side, strategy in [("compose", compose, None)] + [(s, ours, s) for s in strategies]:
            if strategy and n == 0:
                # Moving to another strategy is a change of its own; what is measured is the update after it.
                side.stack.set(strategy=strategy, WEB_VERSION=version)
                try:
                    side.up()
                    side.idle()
                except Failed as error:
                    say(f"  strategy {strategy} cannot be tried: {str(error).splitlines()[-1][:200]}")
                    strategies = [s for s in strategies if s != strategy]
                    continue
            elif strategy:
                side.stack.set(strategy=strategy, WEB_VERSION=version)
                side.up()
                side.idle()
            version += 1
            side.stack.set(strategy=strategy, WEB_VERSION=version)
            row = loaded(side, rate, LOAD_S, side.up)
            row["serves"] = side.stack.settled(SETTLE_S) == f"ok release {version}"
            rows.setdefault(key, []).append(row)
            say(f"  update {key}: lost {row['lost']} of {row['sent']}, gap {row['gap_s']} s, {row['took_s']} s")
    return rows


def broken(sides, rate):
    """A release of web that exits at once, under load: what is lost, and what the port says at the end."""
    out = {}
    for side in sides:
        side.mend()
        before = side.stack.settled(SETTLE_S)
        side.stack.set(WEB_VERSION=99, WEB_FAIL="start")
        row = loaded(side, rate, LOAD_S, side.up)
        row["final"] = side.stack.answer()
        row["unharmed"] = row["final"] == before
        out[side.name] = row
        side.mend()
        say(f"  broken {side.name}: lost {row['lost']} of {row['sent']}, then {row['final']!r}")
    return out


def killed(sides, points):
    """The deployer is killed in the middle of an update of web, at points spread over the time an update takes."""
    out = {s.name: [] for s in sides}
    for side in sides:
        side.mend()
        side.stack.set(WEB_VERSION=2)
        span = timed(side.up)
        side.mend()
        for n in range(points):
            after = span * (n + 0.5) / points
            version = 100 + n
            side.stack.set(WEB_VERSION=version)
            process = side.begin()
            time.sleep(after)
            side.kill(process)
            side.after_kill()
            said = side.stack.settled(SETTLE_S)
            running = side.stack.web_containers()
            good = said in ("ok release 1", f"ok release {version}") and running == 1
            out[side.name].append({"after_s": round(after, 3), "port": said, "web_containers": running, "one_release": good})
            say(f"  killed {side.name} after {after:.2f} s: {said!r}, {running} web containers")
            side.mend()
    return out


def profile(side, strategies):
    """Where the time of one cold deploy goes, and of one update of web with each strategy, by the journal."""
    side.down()
    side.stack.set()
    out = {"cold deploy": profiled(side, "cold deploy")}
    for strategy in strategies:
        side.stack.set(strategy=strategy, WEB_VERSION=200)
        side.up()
        side.idle()
        side.stack.set(strategy=strategy, WEB_VERSION=201)
        out[strategy] = profiled(side, f"update with {strategy}")
    return out


def profiled(side, what):
    took = timed(side.up)
    side.idle()
    rows, total = side.phases()
    say(f"  one {what}, {total} ms until the new release serves, {took * 1000:.0f} ms with the command around it; journal records by time:")
    last = 0
    for phase, key, at in rows:
        say(f"    {at:8.1f} ms  +{at - last:7.1f}  {phase:9} {key}")
        last = at
    return {"total_ms": total, "steps": rows}


def median(values):
    return statistics.median(values) if values else float("nan")


def table(result):
    """The figures as Markdown."""
    lines = [
        f"Measured {result['date']} on {result['machine']}.",
        "",
        "| what | Compose v2 | dockwarden | ratio |",
        "|---|---|---|---|",
    ]
    for key, what, unit, scale in (("cold", "cold deploy, 6 services in 3 levels", "s", 1), ("noop", "no-op redeploy", "ms", 1000)):
        if key in result:
            a, b = (median(result[key][s]) for s in ("compose", "dockwarden"))
            digits = 2 if unit == "s" else 0
            lines.append(f"| {what} | {a * scale:.{digits}f} {unit} | {b * scale:.{digits}f} {unit} | {b / a:.2f} |")
    compose = result.get("updates", {}).get("compose", [])
    pick = lambda rows, key: median([r[key] for r in rows if r[key] is not None])
    words = lambda rows: f"{pick(rows, 'lost'):.0f} lost, gap {pick(rows, 'gap_s'):.2f} s, {pick(rows, 'took_s'):.2f} s" if rows else "not tried"
    for strategy, rows in result.get("updates", {}).items():
        if strategy != "compose":
            lines.append(f"| one service updated at {result['rate']} req/s, {strategy} | {words(compose)} | {words(rows)} | |")
    if "broken" in result:
        row = lambda s: f"{result['broken'][s]['lost']} lost, then {'the old release' if result['broken'][s]['unharmed'] else result['broken'][s]['final']}"
        lines.append(f"| broken release | {row('compose')} | {row('dockwarden')} | |")
    if "killed" in result:
        row = lambda s: f"{sum(p['one_release'] for p in result['killed'][s])} of {len(result['killed'][s])} points with one serving release"
        lines.append(f"| deployer killed in an update | {row('compose')} | {row('dockwarden')} | |")
    return "\n".join(lines)


def machine():
    cpu = next((l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "unknown CPU")
    memory = int(open("/proc/meminfo").readline().split()[1]) // 1024
    engine = docker("version", "--format", "{{.Server.Version}} (API {{.Server.APIVersion}})").strip()
    return f"{os.cpu_count()} x {cpu}, {memory} MiB, engine {engine}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compose", required=True, help="the docker-compose v2 binary")
    parser.add_argument("--binary", required=True, help="the dockwarden binary")
    parser.add_argument("--image", required=True, help="the demo image")
    parser.add_argument("--rounds", type=int, default=3, help="of cold deploys, no-ops and updates (at most 20)")
    parser.add_argument("--points", type=int, default=10, help="at which the deployer is killed (at most 50)")
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--strategies", default="handover,recreate", help="of updates, with commas")
    parser.add_argument("--only", default="cold,noop,updates,broken,killed", help="parts, with commas; `profile` shows where a cold deploy and an update spend their time")
    parser.add_argument("--json", type=pathlib.Path, help="raw numbers go here")
    options = parser.parse_args()
    rounds, points = min(options.rounds, 20), min(options.points, 50)
    parts = options.only.split(",")
    unknown = set(parts) - {"cold", "noop", "updates", "broken", "killed", "profile"}
    if unknown:
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    # Ctrl-C and kill clean up as the end does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sides = []
    with tempfile.TemporaryDirectory(prefix="dw-sbs-") as root:
        try:
            tag = f"sbs{os.getpid()}"
            sides.append(Compose(options.compose, Stack(root, f"{tag}c", options.image, free_port())))
            sides.append(Dockwarden(options.binary, Stack(root, f"{tag}d", options.image, free_port()), root, HERE.parent.parent))
            result = {"date": datetime.date.today().isoformat(), "machine": machine(), "rate": f"{options.rate:g}"}
            result["compose_version"] = run([options.compose, "version", "--short"]).stdout.strip()
            say(f"cold deploys ({rounds} rounds)")
            times = cold(sides, rounds if "cold" in parts else 1)
            if "cold" in parts:
                result["cold"] = times
            if "noop" in parts:
                say("no-op redeploys")
                result["noop"] = noop(sides, rounds * 3)
            if "updates" in parts:
                say(f"updates at {options.rate:g} requests/s")
                result["updates"] = updates(sides, options.strategies.split(","), rounds, options.rate)
            if "broken" in parts:
                say("a broken release")
                result["broken"] = broken(sides, options.rate)
            if "killed" in parts:
                say(f"the deployer killed at {points} points")
                result["killed"] = killed(sides, points)
            if "profile" in parts:
                say("profile")
                result["profile"] = profile(sides[1], options.strategies.split(","))
            if options.json:
                options.json.write_text(json.dumps(result, indent=1))
            print(table(result))
        except Failed as error:
            log = pathlib.Path(root) / "serve.log"
            tail = log.read_text()[-3000:] if log.exists() else ""
            raise SystemExit(f"{error}\n--- end of the supervisor's log\n{tail}") from None
        finally:
            for side in sides:
                try:
                    side.close()
                except (Failed, subprocess.TimeoutExpired) as error:
                    say(f"cleaning up {side.name}: {error}")


main()
