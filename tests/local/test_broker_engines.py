"""The engines of the embedded stack's broker: each carries records in order to a group that commits.

Owns what every engine does for the stack. What only Apache Kafka does is in `tests/contract`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from tenuto_local import tansu
from tenuto_local.broker_engine import ENGINES, NATIVE, BrokerKind
from tenuto_local.cache import silent
from tenuto_local.topics import create_topics

pytestmark = pytest.mark.stack
TOPIC = "carried"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> BrokerKind:
    """Each engine; skipped where its program cannot be had."""
    if request.param == NATIVE.name and not tansu.available():
        pytest.skip("there is no tansu on this machine")
    return ENGINES[request.param]


async def read(servers: str, count: int) -> list[tuple[bytes | None, bytes | None]]:
    """So many records as a member of a group, whose offsets are committed."""
    consumer = AIOKafkaConsumer(TOPIC, bootstrap_servers=servers, group_id="g", auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            records = [await consumer.getone() for _ in range(count)]
        await consumer.commit()
        return [(record.key, record.value) for record in records]
    finally:
        await consumer.stop()


def test_records_reach_a_group_in_order_and_once(engine: BrokerKind, tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = engine.make(tmp_path, None, silent)
        await broker.start()
        try:
            servers = broker.bootstrap_servers
            await create_topics(servers, {TOPIC: 1})
            producer = AIOKafkaProducer(bootstrap_servers=servers)
            await producer.start()
            try:
                for number in range(6):
                    await producer.send_and_wait(TOPIC, str(number).encode(), b"k", headers=[("n", b"1")])
            finally:
                await producer.stop()
            first, second = await read(servers, 4), await read(servers, 2)
            assert [value for _, value in first + second] == [str(number).encode() for number in range(6)]
        finally:
            await broker.stop()

    asyncio.run(scenario())
