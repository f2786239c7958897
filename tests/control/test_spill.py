"""Events of a busy key that move to its inbox: few items, in order, and each event once, whoever moved it before.

Owns what several events in one inbox item may do to order and to exactly-once, and the order of calls there. Does not
own when a lane spills (`test_lane_policy`), nor crashes in between (`tests/simulation`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.transitions import inbox_events, result_expected
from tenuto.protocol.ids import InvocationId, Lane, digest, kafka_nonce
from tenuto.protocol.limits import INBOX_ITEM_BYTES_MAX, INBOX_ITEM_EVENTS_MAX, VALUE_BYTES_MAX
from tenuto.protocol.records import CallSource, Event, KafkaSource
from tenuto_control.dispatcher.lane_worker import LET_GO_AT_ONCE
from tests.costs.meter import Meter, meter_of
from tests.support.virtual_time import run_virtual

LANE = Lane("log", "k")
FOLLOWERS = 1_000

log = VirtualObject("log")


@log.handler()
async def note(ctx: ObjectContext, n: int) -> None:
    """Keep what came, in the order in which it came; the first one takes a while."""
    seen = await ctx.get("seen", list[int]) or []
    if n < 0:
        await ctx.sleep(timedelta(seconds=30))
    ctx.set("seen", [*seen, n])


@log.handler()
async def step(ctx: ObjectContext, n: int) -> None:
    """The same, with a durable step."""
    ctx.set("seen", [*(await ctx.get("seen", list[int]) or []), await ctx.run("step", abs, n)])


@log.handler()
async def dwell(ctx: ObjectContext, n: int) -> None:
    """The same, after a while without a durable step."""
    await asyncio.sleep(0.2)
    ctx.set("seen", [*(await ctx.get("seen", list[int]) or []), n])


def record(offset: int, value: bytes | None = None, partition: int = 0) -> Event:
    """The event of a record whose value, if none is given, is its offset."""
    nonce = kafka_nonce("0", "t", partition, offset)
    source = KafkaSource("0", "t", partition, offset, 0)
    return Event.of(InvocationId(LANE, nonce), "note", source, str(offset).encode() if value is None else value)


def seen(meter: Meter) -> list[int]:
    """What the handler kept."""
    return [int(n) for n in meter.head("log", "k").state.get("seen", b"[]").strip(b"[]").split(b",") if n]


async def accept(meter: Meter, events: Sequence[Event]) -> None:
    await meter.dispatcher._parts.delivery.accept(LANE, events)


def inbox(meter: Meter) -> list[tuple[Event, ...]]:
    """The events of each inbox item."""
    items = (item for (pk, sk), item in sorted(meter.table.items.items()) if pk == LANE.pk and sk.startswith("I#"))
    return [inbox_events(item) for item in items]


def test_a_thousand_followers_of_a_sleeping_key_cost_few_writes_and_few_invocations() -> None:
    async def scenario() -> None:
        meter = meter_of(log)
        meter.deliver(note, "k", b"-1")
        await asyncio.sleep(1)
        meter.count()
        for n in range(FOLLOWERS):
            meter.deliver(note, "k", str(n).encode())
        await asyncio.sleep(10)
        assert len(meter.released) == FOLLOWERS + 1, "all offsets are let go of while the key sleeps"
        assert meter.count().writes <= 2 * FOLLOWERS / INBOX_ITEM_EVENTS_MAX
        await asyncio.sleep(30)
        await meter.quiet()
        cost = meter.count()
        assert seen(meter) == [-1, *range(FOLLOWERS)]
        assert inbox(meter) == []
        assert cost.invocations <= 1.2 * FOLLOWERS / 50
        assert cost.writes <= 2 * FOLLOWERS / 50

    run_virtual(scenario())


def test_other_work_gets_its_turn_while_many_offsets_are_let_go_of() -> None:
    async def scenario() -> None:
        meter = meter_of(log)
        meter.deliver(note, "k", b"-1")
        await asyncio.sleep(1)
        for n in range(FOLLOWERS):
            meter.deliver(note, "k", str(n).encode())
        most, before = 0, len(meter.released)
        for _ in range(1_000):
            await asyncio.sleep(0)
            most, before = max(most, len(meter.released) - before), len(meter.released)
        assert before == FOLLOWERS + 1
        assert most <= LET_GO_AT_ONCE

    run_virtual(scenario())


def test_what_was_drained_is_not_run_again_for_what_comes_meanwhile() -> None:
    """Its commit was to clear the mark that it saw, and finds another one."""

    async def scenario() -> None:
        meter = meter_of(log)
        calls = [
            Event.of(InvocationId(LANE, f"c{n}"), "dwell", CallSource(keep_result=True), str(n).encode())
            for n in range(2)
        ]
        await accept(meter, calls[:1])
        await asyncio.sleep(0.1)
        await accept(meter, calls[1:])
        await asyncio.sleep(10)
        await meter.quiet()
        assert seen(meter) == [0, 1]
        assert meter.head("log", "k").pend is None
        assert meter.count().invocations == 2

    run_virtual(scenario())


@settings(max_examples=150, deadline=None)
@given(
    spills=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 31)), min_size=1, max_size=6),
    wakes_after=st.integers(0, 6),
)
def test_events_that_are_moved_again_in_other_company_run_once_and_in_order(
    spills: list[tuple[int, int]], wakes_after: int
) -> None:
    """What was moved is delivered again from an earlier offset, as after a crash, and moved together with others."""

    async def scenario() -> None:
        meter = meter_of(log)
        meter.deliver(note, "k", b"-1", partition=7)
        await asyncio.sleep(1)
        end = 0
        for number, (start, length) in enumerate(spills):
            if number == wakes_after:
                await asyncio.sleep(30)
                await meter.quiet()
            # Delivered again from a place that is not beyond what was moved before: Kafka leaves nothing out.
            first = min(start, end)
            end = max(end, first + length)
            await accept(meter, [record(n) for n in range(first, first + length)])
        await asyncio.sleep(30)
        await meter.quiet()
        assert seen(meter) == [-1, *range(end)]
        assert inbox(meter) == []
        assert meter.head("log", "k").pend is None

    run_virtual(scenario())


def test_calls_that_were_handed_over_go_in_the_order_in_which_they_came() -> None:
    """By the order of their places, one with a high name would wait for as long as others come."""
    names = [f"c{digest(str(n))}" for n in range(30)]

    async def scenario() -> None:
        meter = meter_of(log)
        meter.deliver(note, "k", b"-1")
        await asyncio.sleep(1)
        for number, name in enumerate(names):
            source = CallSource(keep_result=True)
            event = Event.of(InvocationId(LANE, name), "step", source, str(number).encode())
            await meter.dispatcher.send(event, 0)
            await asyncio.sleep(0.1)
        await asyncio.sleep(40)
        await meter.quiet()
        assert seen(meter) == [-1, *range(len(names))]

    run_virtual(scenario())


def test_sources_are_moved_each_in_its_own_items() -> None:
    async def scenario() -> None:
        meter = meter_of(log)
        meter.deliver(note, "k", b"-1", partition=7)
        await asyncio.sleep(1)
        events = [record(n, str(100 * p + n).encode(), partition=p) for n in range(10) for p in (1, 2)]
        await accept(meter, events)
        assert sorted(len(events) for events in inbox(meter)) == [10, 10]
        await asyncio.sleep(40)
        await meter.quiet()
        assert seen(meter) == [-1, *range(100, 110), *range(200, 210)]

    run_virtual(scenario())


def test_large_events_do_not_share_an_item() -> None:
    """An item is read whole for its first event, and the table takes 400 KB."""
    sizes = [10, INBOX_ITEM_BYTES_MAX // 2, INBOX_ITEM_BYTES_MAX // 2, 10, VALUE_BYTES_MAX, 10, 2 * VALUE_BYTES_MAX, 10]

    async def scenario() -> None:
        meter = meter_of(log)
        meter.deliver(note, "k", b"-1", partition=7)
        await asyncio.sleep(1)
        await accept(meter, [record(n, b" " * size + str(n).encode()) for n, size in enumerate(sizes)])
        assert [len(events) for events in inbox(meter)] == [2, 2, 1, 1, 1, 1]
        await asyncio.sleep(40)
        await meter.quiet()
        assert seen(meter) == [-1, *range(len(sizes))]
        assert not [sk for _, sk in meter.table.items if sk.startswith(("I#", "P#"))]

    run_virtual(scenario())


def test_an_item_with_long_keys_fits_the_table() -> None:
    """Each event repeats its id, which has the key in it."""
    lane = Lane("log", "k" * 1_000)

    async def scenario() -> None:
        meter = meter_of(log)
        events = []
        for n in range(INBOX_ITEM_EVENTS_MAX):
            nonce = kafka_nonce("0", "t" * 249, 0, n)
            source = KafkaSource("0", "t" * 249, 0, n, 0, raw_key=b"k" * 1_000)
            events.append(Event.of(InvocationId(lane, nonce), "note", source, str(n).encode()))
        await meter.dispatcher._parts.delivery.accept(lane, events)
        await meter.quiet()
        assert len(meter.head("log", lane.key).state["seen"].split(b",")) == INBOX_ITEM_EVENTS_MAX

    run_virtual(scenario())


def test_a_call_that_is_handed_over_makes_sure_of_the_delayed_message_that_it_repeats() -> None:
    """Whoever accepted the message died before its timer was there."""

    async def scenario() -> None:
        meter = meter_of(log)
        event = Event.of(InvocationId(LANE, "c1"), "note", CallSource(keep_result=True), b"7")
        due_ms = meter.clock.now_ms() + 60_000
        meter.table.apply(result_expected(event.id, due_ms))
        await meter.dispatcher._parts.acceptance.take_in(LANE, [event])
        await asyncio.sleep(50)
        assert seen(meter) == []
        await asyncio.sleep(20)
        await meter.quiet()
        assert seen(meter) == [7]

    run_virtual(scenario())
