"""The handlers under comparison, for tenuto.

`restate_handlers` has the same ones, line by line: a test compares them.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from bench.beside.notes import ENDED, SLEEPS, WOKE, note
from tenuto import ObjectContext, VirtualObject, aws

bench = VirtualObject("bench")


async def plus_one(number: int) -> int:
    """A step that does next to nothing, async so that neither system's thread pool is part of the figures."""
    return number + 1


@bench.handler()
async def count(ctx: ObjectContext, event: dict[str, Any]) -> int:
    """Read and write a counter."""
    number = (await ctx.get("count", type_hint=int) or 0) + 1
    ctx.set("count", number)
    note(ENDED, event)
    return number


@bench.handler()
async def steps(ctx: ObjectContext, event: dict[str, Any]) -> int:
    """Three steps, one after the other, and a write."""
    a = await ctx.run("first", plus_one, number=1)
    b = await ctx.run("second", plus_one, number=a)
    await ctx.run("third", plus_one, number=b)
    number = (await ctx.get("count", type_hint=int) or 0) + 1
    ctx.set("count", number)
    note(ENDED, event)
    return number


@bench.handler()
async def steps_sleep(ctx: ObjectContext, event: dict[str, Any]) -> int:
    """Two steps, a sleep of one second, a step and a write."""
    a = await ctx.run("first", plus_one, number=1)
    b = await ctx.run("second", plus_one, number=a)
    note(SLEEPS, event)
    await ctx.sleep(timedelta(seconds=1))
    note(WOKE, event)
    await ctx.run("third", plus_one, number=b)
    number = (await ctx.get("count", type_hint=int) or 0) + 1
    ctx.set("count", number)
    note(ENDED, event)
    return number


@bench.handler()
async def user_update(ctx: ObjectContext, event: dict[str, Any]) -> int:
    """The loop of the user-updates example, for a user who is ready at the second try."""
    a = await ctx.run("update profile", plus_one, number=1)
    note(SLEEPS, event)
    await ctx.sleep(timedelta(seconds=1))
    note(WOKE, event)
    b = await ctx.run("update profile", plus_one, number=a)
    c = await ctx.run("set permissions", plus_one, number=b)
    d = await ctx.run("provision resources", plus_one, number=c)
    ctx.set("resources", d)
    number = (await ctx.get("count", type_hint=int) or 0) + 1
    ctx.set("count", number)
    note(ENDED, event)
    return number


# Its steps share nothing.
handler = aws.handler(bench, concurrent_keys=8)
