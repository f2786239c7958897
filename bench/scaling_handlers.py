"""The handlers of the scaling run: how large a head is, and how long a journal, comes with the event."""

from __future__ import annotations

from typing import Any

from bench.beside.notes import ENDED, note
from tenuto import ObjectContext, VirtualObject, aws

bench = VirtualObject("bench")


async def plus_one(number: int) -> int:
    """A step that does next to nothing."""
    return number + 1


@bench.handler()
async def hold(ctx: ObjectContext, event: dict[str, Any]) -> None:
    """Keep `bytes` bytes of state beside the counter, written anew by each event."""
    number = (await ctx.get("count", int) or 0) + 1
    ctx.set("kept", chr(ord("a") + number % 26) * event["bytes"])
    ctx.set("count", number)
    note(ENDED, event)


@bench.handler()
async def walk(ctx: ObjectContext, event: dict[str, Any]) -> None:
    """`steps` steps, one after the other, and a write."""
    reached = 0
    for _ in range(event["steps"]):
        reached = await ctx.run("step", plus_one, reached)
    ctx.set("count", (await ctx.get("count", int) or 0) + 1)
    note(ENDED, event)


handler = aws.handler(bench)
