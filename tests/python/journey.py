"""A stack's life through the Python SDK: plan, deploy, second release, broken third, rollback, backup, damage, restore, memory.

An SDK by other hands, so that dockwarden is not only understood by the one it is built with. Once with the protocol's present era
(server/discover), once with the handshake of earlier ones, over stdio and over HTTP. Prints one line per step; any difference ends it.
"""

import argparse
import asyncio
import subprocess
import sys
import urllib.request
from pathlib import Path

import doors
import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client


def docker(*args: str) -> str:
    return subprocess.run(["docker", *args], check=True, capture_output=True, text=True).stdout.strip()


def expect(what: str, value: object, wanted: object) -> None:
    if value != wanted:
        sys.exit(f"{what}: {value!r}, wanted {wanted!r}")
    print(f"ok {what}", flush=True)


async def call(client: Client, tool: str, /, **arguments: object) -> dict:
    result = await client.call_tool(tool, arguments)
    if result.is_error:
        sys.exit(f"{tool}: {result.content}")
    if not isinstance(result.structured_content, dict):
        sys.exit(f"{tool} returned no structured content")
    return result.structured_content


async def settled(client: Client, deployed: dict) -> str:
    done = await call(client, "operation", operation_id=deployed["operation_id"], wait_s=30)
    return done["state"]


def visit(port: str) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        return answer.read().decode().splitlines()


async def journey(client: Client, a: argparse.Namespace) -> None:
    compose = Path(a.compose).read_text()

    def release(version: str, fail: str = "none") -> dict:
        return {"stack": a.stack, "compose": compose, "variables": {"PORT": a.port, "IMAGE": a.image, "VERSION": version, "FAIL": fail}}

    tools = {tool.name for tool in (await client.list_tools()).tools}
    missing = {"plan", "deploy", "rollback", "health", "backup", "restore", "memory_write", "audit"} - tools
    expect("tools are listed", missing, set())

    plan = await call(client, "plan", **release("1"))
    expect("a plan changes nothing", docker("ps", "-aq", "--filter", f"label=dockwarden.stack={a.stack}"), "")
    one = await call(client, "deploy", plan_id=plan["plan_id"], digest=plan["digest"])
    expect("release 1", (one["release"], await settled(client, one)), (1, "done"))
    expect("release 1 is healthy", (await call(client, "health", stack=a.stack))["healthy"], True)
    expect("release 1 answers", visit(a.port), ["Web release 1", "Api release 1", "visits 1"])

    two = await call(client, "deploy", **release("2"))
    expect("release 2", (two["release"], await settled(client, two)), (2, "done"))
    broken = await call(client, "deploy", **release("3", "health"), timeout_s=50)
    if broken["state"] == "running":
        broken = await call(client, "operation", operation_id=broken["operation_id"], wait_s=60)
    expect("release 3 is broken and undone", broken["state"], "rolled_back")
    expect("release 2 keeps serving", visit(a.port), ["Web release 2", "Api release 2", "visits 2"])

    back = await call(client, "rollback", stack=a.stack, to_release=1, reason="journey")
    expect("back at release 1", await settled(client, back), "done")
    expect("its data is still there", visit(a.port), ["Web release 1", "Api release 1", "visits 3"])

    snapshot = (await call(client, "backup", stack=a.stack))["snapshots"][0]
    expect("backup", snapshot["state"], "complete")
    mount = Path(docker("volume", "inspect", "-f", "{{.Mountpoint}}", f"{a.stack}_visits"))
    (mount / "visits").write_text("damaged\n")
    restored = await call(client, "restore", snapshot_id=snapshot["snapshot_id"])
    try:
        beside = Path(docker("volume", "inspect", "-f", "{{.Mountpoint}}", restored["volume"]))
        expect("restored beside the live data", (restored["verified"], (beside / "visits").read_text()), (True, "3\n"))
    finally:
        docker("volume", "rm", restored["volume"])

    await call(client, "memory_write", key="journey", value={"by": "python"})
    found = await call(client, "memory_read", key="journey")
    expect("memory", "python" in str(found), True)
    denied = await client.call_tool("deploy", {"stack": a.stack, "no_such_field": 1})
    expect("an unknown field is a tool error", denied.is_error, True)
    await call(client, "stop", stack=a.stack, remove=True)
    expect("stopped", docker("ps", "-q", "--filter", f"label=dockwarden.stack={a.stack}"), "")


async def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("binary", "home", "config", "url", "token", "stack", "port", "image", "compose"):
        parser.add_argument(f"--{name}", required=True)
    a = parser.parse_args()

    env = {"DOCKWARDEN_HOME": a.home, "DOCKWARDEN_CONFIG": a.config}
    stdio = StdioServerParameters(command=a.binary, args=["mcp", "--agent", "stack-keeper", "--toolsets", "all"], env=env)
    async with Client(stdio, mode="legacy") as client:
        print("-- stdio, handshake era")
        expect("status", isinstance((await call(client, "status")).get("stacks"), list), True)
    async with Client(stdio) as client:
        print("-- stdio, protocol", client.protocol_version)
        await journey(client, a)
    headers = {"Authorization": f"Bearer {a.token}"}
    async with httpx2.AsyncClient(headers=headers, timeout=120) as http:
        for mode in ("legacy", "auto"):
            async with Client(streamable_http_client(a.url, http_client=http), mode=mode) as client:
                print("-- HTTP, protocol", client.protocol_version)
                status = await call(client, "status")
                expect("status", isinstance(status.get("stacks"), list), True)
        # The same over each transport in each era, as tests/node/clients.mjs does it.
        for mode in ("legacy", "auto"):
            await doors.door(f"stdio {mode}", lambda: Client(stdio, mode=mode), f"{a.stack}-doors", a.image)
            over_http = lambda: Client(streamable_http_client(a.url, http_client=http), mode=mode)
            await doors.door(f"http {mode}", over_http, f"{a.stack}-doors", a.image)
    print("journey complete")


asyncio.run(main())
