"""Open-loop HTTP load: requests leave on a fixed schedule whatever the answers do, one new connection each, so that a pause of the server is seen by
every request that falls into it. Standard library only.

    load.py PORT SECONDS [RATE] [PATH]      # prints a JSON summary

Lost is what a client sees as lost: refused, reset, empty, no answer in time, or a status that is not 2xx. `gap_s` is the longest time between two
requests that succeeded, by when they were sent."""

import asyncio, collections, json, sys, time

TIMEOUT_S = 5


async def one(port, path, results):
    began, writer = time.monotonic(), None
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.0\r\nHost: bench\r\n\r\n".encode())
            await writer.drain()
            answer = await reader.read()
        status = answer[9:12].decode(errors="replace")
        kind = "ok" if status.startswith("2") else f"http {status}" if answer else "empty"
    except TimeoutError:
        kind = "timeout"
    except ConnectionRefusedError:
        kind = "refused"
    except ConnectionError:
        kind = "reset"
    except OSError as error:
        kind = type(error).__name__
    finally:
        if writer:
            writer.close()
    results.append((began, time.monotonic() - began, kind))


async def load(port, seconds, rate, path):
    results, tasks, began = [], [], time.monotonic()
    while (due := len(tasks) / rate) < seconds:
        wait = began + due - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(port, path, results)))
    await asyncio.gather(*tasks)
    return sorted(results)


def summary(results):
    kinds = collections.Counter(kind for _, _, kind in results)
    lost = [began for began, _, kind in results if kind != "ok"]
    good = [(began, took) for began, took, kind in results if kind == "ok"]
    gap = max((b - a for (a, _), (b, _) in zip(good, good[1:])), default=None)
    took = sorted(t for _, t in good)
    at = lambda share: round(took[min(len(took) - 1, int(len(took) * share))] * 1000, 1) if took else None
    return {
        "sent": len(results),
        "lost": len(lost),
        "kinds": dict(kinds),
        "gap_s": None if gap is None else round(gap, 3),
        "window_s": round(lost[-1] - lost[0], 3) if lost else 0,
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
    }


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    rate = float(sys.argv[3]) if len(sys.argv) > 3 else 200
    path = sys.argv[4] if len(sys.argv) > 4 else "/"
    print(json.dumps(summary(asyncio.run(load(int(sys.argv[1]), float(sys.argv[2]), rate, path)))))
