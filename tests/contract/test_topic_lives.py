"""One suite over the in-memory twin and a real broker: what the TopicLives port promises."""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest

from tenuto_control.config import KafkaConfig
from tenuto_control.core.routing import FORMER_LIFE, Subscription, life_of, route
from tenuto_control.drivers.topic_lives import KafkaTopicLives
from tenuto_control.limits import Limits
from tenuto_control.ports import EventLog, LogUnavailableError, RecordSink, TopicLives, TopicPartition
from tenuto_local.kafka_broker import KafkaBroker
from tests.contract.test_event_log import Member, MemoryCluster, RealCluster
from tests.support.memory_topic_lives import MemoryTopicLives

TEST_TIMEOUT_S = 60.0
LIMITS = Limits(topic_lives_timeout_ms=1_000, topic_lives_request_timeout_ms=500)
BUSY_MS_MAX = 200
"""Far above what a warm question takes, a few milliseconds, as the machine may be busy with other things."""


class Cluster(Protocol):
    """What the suite needs of either log."""

    async def create(self, topic: str, partitions: int) -> None: ...
    async def delete(self, topic: str) -> None: ...
    def member(self, group: str, starts: Any) -> EventLog: ...
    def sink(self) -> RecordSink: ...
    def lives(self) -> TopicLives: ...
    async def close(self) -> None: ...


class MemoryLives(MemoryCluster):
    def lives(self) -> TopicLives:
        return MemoryTopicLives(self._kafka)


class RealLives(RealCluster):
    def __init__(self, broker: KafkaBroker) -> None:
        super().__init__(broker)
        self._lives: list[KafkaTopicLives] = []

    def lives(self) -> TopicLives:
        lives = KafkaTopicLives(KafkaConfig(bootstrap_servers=self._broker.bootstrap_servers), Limits())
        self._lives.append(lives)
        return lives

    async def close(self) -> None:
        for lives in self._lives:
            await lives.stop()
        await super().close()


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.stack)])
def make_cluster(request: pytest.FixtureRequest) -> Callable[[], Cluster]:
    if request.param == "memory":
        return MemoryLives
    broker: KafkaBroker = request.getfixturevalue("broker")
    return lambda: RealLives(broker)


def play(make_cluster: Callable[[], Cluster], scenario: Callable[[Cluster, str], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(TEST_TIMEOUT_S):
            cluster = make_cluster()
            try:
                await scenario(cluster, f"t-{uuid4().hex[:8]}")
            finally:
                await cluster.close()

    asyncio.run(bounded())


def test_an_end_is_the_offset_that_comes_next(make_cluster: Callable[[], Cluster]) -> None:
    async def scenario(cluster: Cluster, topic: str) -> None:
        await cluster.create(topic, 2)
        sink, lives = cluster.sink(), cluster.lives()
        both = [TopicPartition(topic, 0), TopicPartition(topic, 1)]
        assert [life.end for life in (await lives.of(both)).values()] == [0, 0]
        for _ in range(3):
            await sink.produce(topic, b"v", b"k", ())
        told = await lives.of(both)
        assert sorted(told[tp].end for tp in both) == [0, 3]
        assert len({life.topic_id for life in told.values()}) == 1
        assert await lives.of([]) == {}

    play(make_cluster, scenario)


def test_a_topic_that_is_created_again_is_told_at_once_over_the_same_connection(
    make_cluster: Callable[[], Cluster],
) -> None:
    async def scenario(cluster: Cluster, topic: str) -> None:
        await cluster.create(topic, 1)
        sink, lives, tp = cluster.sink(), cluster.lives(), TopicPartition(topic, 0)
        seen: list[str] = []
        for _ in range(4):
            for _ in range(3):
                await sink.produce(topic, b"v", b"k", ())
            life = (await lives.of([tp]))[tp]
            assert life.end == 3
            seen.append(life.topic_id)
            await cluster.delete(topic)
            await cluster.create(topic, 1)
        assert len(set(seen)) == 4
        life = (await lives.of([tp]))[tp]
        # What was read of the life before lies beyond the end of this one.
        assert life_of(2, life.topic_id, life.end) == FORMER_LIFE + life.topic_id

    play(make_cluster, scenario)


def test_a_topic_that_is_not_there_is_named(make_cluster: Callable[[], Cluster]) -> None:
    async def scenario(cluster: Cluster, topic: str) -> None:
        with pytest.raises(LogUnavailableError, match="does not exist"):
            await cluster.lives().of([TopicPartition(topic, 0)])
        await cluster.create(topic, 1)
        with pytest.raises(LogUnavailableError, match="does not exist"):
            await cluster.lives().of([TopicPartition(topic, 1)])

    play(make_cluster, scenario)


def test_a_consumer_and_a_mapping_give_a_record_the_same_names(make_cluster: Callable[[], Cluster]) -> None:
    async def scenario(cluster: Cluster, topic: str) -> None:
        for _ in range(2):
            await cluster.create(topic, 1)
            await cluster.delete(topic)
        await cluster.create(topic, 1)
        await cluster.sink().produce(topic, b"v", b"k", ())
        member = Member(cluster.member(f"g-{topic}", {}))
        await member.log.start([topic], member)
        try:
            await member.poll_until(lambda: len(member.records) == 1)
        finally:
            await member.log.stop()
        (read,) = member.records
        tp = TopicPartition(topic, 0)
        life = (await cluster.lives().of([tp]))[tp]
        assert life_of(read.offset, life.topic_id, life.end) == read.topic_id != ""
        event = route(read, Subscription(topic, "box", "event"))
        assert f"0.{life.topic_id[:8]}" in str(event)

    play(make_cluster, scenario)


@pytest.mark.stack
def test_a_question_over_a_connection_that_is_there_takes_little(broker: KafkaBroker) -> None:
    async def scenario(cluster: Cluster, topic: str) -> None:
        await cluster.create(topic, 1)
        lives, tp = cluster.lives(), TopicPartition(topic, 0)
        took: list[float] = []
        for _ in range(51):
            began = time.perf_counter()
            await lives.of([tp])
            took.append((time.perf_counter() - began) * 1_000)
        first, *others = took
        print(f"\nfirst {first:.1f} ms, then {statistics.median(others):.2f} ms, at most {max(others):.1f} ms")
        assert statistics.median(others) < BUSY_MS_MAX

    play(lambda: RealLives(broker), scenario)


@pytest.mark.stack
def test_a_connection_that_broke_while_the_process_was_frozen_is_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = KafkaBroker(tmp_path)
        await broker.start()
        try:
            cluster, tp = RealLives(broker), TopicPartition("t", 0)
            await cluster.create("t", 1)
            lives = cluster.lives()
            before = await lives.of([tp])
            await broker.kill()
            await broker.restart()
            assert await lives.of([tp]) == before
            await cluster.close()
        finally:
            await broker.stop()

    asyncio.run(asyncio.wait_for(scenario(), TEST_TIMEOUT_S))


@pytest.mark.parametrize("answers", [False, True])
def test_brokers_that_do_not_answer_fail_in_time_with_a_way_out(*, answers: bool) -> None:
    """`answers`: somebody takes the connection, and says nothing."""

    async def scenario() -> None:
        # The system takes connections for a socket that listens, whether or not anybody reads them.
        silent = socket.create_server(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        if not answers:
            silent.close()
        lives = KafkaTopicLives(KafkaConfig(bootstrap_servers=f"127.0.0.1:{port}"), LIMITS)
        began = time.monotonic()
        try:
            with pytest.raises(
                LogUnavailableError, match=r"\(orders\).*delivered again: .*needs access to the brokers"
            ):
                await lives.of([TopicPartition("orders", 0)])
            assert time.monotonic() - began < 5
        finally:
            await lives.stop()
            silent.close()

    asyncio.run(scenario())
