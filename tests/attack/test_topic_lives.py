"""A topic that is deleted and created again, over and over: heads keep the watermark of its present life.

Owns how long watermarks of former lives stay. Does not own how lives are found and named (`tests/contract`).
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.head import FORMER, head_key, parse_head
from tenuto.lane.lives import life_over, newly_former, outlived
from tenuto.lane.transitions import effects_of, spec_commit
from tenuto.lane.writes import Value
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.limits import TOMBSTONE_TTL_S
from tenuto.protocol.messages import Head, Trim
from tenuto.protocol.records import Event, KafkaSource
from tenuto.service import Services
from tests.costs.meter import Meter
from tests.support.virtual_time import run_virtual

LANE = Lane("box", "k")
DAY_MS = TOMBSTONE_TTL_S * 1_000
A, B, OTHER = "0.aaaaaaaa|t|0", "0.bbbbbbbb|t|0", "0.aaaaaaaa|t|1"

box = VirtualObject("box")


@box.handler()
async def note(ctx: ObjectContext, n: int) -> None:
    """Count."""
    ctx.set("n", (await ctx.get("n", int) or 0) + 1)


@box.handler()
async def step(ctx: ObjectContext, n: int) -> None:
    """Count in a run that claims its key, and sleeps."""
    await ctx.run("one", int)
    await ctx.sleep(timedelta(seconds=5))
    ctx.set("n", (await ctx.get("n", int) or 0) + 1)


def _event(epoch: str, offset: int, handler: str = "note", lane: Lane = LANE) -> Event:
    nonce = kafka_nonce(epoch, "t", 0, offset)
    source = KafkaSource(epoch, "t", 0, offset, 0)
    return Event.of(InvocationId(lane, nonce), handler, source, b"1")


@pytest.mark.parametrize(
    ("source", "former"),
    [
        (A, True),
        ("0.-aaaaaaa|t|0", True),
        ("0|t|0", True),
        (OTHER, False),
        ("0.aaaaaaaa|u|0", False),
        ("1.aaaaaaaa|t|0", False),
        ("0.x.aaaaaaaa|t|0", False),
        ("odd", False),
    ],
)
def test_which_watermarks_are_of_a_former_life(source: str, *, former: bool) -> None:
    head = Head(watermarks={source: 5, B: 1})
    marks = newly_former(head, [_event("0.bbbbbbbb", 1)], 77)
    assert marks == ({source: (77, 5)} if former else {})


def test_a_record_that_was_read_in_a_former_life_marks_nothing() -> None:
    head = Head(watermarks={"0.-bbbbbbb|t|0": 5, B: 1})
    assert newly_former(head, [_event("0.-bbbbbbb", 6)], 77) == {}
    assert newly_former(head, [_event("0", 6)], 77) == {}
    assert newly_former(Head(watermarks={B: 1}), [_event("0.bbbbbbbb", 1)], 77) == {}


def test_a_mark_is_put_once_and_again_when_its_watermark_has_moved() -> None:
    event = [_event("0.bbbbbbbb", 1)]
    assert newly_former(Head(watermarks={A: 5, B: 1}, former={A: (7, 5)}), event, 77) == {}
    assert newly_former(Head(watermarks={A: 6, B: 1}, former={A: (7, 5)}), event, 77) == {A: (77, 6)}


def test_a_watermark_goes_a_day_after_its_mark_and_not_while_anything_waits() -> None:
    head = Head(watermarks={A: 5, B: 1}, former={A: (7, 5)})
    assert outlived(head, 7 + DAY_MS) == ()
    assert outlived(head, 8 + DAY_MS) == ("w." + A, "x." + A)
    moved = Head(watermarks={A: 6, B: 1}, former={A: (7, 5)})
    assert outlived(moved, 8 + DAY_MS) == (), "it was no former life after all"
    waits = Head(pend="mark", watermarks={A: 5, B: 1}, former={A: (7, 5)})
    assert outlived(waits, 8 + DAY_MS) == ()


def test_no_write_removes_the_watermark_that_it_sets() -> None:
    trim = Trim(stray=("w." + B, "x." + B, "w." + A))
    write = spec_commit(LANE, Head(), effects_of([_event("0.bbbbbbbb", 3)], {}, {}, 0), "t", drain=False, trim=trim)
    assert set(write.removes) == {"x." + B, "w." + A}
    assert write.sets["w." + B] == 4


def test_a_mark_is_read_back_and_what_is_none_is_passed_over() -> None:
    update = life_over(LANE, {A: (7, 5)})
    assert parse_head({"pk": LANE.pk, "sk": "H", **update.sets}).former == {A: (7, 5)}
    odd: tuple[Value, ...] = ("x", 7, [], [1], ["a", 1], [1, 2, 3], None, {"a": 1})
    for value in odd:
        assert parse_head({"pk": LANE.pk, "sk": "H", FORMER + A: value}).former == {}


@pytest.mark.parametrize("handler", ["note", "step"])
def test_a_topic_created_again_and_again_leaves_one_watermark_in_the_end(handler: str) -> None:
    async def scenario() -> None:
        meter = Meter(Services([box]))
        lives = [f"0.{life:08x}" for life in range(12)]
        for number, life in enumerate(lives):
            for offset in range(2):
                meter.dispatcher.deliver(_event(life, offset, handler), lambda: None)
                # What comes again of the life before is refused for as long as it may come.
                meter.dispatcher.deliver(_event(lives[max(0, number - 1)], 1, handler), lambda: None)
                await asyncio.sleep(20)
            await meter.quiet()
            await asyncio.sleep(TOMBSTONE_TTL_S / 2)
        head = meter.head("box", "k")
        assert len(head.watermarks) <= 4
        await asyncio.sleep(2 * TOMBSTONE_TTL_S)
        for offset in range(2, 5):
            meter.dispatcher.deliver(_event(lives[-1], offset, handler), lambda: None)
            await asyncio.sleep(20)
        await meter.quiet()
        head = meter.head("box", "k")
        assert head.state["n"] == b"%d" % (len(lives) * 2 + 3), "each record took effect once"
        assert head.watermarks == {f"{lives[-1]}|t|0": 5}
        item = meter.table.items[head_key(LANE).pk, head_key(LANE).sk]
        assert not [name for name in item if name.startswith(FORMER)]

    run_virtual(scenario())


def test_a_topic_that_lives_on_costs_no_write_more() -> None:
    async def scenario() -> None:
        meter = Meter(Services([box]))
        for offset in range(5):
            meter.dispatcher.deliver(_event("0.aaaaaaaa", offset), lambda: None)
            await meter.quiet()
        assert meter.count().writes == 5

    run_virtual(scenario())
