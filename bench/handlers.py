"""The handlers under measurement. They do as little as they can, so that what is measured is the engine.

Owns one virtual object. Does not own what is sent to it (`workloads`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta

from tenuto import ObjectContext, VirtualObject, aws

SLEEP_S = 1.0

bench = VirtualObject("bench")


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `pad` brings it to its size."""

    number: int
    pad: str


def trivial(number: int) -> int:
    """A step that does nothing."""
    return number


def now_ms() -> float:
    """The wall clock, milliseconds since the epoch."""
    return time.time() * 1000


@bench.handler()
async def count(ctx: ObjectContext, _event: Event) -> None:
    """Read and write a counter."""
    ctx.set("count", (await ctx.get("count", int) or 0) + 1)


@bench.handler()
async def steps(ctx: ObjectContext, event: Event) -> None:
    """Three steps, one after the other, and a write."""
    number = event.number
    for name in ("first", "second", "third"):
        number = await ctx.run(name, trivial, number)
    ctx.set("count", (await ctx.get("count", int) or 0) + 1)


@bench.handler()
async def user_update(ctx: ObjectContext, event: Event) -> None:
    """The loop of `examples/user_updates`, for a user who is ready at the second try.

    The state collects how late each sleep ended: from when it was due to when the next step began, in ms.
    """
    asked_ms = await ctx.run("update profile", now_ms)
    await ctx.sleep(timedelta(seconds=SLEEP_S))
    woken_ms = await ctx.run("update profile", now_ms)
    await ctx.run("set permissions", trivial, event.number)
    await ctx.run("provision resources", trivial, event.number)
    late = await ctx.get("late_ms", list[float]) or []
    ctx.set("late_ms", [*late, round(woken_ms - asked_ms - SLEEP_S * 1000, 3)])
    ctx.set("count", (await ctx.get("count", int) or 0) + 1)


@bench.handler()
async def add(ctx: ObjectContext, amount: int) -> int:
    """A call: read and write a counter, and answer with it."""
    total = (await ctx.get("count", int) or 0) + amount
    ctx.set("count", total)
    return total


# Its steps share nothing. Eight processes on two processors gain nothing by more keys, and sleeps end in time with two.
handler = aws.handler(bench, concurrent_keys=2)
