"""What a sink says of topics that are not there, cannot be, or do not take a record: at once, and of that record alone.

The in-memory twin and the driver over a real broker pass the same tests. Does not own sizes (`test_event_log`).
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tenuto_control.config import KafkaConfig
from tenuto_control.drivers.kafka import KafkaSink
from tenuto_control.limits import Limits
from tenuto_control.ports import RecordRefusedError, RecordSink, TopicUnusableError
from tenuto_local.kafka_broker import KafkaBroker
from tests.support.memory_kafka import MemoryKafka

Play = Callable[[Callable[[RecordSink, Callable[..., Awaitable[None]]], Awaitable[None]]], None]
IMPOSSIBLE = ("a topic", "", ".", "..", "t/x", "ü", "x" * 250, "a\nb", "\udce9")


@pytest.fixture(params=["memory", pytest.param("broker", marks=pytest.mark.stack)])
def play(request: pytest.FixtureRequest) -> Iterator[Play]:
    """Plays a scenario with a sink, and with what creates a topic."""

    async def in_memory(scenario: Any) -> None:
        kafka = MemoryKafka()

        async def create(topic: str, **_configs: str) -> None:
            kafka.create_topic(topic)

        await scenario(kafka.sink(), create)

    async def on_broker(scenario: Any, broker: KafkaBroker) -> None:
        sink = KafkaSink(KafkaConfig(bootstrap_servers=broker.bootstrap_servers), Limits())
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        await admin.start()

        async def create(topic: str, **configs: str) -> None:
            await admin.create_topics([NewTopic(topic, 1, 1, topic_configs=configs)])

        try:
            await scenario(sink, create)
        finally:
            await admin.close()
            await sink.stop()

    if request.param == "memory":
        yield lambda scenario: asyncio.run(in_memory(scenario))
    else:
        broker = request.getfixturevalue("broker")
        yield lambda scenario: asyncio.run(on_broker(scenario, broker))


def test_a_topic_that_is_not_there_is_said_at_once_and_used_once_it_is(play: Play) -> None:
    topic = f"later-{uuid.uuid4().hex}"

    async def scenario(sink: RecordSink, create: Any) -> None:
        begun = time.monotonic()
        for _ in range(5):
            with pytest.raises(TopicUnusableError, match=rf'topic "{topic}" does not exist; create it'):
                await sink.produce(topic, b"v", b"k", ())
        assert time.monotonic() - begun < 5
        await create(topic)
        async with asyncio.timeout(10):
            while True:
                try:
                    await sink.produce(topic, b"v", b"k", ())
                except TopicUnusableError:
                    await asyncio.sleep(0.1)
                else:
                    return

    play(scenario)


def test_a_name_that_no_topic_can_have_is_refused_at_once(play: Play) -> None:
    async def scenario(sink: RecordSink, _create: Any) -> None:
        begun = time.monotonic()
        for topic in IMPOSSIBLE:
            for size in (1, 100_000):
                with pytest.raises(RecordRefusedError):
                    await sink.produce(topic, bytes(size), b"k", ())
        assert time.monotonic() - begun < 5

    play(scenario)


def test_other_records_are_not_disturbed(play: Play) -> None:
    topic = f"fine-{uuid.uuid4().hex}"

    async def scenario(sink: RecordSink, create: Any) -> None:
        await create(topic)

        async def missing(number: int) -> None:
            with pytest.raises(TopicUnusableError):
                await sink.produce(f"missing-{number}", b"v", b"k", ())

        async def fine() -> None:
            begun = time.monotonic()
            await sink.produce(topic, b"v", b"k", ())
            assert time.monotonic() - begun < 5

        for _ in range(3):
            await asyncio.gather(*(missing(n) for n in range(5)), *(fine() for _ in range(5)))

    play(scenario)


@pytest.mark.stack
def test_the_clients_own_log_does_not_flood(broker: KafkaBroker, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        sink = KafkaSink(KafkaConfig(bootstrap_servers=broker.bootstrap_servers), Limits())
        try:
            for number in range(60):
                with pytest.raises(TopicUnusableError):
                    await sink.produce(f"nowhere-{number % 3}", b"v", b"k", ())
        finally:
            await sink.stop()

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    # pytest listens to the client's own logger as well, which hands nothing on.
    ours = [record for record in caplog.records if record.name.startswith("tenuto")]
    assert len(ours) <= 1


@pytest.mark.stack
def test_a_record_that_its_topic_never_takes_is_told_from_a_broker_that_is_away(broker: KafkaBroker) -> None:
    topic = f"compacted-{uuid.uuid4().hex}"

    async def scenario() -> None:
        sink = KafkaSink(KafkaConfig(bootstrap_servers=broker.bootstrap_servers), Limits())
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"cleanup.policy": "compact"})])
            for _ in range(2):
                with pytest.raises(TopicUnusableError):
                    await sink.produce(topic, b"no key", None, ())
                await sink.produce(topic, b"v", b"k", ())
        finally:
            await admin.close()
            await sink.stop()

    asyncio.run(scenario())
