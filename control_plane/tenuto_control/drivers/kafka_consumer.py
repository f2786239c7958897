"""The member of a consumer group as this project needs it: aiokafka's consumer, reading partition by partition.

Owns what is asked of aiokafka beyond its own interface, and what of its private parts is used for that. Does not own
what the answers mean (`kafka_membership`) nor how records are fetched (`kafka_fetcher`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import aiokafka
from aiokafka.consumer.fetcher import READ_COMMITTED, OffsetResetStrategy
from aiokafka.errors import KafkaError
from aiokafka.protocol.offset import OffsetRequest

from tenuto_control.drivers.kafka_fetcher import Bounds, PartitionFetcher
from tenuto_control.drivers.topic_ids import topic_ids
from tenuto_control.limits import Limits

OLDEST, NEXT = OffsetResetStrategy.EARLIEST, OffsetResetStrategy.LATEST
"""Which offset of a partition is asked for: that of its oldest record, or the one behind what can be read."""

NO_REPLICA = -1
NO_LEADER = -1


class GroupConsumer(aiokafka.AIOKafkaConsumer):  # type: ignore[misc] # the base class carries no types
    """A consumer that isolates partitions from each other, and also tells topic ids, offsets and commits."""

    def __init__(self, *, limits: Limits, **settings: Any) -> None:
        """`settings` are aiokafka's. Always reads what was committed alone."""
        super().__init__(**settings, isolation_level="read_committed")
        self._limits = limits

    async def start(self) -> None:
        """See aiokafka. Its fetcher has asked for nothing yet when another one takes its place."""
        await super().start()
        await self._fetcher.close()
        self._fetcher: PartitionFetcher = PartitionFetcher(
            self._client,
            self._subscription,
            self._limits,
            fetch_min_bytes=self._fetch_min_bytes,
            fetch_max_bytes=self._fetch_max_bytes,
            fetch_max_wait_ms=self._fetch_max_wait_ms,
            max_partition_fetch_bytes=self._max_partition_fetch_bytes,
            fetcher_timeout=self._consumer_timeout,
            retry_backoff_ms=self._retry_backoff_ms,
            auto_offset_reset=self._auto_offset_reset,
            isolation_level=self._isolation_level,
        )

    @property
    def broken(self) -> bool:
        """Whether a task of the client's has ended by itself, which only a fault of the client does."""
        task: asyncio.Task[None] | None = getattr(self._coordinator, "_coordination_task", None)
        return (task is not None and task.done()) or self._fetcher.ended

    def resume(self, *partitions: Any) -> None:
        """See aiokafka. What was fetched before the pause is handed out at once."""
        super().resume(*partitions)
        self._fetcher.resumed()

    async def disconnect(self) -> None:
        """Close the connections."""
        await self._client.close()

    # --- positions ------------------------------------------------------------------------------------------

    def read_to(self, tp: Any) -> int | None:
        """The offset that is read next of a partition, None while that is not known."""
        subscription = self._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        state = assignment.state_value(tp) if assignment is not None else None
        return state.position if state is not None and state.has_valid_position else None

    def bounds(self, tp: Any) -> Bounds | None:
        """What was told last of a partition's first offset and its end."""
        known: Bounds | None = self._fetcher.bounds.get(tp)
        return known

    def learn(self, tp: Any, bounds: Bounds) -> None:
        """Keep what was asked for apart from fetching."""
        self._fetcher.bounds[tp] = bounds

    def troubles(self, partitions: Collection[Any]) -> list[tuple[Any, int, str]]:
        """See `PartitionFetcher.troubles`."""
        return list(self._fetcher.troubles(partitions))

    # --- questions to brokers -------------------------------------------------------------------------------

    async def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        """See `topic_ids.topic_ids`."""
        return await topic_ids(self._client, topics)

    async def commits(self, partitions: Iterable[Any]) -> Mapping[Any, Any]:
        """Offset and metadata last committed, of those partitions that have some."""
        found: Mapping[Any, Any] = await self._coordinator.fetch_committed_offsets(list(partitions))
        return found

    async def commit_for_all(self, offsets: Mapping[Any, tuple[int, str]]) -> None:
        """Commit offsets also of partitions that are not this member's, in one request. Raises KafkaError."""
        told = {tp: aiokafka.OffsetAndMetadata(offset, metadata) for tp, (offset, metadata) in offsets.items()}
        await self._coordinator.commit_offsets(self._subscription.subscription.assignment, told)

    async def offsets(self, partitions: Iterable[Any], which: int) -> dict[Any, int]:
        """The oldest or the next offset of each partition that tells one; the others are left out."""
        led: dict[int, dict[str, list[tuple[int, int]]]] = {}
        for tp in partitions:
            leader = self._client.cluster.leader_for_partition(tp)
            if leader not in {None, NO_LEADER}:
                led.setdefault(leader, {}).setdefault(tp.topic, []).append((tp.partition, which))
        requests = {
            node: OffsetRequest(NO_REPLICA, READ_COMMITTED, list(topics.items())) for node, topics in led.items()
        }
        found: dict[Any, int] = {}
        for told in await asyncio.gather(*(self._ask(node, request) for node, request in requests.items())):
            for topic, answers in told:
                for partition, code, *_, offset in answers:
                    if code:
                        # Another broker leads it, or it is gone: it is asked about again soon.
                        self._client.force_metadata_update()
                    else:
                        found[aiokafka.TopicPartition(topic, partition)] = offset
        return found

    async def _ask(self, node: int, request: Any) -> Any:
        try:
            return (await self._client.send(node, request)).topics
        except (KafkaError, OSError):
            return ()
