"""The engines of the embedded stack's broker: each carries records in order to a group that commits.

Owns what every engine does for the stack. What only Apache Kafka does is in `tests/contract`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from tenuto_local import tansu
from tenuto_local.broker_engine import ENGINES, NATIVE, BrokerKind
from tenuto_local.cache import silent
from tenuto_local.topics import create_topics
from tests.support.stack import run

pytestmark = pytest.mark.stack
TOPIC = "carried"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> BrokerKind:
    """Each engine; skipped where its program cannot be had."""
    if request.param == NATIVE.name and not tansu.available():
        pytest.skip("there is no tansu on this machine")
    return ENGINES[request.param]


async def consume(servers: str, count: int, *, joins: bool) -> list[bytes | None]:
    """The values of so many records from where the group has committed; a member commits behind them.

    A reader that does not join takes the partition by itself: tansu lets a new member wait until the session of the one
    before it has expired, though that one has left.
    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers, group_id="g", auto_offset_reset="earliest", enable_auto_commit=False
    )
    if joins:
        consumer.subscribe([TOPIC])
    else:
        consumer.assign([TopicPartition(TOPIC, 0)])
    try:
        await consumer.start()
        values = [(await consumer.getone()).value for _ in range(count)]
        if joins:
            await consumer.commit()
        return values
    finally:
        await consumer.stop()


async def produce(servers: str, values: list[bytes]) -> None:
    """Produce these, one after the other, with a key and a header."""
    producer = AIOKafkaProducer(bootstrap_servers=servers)
    try:
        await producer.start()
        for value in values:
            await producer.send_and_wait(TOPIC, value, b"k", headers=[("n", b"1")])
    finally:
        await producer.stop()


def test_records_reach_a_group_in_order_and_once(engine: BrokerKind, tmp_path: Path) -> None:
    values = [str(number).encode() for number in range(6)]

    async def scenario() -> None:
        broker = engine.make(tmp_path, None, silent)
        await broker.start()
        try:
            servers = broker.bootstrap_servers
            await create_topics(servers, {TOPIC: 1})
            await produce(servers, values)
            first = await consume(servers, 4, joins=True)
            second = await consume(servers, 2, joins=False)
            assert first + second == values
        finally:
            await broker.stop()

    run(scenario())
