"""Partitions that cannot be read, as the consumer reports them: lines, metric and `/ready`. Virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tenuto.protocol.records import Event
from tenuto_control.core.metrics import Tally
from tenuto_control.core.routing import Quarantine, Subscription, route
from tenuto_control.ingress.readiness import ready
from tenuto_control.limits import Limits
from tenuto_control.loops import consume
from tenuto_control.loops.consume import Consumer
from tenuto_control.loops.unreadable import NAMED_MAX, UnreadablePartitions
from tenuto_control.ports import LogRecord, TopicPartition, Unreadable
from tests.control.test_consume import RecordingExecution
from tests.support.memory_kafka import MemoryKafka
from tests.support.virtual_time import VirtualClock, run_virtual

LIMITS = Limits()
REASON = "a batch whose checksum is not 00000000"
P0, P1 = TopicPartition("orders", 0), TopicPartition("orders", 1)


class World:
    """A consumer of two partitions, and what it reports."""

    def __init__(self) -> None:
        self.kafka = MemoryKafka(now_ms=VirtualClock().now_ms)
        self.kafka.create_topic("orders", 2)
        self.kafka.create_topic("orders.dead-letter")
        self.tally = Tally()
        self.unreadable = UnreadablePartitions(VirtualClock(), LIMITS, self.tally)
        self.execution = RecordingExecution()

    @asynccontextmanager
    async def consuming(self) -> AsyncIterator[None]:
        subscriptions = [Subscription("orders", "order", "placed")]
        sink, clock = self.kafka.sink(), VirtualClock()
        log = self.kafka.member()
        consumer = Consumer(
            log, sink, self.execution, subscriptions, LIMITS, clock, self.tally, unreadable=self.unreadable
        )
        running = asyncio.create_task(consumer.run())
        try:
            yield
        finally:
            consumer.stop()
            await running

    def produce(self, partition: int, count: int) -> None:
        for _ in range(count):
            self.kafka.append("orders", b"v", b"k", partition=partition)

    def sampled(self) -> float:
        """The last value of the metric since it was asked last."""
        return self.tally.take().samples["UnreadablePartitions"][-1]


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno == level and one.name == "tenuto_control"]


def test_an_unreadable_partition_is_named_in_log_metric_and_readiness_while_the_other_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        world = World()
        world.produce(0, 5)
        world.produce(1, 5)
        world.kafka.damage(P0, 3, REASON)
        async with world.consuming():
            await asyncio.sleep(2)
            assert len(world.execution.delivered) == 3 + 5
            assert world.sampled() == 1
            assert ready(world.unreadable.present) == {
                "status": "ready",
                "unreadable": [{"topic": "orders", "partition": 0, "offset": 3, "reason": REASON}],
            }
            world.produce(1, 5)
            await asyncio.sleep(1_000)
            assert len(world.execution.delivered) == 3 + 10
            assert world.kafka.committed(P0) == 3
            told = lines(caplog, logging.ERROR)
            world.kafka.repair(P0)
            await asyncio.sleep(2)
            assert len(world.execution.delivered) == 5 + 10
            assert world.sampled() == 0
            assert ready(world.unreadable.present) == {"status": "ready"}
        # At once, after 5 s, and then after pauses that double.
        assert len(told) == 8
        assert set(told) == {
            f"cannot read orders/0 at offset 3: {REASON}; other partitions continue, and this one is retried"
        }
        (over,) = [line for line in lines(caplog, logging.INFO) if "again" in line]
        assert over.startswith("reading orders/0 again, after 100")

    with caplog.at_level(logging.INFO, "tenuto_control"):
        run_virtual(scenario())


def test_many_partitions_with_one_reason_share_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        tally = Tally()
        unreadable = UnreadablePartitions(VirtualClock(), LIMITS, tally)
        all_of_them = [TopicPartition("orders", number) for number in range(300)]
        found = [Unreadable(tp, 7, "broker 1 does not answer") for tp in all_of_them]
        unreadable.update([*found, Unreadable(TopicPartition("other", 0), -1, "no leader")], all_of_them)
        (orders, other) = lines(caplog, logging.ERROR)
        assert "orders/0 at offset 7, orders/1 at offset 7, " in orders
        assert orders.count("orders/") == NAMED_MAX
        assert f"and {300 - NAMED_MAX} more partitions: broker 1 does not answer" in orders
        assert other.startswith("cannot read other/0: no leader")
        assert tally.take().samples["UnreadablePartitions"] == [301]
        caplog.clear()
        # What another process has to read now is neither over nor told again.
        unreadable.update([], [])
        assert caplog.records == []
        assert unreadable.present == []

    with caplog.at_level(logging.INFO, "tenuto_control"):
        run_virtual(scenario())


def test_a_record_whose_content_cannot_be_told_is_a_dead_letter_with_the_reason() -> None:
    async def scenario() -> None:
        world = World()
        world.produce(0, 1)
        world.kafka.append(
            "orders", b"\x00raw", None, partition=0, unreadable="the record breaks Kafka's format: cut off"
        )
        world.produce(0, 1)
        async with world.consuming():
            await asyncio.sleep(2)
        assert world.execution.offsets == [0, 2]
        assert world.kafka.committed(P0) == 3
        (letter,) = world.kafka.records("orders.dead-letter")
        assert letter.value == b"\x00raw"
        assert dict(letter.headers)["tenuto-reason"] == b"the record breaks Kafka's format: cut off"
        assert dict(letter.headers)["tenuto-source-offset"] == b"1"

    run_virtual(scenario())


@pytest.mark.parametrize("error", [ValueError("secret"), RecursionError(), MemoryError(), KeyError("secret")], ids=repr)
def test_a_record_that_makes_routing_fail_is_a_dead_letter_and_quoted_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def scenario() -> None:
        world = World()
        world.produce(0, 3)

        def failing(record: LogRecord, subscription: Subscription) -> Event | Quarantine:
            if record.offset == 1:
                raise error
            return route(record, subscription)

        monkeypatch.setattr(consume, "route", failing)
        async with world.consuming():
            await asyncio.sleep(2)
        assert world.execution.offsets == [0, 2]
        (letter,) = world.kafka.records("orders.dead-letter")
        assert type(error).__name__.encode() in dict(letter.headers)["tenuto-reason"]

    run_virtual(scenario())
    assert "orders/0 offset 1: routing it failed" in caplog.text
    assert "secret" not in caplog.text
