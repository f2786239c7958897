"""One suite over the in-memory log and a real broker: what the EventLog and RecordSink ports promise."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import aiokafka
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete

from tenuto_control.config import KafkaConfig
from tenuto_control.core.routing import Start
from tenuto_control.drivers import kafka as driver
from tenuto_control.drivers import kafka_membership
from tenuto_control.drivers.kafka import KafkaEventLog, KafkaSink
from tenuto_control.drivers.kafka_membership import mark
from tenuto_control.limits import Limits
from tenuto_control.ports import (
    EventLog,
    LogRecord,
    LogUnavailableError,
    RecordSink,
    RecordTooLargeError,
    TopicPartition,
)
from tenuto_local.kafka_broker import KafkaBroker
from tenuto_local.topics import create_topics
from tests.support.memory_kafka import MemoryKafka

TEST_TIMEOUT_S = 40.0
SETTLE_S = 20.0
REBALANCE_TIMEOUT_S = 1.0
LIMITS = Limits(
    drain_timeout_ms=500,
    session_timeout_ms=2_000,
    heartbeat_interval_ms=100,
    log_request_timeout_ms=3_000,
    unreadable_retry_initial_ms=100,
    unreadable_retry_max_ms=400,
)
FORMER_ID = "0123456789abcdef0123456789abcdef"


class Cluster(Protocol):
    """What the suite needs of either log. Topics and groups are fresh for every test."""

    async def create(self, topic: str, partitions: int) -> None: ...
    async def create_narrow(self, topic: str, record_bytes_max: int) -> None: ...
    async def delete(self, topic: str) -> None: ...
    async def leave_commit(self, group: str, tp: TopicPartition, offset: int, topic_id: str) -> None: ...
    async def add_partitions(self, topic: str, total: int) -> None: ...
    async def remove_before(self, tp: TopicPartition, offset: int) -> None: ...
    def damage(self, tp: TopicPartition, offset: int) -> None: ...
    def repair(self, tp: TopicPartition) -> None: ...
    def member(self, group: str, starts: Mapping[str, Start]) -> EventLog: ...
    def sink(self) -> RecordSink: ...
    async def close(self) -> None: ...


class MemoryCluster:
    def __init__(self) -> None:
        self._kafka = MemoryKafka(rebalance_timeout_s=REBALANCE_TIMEOUT_S)

    async def create(self, topic: str, partitions: int) -> None:
        self._kafka.create_topic(topic, partitions)

    async def create_narrow(self, topic: str, record_bytes_max: int) -> None:
        self._kafka.create_topic(topic, record_bytes_max=record_bytes_max)

    async def delete(self, topic: str) -> None:
        self._kafka.delete_topic(topic)

    async def leave_commit(self, group: str, tp: TopicPartition, offset: int, topic_id: str) -> None:
        stored = self._kafka._group(group)
        stored.committed[tp] = offset
        if topic_id:
            stored.lives[tp] = topic_id

    async def add_partitions(self, topic: str, total: int) -> None:
        self._kafka.add_partitions(topic, total - len(self._kafka._topics[topic]))

    async def remove_before(self, tp: TopicPartition, offset: int) -> None:
        self._kafka.compact(tp, lambda record: record.offset >= offset)

    def damage(self, tp: TopicPartition, offset: int) -> None:
        self._kafka.damage(tp, offset, "a batch whose checksum is not 00000000")

    def repair(self, tp: TopicPartition) -> None:
        self._kafka.repair(tp)

    def member(self, group: str, starts: Mapping[str, Start]) -> EventLog:
        return self._kafka.member(group, starts)

    def sink(self) -> RecordSink:
        return self._kafka.sink()

    async def close(self) -> None:
        pass


class RealCluster:
    def __init__(self, broker: KafkaBroker) -> None:
        self._broker = broker
        self._sinks: list[KafkaSink] = []
        self._damage: dict[TopicPartition, tuple[Path, int]] = {}

    async def create(self, topic: str, partitions: int) -> None:
        await create_topics(self._broker.bootstrap_servers, {topic: partitions})

    async def create_narrow(self, topic: str, record_bytes_max: int) -> None:
        async with self._admin() as admin:
            configs = {"max.message.bytes": str(record_bytes_max)}
            await admin.create_topics([NewTopic(topic, 1, 1, topic_configs=configs)])
        await self.create(topic, 1)

    async def delete(self, topic: str) -> None:
        async with self._admin() as admin:
            await admin.delete_topics([topic])
            for _ in range(500):
                if topic not in await admin.list_topics():
                    return
                await asyncio.sleep(0.02)
        raise AssertionError(f"{topic} is still there")

    async def leave_commit(self, group: str, tp: TopicPartition, offset: int, topic_id: str) -> None:
        """As a member does that learns too late that the topic is another one now."""
        consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=self._broker.bootstrap_servers, group_id=group)
        await consumer.start()
        try:
            at = aiokafka.TopicPartition(*tp)
            consumer.assign([at])
            await consumer.commit({at: (offset, mark(topic_id))})
        finally:
            await consumer.stop()

    async def add_partitions(self, topic: str, total: int) -> None:
        async with self._admin() as admin:
            await admin.create_partitions({topic: NewPartitions(total)})

    async def remove_before(self, tp: TopicPartition, offset: int) -> None:
        """What retention does, at once."""
        async with self._admin() as admin:
            await admin.delete_records({aiokafka.TopicPartition(*tp): RecordsToDelete(before_offset=offset)})

    def damage(self, tp: TopicPartition, offset: int) -> None:
        """Change the last byte of a batch where the broker stores it, which it hands out unchecked."""
        (segment,) = (self._broker.data / f"{tp.topic}-{tp.partition}").glob("*.log")
        raw, at = segment.read_bytes(), 0
        while True:
            base, length = struct.unpack_from(">qi", raw, at)
            at += 12 + length
            if base >= offset:
                break
        self._damage[tp] = (segment, at - 1)
        self._change(tp)

    def repair(self, tp: TopicPartition) -> None:
        self._change(tp)

    def _change(self, tp: TopicPartition) -> None:
        segment, at = self._damage[tp]
        with segment.open("r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 0xFF]))

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[Any]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._broker.bootstrap_servers)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    def member(self, group: str, starts: Mapping[str, Start]) -> EventLog:
        return KafkaEventLog(
            KafkaConfig(bootstrap_servers=self._broker.bootstrap_servers, group_id=group), LIMITS, starts
        )

    def sink(self) -> RecordSink:
        sink = KafkaSink(KafkaConfig(bootstrap_servers=self._broker.bootstrap_servers), LIMITS)
        self._sinks.append(sink)
        return sink

    async def close(self) -> None:
        for sink in self._sinks:
            await sink.stop()


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.stack)])
def make_cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Cluster]:
    monkeypatch.setattr(driver, "REBALANCE_MARGIN_MS", int(REBALANCE_TIMEOUT_S * 1_000) - LIMITS.drain_timeout_ms)
    monkeypatch.setattr(driver, "METADATA_AGE_MAX_MS", 300)
    monkeypatch.setattr(driver, "TOPIC_CHECK_INTERVAL_S", 0.2)
    monkeypatch.setattr(kafka_membership, "BOUNDS_AGE_S", 0.2)
    if request.param == "memory":
        return MemoryCluster
    broker: KafkaBroker = request.getfixturevalue("broker")
    return lambda: RealCluster(broker)


@dataclass
class Member:
    """A member with what it was told and what it read."""

    log: EventLog
    owned: set[TopicPartition] = field(default_factory=set)
    revocations: list[set[TopicPartition]] = field(default_factory=list)
    records: list[LogRecord] = field(default_factory=list)
    on_revoked: Callable[[], Coroutine[Any, Any, None]] | None = None

    async def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.revocations.append(set(partitions))
        if self.on_revoked is not None:
            await self.on_revoked()
        self.owned.difference_update(partitions)

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self.owned.update(partitions)

    async def poll(self) -> list[LogRecord]:
        records = await self.log.poll(100, 50)
        assert all(TopicPartition(record.topic, record.partition) in self.owned for record in records)
        self.records += records
        return records

    async def poll_until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(SETTLE_S):
            while not done():
                await self.poll()

    async def polled_for(self, seconds: float) -> list[LogRecord]:
        before = len(self.records)
        deadline = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < deadline:
            await self.poll()
        return self.records[before:]

    @property
    def values(self) -> list[bytes | None]:
        return [record.value for record in self.records]


class Scene:
    """A topic and a group of their own, on either cluster."""

    def __init__(self, cluster: Cluster, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.cluster = cluster
        self.topic = f"t-{uuid4().hex[:8]}"
        self.group = f"g-{uuid4().hex[:8]}"
        self._sink = cluster.sink()

    async def join(self, start: Start = "earliest") -> Member:
        member = Member(self.cluster.member(self.group, {self.topic: start}))
        await member.log.start([self.topic], member)
        self._stack.push_async_callback(member.log.stop)
        return member

    async def produce(
        self, *values: bytes | None, key: bytes = b"k", headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        for value in values:
            await self._sink.produce(self.topic, value, key, headers)

    async def create_again(self) -> None:
        await self.cluster.delete(self.topic)
        await self.cluster.create(self.topic, 1)

    def tp(self, partition: int = 0) -> TopicPartition:
        return TopicPartition(self.topic, partition)


def play(make_cluster: Callable[[], Cluster], scenario: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(TEST_TIMEOUT_S), AsyncExitStack() as stack:
            cluster = make_cluster()
            stack.push_async_callback(cluster.close)
            await scenario(Scene(cluster, stack))

    asyncio.run(bounded())


@asynccontextmanager
async def alone(workdir: Path) -> AsyncIterator[tuple[Scene, KafkaBroker]]:
    """A topic of one partition on a broker that nobody else uses, so that it may be killed."""
    broker = KafkaBroker(workdir)
    async with AsyncExitStack() as stack:
        await broker.start()
        stack.push_async_callback(broker.stop)
        cluster = RealCluster(broker)
        stack.push_async_callback(cluster.close)
        scene = Scene(cluster, stack)
        await cluster.create(scene.topic, 1)
        yield scene, broker


def numbered(count: int, first: int = 0) -> list[bytes]:
    return [str(number).encode() for number in range(first, first + count)]


def test_records_come_in_order_with_headers_and_tombstones(make_cluster: Callable[[], Cluster]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 1)
        headers = (("a", b"1"), ("a", b"\x00"), ("b", b""))
        await scene.produce(*numbered(150), headers=headers)
        await scene.produce(None)
        await scene.cluster.sink().produce(scene.topic, b"unkeyed", None, ())
        member = await scene.join()
        await member.poll_until(lambda: len(member.records) >= 152)
        assert member.values == [*numbered(150), None, b"unkeyed"]
        assert [record.offset for record in member.records] == list(range(152))
        assert all(record.headers == headers for record in member.records[:150])
        assert (member.records[150].key, member.records[151].key) == (b"k", None)
        assert all(record.timestamp_ms >= 0 for record in member.records)

    play(make_cluster, scenario)


def test_the_lag_is_what_has_not_been_read(make_cluster: Callable[[], Cluster]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 1)
        await scene.produce(*numbered(20))
        member = await scene.join()
        while not await member.log.poll(5, 200):
            pass
        assert member.log.lag() == 15
        await member.poll_until(lambda: member.log.lag() == 0)

    play(make_cluster, scenario)


def test_the_next_member_goes_on_at_the_committed_offset(make_cluster: Callable[[], Cluster]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 1)
        await scene.produce(*numbered(10))
        first = await scene.join()
        await first.poll_until(lambda: len(first.records) == 10)
        await first.log.commit({scene.tp(): 4})
        await first.log.stop()
        assert first.revocations == []
        second = await scene.join()
        await second.poll_until(lambda: len(second.records) == 6)
        assert second.values == numbered(6, first=4)

    play(make_cluster, scenario)


def test_members_share_the_partitions_and_may_commit_while_revoked(
    make_cluster: Callable[[], Cluster],
) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 4)
        everything = {scene.tp(partition) for partition in range(4)}
        first = await scene.join()
        await first.poll_until(lambda: first.owned == everything)
        for number in range(40):
            await scene.produce(str(number).encode(), key=str(number).encode())
        await first.poll_until(lambda: len(first.records) == 40)

        async def commit() -> None:
            ends = {TopicPartition(record.topic, record.partition): record.offset + 1 for record in first.records}
            await first.log.commit(ends)

        first.on_revoked = commit
        second = await scene.join()
        await first.poll_until(lambda: len(first.owned) == 2 and len(second.owned) == 2)
        assert first.revocations == [everything]
        assert first.owned | second.owned == everything
        assert await second.polled_for(0.5) == []

        for number in range(40):
            await scene.produce(str(number).encode(), key=str(number).encode())
        while len(first.records) + len(second.records) < 80:
            await first.poll()
            await second.poll()
        assert first.records[40:]
        assert second.records

        first.on_revoked = None
        await second.log.stop()
        await first.poll_until(lambda: first.owned == everything)

    play(make_cluster, scenario)


def test_a_member_left_behind_cannot_commit(make_cluster: Callable[[], Cluster]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 1)
        await scene.produce(*numbered(5))
        zombie = await scene.join()
        await zombie.poll_until(lambda: len(zombie.records) == 5)
        heir_is_done = asyncio.Event()
        refused: list[str] = []

        async def outlast_the_group() -> None:
            await heir_is_done.wait()
            try:
                await zombie.log.commit({scene.tp(): 2})
            except LogUnavailableError as e:
                refused.append(str(e))

        zombie.on_revoked = outlast_the_group
        heir = await scene.join()
        await heir.poll_until(lambda: len(heir.records) == 5)
        await heir.log.commit({scene.tp(): 5})
        heir_is_done.set()
        await heir.poll_until(lambda: bool(refused))
        assert "another member" in refused[0]
        zombie.on_revoked = None
        await zombie.log.stop()
        await heir.log.stop()
        last = await scene.join()
        await scene.produce(b"next")
        await last.poll_until(lambda: len(last.records) == 1)
        assert last.records[0].offset == 5

    play(make_cluster, scenario)


def test_paused_partitions_wait_and_lose_nothing(make_cluster: Callable[[], Cluster]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 1)
        member = await scene.join()
        await scene.produce(*numbered(5))
        await member.poll_until(lambda: len(member.records) == 5)
        member.log.pause([scene.tp(), scene.tp(99)])
        await scene.produce(*numbered(5, first=5))
        assert await member.polled_for(0.7) == []
        member.log.resume([scene.tp(), scene.tp(99)])
        await member.poll_until(lambda: len(member.records) == 10)
        assert member.values == numbered(10)

    play(make_cluster, scenario)


def test_latest_means_from_the_first_assignment_on(make_cluster: Callable[[], Cluster]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 1)
        await scene.produce(b"before")
        first = await scene.join("latest")
        await first.poll_until(lambda: bool(first.owned))
        await first.log.stop()
        await scene.produce(b"between")
        second = await scene.join("latest")
        await second.poll_until(lambda: bool(second.owned))
        await scene.produce(b"after")
        await second.poll_until(lambda: len(second.records) == 2)
        assert second.values == [b"between", b"after"]

    play(make_cluster, scenario)


def test_a_topic_may_be_created_later(make_cluster: Callable[[], Cluster]) -> None:
    async def scenario(scene: Scene) -> None:
        member = await scene.join()
        with pytest.raises(LogUnavailableError, match="does not exist; create it"):
            await scene.produce(b"too early")
        assert await member.polled_for(0.5) == []
        await scene.cluster.create(scene.topic, 2)
        await scene.produce(b"now")
        await member.poll_until(lambda: len(member.records) == 1)
        assert len(member.owned) == 2

    play(make_cluster, scenario)


def test_a_record_may_have_neither_key_nor_value(make_cluster: Callable[[], Cluster]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 1)
        await scene.cluster.sink().produce(scene.topic, None, None, [("tenuto-reason", b"no key")])
        member = await scene.join()
        await member.poll_until(lambda: len(member.records) == 1)
        assert member.records[0].value is None
        assert member.records[0].headers == (("tenuto-reason", b"no key"),)

    play(make_cluster, scenario)


def test_a_topic_that_is_created_again_has_another_id_and_is_read_from_its_beginning(
    make_cluster: Callable[[], Cluster],
) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 1)
        await scene.produce(*numbered(5))
        first = await scene.join()
        await first.poll_until(lambda: len(first.records) == 5)
        await first.log.commit({scene.tp(): 3})
        await first.log.stop()
        second = await scene.join()
        await second.poll_until(lambda: len(second.records) == 2)
        (before,) = {record.topic_id for record in first.records + second.records}
        await second.log.commit({scene.tp(): 5})
        await second.log.stop()

        await scene.create_again()
        await scene.produce(b"new", b"newer")
        third = await scene.join()
        await third.poll_until(lambda: len(third.records) == 2)
        assert [(record.offset, record.value) for record in third.records] == [(0, b"new"), (1, b"newer")]
        (after,) = {record.topic_id for record in third.records}
        assert after
        assert after != before

    play(make_cluster, scenario)


@pytest.mark.parametrize("records", [2, 9], ids=["fewer records", "more records"])
@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_running_member_begins_anew_with_a_topic_that_is_created_again(
    make_cluster: Callable[[], Cluster], start: Start, records: int
) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 1)
        member = await scene.join(start)
        await member.poll_until(lambda: bool(member.owned))
        await scene.produce(*numbered(5))
        await member.poll_until(lambda: len(member.records) == 5)
        await member.log.commit({scene.tp(): 5})
        before = member.records[0].topic_id
        # Reading nothing, it meets no error that would tell it.
        member.log.pause([scene.tp()])
        await scene.create_again()
        await scene.produce(*numbered(records, first=100))

        def of_the_new() -> list[LogRecord]:
            return [record for record in member.records if record.topic_id not in {before, ""}]

        await member.poll_until(lambda: len(of_the_new()) >= records)
        assert [record.value for record in of_the_new()] == numbered(records, first=100)
        assert [record.offset for record in of_the_new()] == list(range(records))
        assert {scene.tp()} in member.revocations
        await member.log.commit({scene.tp(): 1})
        await member.log.stop()
        heir = await scene.join(start)
        await heir.poll_until(lambda: len(heir.records) == records - 1)
        assert heir.values == numbered(records - 1, first=101)

    play(make_cluster, scenario)


@pytest.mark.parametrize(
    ("offset", "topic_id", "left"),
    [(2, FORMER_ID, 5), (99, FORMER_ID, 5), (99, "", 5), (2, "", 3)],
    ids=["within a new life", "beyond a new life", "beyond the log", "of a commit that names no life"],
)
def test_a_committed_offset_counts_in_its_own_life_only(
    make_cluster: Callable[[], Cluster], offset: int, topic_id: str, left: int
) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 1)
        await scene.produce(*numbered(5))
        await scene.cluster.leave_commit(scene.group, scene.tp(), offset, topic_id)
        member = await scene.join()
        await member.poll_until(lambda: len(member.records) == left)
        assert member.values == numbered(left, first=5 - left)

    play(make_cluster, scenario)


def test_a_record_too_large_for_its_topic_is_refused_and_disturbs_no_other(
    make_cluster: Callable[[], Cluster],
) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create_narrow(scene.topic, 100_000)
        sink = scene.cluster.sink()

        async def refused(value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> None:
            with pytest.raises(RecordTooLargeError, match=r"raise its max\.message\.bytes"):
                await sink.produce(scene.topic, value, b"k", headers)

        await sink.produce(scene.topic, b"a", b"k", ())
        await asyncio.gather(
            refused(bytes(150_000)),
            sink.produce(scene.topic, b"b", b"k", ()),
            refused(b"", [("large", bytes(150_000))]),
            sink.produce(scene.topic, bytes(90_000), b"k", ()),
        )
        await refused(bytes(150_000))
        await sink.produce(scene.topic, bytes(80_000), b"k", ())
        await sink.produce(scene.topic, b"c", b"k", ())
        member = await scene.join()
        await member.poll_until(lambda: len(member.records) == 5)
        sizes = sorted(len(value or b"") for value in member.values)
        assert sizes == [1, 1, 1, 80_000, 90_000]

    play(make_cluster, scenario)


# --- partitions apart ---------------------------------------------------------------------------------------------


async def spread(scene: Scene, total: int) -> dict[TopicPartition, list[bytes | None]]:
    """Records in all partitions, each in a batch of its own, and what is in which."""
    sink = scene.cluster.sink()
    for number in range(total):
        await sink.produce(scene.topic, str(number).encode(), str(number).encode(), ())
    observer = Member(scene.cluster.member(f"{scene.group}-observer", {}))
    await observer.log.start([scene.topic], observer)
    await observer.poll_until(lambda: len(observer.records) == total)
    await observer.log.stop()
    return {tp: read_of(observer, tp) for tp in sorted(observer.owned)}


def read_of(member: Member, tp: TopicPartition) -> list[bytes | None]:
    return [record.value for record in member.records if (record.topic, record.partition) == tp]


def test_a_partition_that_cannot_be_read_costs_the_others_nothing_and_recovers_by_itself(
    make_cluster: Callable[[], Cluster],
) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 3)
        where = await spread(scene, 60)
        bad, *good = where
        scene.cluster.damage(bad, 3)
        member = await scene.join()
        await member.poll_until(lambda: bool(member.log.unreadable()))
        await member.poll_until(lambda: all(read_of(member, tp) == where[tp] for tp in good))
        (told,) = member.log.unreadable()
        assert (told.partition, told.offset) == (bad, 3)
        assert "checksum" in told.reason
        await member.polled_for(0.7)
        assert read_of(member, bad) == where[bad][:3]
        await member.log.commit({bad: 3, **{tp: len(where[tp]) for tp in good}})
        assert member.log.lag() == len(where[bad]) - 3

        scene.cluster.repair(bad)
        await member.poll_until(lambda: read_of(member, bad) == where[bad])
        assert member.log.unreadable() == []
        assert [one.offset for one in member.records if one.partition == bad.partition] == list(range(len(where[bad])))
        await member.poll_until(lambda: member.log.lag() == 0)

    play(make_cluster, scenario)


def test_a_partition_without_records_to_read_is_not_unreadable(make_cluster: Callable[[], Cluster]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 2)
        member = await scene.join()
        await member.poll_until(lambda: len(member.owned) == 2)
        await scene.produce(b"one")
        await member.poll_until(lambda: len(member.records) == 1)
        assert member.log.unreadable() == []

    play(make_cluster, scenario)


def test_what_retention_removes_is_no_lag_whether_it_was_read_or_not(make_cluster: Callable[[], Cluster]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 1)
        await scene.produce(*numbered(10))
        member = await scene.join()
        while not await member.log.poll(2, 200):
            pass
        assert member.log.lag() == 8
        member.log.pause([scene.tp()])
        await scene.produce(*numbered(5, first=10))
        await member.poll_until(lambda: member.log.lag() == 13)
        await scene.cluster.remove_before(scene.tp(), 9)
        await member.poll_until(lambda: member.log.lag() == 6)
        await scene.cluster.remove_before(scene.tp(), 15)
        await member.poll_until(lambda: member.log.lag() == 0)
        member.log.resume([scene.tp()])
        await scene.produce(b"last")
        await member.poll_until(lambda: member.values == [b"last"])
        await member.poll_until(lambda: member.log.lag() == 0)

    play(make_cluster, scenario)


def test_latest_is_no_word_about_partitions_that_come_later(make_cluster: Callable[[], Cluster]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 1)
        await scene.produce(*numbered(3))
        first = await scene.join("latest")
        await first.poll_until(lambda: bool(first.owned))
        await first.log.stop()
        await scene.cluster.add_partitions(scene.topic, 4)
        sink = scene.cluster.sink()
        # Nobody reads yet: all of these were produced before anybody could notice the partitions.
        for number in range(100, 160):
            await sink.produce(scene.topic, str(number).encode(), str(number).encode(), ())
        second = await scene.join("latest")
        await second.poll_until(lambda: len(second.records) == 60)
        assert {record.partition for record in second.records} == {0, 1, 2, 3}
        assert sorted(second.values, key=str) == numbered(60, first=100)

        await scene.cluster.add_partitions(scene.topic, 6)
        # Another producer, because the first one does not look for partitions again so soon.
        sink = scene.cluster.sink()
        for number in range(200, 260):
            await sink.produce(scene.topic, str(number).encode(), str(number).encode(), ())
        await second.poll_until(lambda: len(second.owned) == 6 and len(set(second.values)) == 120)

    play(make_cluster, scenario)


def test_members_that_begin_together_at_the_latest_take_no_partition_for_a_later_one(
    make_cluster: Callable[[], Cluster],
) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 4)
        sink = scene.cluster.sink()
        for number in range(40):
            await sink.produce(scene.topic, b"before", str(number).encode(), ())
        members = [Member(scene.cluster.member(scene.group, {scene.topic: "latest"})) for _ in range(3)]
        for member in members:
            scene._stack.push_async_callback(member.log.stop)
        await asyncio.gather(*(member.log.start([scene.topic], member) for member in members))
        async with asyncio.timeout(SETTLE_S):
            while sorted(tp for member in members for tp in member.owned) != [scene.tp(one) for one in range(4)]:
                await asyncio.gather(*(member.poll() for member in members))
        for number in range(40):
            await sink.produce(scene.topic, b"after", str(number).encode(), ())
        async with asyncio.timeout(SETTLE_S):
            while sum(len(member.records) for member in members) < 40:
                await asyncio.gather(*(member.poll() for member in members))
        assert {value for member in members for value in member.values} == {b"after"}

    play(make_cluster, scenario)


def test_latest_is_no_word_about_a_topic_that_comes_later(make_cluster: Callable[[], Cluster]) -> None:
    async def scenario(scene: Scene) -> None:
        member = await scene.join("latest")
        assert await member.polled_for(0.3) == []
        await scene.cluster.create(scene.topic, 1)
        await scene.produce(*numbered(5))
        await member.poll_until(lambda: member.values == numbered(5))

    play(make_cluster, scenario)


@pytest.mark.stack
def test_a_sink_outlives_the_refusal_of_a_small_record(broker: KafkaBroker) -> None:
    """A topic may take less than what a sink expects to be refused: then its producer has to be another one."""

    async def scenario() -> None:
        cluster = RealCluster(broker)
        topic = f"t-{uuid4().hex[:8]}"
        await cluster.create_narrow(topic, 1_000)
        sink = cluster.sink()
        try:
            for value in (bytes(5_000), bytes(6_000)):
                with pytest.raises(RecordTooLargeError):
                    await sink.produce(topic, value, None, ())
                await sink.produce(topic, b"small", None, ())
            # Together they are refused, but none of them is too large.
            await asyncio.gather(*(sink.produce(topic, bytes(300), None, ()) for _ in range(40)))
        finally:
            await cluster.close()

    asyncio.run(asyncio.wait_for(scenario(), TEST_TIMEOUT_S))


@pytest.mark.stack
def test_an_unreachable_broker_is_one_readable_error() -> None:
    async def scenario() -> None:
        config = KafkaConfig(bootstrap_servers="127.0.0.1:1")
        log = KafkaEventLog(config, LIMITS, {})
        for _ in range(2):
            with pytest.raises(
                LogUnavailableError, match=r"Kafka at 127.0.0.1:1 cannot be reached .*bootstrap_servers"
            ):
                await log.start(["t"], Member(log))
        with pytest.raises(LogUnavailableError, match="cannot be reached"):
            await KafkaSink(config, LIMITS).produce("t", b"v", None, ())

    asyncio.run(scenario())


@pytest.mark.stack
def test_a_member_and_a_sink_outlive_a_killed_broker(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with alone(tmp_path) as (scene, broker):
            member = await scene.join()
            await scene.produce(*numbered(5))
            await member.poll_until(lambda: len(member.records) == 5)
            await broker.kill()
            with pytest.raises(LogUnavailableError):
                await scene.produce(b"lost")
            with pytest.raises(LogUnavailableError):
                await member.log.commit({scene.tp(): 5})
            await broker.restart()
            async with asyncio.timeout(SETTLE_S):
                while True:
                    try:
                        await scene.produce(b"found")
                    except LogUnavailableError:
                        await asyncio.sleep(0.1)
                    else:
                        break
            while b"found" not in member.values:
                try:
                    await member.poll()
                except LogUnavailableError:
                    await asyncio.sleep(0.1)
            assert member.values[:5] == numbered(5)

    asyncio.run(asyncio.wait_for(scenario(), TEST_TIMEOUT_S + SETTLE_S))
