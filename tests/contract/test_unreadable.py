"""What only a real broker can hand out: codecs, odd bytes, transactions, and clients that fail half-way.

Owns the reading side of the Kafka driver where the in-memory log has nothing to compare. Does not own what members
promise otherwise (`test_event_log`), nor bytes that a broker refuses to store (`tests/hostile`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import aiokafka
import pytest
from aiokafka import codec
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from tenuto_control.core.metrics import Tally
from tenuto_control.core.routing import Subscription
from tenuto_control.drivers import kafka as driver
from tenuto_control.drivers import kafka_membership
from tenuto_control.drivers.kafka import KafkaEventLog
from tenuto_control.drivers.system import SystemClock
from tenuto_control.loops.consume import Consumer
from tenuto_control.loops.unreadable import UnreadablePartitions
from tenuto_control.ports import LogUnavailableError, TopicPartition
from tenuto_local.kafka_broker import KafkaBroker
from tests.contract.test_event_log import LIMITS, SETTLE_S, TEST_TIMEOUT_S, Member, RealCluster, Scene, numbered
from tests.control.test_consume import RecordingExecution
from tests.support import raw_batches
from tests.support.raw_batches import Raw, batch

pytestmark = pytest.mark.stack
COMPRESSIONS = ["gzip", "snappy", "lz4", "zstd"]


@pytest.fixture
def play(
    broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Scene], Coroutine[Any, Any, None]]], None]:
    """Runs a scenario on the broker of all tests, with a topic and a group of its own."""
    monkeypatch.setattr(driver, "METADATA_AGE_MAX_MS", 300)
    monkeypatch.setattr(driver, "TOPIC_CHECK_INTERVAL_S", 0.2)
    monkeypatch.setattr(kafka_membership, "BOUNDS_AGE_S", 0.2)

    def run(scenario: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(TEST_TIMEOUT_S), AsyncExitStack() as stack:
                cluster = RealCluster(broker)
                stack.push_async_callback(cluster.close)
                await scenario(Scene(cluster, stack))

        asyncio.run(bounded())

    return run


def bootstrap(scene: Scene) -> str:
    assert isinstance(scene.cluster, RealCluster)
    return scene.cluster._broker.bootstrap_servers


def consumer_of(member: Member) -> Any:
    assert isinstance(member.log, KafkaEventLog)
    return member.log._consumer


async def until(done: Callable[[], bool]) -> None:
    for _ in range(int(SETTLE_S / 0.02)):
        if done():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come to that")


class Recording(RecordingExecution):
    """With the drain timeout of this suite."""

    async def withdraw(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> None:
        assert timeout_ms == LIMITS.drain_timeout_ms


async def create(scene: Scene, configs: Mapping[str, str]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap(scene))
    await admin.start()
    try:
        await admin.create_topics([NewTopic(scene.topic, 1, 1, topic_configs=dict(configs))])
    finally:
        await admin.close()
    await scene.cluster.create(scene.topic, 1)


Play = Callable[[Callable[[Scene], Coroutine[Any, Any, None]]], None]


@pytest.mark.parametrize("by", ["producer", "broker"])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_compressed_topic_is_read(play: Play, compression: str, by: str) -> None:
    """Compressed by aiokafka, or by the broker as Java does it."""
    contents = [b"%d " % number + b"text that repeats, " * 50 for number in range(300)]

    async def scenario(scene: Scene) -> None:
        await create(scene, {"compression.type": compression if by == "broker" else "producer"})
        kind = {"compression_type": compression} if by == "producer" else {}
        producer = aiokafka.AIOKafkaProducer(bootstrap_servers=bootstrap(scene), linger_ms=20, **kind)
        await producer.start()
        try:
            await asyncio.gather(*[await producer.send(scene.topic, one, headers=[("h", b"x")]) for one in contents])
        finally:
            await producer.stop()
        member = await scene.join()
        await member.poll_until(lambda: len(member.records) == len(contents))
        assert member.values == contents
        assert {record.headers for record in member.records} == {(("h", b"x"),)}
        assert member.log.unreadable() == []

    play(scenario)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_header_names_of_any_bytes_are_delivered(play: Play, compression: str) -> None:
    names = [b"\xff", b"caf\xe9", b"", b"\xc3", b"\xed\xa0\x80", "ü".encode()]

    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 1)
        records = [Raw(b"0"), *(Raw(b"odd", headers=[(name, b"x"), (b"n", None)]) for name in names), Raw(b"last")]
        await raw_batches.produce(bootstrap(scene), scene.topic, 0, batch(records, compression=compression))
        await scene.produce(b"behind")
        member = await scene.join()
        await member.poll_until(lambda: b"behind" in member.values)
        assert member.values == [b"0", *[b"odd"] * len(names), b"last", b"behind"]
        read_as = [record.headers[0][0] for record in member.records if record.value == b"odd"]
        assert read_as == [r"\xff", r"caf\xe9", "", r"\xc3", r"\xed\xa0\x80", "ü"]

    play(scenario)


@pytest.mark.parametrize("first_ms", [-1, -5, 0, -(2**62)])
def test_a_timestamp_of_any_age_is_delivered(play: Play, first_ms: int) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 1)
        try:
            await raw_batches.produce(bootstrap(scene), scene.topic, 0, batch([Raw(b"old")], first_ms=first_ms))
        except KafkaError:
            pytest.skip("this broker stores no such timestamp")
        member = await scene.join()
        await member.poll_until(lambda: member.values == [b"old"])
        assert member.records[0].timestamp_ms == first_ms

    play(scenario)


def test_the_lag_reaches_zero_behind_transactions_and_so_do_committed_offsets(play: Play) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 1)
        await scene.produce(b"plain")
        producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=bootstrap(scene), transactional_id=f"x-{uuid4().hex[:8]}"
        )
        await producer.start()
        try:
            for number in range(3):
                await producer.begin_transaction()
                await producer.send_and_wait(scene.topic, b"kept %d" % number)
                await producer.commit_transaction()
                await producer.begin_transaction()
                await producer.send_and_wait(scene.topic, b"taken back")
                await producer.abort_transaction()
            member = await scene.join()
            await member.poll_until(lambda: len(member.records) == 4)
            await member.poll_until(lambda: member.log.lag() == 0)
            assert member.values == [b"plain", b"kept 0", b"kept 1", b"kept 2"]
            # Behind the last record delivered lie its marker, and a transaction that was taken back with another one.
            await member.log.commit({scene.tp(): member.records[-1].offset + 1})
            tp = aiokafka.TopicPartition(*scene.tp())
            end = 1 + 3 * 4
            assert (await consumer_of(member).commits([tp]))[tp].offset == end
            # One that is open counts once it is committed.
            await producer.begin_transaction()
            await producer.send_and_wait(scene.topic, b"open")
            assert await member.polled_for(0.5) == []
            assert member.log.lag() == 0
            await producer.commit_transaction()
            await member.poll_until(lambda: b"open" in member.values)
            await member.poll_until(lambda: member.log.lag() == 0)
        finally:
            await producer.stop()

    play(scenario)


def test_a_codec_that_is_missing_is_named_and_costs_other_partitions_nothing(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 2)
        for number in range(3):
            await raw_batches.produce(bootstrap(scene), scene.topic, 0, batch([Raw(b"%d" % number)]))
            await raw_batches.produce(bootstrap(scene), scene.topic, 1, batch([Raw(b"%d" % number)]))
        lost = batch([Raw(b"3"), Raw(b"4")], compression="lz4")
        await raw_batches.produce(bootstrap(scene), scene.topic, 0, lost)
        with monkeypatch.context() as without:
            without.setattr(codec, "cramjam", None)
            member = await scene.join()
            await member.poll_until(lambda: len(member.records) == 6 and bool(member.log.unreadable()))
            (told,) = member.log.unreadable()
            assert (told.partition, told.offset) == (scene.tp(), 3)
            assert "LZ4 codec is not available" in told.reason
            await raw_batches.produce(bootstrap(scene), scene.topic, 1, batch([Raw(b"more")]))
            await member.poll_until(lambda: b"more" in member.values)
        await member.poll_until(lambda: member.values[-2:] == [b"3", b"4"])
        assert member.log.unreadable() == []

    play(scenario)


def test_the_consumer_handles_every_other_record_while_one_topic_cannot_be_read(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The consumer over the real driver, with a poisoned topic among others from the start."""

    async def scenario(scene: Scene) -> None:
        poisoned, sound = f"{scene.topic}-poisoned", f"{scene.topic}-sound"
        await scene.cluster.create(poisoned, 1)
        await scene.cluster.create(sound, 4)
        await raw_batches.produce(bootstrap(scene), poisoned, 0, batch([Raw(b"x")], compression="snappy"))
        library = codec.cramjam
        monkeypatch.setattr(codec, "cramjam", None)
        execution, sink = Recording(), scene.cluster.sink()
        tally, clock = Tally(), SystemClock()
        unreadable = UnreadablePartitions(clock, LIMITS, tally)
        subscriptions = [Subscription(topic, "order", "placed") for topic in (poisoned, sound)]
        log = scene.cluster.member(scene.group, {})
        consumer = Consumer(log, sink, execution, subscriptions, LIMITS, clock, tally, unreadable)
        running = asyncio.create_task(consumer.run())
        try:
            for number in range(600):
                await sink.produce(sound, b"%d" % number, b"%d" % (number % 97), ())
            await until(lambda: len(execution.delivered) >= 600 and bool(unreadable.present))
            assert sorted(int(event.input or b"") for event in execution.delivered) == list(range(600))
            assert [one.partition for one in unreadable.present] == [TopicPartition(poisoned, 0)]
            monkeypatch.setattr(codec, "cramjam", library)
            await until(lambda: len(execution.delivered) == 601 and not unreadable.present)
        finally:
            consumer.stop()
            await running

    play(scenario)


# --- clients that fail half-way -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [KafkaError("x"), OSError("x"), ValueError("x"), KeyError("x"), RecursionError(), MemoryError()], ids=repr
)
@pytest.mark.parametrize("where", ["fetching", "admitting"])
def test_an_error_of_any_class_after_records_were_fetched_loses_none_of_them(
    play: Play, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    """The positions of the client have moved by then."""

    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 2)
        member = await scene.join()
        await member.poll_until(lambda: len(member.owned) == 2)
        failures = 0

        def fail_after(real: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
            async def failing(*args: Any, **kwargs: Any) -> Any:
                nonlocal failures
                found = await real(*args, **kwargs)
                if found and failures < 3:
                    failures += 1
                    raise error
                return found

            return failing

        consumer = consumer_of(member)
        assert isinstance(member.log, KafkaEventLog)
        if where == "fetching":
            monkeypatch.setattr(consumer, "getmany", fail_after(consumer.getmany))
        else:
            # Only before it has taken note of them: what it admits is delivered.
            admit = member.log._member().admit

            async def failing_admit(batches: Any) -> Any:
                nonlocal failures
                if batches and failures < 3:
                    failures += 1
                    raise error
                return await admit(batches)

            monkeypatch.setattr(member.log._member(), "admit", failing_admit)
        for number in range(20):
            await raw_batches.produce(bootstrap(scene), scene.topic, number % 2, batch([Raw(b"%d" % number)]))
        async with asyncio.timeout(SETTLE_S):
            while len(member.records) < 20:
                try:
                    await member.poll()
                except LogUnavailableError:
                    await asyncio.sleep(0)
        assert failures == 3
        for partition in (0, 1):
            offsets = [record.offset for record in member.records if record.partition == partition]
            assert offsets == list(range(10))

    play(scenario)


def test_a_member_whose_fetching_ended_is_replaced(play: Play) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.cluster.create(scene.topic, 1)
        member = await scene.join()
        await scene.produce(*numbered(5))
        await member.poll_until(lambda: len(member.records) == 5)
        await member.log.commit({scene.tp(): 5})
        consumer_of(member)._fetcher._fetch_task.cancel()
        await scene.produce(*numbered(5, first=5))
        await member.poll_until(lambda: len(member.records) == 10)
        assert member.values == numbered(10)

    play(scenario)


def test_a_topic_that_is_deleted_while_it_is_read_holds_up_no_other(play: Play) -> None:
    async def scenario(scene: Scene) -> None:
        gone = f"{scene.topic}-gone"
        for topic in (scene.topic, gone):
            await scene.cluster.create(topic, 1)
        member = Member(scene.cluster.member(scene.group, {}))
        await member.log.start([scene.topic, gone], member)
        scene._stack.push_async_callback(member.log.stop)
        sink = scene.cluster.sink()
        for topic in (scene.topic, gone):
            await sink.produce(topic, b"before", b"k", ())
        await member.poll_until(lambda: len(member.records) == 2)
        lasted: list[float] = []

        async def commit() -> None:
            """As the consumer does when partitions are taken back."""
            loop = asyncio.get_running_loop()
            begun = loop.time()
            await member.log.commit({scene.tp(): 1, TopicPartition(gone, 0): 1})
            lasted.append(loop.time() - begun)

        member.on_revoked = commit
        await scene.cluster.delete(gone)
        await member.poll_until(lambda: member.owned == {scene.tp()})
        assert lasted
        assert max(lasted) < 1.0
        member.on_revoked = None
        await scene.produce(b"after")
        await member.poll_until(lambda: b"after" in member.values)
        assert member.log.unreadable() == []
        await member.log.commit({scene.tp(): 2})

    play(scenario)
