"""Offsets that count from zero again: a topic that was created again, and an operator who replays on purpose.

Owns consumer, dispatcher and runtime together, over the in-memory log and table. Does not own the log's own promises
(`tests/contract/test_event_log.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tenuto import Context, ObjectContext, Service, VirtualObject
from tenuto_control.core.routing import Subscription
from tenuto_control.loops.consume import Consumer
from tenuto_control.ports import TopicPartition
from tests.costs.meter import Meter, meter_of
from tests.support.memory_kafka import MemoryKafka
from tests.support.virtual_time import run_virtual

ORDERS = TopicPartition("orders", 0)


def box_and_ran() -> tuple[VirtualObject, list[str]]:
    """An object that keeps what it was sent, and what ran, replays and lost attempts included."""
    box = VirtualObject("box")
    ran: list[str] = []

    @box.handler()
    async def add(ctx: ObjectContext, value: str) -> None:
        ran.append(value)
        ctx.set("seen", [*(await ctx.get("seen", list[str]) or []), value])

    return box, ran


@asynccontextmanager
async def consuming(meter: Meter, kafka: MemoryKafka, **options: Any) -> AsyncIterator[None]:
    subscription = Subscription("orders", "box", "add", **options)
    consumer = Consumer(kafka.member(), kafka.sink(), meter.dispatcher, [subscription], meter.limits, meter.clock)
    running = asyncio.create_task(consumer.run())
    try:
        yield
    finally:
        consumer.stop()
        await running


def produce(kafka: MemoryKafka, *values: str, key: str = "k") -> None:
    for value in values:
        kafka.append("orders", f'"{value}"'.encode(), key.encode())


def restarted(meter: Meter) -> Meter:
    """Another process over the same table."""
    return Meter(meter.services, table=meter.table, clock=meter.clock)


def test_events_of_a_topic_that_was_created_again_run() -> None:
    async def scenario() -> None:
        box, ran = box_and_ran()
        meter, kafka = meter_of(box), MemoryKafka()
        kafka.create_topic("orders")
        produce(kafka, "a", "b", "c")
        async with consuming(meter, kafka):
            await asyncio.sleep(1)
        assert kafka.committed(ORDERS) == 3
        kafka.delete_topic("orders")
        kafka.create_topic("orders")
        produce(kafka, "d", "e")
        async with consuming(restarted(meter), kafka):
            await asyncio.sleep(1)
        assert ran == ["a", "b", "c", "d", "e"]
        assert meter.head("box", "k").state["seen"] == b'["a","b","c","d","e"]'
        # The first life keeps its name beside the second one's.
        first, second = sorted(meter.head("box", "k").watermarks)
        assert (first, second) == (f"0.{kafka.topic_id('orders')[:8]}|orders|0", "0|orders|0")

    run_virtual(scenario())


def test_a_consumer_at_work_goes_on_with_the_new_life_once_each() -> None:
    async def scenario() -> None:
        box, ran = box_and_ran()
        meter, kafka = meter_of(box), MemoryKafka()
        kafka.create_topic("orders")
        async with consuming(meter, kafka):
            for life in range(3):
                produce(kafka, f"{life}.0", f"{life}.1")
                await asyncio.sleep(1)
                assert kafka.committed(ORDERS) == 2
                kafka.delete_topic("orders")
                kafka.create_topic("orders")
        assert ran == ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1"]

    run_virtual(scenario())


def test_a_committed_offset_that_outlived_its_topic_skips_nothing() -> None:
    async def scenario() -> None:
        box, ran = box_and_ran()
        meter, kafka = meter_of(box), MemoryKafka()
        kafka.create_topic("orders")
        produce(kafka, "a", "b", "c")
        async with consuming(meter, kafka):
            await asyncio.sleep(1)
        kafka.delete_topic("orders", keep_commits=True)
        kafka.create_topic("orders")
        produce(kafka, *"defghi")
        async with consuming(restarted(meter), kafka):
            await asyncio.sleep(1)
        assert "".join(ran) == "abcdefghi"

    run_virtual(scenario())


def test_what_is_redelivered_within_a_life_does_not_run_again() -> None:
    async def scenario() -> None:
        box, ran = box_and_ran()
        meter, kafka = meter_of(box), MemoryKafka()
        for _ in range(2):
            kafka.create_topic("orders")
            produce(kafka, "a", "b")
            async with consuming(meter, kafka):
                await asyncio.sleep(1)
            kafka._group("tenuto").committed[ORDERS] = 0
            meter = restarted(meter)
            async with consuming(meter, kafka):
                await asyncio.sleep(1)
            assert kafka.committed(ORDERS) == 2
            kafka.delete_topic("orders")
        assert ran == ["a", "b", "a", "b"]

    run_virtual(scenario())


def test_unkeyed_invocations_of_another_life_are_others() -> None:
    """Their ids come from the offset, and a claim leaves a result under the id that would answer for its namesake."""

    async def scenario() -> None:
        auditor = Service("box")
        ran: list[str] = []

        @auditor.handler()
        async def add(ctx: Context, value: str) -> None:
            ran.append(value)
            await ctx.run("noted", lambda: None)

        meter, kafka = meter_of(auditor), MemoryKafka()
        for value in ("a", "b"):
            kafka.create_topic("orders")
            produce(kafka, value)
            async with consuming(meter, kafka, ordering="none"):
                await asyncio.sleep(1)
            meter = restarted(meter)
            kafka.delete_topic("orders")
        assert ran == ["a", "b"]

    run_virtual(scenario())


def test_a_new_epoch_runs_the_events_of_the_same_topic_again() -> None:
    """The operator's way to replay: offsets set back alone run nothing again, with a new epoch they do."""

    async def scenario() -> None:
        box, ran = box_and_ran()
        meter, kafka = meter_of(box), MemoryKafka()
        kafka.create_topic("orders")
        produce(kafka, "a", "b", "c")
        async with consuming(meter, kafka):
            await asyncio.sleep(1)
        assert ran == ["a", "b", "c"]

        kafka._group("tenuto").committed[ORDERS] = 1
        meter = restarted(meter)
        async with consuming(meter, kafka):
            await asyncio.sleep(1)
        assert ran == ["a", "b", "c"]

        kafka._group("tenuto").committed[ORDERS] = 1
        meter = restarted(meter)
        async with consuming(meter, kafka, epoch="replay-1"):
            await asyncio.sleep(1)
        assert ran == ["a", "b", "c", "b", "c"]
        assert meter.head("box", "k").watermarks == {"0|orders|0": 3, "replay-1|orders|0": 3}

    run_virtual(scenario())
