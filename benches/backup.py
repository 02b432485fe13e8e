#!/usr/bin/env python3
"""Backups of one directory by dockwarden's worker, tar | zstd, restic and borg, in interleaved rounds. Prints medians and ratios."""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

STEPS = ["first", "changed", "unchanged", "restore", "check"]
WORDS = "the of and to in is it you that he was for on are with as his they be at one have this from or had by".split()


def fill(root, mebibytes, seed):
    """60 % text, 30 % random, 10 % small files."""
    rng = random.Random(seed)
    size = mebibytes << 20
    text = root / "text"
    text.mkdir()
    for n in range(max(1, size * 6 // 10 // (8 << 20))):
        lines = [" ".join(rng.choices(WORDS, k=12)) + f" {rng.getrandbits(64):x}" for _ in range(1000)]
        with open(text / f"{n}.log", "w") as out:
            while out.tell() < 8 << 20:
                rng.shuffle(lines)
                out.write("\n".join(lines))
    noise = root / "random"
    noise.mkdir()
    for n in range(max(1, size * 3 // 10 // (16 << 20))):
        (noise / str(n)).write_bytes(rng.randbytes(16 << 20))
    small = root / "small"
    for n in range(size // 10 // 4096):
        path = small / str(n % 256) / str(n)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randint(100, 8000)))


def change(root, round_number):
    """About one percent: the same share of each kind of file."""
    rng = random.Random(1000 + round_number)
    files = sorted(p for p in root.rglob("*") if p.is_file())
    for path in rng.sample(files, max(1, len(files) // 100)):
        with open(path, "r+b") as out:
            out.seek(rng.randint(0, max(0, path.stat().st_size - 4096)))
            out.write(rng.randbytes(min(4096, path.stat().st_size)))


def peak(pid, stop, seen):
    """Largest sum of resident memory of a process and what it started, sampled."""
    page = os.sysconf("SC_PAGE_SIZE")
    while not stop.is_set():
        family, total = {pid}, 0
        for entry in sorted((int(e) for e in os.listdir("/proc") if e.isdigit())):
            try:
                stat = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
                if int(stat[1]) in family:
                    family.add(entry)
                if entry in family:
                    total += int(stat[21]) * page
            except (OSError, IndexError):
                continue
        seen[0] = max(seen[0], total)
        stop.wait(0.1)


def timed(command, stdin=None, env=None):
    """Seconds, peak memory and output of a command; it must succeed."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **(env or {})})
    stop, seen = threading.Event(), [0]
    watcher = threading.Thread(target=peak, args=(process.pid, stop, seen))
    watcher.start()
    if stdin is not None:
        # The worker ends when its input closes: it is held open until it has answered.
        process.stdin.write(stdin)
        process.stdin.flush()
        answer = b""
        for line in process.stdout:
            if b'"done"' in line or b'"failed"' in line:
                answer = line
                break
        seconds = time.perf_counter() - started
        process.stdin.close()
        process.wait()
        output, errors = answer, process.stderr.read()
        failed = b'"done"' not in answer
    else:
        output, errors = process.communicate()
        seconds = time.perf_counter() - started
        failed = process.returncode != 0
    stop.set()
    watcher.join()
    if failed:
        raise SystemExit(f"{command}: {output.decode()[-500:]} {errors.decode()[-500:]}")
    return seconds, seen[0], output


class Ours:
    name = "dockwarden"

    def __init__(self, work, binary):
        self.repo, self.key, self.binary, self.snapshot = work / "repo", work / "key", binary, None
        self.key.write_text(os.urandom(32).hex())
        self.ask("init")

    def ask(self, do, **more):
        request = {"repo": str(self.repo), "key_file": str(self.key), "job": {"do": do, **more}}
        return timed([self.binary, "worker"], stdin=json.dumps(request).encode() + b"\n")

    def backup(self, data):
        source = {"dir": str(data)}
        done = self.ask("backup", source=source, volume="v", stack=None, instance="bench", tags=[])
        self.snapshot = json.loads(done[2])["done"]["snapshot"]["snapshot_id"]
        return done

    def restore(self, into):
        return self.ask("restore", snapshot=self.snapshot, into=str(into))

    def check(self):
        return self.ask("check", read_data=True)


class Tar:
    name = "tar | zstd"

    def __init__(self, work, _):
        self.file = work / "data.tar.zst"

    def backup(self, data):
        return timed(["sh", "-c", f"tar -C '{data}' -cf - . | zstd -q -f -3 -T2 -o '{self.file}'"])

    def restore(self, into):
        return timed(["sh", "-c", f"zstd -q -dc '{self.file}' | tar -C '{into}' -xpf -"])

    def check(self):
        return timed(["zstd", "-q", "-t", str(self.file)])


class Restic:
    name = "restic"

    def __init__(self, work, _):
        (work / "password").write_text("bench")
        self.env = {"RESTIC_REPOSITORY": str(work / "repo"), "RESTIC_PASSWORD_FILE": str(work / "password"), "RESTIC_CACHE_DIR": str(work / "cache")}
        self.run("init")

    def run(self, *words):
        return timed(["restic", "-q", *words], env=self.env)

    def backup(self, data):
        return self.run("backup", str(data))

    def restore(self, into):
        return self.run("restore", "latest", "--target", str(into))

    def check(self):
        return self.run("check", "--read-data")


class Borg:
    name = "borg"

    def __init__(self, work, _):
        self.repo, self.count = work / "repo", 0
        self.env = {"BORG_PASSPHRASE": "bench", "BORG_BASE_DIR": str(work / "base"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
        timed(["borg", "init", "-e", "repokey-blake2", str(self.repo)], env=self.env)

    def backup(self, data):
        self.count += 1
        return timed(["borg", "create", "-C", "zstd,3", f"{self.repo}::{self.count}", str(data)], env=self.env)

    def restore(self, into):
        return timed(["sh", "-c", f"cd '{into}' && borg extract '{self.repo}::{self.count}'"], env=self.env)

    def check(self):
        return timed(["borg", "check", "--verify-data", str(self.repo)], env=self.env)


def one_round(tools, source, work, number, results):
    for tool in tools[number % len(tools):] + tools[: number % len(tools)]:
        place = work / f"{number}-{tool.name.split()[0]}"
        place.mkdir()
        data = place / "data"
        subprocess.run(["cp", "-a", str(source), str(data)], check=True)
        made = tool(place, results["binary"])
        into = place / "into"
        into.mkdir()

        def note(step, done):
            results["times"].setdefault((tool.name, step), []).append(done[0])
            results["memory"].setdefault((tool.name, step), []).append(done[1])

        note("first", made.backup(data))
        change(data, number)
        note("changed", made.backup(data))
        note("unchanged", made.backup(data))
        note("restore", made.restore(into))
        note("check", made.check())
        stored = sum(p.stat().st_size for p in place.rglob("*") if p.is_file() and p.relative_to(place).parts[0] not in {"data", "into", "cache", "base"})
        results["stored"].setdefault(tool.name, []).append(stored)
        shutil.rmtree(place)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    tools = [Ours, Tar]
    for tool, command in ((Restic, "restic"), (Borg, "borg")):
        if shutil.which(command):
            tools.append(tool)
        else:
            print(f"note: {command} is not installed and is left out")
    results = {"binary": options.binary, "times": {}, "memory": {}, "stored": {}}
    with tempfile.TemporaryDirectory(prefix="dw-bench-") as work:
        source = Path(work) / "source"
        source.mkdir()
        fill(source, options.mebibytes, 1)
        for number in range(options.rounds):
            one_round(tools, source, Path(work), number, results)
    print(f"{options.mebibytes} MiB, {options.rounds} interleaved rounds; seconds (median), ratio to ours in brackets; peak memory in MiB")
    print(f"{'':12}" + "".join(f"{step:>18}" for step in STEPS) + f"{'peak memory':>14}{'stored MiB':>12}")
    ours = {step: statistics.median(results["times"][(Ours.name, step)]) for step in STEPS}
    for tool in tools:
        row = f"{tool.name:12}"
        for step in STEPS:
            median = statistics.median(results["times"][(tool.name, step)])
            row += f"{median:9.2f} ({median / ours[step]:5.2f})"
        memory = max(max(results["memory"][(tool.name, step)]) for step in STEPS) >> 20
        print(row + f"{memory:14}{int(statistics.median(results['stored'][tool.name])) >> 20:12}")


if __name__ == "__main__":
    main()
