"""Record batches byte by byte, for what no producer of a client library sends, and the request that produces them.

Owns the encoding of format 2. Does not own what reads it.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import codec
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c

CHECKED = struct.Struct(">hiqqqhii")
"""Attributes, last offset delta, first and largest timestamp, producer id and epoch, sequence, number of records."""

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
TRANSACTIONAL, CONTROL = 0x10, 0x20
PRODUCED_MS = 1_700_000_000_000
TIMEOUT_MS = 5_000
TRIES_MAX = 100
NOT_YET = (3, 5, 6)
"""What a broker answers while a topic is being created: unknown, without a leader, led by another one."""


@dataclass(frozen=True)
class Raw:
    """A record. `body` replaces everything behind its length; a name of None is a header without one."""

    value: bytes | None = b"v"
    key: bytes | None = b"k"
    headers: Sequence[tuple[bytes | None, bytes | None]] = ()
    delta: int | None = None
    since_ms: int = 0
    body: bytes | None = None


def varint(number: int) -> bytes:
    """A number in Kafka's zigzag form."""
    left = (number << 1) ^ (number >> 63)
    encoded = bytearray()
    while left > 0x7F:
        encoded.append(0x80 | (left & 0x7F))
        left >>= 7
    return bytes([*encoded, left])


def text(content: bytes | None) -> bytes:
    """A field with its length before it."""
    return varint(-1) if content is None else varint(len(content)) + content


def record(raw: Raw, index: int) -> bytes:
    """A record as it lies in a batch."""
    body = raw.body
    if body is None:
        delta = index if raw.delta is None else raw.delta
        headers = b"".join(text(name) + text(content) for name, content in raw.headers)
        count = varint(len(raw.headers))
        body = b"\0" + varint(raw.since_ms) + varint(delta) + text(raw.key) + text(raw.value) + count + headers
    return varint(len(body)) + body


def compressed(content: bytes, name: str) -> bytes:
    """Content as a producer with that codec sends it."""
    if name == "none":
        return content
    encoded: Any = getattr(codec, f"{name}_encode")(content)
    return bytes(encoded)


def batch(
    records: Sequence[Raw],
    *,
    base: int = 0,
    compression: str = "none",
    attributes: int = 0,
    last: int | None = None,
    producer: int = -1,
    first_ms: int = PRODUCED_MS,
    count: int | None = None,
    content: bytes | None = None,
    version: int = 2,
) -> bytes:
    """A batch with a sound checksum, whatever else it is. `content` replaces the records as they are stored."""
    if content is None:
        content = compressed(b"".join(record(raw, index) for index, raw in enumerate(records)), compression)
    count = len(records) if count is None else count
    last = max(0, count - 1) if last is None else last
    attributes |= CODECS[compression]
    epoch, sequence = (-1, -1) if producer < 0 else (0, 0)
    largest_ms = min(2**63 - 1, max([first_ms, *(first_ms + raw.since_ms for raw in records)]))
    checked = CHECKED.pack(attributes, last, first_ms, largest_ms, producer, epoch, sequence, count) + content
    framed = struct.pack(">ibI", 0, version, calc_crc32c(checked)) + checked
    return struct.pack(">qi", base, len(framed)) + framed


async def produce(bootstrap_servers: str, topic: str, partition: int, raw: bytes) -> int:
    """Hand a batch to a broker as it is, and return its first offset. Raises the error of a broker that refuses it."""
    client = AIOKafkaClient(bootstrap_servers=bootstrap_servers)
    client.set_topics({topic})
    try:
        await client.bootstrap()
        code = first = -1
        for _ in range(TRIES_MAX):
            request = ProduceRequest(None, -1, TIMEOUT_MS, [(topic, [(partition, raw)])])
            answer = await client.send(client.get_random_node(), request)
            ((_, ((_, code, first, *_),)),) = answer.topics
            if code not in NOT_YET:
                break
            await asyncio.sleep(0.05)
    finally:
        await client.close()
    if code:
        raise for_code(code)(topic)
    return int(first)
