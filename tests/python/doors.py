"""What the Python SDK does over each transport in each era: list, read, deploy with progress, give a call up, come back and find the operation."""

import asyncio
import itertools
import json
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from mcp import Client
from mcp.types import PromptReference

COMPOSE = """
x-dockwarden: {{monitor_s: 1}}
services:
  web:
    image: {image}
    mem_limit: 64m
    environment: {{ROLE: api, VERSION: "${{VERSION}}"}}
    healthcheck: {{test: ["CMD", "/dockwarden", "demo-app", "check", "http://127.0.0.1:8080/health"], interval: 1s, timeout: 2s, retries: 5}}
    x-dockwarden: {{start_timeout_s: 20}}
"""

Connect = Callable[[], AbstractAsyncContextManager[Client]]
releases = itertools.count(1)


def expect(what: str, value: object, wanted: object) -> None:
    if value != wanted:
        sys.exit(f"{what}: {value!r}, wanted {wanted!r}")


async def call(client: Client, tool: str, /, progress=None, **arguments: object) -> dict:
    result = await client.call_tool(tool, arguments, 58, progress)
    if result.is_error:
        sys.exit(f"{tool}: {result.content}")
    return result.structured_content


async def door(name: str, connect: Connect, stack: str, image: str) -> None:
    release = next(releases)

    def version(**more: object) -> dict:
        return {"stack": stack, "compose": COMPOSE.format(image=image), "variables": {"VERSION": str(release)}, **more}

    told: list[float] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        told.append(done)

    async with connect() as client:
        expect("resources are listed", "dockwarden://stacks" in {str(r.uri) for r in (await client.list_resources()).resources}, True)
        content = (await client.read_resource("dockwarden://stacks")).contents[0]
        expect("a resource is read", isinstance(json.loads(content.text)["stacks"], list), True)
        deployed = await call(client, "deploy", progress, **version())
        expect("deployed", deployed["state"], "monitoring")
        expect("progress came and grew", len(told) > 1 and told == sorted(told), True)
        typed = await client.complete(PromptReference(type="ref/prompt", name="deploy"), {"name": "stack", "value": stack[:5]})
        expect("a stack is completed", stack in typed.completion.values, True)
        await call(client, "operation", operation_id=deployed["operation_id"], wait_s=30)

        release = next(releases)
        begun = asyncio.Event()

        async def first(*_: object) -> None:
            begun.set()

        key = f"python {name}"
        given = asyncio.create_task(client.call_tool("deploy", version(idempotency_key=key), 58, first))
        await asyncio.wait_for(begun.wait(), 30)
        given.cancel()
        await asyncio.gather(given, return_exceptions=True)
        expect("the call was given up", given.cancelled(), True)

    async with connect() as client:
        found = await call(client, "deploy", **version(idempotency_key=key))
        expect("the operation went on", found["state"] in ("monitoring", "done"), True)
        ended = await call(client, "operation", operation_id=found["operation_id"], wait_s=30)
        expect("the operation is done", ended["state"], "done")
        expect("no release was made twice", (await call(client, "history", stack=stack))["current"], release)
        print(f"ok {name} | {client.protocol_version}", flush=True)
