"""Kafka event source mapping: the batches of records by which Lambda polls Kafka for a function, and their answer.

Owns the translation of a batch into records and of what is left unfinished into a partial batch response (AWS Lambda
developer guide, "Using Lambda with Amazon MSK" and "… self-managed Apache Kafka"). Does not own what a record means
(the control plane's routing).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from tenuto.errors import ProtocolError
from tenuto.serde import problem_of

SOURCES = ("aws:kafka", "SelfManagedKafka")
"""Values of `eventSource`: Amazon MSK, and everything else that speaks Kafka."""


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """One record of a batch. A `value` of None is a tombstone; Lambda does not tell the `topic_id`."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    topic_id: str = ""


class _Record(msgspec.Struct, rename="camel"):
    topic: str
    partition: int
    offset: int
    timestamp: int = 0
    key: str | None = None
    value: str | None = None
    headers: list[dict[str, list[int] | None]] = []


class _Batch(msgspec.Struct, rename="camel"):
    event_source: str
    records: dict[str, list[_Record]]


def is_batch(event: Any) -> bool:
    """Whether a payload comes from a Kafka event source mapping."""
    return isinstance(event, dict) and event.get("eventSource") in SOURCES


def read(event: Any) -> list[SourceRecord]:
    """The records of a batch, in offset order for each partition. Raises ProtocolError for what is no batch."""
    try:
        batch = msgspec.convert(event, _Batch)
        records = [_read_one(raw) for partition in batch.records.values() for raw in partition]
    except msgspec.ValidationError as e:
        raise ProtocolError(f"this is not a batch of a Kafka event source mapping: {problem_of(e)}") from None
    except (binascii.Error, ValueError) as e:
        raise ProtocolError(f"this is not a batch of a Kafka event source mapping: {e}") from None
    return sorted(records, key=lambda record: (record.topic, record.partition, record.offset))


def answer(unfinished: Iterable[SourceRecord]) -> dict[str, Any]:
    """The partial batch response: of each partition the lowest record that has to come again, with all behind it."""
    lowest: dict[str, int] = {}
    for record in unfinished:
        partition = f"{record.topic}-{record.partition}"
        lowest[partition] = min(record.offset, lowest.get(partition, record.offset))
    items = [{"partition": partition, "offset": offset} for partition, offset in sorted(lowest.items())]
    return {"batchItemFailures": [{"itemIdentifier": item} for item in items]}


def _read_one(raw: _Record) -> SourceRecord:
    # AWS spells a header's bytes as numbers, which Java's signed bytes may make negative.
    headers = tuple(
        (name, bytes(b % 256 for b in data or ())) for header in raw.headers for name, data in header.items()
    )
    return SourceRecord(
        raw.topic, raw.partition, raw.offset, raw.timestamp, _bytes(raw.key), _bytes(raw.value), headers
    )


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)
