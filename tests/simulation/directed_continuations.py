"""Schedules for the clauses of a lane's continuation: what two invocations would do at once without them.

Owns one schedule a clause, as `directed` does for the clauses of the other writes.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

from tenuto_control.core.metrics import Uncounted
from tenuto_control.dispatcher.outages import watched
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.limits import Limits
from tenuto_control.loops.continuations import Continuations
from tests.costs.meter import CountingTable
from tests.support.virtual_time import VirtualClock, run_virtual

INVOCATION_MS = 120_000
PK = "chain/k"

Make = Callable[[str], Continuations]


def _invocations(table: CountingTable, play: Callable[[Make], Awaitable[None]]) -> None:
    """Play with invocations of the dispatcher that have their names."""

    async def scenario() -> None:
        clock = VirtualClock()
        writer = Writer(watched(table, Uncounted()), Limits(), Uncounted())

        def begun(name: str) -> Continuations:
            numbers = itertools.count()
            return Continuations(writer, clock, lambda: f"{name}.{next(numbers)}", clock.now_ms() + INVOCATION_MS)

        await play(begun)

    run_virtual(scenario())


def begun_twice(table: CountingTable) -> None:
    """A batch is delivered again, and the sweep comes by: still one invocation waits for the lane."""

    async def play(begun: Make) -> None:
        assert await begun("first").has(PK)
        for name in ("again", "sweep"):
            assert not await begun(name).has(PK), f"{name} waits for a lane that the first looks after"
        await asyncio.sleep(INVOCATION_MS / 1_000)
        assert await begun("later").has(PK), "nobody may look after a lane whose invocation has died"

    _invocations(table, play)


def handed_on_late(table: CountingTable) -> None:
    """An invocation that outlives its time, and one whose start is delivered twice: each finds another's name."""

    async def play(begun: Make) -> None:
        first = begun("first")
        assert await first.has(PK)
        name = await first.hand_on(PK)
        assert name is not None
        assert await begun("second").follow(PK, name)
        assert not await begun("twin").follow(PK, name), "what was handed on once goes on twice"
        frozen = begun("frozen")
        await asyncio.sleep(INVOCATION_MS / 1_000)
        assert await frozen.has(PK)
        await asyncio.sleep(INVOCATION_MS / 1_000)
        assert await begun("third").has(PK)
        assert await frozen.hand_on(PK) is None, "an invocation hands on what is another's by now"

    _invocations(table, play)
