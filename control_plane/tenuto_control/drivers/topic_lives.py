"""Which life of its topic a partition is in now, asked of the broker that serves it (the TopicLives port).

Owns one client, kept between calls because connecting takes longer than asking, and how one that went bad is replaced.
Does not own the request for ids (`topic_ids`), nor what a life means for a record (`core.routing`).

Only the leader's word counts. It has handed out the records, so it knows the life that they are of; another broker may
not have heard yet that a topic was created again. Its id is asked before its end: should the topic be created again in
between, records look as if they lay beyond the end, and never as if they were of a life that they are not of.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    KafkaError,
    LeaderNotAvailableError,
    NotLeaderForPartitionError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.offset import OffsetRequest, OffsetResetStrategy

from tenuto_control.config import KafkaConfig
from tenuto_control.drivers.kafka_client import connection_settings, describe, kafka_errors_only, quiet_client_log
from tenuto_control.drivers.topic_ids import NoTopicIdsError, ToldTopic, told_topics
from tenuto_control.limits import Limits
from tenuto_control.ports import Life, LogUnavailableError, TopicPartition

RETRY_PAUSE_S = 0.1
CLOSE_TIMEOUT_S = 1.0

NO_REPLICA = -1
READ_UNCOMMITTED = 0
"""The end of all records: what a mapping has read lies below it, however it reads transactions."""

_log = logging.getLogger("tenuto_control.kafka")
# Timeouts are among the operating system's errors.
_ERRORS = (KafkaError, OSError)


class KafkaTopicLives:
    """Asks one question at a time; connects with the first one."""

    def __init__(self, kafka: KafkaConfig, limits: Limits) -> None:
        self._kafka = kafka
        self._timeout_s = limits.topic_lives_timeout_ms / 1_000
        self._settings = connection_settings(kafka, limits) | {
            "request_timeout_ms": min(limits.topic_lives_request_timeout_ms, limits.topic_lives_timeout_ms)
        }
        self._client: Any = None
        self._leaders: dict[TopicPartition, int] = {}

    async def of(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Life]:
        """See `TopicLives.of`."""
        if not partitions:
            return {}
        failure: BaseException | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    try:
                        with kafka_errors_only():
                            return await self._ask(partitions)
                    except _ERRORS as e:
                        failure = e
                        await self._start_over(e)
                        await asyncio.sleep(RETRY_PAUSE_S)
        except TimeoutError as e:
            topics = ", ".join(sorted({tp.topic for tp in partitions}))
            raise LogUnavailableError(
                f"the ids of the topics of a batch ({topics}) are not known, so none of it was run and it must be "
                f"delivered again: {describe(failure or e, self._kafka)}; the dispatcher needs access to the brokers "
                "and permission to describe these topics"
            ) from (failure or e)

    async def stop(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            await _close(client)

    async def _ask(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, Life]:
        client = await self._connected(partitions)
        try:
            await self._find_leaders(client, partitions)
            led: dict[int, list[TopicPartition]] = {}
            for tp in sorted(partitions):
                led.setdefault(self._leaders[tp], []).append(tp)
            lives: dict[TopicPartition, Life] = {}
            for told in await asyncio.gather(*(self._ask_leader(client, node, tps) for node, tps in led.items())):
                lives |= told
        except NoTopicIdsError:
            return dict.fromkeys(partitions, Life("", 0))
        return lives

    async def _connected(self, partitions: Iterable[TopicPartition]) -> Any:
        if self._client is None:
            quiet_client_log()
            client = AIOKafkaClient(**self._settings)
            # Without names, it would keep itself informed about every topic of the cluster.
            client.set_topics({tp.topic for tp in partitions})
            try:
                await client.bootstrap()
            except BaseException:
                await _close(client)
                raise
            self._client = client
        return self._client

    async def _find_leaders(self, client: Any, partitions: Iterable[TopicPartition]) -> None:
        unknown = [tp for tp in partitions if tp not in self._leaders]
        if unknown:
            told = await told_topics(client, client.get_random_node(), {tp.topic for tp in unknown})
            self._leaders.update((tp, _leader(told, tp)) for tp in unknown)

    async def _ask_leader(self, client: Any, node: int, led: Collection[TopicPartition]) -> dict[TopicPartition, Life]:
        told = await told_topics(client, node, {tp.topic for tp in led})
        for tp in led:
            if _leader(told, tp) != node:
                raise NotLeaderForPartitionError(tp)
        ends = await _ends(client, node, led)
        return {tp: Life(told[tp.topic].topic_id, ends[tp]) for tp in led}

    async def _start_over(self, error: BaseException) -> None:
        """Forget what may have led to an error: who leads, and a connection that may be dead."""
        _log.debug("asking for the ids of topics: %s", error)
        self._leaders.clear()
        if not isinstance(error, NotLeaderForPartitionError | LeaderNotAvailableError | UnknownTopicOrPartitionError):
            await self.stop()


def _leader(told: Mapping[str, ToldTopic], tp: TopicPartition) -> int:
    if tp.topic not in told or tp.partition not in told[tp.topic].leaders:
        raise UnknownTopicOrPartitionError(f"{tp.topic}-{tp.partition}")
    node = told[tp.topic].leaders[tp.partition]
    if node < 0:
        raise LeaderNotAvailableError(f"{tp.topic}-{tp.partition}")
    return node


async def _ends(client: Any, node: int, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
    topics: dict[str, list[tuple[int, int]]] = {}
    for tp in partitions:
        topics.setdefault(tp.topic, []).append((tp.partition, OffsetResetStrategy.LATEST))
    answer = await client.send(node, OffsetRequest(NO_REPLICA, READ_UNCOMMITTED, list(topics.items())))
    ends: dict[TopicPartition, int] = {}
    for topic, told in answer.topics:
        for partition, code, _timestamp, offset in told:
            if code:
                raise for_code(code)(f"{topic}-{partition}")
            ends[TopicPartition(topic, partition)] = offset
    return ends


async def _close(client: Any) -> None:
    """Disconnect a client. One that cannot even do that has nothing more to say than what was raised before."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            with kafka_errors_only():
                await client.close()
    except _ERRORS as e:
        _log.debug("closing a Kafka client: %s", e)
