"""The ids by which brokers tell one life of a topic from the next one of the same name.

Owns the one request that aiokafka does not have: Metadata version 10 (Kafka 2.8, KIP-516), whose answer holds topic
ids. Does not own when they are asked for, nor what follows when one has changed (`kafka_membership`, `topic_lives`).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from aiokafka.errors import UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

METADATA_API = 3
METADATA_VERSION = 10
ID_BYTES = 16
NO_ID = uuid.UUID(int=0)
"""Also used by the protocol for "this topic has no id": a cluster that was never upgraded beyond Kafka 2.7."""

LEADER_NOT_AVAILABLE = 5
"""A topic that has just been created. Its id is known already."""


class NoTopicIdsError(Exception):
    """The broker speaks no version of the protocol that has topic ids."""


async def topic_ids(client: Any, topics: Iterable[str]) -> dict[str, str]:
    """Of each topic that exists its id, 32 hexadecimal digits; "" from brokers that tell none.

    A topic that the broker has only an error for is left out: the others must not wait for it. `client` is an aiokafka
    client, as a consumer or producer holds one. Raises KafkaError.
    """
    wanted = sorted(topics)
    if not wanted:
        return {}
    try:
        told = await told_topics(client, client.get_random_node(), wanted, strict=False)
    except NoTopicIdsError:
        return dict.fromkeys(wanted, "")
    return {topic: one.topic_id for topic, one in told.items()}


@dataclass(frozen=True, slots=True)
class ToldTopic:
    """What a broker tells of a topic: its id, "" for none, and which node leads each of its partitions (-1: none)."""

    topic_id: str
    leaders: Mapping[int, int]


async def told_topics(
    client: Any, node: int | None, topics: Iterable[str], *, strict: bool = True
) -> dict[str, ToldTopic]:
    """What one broker knows of each topic that exists. Raises KafkaError, and NoTopicIdsError for a broker too old.

    Unless `strict`, topics with their own error are left out.
    """
    answer = await client.send(node, _TopicIdsRequest(sorted(topics)))
    told: dict[str, ToldTopic] = {}
    for code, topic, identity, _internal, partitions, *_ in answer.topics:
        if code == UnknownTopicOrPartitionError.errno:
            continue
        if code not in (0, LEADER_NOT_AVAILABLE):
            if strict:
                raise for_code(code)(topic)
            continue
        leaders = {partition: leader for _code, partition, leader, *_ in partitions}
        told[topic] = ToldTopic("" if identity == NO_ID else identity.hex, leaders)
    return told


class _Uuid(AbstractType):  # type: ignore[misc] # the base class carries no types
    @classmethod
    def encode(cls, value: uuid.UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> uuid.UUID:
        return uuid.UUID(bytes=data.read(ID_BYTES))

    @classmethod
    def repr(cls, value: uuid.UUID) -> str:
        return str(value)


class _MetadataResponseV10(Response):  # type: ignore[misc] # the base class carries no types
    API_KEY = METADATA_API
    API_VERSION = METADATA_VERSION
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataRequestV10(RequestStruct):  # type: ignore[misc] # the base class carries no types
    FLEXIBLE_VERSION = True
    API_KEY = METADATA_API
    API_VERSION = METADATA_VERSION
    RESPONSE_TYPE = _MetadataResponseV10
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("topic", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicIdsRequest(Request[_MetadataRequestV10]):  # type: ignore[misc] # the base class carries no types
    API_KEY = METADATA_API

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def prepare(self, versions: Mapping[int, tuple[int, int]]) -> Any:
        """Tell a broker that is too old from one that no longer speaks this version, which is an error."""
        if versions[METADATA_API][1] < METADATA_VERSION:
            raise NoTopicIdsError
        return super().prepare(versions)

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class([(NO_ID, topic, {}) for topic in self._topics], False, False, False, {})
