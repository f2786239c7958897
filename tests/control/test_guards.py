"""Guards for what was handed over: one protects what comes within a while after it.

Owns when a guard is put. Does not own when one may go (`test_sweep`), nor what follows from a crash
(`tests/simulation`).
"""

from __future__ import annotations

import asyncio
import itertools

import pytest

from tenuto.lane.timers import GuardTimer, parse_timer
from tenuto.protocol.ids import Lane
from tenuto.store.memory import MemoryTable
from tenuto_control.core.clocks import ClockCheck, UncheckedClock
from tenuto_control.core.metrics import Uncounted
from tenuto_control.dispatcher.guards import SHARED_DELAYS, Guards
from tenuto_control.dispatcher.outages import watched
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.limits import Limits

LANE = Lane("box", "k")
DELAY_MS = 5_000
RIGHT = ClockCheck(-1, 1, 0)


class Now:
    """A clock that is set by hand (the Clock port)."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return self.ms


def guards_put(check: ClockCheck | None, *after_ms: int, lane: Lane = LANE) -> list[GuardTimer]:
    """The guards that are there when work was handed over for `LANE` at once, and for a lane after these times."""
    table, now, table_clock, names = MemoryTable(), Now(), UncheckedClock(), map(str, itertools.count())
    table_clock.check = check
    writer = Writer(watched(table, Uncounted()), Limits(), Uncounted())
    guards = Guards(writer, now, lambda: next(names), table_clock, margin_ms=500)

    async def scenario() -> None:
        await guards.put_shared(LANE, "first", DELAY_MS)
        for ms in after_ms:
            now.ms += ms
            await guards.put_shared(lane, "later", DELAY_MS)

    asyncio.run(scenario())
    found = [parse_timer(item) for item in table.items.values()]
    return [timer for timer in found if isinstance(timer, GuardTimer)]


def test_a_guard_protects_what_is_handed_over_while_it_is_not_due_for_long() -> None:
    (guard,) = guards_put(RIGHT, DELAY_MS - 1, 1)
    assert (guard.due_ms, guard.since_ms, guard.ver) == (1_000_000 + SHARED_DELAYS * DELAY_MS, 1_000_000, None)
    assert len(guards_put(RIGHT, DELAY_MS, 1)) == 2


def test_another_lane_has_a_guard_of_its_own() -> None:
    assert len(guards_put(RIGHT, 1, lane=Lane("box", "other"))) == 2


@pytest.mark.parametrize("check", [None, ClockCheck(900, 1_000, 0), ClockCheck(-1_000, -900, 0)])
def test_who_cannot_be_sure_of_the_time_puts_a_guard_each_time(check: ClockCheck | None) -> None:
    assert len(guards_put(check, 1)) == 2
