"""The consumer over the in-memory log: order, commits, back-pressure, rebalances, quarantine, failures.

Virtual time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tenuto.protocol.records import Event, KafkaSource, PublishOut, Result
from tenuto_control.core.routing import Subscription
from tenuto_control.limits import Limits
from tenuto_control.loops.consume import TAKEN_AT_ONCE, Consumer
from tenuto_control.ports import Answer, LogRecord, LogUnavailableError, Resolution, TopicPartition
from tests.support.memory_kafka import MemoryEventLog, MemoryKafka, Operation
from tests.support.virtual_time import VirtualClock, run_virtual

ORDERS = TopicPartition("orders", 0)
LIMITS = Limits()


class RecordingExecution:
    """Notes what is delivered; releases at once, or when a test says so. Withdrawing waits for nothing."""

    def __init__(self, *, holding: bool = False) -> None:
        self.holding = holding
        self.delivered: list[Event] = []
        self.held: dict[TopicPartition, dict[int, Callable[[], None]]] = {}
        self.withdrawn: list[list[TopicPartition]] = []
        self.kept: dict[tuple[str, ...], tuple[PublishOut, str]] = {}
        self.most_held = 0

    def deliver(self, event: Event, released: Callable[[], None]) -> None:
        self.delivered.append(event)
        if not self.holding:
            released()
            return
        source = source_of(event)
        self.held.setdefault(TopicPartition(source.topic, source.partition), {})[source.offset] = released
        self.most_held = max(self.most_held, sum(map(len, self.held.values())))

    def release(self, tp: TopicPartition, *offsets: int) -> None:
        for offset in offsets:
            self.held[tp].pop(offset)()

    def relieve(self, partitions: Sequence[TopicPartition]) -> None:
        """See `Execution.relieve`: nothing waits here."""

    async def withdraw(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> None:
        assert timeout_ms == LIMITS.drain_timeout_ms
        self.withdrawn.append(list(partitions))
        for tp in partitions:
            self.held.pop(tp, None)

    async def set_aside(self, record: PublishOut, identity: Sequence[str], reason: str) -> None:
        self.kept[tuple(identity)] = (record, reason)

    async def call(self, event: Event, wait_ms: int) -> Answer:
        raise AssertionError("a consumer does not call")

    async def call_shared(self, event: Event) -> Result:
        raise AssertionError("a consumer does not call")

    async def send(self, event: Event, delay_ms: int) -> None:
        raise AssertionError("a consumer does not send")

    async def result(self, invocation: str, wait_ms: int) -> Answer:
        raise AssertionError("a consumer does not ask")

    async def resolve(self, awakeable: str, result: Result) -> Resolution:
        raise AssertionError("a consumer does not resolve")

    @property
    def offsets(self) -> list[int]:
        return [source_of(event).offset for event in self.delivered]


def source_of(event: Event) -> KafkaSource:
    assert isinstance(event.source, KafkaSource)
    return event.source


class Faults:
    """A hook that fails chosen operations a number of times."""

    def __init__(self) -> None:
        self.plan: dict[tuple[str, str], int] = {}

    async def __call__(self, operation: Operation) -> None:
        await asyncio.sleep(0)
        left = self.plan.get((operation.name, operation.when), 0)
        if left:
            self.plan[operation.name, operation.when] = left - 1
            raise LogUnavailableError("the broker is away")


class World:
    """One cluster, its consumers and what they executed."""

    def __init__(self, partitions: int = 1) -> None:
        self.faults = Faults()
        self.kafka = MemoryKafka(self.faults, VirtualClock().now_ms)
        self.kafka.create_topic("orders", partitions)
        self.logs: list[MemoryEventLog] = []

    @asynccontextmanager
    async def consumer(
        self, execution: RecordingExecution, limits: Limits = LIMITS, **options: Any
    ) -> AsyncIterator[Consumer]:
        log = self.kafka.member()
        self.logs.append(log)
        subscriptions = [Subscription("orders", "order", "placed", **options)]
        consumer = Consumer(log, self.kafka.sink(), execution, subscriptions, limits, VirtualClock())
        running = asyncio.create_task(consumer.run())
        try:
            yield consumer
        finally:
            consumer.stop()
            await running

    def produce(self, count: int, key: bytes | None = b"k", partition: int = 0) -> None:
        for index in range(count):
            self.kafka.append("orders", str(index).encode(), key, partition=partition)


def virtually(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a scenario as a test, on a loop where sleeping takes no time."""

    def test() -> None:
        run_virtual(scenario())

    test.__doc__ = scenario.__doc__
    return test


@virtually
async def test_records_arrive_in_order_and_are_committed() -> None:
    world, execution = World(), RecordingExecution()
    world.produce(1_200)
    async with world.consumer(execution):
        await asyncio.sleep(1)
        assert execution.offsets == list(range(1_200))
        assert world.kafka.committed(ORDERS) == 1_200


@virtually
async def test_commits_stop_below_the_lowest_unfinished_offset() -> None:
    world, execution = World(), RecordingExecution(holding=True)
    world.produce(5)
    async with world.consumer(execution):
        await asyncio.sleep(1)
        assert world.kafka.committed(ORDERS) == 0
        execution.release(ORDERS, 0, 2, 3)
        await asyncio.sleep(1)
        assert world.kafka.committed(ORDERS) == 1
        execution.release(ORDERS, 1)
        await asyncio.sleep(1)
        assert world.kafka.committed(ORDERS) == 4
    assert world.kafka.committed(ORDERS) == 4


@virtually
async def test_a_stopped_consumer_commits_what_was_released_last_and_redelivers_the_rest() -> None:
    world, first, second = World(), RecordingExecution(holding=True), RecordingExecution()
    world.produce(4)
    async with world.consumer(first):
        await asyncio.sleep(0.01)
        first.release(ORDERS, 0, 1)
    assert world.kafka.committed(ORDERS) == 2
    async with world.consumer(second):
        await asyncio.sleep(1)
    assert second.offsets == [2, 3]


@virtually
async def test_a_full_window_pauses_its_partition_only() -> None:
    limits = Limits(partition_records_max=20, poll_records_max=10)
    world, execution = World(partitions=2), RecordingExecution(holding=True)
    world.produce(100, partition=0)
    async with world.consumer(execution, limits):
        await asyncio.sleep(5)
        assert len(execution.held[ORDERS]) == 20
        world.produce(5, partition=1)
        await asyncio.sleep(1)
        assert len(execution.held[TopicPartition("orders", 1)]) == 5
        execution.release(ORDERS, *range(9))
        await asyncio.sleep(1)
        assert len(execution.held[ORDERS]) == 11
        execution.release(ORDERS, 9)
        await asyncio.sleep(1)
        assert len(execution.held[ORDERS]) == 20


@virtually
async def test_bytes_and_the_whole_process_are_bounded_too() -> None:
    for limits in (
        Limits(partition_bytes_max=30_000, poll_records_max=1),
        Limits(process_bytes_max=30_000, poll_records_max=1),
        Limits(process_records_max=8, poll_records_max=1),
    ):
        world, execution = World(partitions=2), RecordingExecution(holding=True)
        world.produce(50, partition=0)
        async with world.consumer(execution, limits):
            await asyncio.sleep(5)
            assert 8 <= execution.most_held <= 12
            # Whatever was held back is delivered once there is room.
            while execution.held.get(ORDERS):
                execution.release(ORDERS, min(execution.held[ORDERS]))
                await asyncio.sleep(0.01)
            assert execution.offsets == list(range(50))


@virtually
async def test_unusable_records_are_quarantined_with_reasons_and_stall_nothing() -> None:
    world, execution = World(), RecordingExecution()
    world.kafka.create_topic("orders.dead-letter")
    world.produce(1)
    world.kafka.append("orders", b"who?", None, [("a", b"1")], 0)
    world.produce(1)
    async with world.consumer(execution):
        await asyncio.sleep(1)
        assert execution.offsets == [0, 2]
        assert world.kafka.committed(ORDERS) == 3
    (dead,) = world.kafka.records("orders.dead-letter")
    assert (dead.key, dead.value) == (None, b"who?")
    headers = dict(dead.headers)
    assert headers["a"] == b"1"
    assert b"has no key" in headers["tenuto-reason"]
    assert (headers["tenuto-source-topic"], headers["tenuto-source-partition"]) == (b"orders", b"0")
    assert headers["tenuto-source-offset"] == b"1"


@virtually
async def test_a_quarantine_that_cannot_be_produced_holds_its_own_offset_only() -> None:
    world, execution = World(), RecordingExecution()
    world.kafka.append("orders", b"who?", None, partition=0)
    world.produce(3)
    async with world.consumer(execution):
        await asyncio.sleep(50)
        assert execution.offsets == [1, 2, 3]
        assert world.kafka.committed(ORDERS) == 0
        world.kafka.create_topic("orders.dead-letter")
        await asyncio.sleep(10)
        assert len(world.kafka.records("orders.dead-letter")) == 1
        assert world.kafka.committed(ORDERS) == 4
        world.kafka.append("orders", b"and you?", None, partition=0)
        world.faults.plan["produce", "before"] = 10**9
        await asyncio.sleep(60)
    # Stopping does not wait for what may never succeed; the record is read again.
    assert world.kafka.committed(ORDERS) == 4
    assert not execution.kept


@virtually
async def test_a_dead_letter_topic_that_nobody_creates_is_waited_for_until_its_letters_are_kept() -> None:
    world, execution = World(), RecordingExecution()
    world.kafka.append("orders", b"who?", None, [("a", b"1")], 0)
    async with world.consumer(execution):
        await asyncio.sleep(LIMITS.topic_patience_ms / 1_000 - 5)
        assert (world.kafka.committed(ORDERS), execution.kept) == (0, {})
        await asyncio.sleep(15)
        assert world.kafka.committed(ORDERS) == 1
        world.kafka.append("orders", b"and you?", None, partition=0)
        await asyncio.sleep(1)
        # The topic has had its time: the next record does not wait for as long again.
        assert world.kafka.committed(ORDERS) == 2
    (first, why), (second, _) = execution.kept.values()
    assert (first.topic, first.value, first.headers[0]) == ("orders.dead-letter", b"who?", ("a", b"1"))
    assert "no key" in why
    assert 'topic "orders.dead-letter" does not exist' in why
    assert second.value == b"and you?"


def test_a_dead_letter_too_large_for_its_topic_is_kept_smaller(caplog: pytest.LogCaptureFixture) -> None:
    source = {"tenuto-source-topic": b"orders", "tenuto-source-partition": b"0", "tenuto-source-offset": b"0"}

    async def dead_letter_of(record_bytes_max: int, key: bytes) -> LogRecord:
        world, execution = World(), RecordingExecution()
        world.kafka.create_topic("orders.dead-letter", record_bytes_max=record_bytes_max)
        world.kafka.append("orders", bytes(900), key, [("a", b"1")], 0)
        async with world.consumer(execution):
            await asyncio.sleep(1)
            assert world.kafka.committed(ORDERS) == 1
        (dead,) = world.kafka.records("orders.dead-letter")
        return dead

    async def scenario() -> None:
        key = b"\xff" * 10
        dead = await dead_letter_of(5_000, key)
        assert dead.value == bytes(900)
        assert source.items() < dict(dead.headers).items()
        (line,) = [entry.getMessage() for entry in caplog.records]
        assert line.startswith(
            'the record orders/0 offset 0 cannot be handled and is in "orders.dead-letter": the key is'
        )
        caplog.clear()

        dead = await dead_letter_of(950, key)
        assert (dead.value, dead.key, dead.headers) == (bytes(900), key, (("a", b"1"),))

        dead = await dead_letter_of(500, key)
        assert (dead.value, dead.key) == (None, key)
        assert source.items() < dict(dead.headers).items()
        assert dict(dead.headers)["tenuto-omitted"] == b"value, headers"

        dead = await dead_letter_of(500, b"\xff" * 400)
        assert (dead.value, dead.key) == (None, None)
        assert source.items() < dict(dead.headers).items()

    with caplog.at_level(logging.WARNING, "tenuto_control"):
        run_virtual(scenario())
    lines = [entry.getMessage() for entry in caplog.records if "lacks" in entry.getMessage()]
    assert len(lines) == 3
    assert all("orders/0 offset 0" in line and "raise max.message.bytes" in line for line in lines)


@virtually
async def test_a_dead_letter_that_its_topic_takes_in_no_form_is_kept_in_the_table_at_once() -> None:
    world, execution = World(), RecordingExecution()
    world.kafka.create_topic("orders.dead-letter", record_bytes_max=3)
    world.kafka.append("orders", b"who?", None, partition=0)
    world.produce(2)
    async with world.consumer(execution):
        await asyncio.sleep(1)
        assert execution.offsets == [1, 2]
        assert world.kafka.committed(ORDERS) == 3
    ((kept, why),) = execution.kept.values()
    assert (kept.value, kept.dead) == (b"who?", True)
    assert "takes no record of" in why


@virtually
async def test_two_members_share_the_partitions_and_lose_nothing_in_between() -> None:
    world, first, second = World(partitions=4), RecordingExecution(holding=True), RecordingExecution()
    for partition in range(4):
        world.produce(10, partition=partition)
    async with world.consumer(first):
        await asyncio.sleep(1)
        assert len(first.delivered) == 40
        first.release(ORDERS, 0, 1, 2)
        async with world.consumer(second):
            await asyncio.sleep(1)
            assert first.withdrawn == [[TopicPartition("orders", partition) for partition in range(4)]]
            assert world.kafka.committed(ORDERS) == 3
            taken = {source_of(event).partition for event in second.delivered}
            assert len(taken) == 2
            first.holding = False
            await asyncio.sleep(1)
        await asyncio.sleep(1)
    seen = {(source_of(event).partition, source_of(event).offset) for event in first.delivered + second.delivered}
    assert seen == {(partition, offset) for partition in range(4) for offset in range(10)}


@virtually
async def test_a_zombie_commits_nothing_and_comes_back_as_a_new_member() -> None:
    world, zombie, heir = World(), RecordingExecution(holding=True), RecordingExecution()
    world.produce(10)
    async with world.consumer(zombie):
        await asyncio.sleep(1)
        async with world.consumer(heir):
            await asyncio.sleep(0.001)
            world.kafka.expel(world.logs[0])
            await asyncio.sleep(1)
            assert heir.offsets == list(range(10))
            assert world.kafka.committed(ORDERS) == 10
            for offset in list(zombie.held.get(ORDERS, {})):
                zombie.release(ORDERS, offset)
            await asyncio.sleep(5)
            assert world.kafka.committed(ORDERS) == 10
        await asyncio.sleep(1)
        world.produce(1)
        zombie.holding = False
        await asyncio.sleep(1)
        assert world.kafka.committed(ORDERS) == 11


@virtually
async def test_a_record_polled_before_a_rebalance_is_not_delivered_after_it() -> None:
    world, execution = World(), RecordingExecution()
    async with world.consumer(execution):
        await asyncio.sleep(1)
        for _ in range(20):
            world.produce(3)
            world.kafka._rebalance(world.kafka._group("tenuto"))
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)
        firsts = list(dict.fromkeys(execution.offsets))
        assert firsts == list(range(60))


@virtually
async def test_other_work_gets_its_turn_while_many_records_are_taken_in() -> None:
    world, execution = World(), RecordingExecution()
    most = before = 0
    world.produce(1_000)
    async with world.consumer(execution):
        for _ in range(1_000):
            await asyncio.sleep(0)
            most, before = max(most, len(execution.delivered) - before), len(execution.delivered)
    assert execution.offsets == list(range(1_000))
    assert most <= TAKEN_AT_ONCE


@virtually
async def test_a_partition_that_comes_back_amid_a_poll_is_read_from_what_was_committed() -> None:
    """Records of the poll that its former assignment had not taken in would come in front of those delivered again."""

    class Rebalancing(RecordingExecution):
        after_withdrawal = 0

        def deliver(self, event: Event, released: Callable[[], None]) -> None:
            super().deliver(event, released)
            if not self.withdrawn and len(self.delivered) == TAKEN_AT_ONCE // 2:
                world.kafka._rebalance(world.kafka._group("tenuto"))

        async def withdraw(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> None:
            await super().withdraw(partitions, timeout_ms)
            self.after_withdrawal = self.after_withdrawal or len(self.delivered)

    world, execution = World(), Rebalancing(holding=True)
    world.produce(4_000)
    async with world.consumer(execution, Limits(poll_records_max=4_000, partition_records_max=10_000)):
        await asyncio.sleep(5)
        assert execution.after_withdrawal < 4_000
        assert execution.offsets[execution.after_withdrawal :] == list(range(4_000))


def test_failures_are_retried_and_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        world, execution = World(), RecordingExecution()
        world.faults.plan = {
            ("start", "before"): 5,
            ("poll", "before"): 7,
            ("poll", "after"): 3,
            ("commit", "after"): 4,
        }
        world.produce(10)
        async with world.consumer(execution):
            await asyncio.sleep(120)
            assert execution.offsets == list(range(10))
            assert world.kafka.committed(ORDERS) == 10

    with caplog.at_level(logging.INFO, "tenuto_control"):
        run_virtual(scenario())
    lines = [entry.getMessage() for entry in caplog.records]
    joining = [line for line in lines if line.startswith("joining")]
    assert joining[0] == "joining the consumer group: the broker is away; trying again"
    assert joining[-1] == "joining the consumer group: works again"
    assert len(lines) < 20
    assert all(entry.exc_info is None for entry in caplog.records)


@virtually
async def test_stop_is_heard_while_the_log_cannot_be_reached() -> None:
    world, execution = World(), RecordingExecution()
    world.faults.plan = {("start", "before"): 10**9}
    async with world.consumer(execution):
        await asyncio.sleep(60)
    assert execution.withdrawn == []


@virtually
async def test_a_cancelled_consumer_drains_commits_and_leaves() -> None:
    world, execution = World(), RecordingExecution(holding=True)
    world.produce(3)
    log = world.kafka.member()
    consumer = Consumer(
        log,
        world.kafka.sink(),
        execution,
        [Subscription("orders", "order", "placed")],
        LIMITS,
        VirtualClock(),
    )
    running = asyncio.create_task(consumer.run())
    await asyncio.sleep(0.01)
    execution.release(ORDERS, 0, 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert execution.withdrawn == [[ORDERS]]
    assert world.kafka.committed(ORDERS) == 2
    assert world.kafka._group("tenuto").members == {}


@virtually
async def test_gaps_of_a_compacted_topic_are_committed_over() -> None:
    world, execution = World(), RecordingExecution()
    world.produce(10)
    world.kafka.compact(ORDERS, lambda record: record.offset in (3, 7))
    async with world.consumer(execution):
        await asyncio.sleep(1)
    assert execution.offsets == [3, 7]
    assert world.kafka.committed(ORDERS) == 8
