"""The function of the memory soak: objects that count what reaches them, some of them with much state or much patience.

Owns the handlers. Does not own what is sent to them (`soak_memory`).
"""

from __future__ import annotations

import asyncio
import os

from tenuto import ObjectContext, VirtualObject, aws

HEAVY_BYTES = 100_000
DWELL_S = 0.05

tally = VirtualObject("tally")


async def count(ctx: ObjectContext) -> int:
    """Count this event in the state of its key."""
    number = (await ctx.get("n", int) or 0) + 1
    ctx.set("n", number)
    return number


@tally.handler()
async def note(ctx: ObjectContext) -> int:
    return await count(ctx)


@tally.handler()
async def weigh(ctx: ObjectContext, load: str) -> int:
    await count(ctx)
    return len(load)


@tally.handler()
async def heavy(ctx: ObjectContext) -> int:
    ctx.set("load", os.urandom(HEAVY_BYTES // 2).hex())
    return await count(ctx)


@tally.handler()
async def dwell(ctx: ObjectContext) -> int:
    await asyncio.sleep(DWELL_S)
    return await count(ctx)


handler = aws.handler(tally)
