"""Records of the broker that a real environment runs: one is produced, or all of a topic are read.

Owns the clients of Kafka in tests, and how much of a topic a test may read. Does not own the time that this may take,
which is the environment's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tenuto.testing.errors import HarnessError, NoSuchHandlerError
from tenuto.testing.views import Record

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, TopicPartition

RECORDS_MAX: Final = 10_000
"""Records of a topic that `published` returns: a test that looks at more would rather count its own."""

BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes of their keys and values: they are all in the memory of the test's process."""

FETCH_MS: Final = 200
"""Milliseconds that one fetch waits for records."""


@dataclass(frozen=True, slots=True)
class RealTopics:
    """The topics of a broker, with their partitions, and the records that tests have put there."""

    servers: str
    partitions: Mapping[str, int]
    sent: set[tuple[str, int, int]] = field(default_factory=set)

    async def produce(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Collection[tuple[str, bytes]]
    ) -> None:
        """Produce one record, which `published` leaves out."""
        from aiokafka import AIOKafkaProducer

        producer = AIOKafkaProducer(bootstrap_servers=self.servers, enable_idempotence=True)
        try:
            await producer.start()
            taken = await producer.send_and_wait(topic, value, key=key, headers=list(headers))
        finally:
            await producer.stop()
        self.sent.add((topic, taken.partition, taken.offset))

    async def published(self, topic: str) -> list[Record]:
        """The records of a topic, from the oldest to the current end, in the order of their timestamps.

        Raises NoSuchHandlerError for a topic that the broker does not have, and HarnessError for more than
        `RECORDS_MAX` records or `BYTES_MAX` bytes.
        """
        from aiokafka import AIOKafkaConsumer, TopicPartition

        if topic not in self.partitions:
            known = ", ".join(sorted(self.partitions)) or "none"
            raise NoSuchHandlerError(
                f"this environment has no topic {topic}; it has {known}. Name those that handlers publish to: "
                f"RealEnvironment(..., publishes=[{topic!r}])"
            )
        # With the default, "latest", the answer to a reset of before `seek_to_beginning` would be taken for its own.
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.servers, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        try:
            await consumer.start()
            partitions = [TopicPartition(topic, number) for number in range(self.partitions[topic])]
            consumer.assign(partitions)
            return await self._read(consumer, topic, partitions)
        finally:
            await consumer.stop()

    def _ends(self, told: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Where each partition ends, by the broker, or by a later record that a test has put there."""
        ends = dict(told)
        for topic, number, offset in self.sent:
            partition = next((one for one in told if (one.topic, one.partition) == (topic, number)), None)
            if partition is not None:
                ends[partition] = max(ends[partition], offset + 1)
        return ends

    async def _read(self, consumer: AIOKafkaConsumer, topic: str, partitions: list[TopicPartition]) -> list[Record]:
        begins = await consumer.beginning_offsets(partitions)
        ends = self._ends(await consumer.end_offsets(partitions))
        there = sum(ends[one] - begins[one] for one in partitions)
        if there > RECORDS_MAX:
            raise HarnessError(
                f"topic {topic} has {there:,} records, and env.published returns at most {RECORDS_MAX:,}"
            )
        await consumer.seek_to_beginning(*partitions)
        found: list[tuple[int, Record]] = []
        size = 0
        while any([await consumer.position(one) < end for one, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=FETCH_MS)).values():
                size += sum(len(one.key or b"") + len(one.value or b"") for one in records)
                if size > BYTES_MAX:
                    raise HarnessError(
                        f"the records of topic {topic} have more than {BYTES_MAX:,} bytes, which is as much as "
                        "env.published reads"
                    )
                found += [
                    (one.timestamp, Record(topic, one.key, one.value, tuple(one.headers)))
                    for one in records
                    if (topic, one.partition, one.offset) not in self.sent
                ]
        return [record for _, record in sorted(found, key=lambda one: one[0])]
