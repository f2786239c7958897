"""Timers of a busy deployment lie in more partitions, which sweeps of any process find, and which go again.

Owns the way of a timer from the mark of its minute to the end of both. Does not own where sweeps look when nothing is
marked (`test_sweep.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.timers import (
    NOT_SPREAD,
    WIDE_MARK_SK,
    GuardTimer,
    SendTimer,
    SleepTimer,
    parse_timer,
    spread,
    timer_bucket,
    timer_put,
    wide_mark,
)
from tenuto.lane.writes import Item
from tenuto.protocol.ids import Lane
from tenuto.protocol.limits import TIMER_BUCKET_MS, TIMER_SHARDS, TIMER_SHARDS_WIDE
from tenuto.service import Services
from tenuto.store.port import Page, TableRefusedError
from tenuto_control.dispatcher.wide_timers import AHEAD_MINUTES, BEFORE_MINUTES
from tenuto_control.limits import SWEEP_CURSOR_LAG_MINUTES, Limits
from tests.costs.meter import Meter
from tests.support.virtual_time import EPOCH_MS, run_virtual

MINUTE = EPOCH_MS // TIMER_BUCKET_MS
KEYS = [f"key-{number:05d}" for number in range(200)]

box = VirtualObject("box")


@box.handler()
async def nap(ctx: ObjectContext, n: int) -> None:
    """Sleep for a minute and a half."""
    await ctx.sleep(timedelta(seconds=90))
    ctx.set("woken", n)


def _marks(meter: Meter) -> list[str]:
    return sorted(pk for pk, sk in meter.table.items if sk == WIDE_MARK_SK)


def _timers(meter: Meter) -> list[str]:
    return [pk for pk, sk in meter.table.items if pk.startswith("T#") and sk != WIDE_MARK_SK]


def test_a_timer_of_a_marked_minute_is_one_of_many_partitions_and_comes_back_the_same() -> None:
    shards: Counter[str] = Counter()
    for key in KEYS:
        lane = Lane("box", key)
        timers: list[SleepTimer | GuardTimer] = [SleepTimer(lane, "n", EPOCH_MS, "x")]
        timers.append(GuardTimer(lane, "n", EPOCH_MS, "x", ver=2, since_ms=7))
        for timer in timers:
            assert spread(timer, NOT_SPREAD) == spread(timer, (MINUTE + 1, MINUTE + 9)) == timer
            assert spread(timer, (MINUTE - 9, MINUTE)) == timer
            put = timer_put(wide := spread(timer, (MINUTE, MINUTE + 1)))
            assert parse_timer({"pk": put.key.pk, "sk": put.key.sk, **put.attributes}) == wide
            assert put.key == wide.key
            shards[put.key.pk] += 1
            narrow = timer_put(timer)
            assert "wide" not in narrow.attributes, "a version that knows of no marks reads it as before"
            assert narrow.key.pk in {timer_bucket(MINUTE, shard) for shard in range(TIMER_SHARDS)}
    assert shards.keys() == {timer_bucket(MINUTE, shard) for shard in range(TIMER_SHARDS_WIDE)}
    assert max(shards.values()) < 4 * 2 * len(KEYS) / TIMER_SHARDS_WIDE
    assert WIDE_MARK_SK < "0", "a version that knows of no marks asks from here on"


def test_an_activation_may_spread_only_what_is_marked_already() -> None:
    async def scenario() -> None:
        meter = Meter(Services([box]), Limits(timers_wide_per_s=3))
        wide = meter.dispatcher._parts.wide_timers
        assert [wide.activating() for _ in range(3)] == [NOT_SPREAD] * 3
        assert _marks(meter) == []
        await asyncio.sleep(1)
        minute = meter.clock.now_ms() // TIMER_BUCKET_MS
        first, after = wide.activating()
        assert (first, after) == (minute - BEFORE_MINUTES, minute + AHEAD_MINUTES)
        assert _marks(meter) == sorted(wide_mark(n).key.pk for n in range(first, after))
        await asyncio.sleep(61)
        assert wide.activating() == NOT_SPREAD, "a quiet process spreads nothing"
        for _ in range(2):
            wide.activating()
        await asyncio.sleep(1)
        assert wide.activating() == (first, after + 1)
        assert _marks(meter) == sorted(wide_mark(n).key.pk for n in range(first, after + 1))

    run_virtual(scenario())


def test_a_busy_process_dies_and_the_sweep_of_another_finds_what_it_has_spread() -> None:
    async def scenario() -> None:
        busy = Meter(Services([box]), Limits(timers_wide_per_s=1))
        # The first activation has the minutes marked.
        busy.deliver(nap, "first")
        await asyncio.sleep(1)
        for key in KEYS:
            busy.deliver(nap, key)
        await busy.quiet()
        assert len(set(_timers(busy))) > TIMER_SHARDS
        await busy.dispatcher.kill()
        other = Meter(Services([box]), Limits(), busy.table, process="other")
        sweeping = asyncio.create_task(other.sweeper.run())
        await asyncio.sleep(100)
        assert all(other.head("box", key).state.get("woken") == b"1" for key in KEYS)
        await asyncio.sleep(60)
        assert _timers(other) == []
        assert _marks(other) != []
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)
        await asyncio.sleep((SWEEP_CURSOR_LAG_MINUTES + AHEAD_MINUTES + 5) * 60)
        await other.sweeper.sweep_deep()
        assert _marks(other) == [], "the marks go with the minutes that they are of"

    run_virtual(scenario())


def test_what_is_kept_or_lies_elsewhere_moves_to_where_everybody_looks() -> None:
    async def scenario() -> None:
        meter = Meter(Services([box]), Limits())
        meter.deliver(nap, "k")
        await meter.quiet()
        run = meter.head("box", "k").run
        assert run is not None
        now_ms = meter.clock.now_ms()
        meter.table.apply(wide_mark(now_ms // TIMER_BUCKET_MS))
        needed = GuardTimer(Lane("box", "k"), run.event.nonce, now_ms, "g", wide=True)
        meter.table.apply(timer_put(needed))
        sweeping = asyncio.create_task(meter.sweeper.run())
        await asyncio.sleep(70)
        guards = [one for one in map(parse_timer, _items(meter)) if isinstance(one, GuardTimer)]
        assert [one.wide for one in guards] == [False]
        assert guards[0].due_ms > now_ms
        await asyncio.sleep(400)
        assert _timers(meter) == []
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)

    run_virtual(scenario())


def test_a_page_that_the_table_refuses_does_not_hide_that_its_minute_is_marked() -> None:
    async def scenario() -> None:
        meter = Meter(Services([box]), Limits())
        now_ms = meter.clock.now_ms()
        minute = now_ms // TIMER_BUCKET_MS
        meter.table.apply(wide_mark(minute))
        for key in KEYS:
            meter.table.apply(timer_put(GuardTimer(Lane("box", key), "n", now_ms, "g", wide=True)))
        query = meter.table.query

        async def refusing(pk: str, *args: Any, **named: Any) -> Page:
            if pk == timer_bucket(minute, 0):
                raise TableRefusedError("ValidationException: no")
            return await query(pk, *args, **named)

        meter.table.query = refusing  # type: ignore[method-assign]  # a table that fails
        await meter.sweeper.sweep()
        assert set(_timers(meter)) <= {timer_bucket(minute, 0)}

    run_virtual(scenario())


def test_messages_are_not_spread() -> None:
    send = SendTimer(Lane("box", "k"), "n", EPOCH_MS, "n", b"", "s", "1")
    assert "wide" not in timer_put(send).attributes


def _items(meter: Meter) -> list[Item]:
    return [item for (pk, sk), item in meter.table.items.items() if pk.startswith("T#") and sk != WIDE_MARK_SK]
