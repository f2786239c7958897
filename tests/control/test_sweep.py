"""How long a timer may lie there due before a sweep comes by, by where it came to lie.

Owns the bounds that the sweeper's walks promise. Does not own what a sweep does with a timer (`test_schedules.py`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from dataclasses import replace

import pytest

from tenuto import VirtualObject
from tenuto.lane.timers import GuardTimer, SendTimer, Timer, parse_timer, timer_put
from tenuto.lane.writes import Item, Key
from tenuto.protocol.ids import Lane
from tenuto.protocol.limits import TIMER_BUCKET_MS, TIMER_SHARDS
from tenuto.store.port import Page, TableUnavailableError
from tenuto_control.core.clocks import ClockCheck, UncheckedClock
from tenuto_control.limits import Limits, near_lookback_ms
from tenuto_control.loops.sweep import PAGE_PAUSE_S
from tests.costs.meter import CountingTable, Meter, meter_of
from tests.support.virtual_time import run_virtual

LIMITS = Limits()
LOOK_S = 0.25
NEXT_SWEEP_S = 1.5 * LIMITS.sweep_interval_ms / 1_000 + LOOK_S
NEXT_WIDE_S = LIMITS.sweep_wide_interval_ms / 1_000 + NEXT_SWEEP_S
NEXT_DEEP_S = LIMITS.sweep_deep_interval_ms / 1_000 + NEXT_SWEEP_S


def late(meter: Meter, behind_ms: int, number: int) -> Timer:
    """A guard that nobody needs, put by a process whose clock is behind."""
    timer = GuardTimer(Lane("box", f"k{number}"), "n", meter.clock.now_ms() - behind_ms, f"guard.{number}")
    meter.table.apply(timer_put(timer))
    return timer


async def found_within(meter: Meter, timer: Timer, bound_s: float) -> bool:
    """Whether a sweep deletes it in this time."""
    for _ in range(int(bound_s / LOOK_S) + 1):
        if (timer.key.pk, timer.key.sk) not in meter.table.items:
            return True
        await asyncio.sleep(LOOK_S)
    return False


@pytest.mark.parametrize(
    ("behind_ms", "bound_s"),
    [
        (0, NEXT_SWEEP_S),
        (60_000, NEXT_SWEEP_S),
        (near_lookback_ms(LIMITS), NEXT_SWEEP_S),
        (LIMITS.sweep_lookback_ms - 60_000, NEXT_WIDE_S),
        (LIMITS.sweep_lookback_ms + 60_000, NEXT_DEEP_S),
    ],
)
def test_a_timer_is_found_in_time_wherever_it_came_to_lie(behind_ms: int, bound_s: float) -> None:
    async def scenario() -> None:
        meter = meter_of(VirtualObject("box"))
        sweeping = asyncio.create_task(meter.sweeper.run())
        for number in range(40):
            # Not in step with any sweep, nor with the minutes of buckets.
            await asyncio.sleep(7.3)
            assert await found_within(meter, late(meter, behind_ms, number), bound_s)
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)

    run_virtual(scenario())


def test_what_comes_to_lie_while_sweeps_fail_is_found_by_the_next_one() -> None:
    class Away(CountingTable):
        away = False

        async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
            if self.away:
                raise TableUnavailableError("no answer")
            return await super().query(pk, low, high, limit=limit, after=after)

    async def scenario() -> None:
        table = Away()
        meter = Meter(meter_of(VirtualObject("box")).services, table=table)
        sweeping = asyncio.create_task(meter.sweeper.run())
        await asyncio.sleep(20)
        table.away = True
        timer = late(meter, 0, 0)
        await asyncio.sleep(300)
        table.away = False
        assert await found_within(meter, timer, NEXT_SWEEP_S)
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)

    run_virtual(scenario())


def test_the_guards_of_one_lane_are_judged_by_one_look_at_it() -> None:
    """A lane that several processes reach has a guard for each hand-over, and they fall due together."""

    class Counting(CountingTable):
        looks = 0

        async def get(self, key: Key) -> Item | None:
            self.looks += key.pk == Lane("box", "k").pk
            return await super().get(key)

        async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
            self.looks += pk == Lane("box", "k").pk
            return await super().query(pk, low, high, limit=limit, after=after)

    async def scenario() -> None:
        table = Counting()
        meter = Meter(meter_of(VirtualObject("box")).services, table=table)
        now_ms = meter.clock.now_ms()
        guards = [GuardTimer(Lane("box", "k"), f"n{n}", now_ms, f"guard.{n}") for n in range(20)]
        for guard in guards:
            meter.table.apply(timer_put(guard))
        await meter.sweeper.sweep()
        assert not any((guard.key.pk, guard.key.sk) in table.items for guard in guards)
        assert table.looks == len(("head", "inbox", "head again"))

    run_virtual(scenario())


@pytest.mark.parametrize(("since", "ahead_ms", "goes"), [(True, 0, True), (True, 60_000, False), (False, 60_000, True)])
def test_a_shared_guard_stays_until_it_is_due_by_a_right_clock(since: bool, ahead_ms: int, goes: bool) -> None:
    """More may be handed over under its protection until then. Others were put after what they protect."""

    async def scenario() -> None:
        meter = meter_of(VirtualObject("box"))
        now_ms = meter.clock.now_ms()
        clock = UncheckedClock()
        clock.check = ClockCheck(ahead_ms, ahead_ms, now_ms)
        meter = Meter(meter_of(VirtualObject("box")).services, table_clock=clock)
        since_ms = now_ms - 10_000 if since else None
        guard = GuardTimer(Lane("box", "k"), "n", now_ms - 1, "guard", since_ms=since_ms)
        meter.table.apply(timer_put(guard))
        await meter.sweeper.sweep()
        assert ((guard.key.pk, guard.key.sk) not in meter.table.items) == goes

    run_virtual(scenario())


def test_a_delayed_message_that_cannot_be_delivered_is_put_off_and_not_told_of_again_and_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        meter = meter_of(VirtualObject("box"))
        now_ms = meter.clock.now_ms()
        timer = SendTimer(Lane("box", "k"), "n", now_ms - 1_000, "n", b"no message", "box/s", "1.0")
        meter.table.apply(timer_put(timer))
        sweeping = asyncio.create_task(meter.sweeper.run())
        await asyncio.sleep(700)
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)
        (kept,) = [parse_timer(item) for (pk, _), item in meter.table.items.items() if pk.startswith("T#")]
        assert replace(kept, due_ms=timer.due_ms) == timer
        assert now_ms + 3_600_000 <= kept.due_ms <= now_ms + 2 * 3_600_000 + 700_000

    with caplog.at_level(logging.ERROR, "tenuto"):
        run_virtual(scenario())
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        "the delayed message for box/k cannot be processed and is set aside, others continue: Validation"
    )


def test_a_walk_leaves_time_between_its_pages() -> None:
    """Hundreds of requests in a row would delay whatever else is in progress."""

    async def scenario() -> None:
        meter = meter_of(VirtualObject("box"))
        asked_s: list[float] = []
        query = meter.table.query

        async def noted(pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
            asked_s.append(asyncio.get_running_loop().time())
            return await query(pk, low, high, limit=limit, after=after)

        meter.table.query = noted  # type: ignore[method-assign]  # only the times of its reads are of interest
        sweeping = asyncio.create_task(meter.sweeper.run())
        await asyncio.sleep(LIMITS.sweep_wide_interval_ms / 1_000 - 1)
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)
        # A wide walk, and near ones after it.
        assert len(asked_s) > LIMITS.sweep_lookback_ms // TIMER_BUCKET_MS * TIMER_SHARDS
        apart_s = [later - earlier for earlier, later in itertools.pairwise(asked_s)]
        assert min(apart_s) >= PAGE_PAUSE_S * 0.99

    run_virtual(scenario())
