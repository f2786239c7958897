"""The broker: what it acknowledged survives a SIGKILL, and topics exist only when created."""

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from tenuto_local import ConfigurationError, EmbeddedStack, create_topics
from tests.support.stack import run

pytestmark = pytest.mark.stack


async def produce(bootstrap_servers: str, topic: str, values: list[bytes]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all", enable_idempotence=True) as producer:
        for value in values:
            await producer.send_and_wait(topic, value, key=value)


async def consume(bootstrap_servers: str, topic: str, partitions: int, count: int) -> list[bytes]:
    """Read all the records of a topic, of which there must be `count`."""
    values: list[bytes] = []
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest") as consumer:
        assigned = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(assigned)
        assert sum((await consumer.end_offsets(assigned)).values()) == count
        while len(values) < count:
            for records in (await consumer.getmany(timeout_ms=5000)).values():
                values += [record.value for record in records]
    return values


def test_records_arrive_in_order(stack: EmbeddedStack) -> None:
    async def scenario() -> None:
        await create_topics(stack.bootstrap_servers, {"orders": 1})
        await produce(stack.bootstrap_servers, "orders", [b"a", b"b", b"c"])
        assert await consume(stack.bootstrap_servers, "orders", 1, 3) == [b"a", b"b", b"c"]

    run(scenario())


def test_creating_an_existing_topic_again_changes_nothing(stack: EmbeddedStack) -> None:
    run(create_topics(stack.bootstrap_servers, {"twice": 2}))
    run(create_topics(stack.bootstrap_servers, {"twice": 2}))


def test_an_invalid_topic_name_is_a_clear_error(stack: EmbeddedStack) -> None:
    with pytest.raises(ConfigurationError, match="no spaces"):
        run(create_topics(stack.bootstrap_servers, {"no spaces": 1}))


def test_a_killed_broker_has_every_acknowledged_record(stack: EmbeddedStack) -> None:
    async def scenario() -> None:
        values = [f"{number}".encode() for number in range(500)]
        await create_topics(stack.bootstrap_servers, {"ledger": 4})
        await produce(stack.bootstrap_servers, "ledger", values)
        pid, address = stack.broker.pid, stack.bootstrap_servers
        await stack.broker.kill()
        await stack.broker.restart()
        assert stack.broker.pid != pid
        assert stack.bootstrap_servers == address
        assert sorted(await consume(address, "ledger", 4, 500)) == sorted(values)
        await produce(address, "ledger", [b"after"])

    run(scenario())
