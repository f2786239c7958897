"""Dead letters: what carries an event that ended without effect to where somebody finds it, and why.

Owns which events have one and of which kind (a record of Kafka goes to its dead-letter topic, a message to the table),
the headers of the former, and the items of the latter. Does not own the decision that an event has failed
(`tenuto.runtime`, `tenuto_control.dispatcher`), nor when a letter is put, listed or run again (`tenuto_control`).

A letter of the table is a message that ended unseen, or a record that no topic takes. It is one item in one of
`LETTER_SHARDS` partitions of their own, so that all of them are found by as many queries and never by a scan. What is
large of it is in parts, in its own partition, put before: a listing reads no payload.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, assert_never

import msgspec
from msgspec.structs import replace

from tenuto.lane.tombstones import is_tombstone, tombstone_at
from tenuto.lane.writes import Absent, Equals, Key, Put, Update, Value
from tenuto.protocol.decoding import bounded
from tenuto.protocol.ids import digest
from tenuto.protocol.limits import INLINE_BYTES_MAX, VALUE_BYTES_MAX
from tenuto.protocol.records import (
    BuriedOut,
    CallSource,
    Event,
    Failed,
    KafkaSource,
    MessageSource,
    Out,
    PublishOut,
    Result,
)

REASON_BYTES_MAX = 2_000
REASON_HEADERS = 6
"""So many headers of a dead letter, the last ones, are not the event's own."""

LETTER_SHARDS: Final = 16
"""Partitions that letters are spread over: a storm of failures puts thousands a second (DynamoDB: 1,000 write units a
second for each partition)."""

LETTERS_LOW, LETTERS_HIGH = "0", "g"
"""Bounds of a query for the letters of a partition: their names are hexadecimal."""


# --- which events have one -------------------------------------------------------------------------------------------


def dead_letter(
    event: Event,
    reason: str,
    value_item: str | None = None,
    *,
    status_code: int = 500,
    at_ms: int = 0,
    first_ms: int = 0,
    attempts: int = 0,
) -> PublishOut | BuriedOut | None:
    """What carries a failed event to the dead letters, with where it came from and why it is there.

    None when a caller waits for its result, who hears of the failure. `value_item` names the item that holds its input.
    """
    source = event.source
    if isinstance(source, KafkaSource) and source.dead_letter is not None:
        return _record(event, source, source.dead_letter, reason, value_item)
    if not unseen(event):
        return None
    if value_item is not None:
        event = replace(event, input=None)
    return BuriedOut(event, cut(reason), status_code, at_ms, first_ms, attempts, value_item)


def ends_unseen(
    event: Event,
    result: Result,
    value_item: str | None = None,
    *,
    at_ms: int = 0,
    first_ms: int = 0,
    attempts: int = 0,
) -> BuriedOut | None:
    """The dead letter of a message whose handler ended it by a terminal error; None for every other end.

    A handler's terminal error is its decision, so a record of Kafka that ends by one is handled. Of a message, nobody
    would ever know.
    """
    if not isinstance(result, Failed) or isinstance(event.source, KafkaSource):
        return None
    failure = result.failure
    status, reason = failure.status_code, failure.message
    letter = dead_letter(
        event, reason, value_item, status_code=status, at_ms=at_ms, first_ms=first_ms, attempts=attempts
    )
    return replace(letter, foreign=failure.foreign) if isinstance(letter, BuriedOut) else None


def unseen(event: Event) -> bool:
    """Whether nobody waits for an event's result."""
    match event.source:
        case KafkaSource() | MessageSource():
            return True
        case CallSource(one_way=one_way):
            return one_way
        case _:
            assert_never(event.source)


def is_dead_letter(entry: Out) -> bool:
    """Whether an outgoing entry is a dead letter. Such a one goes past the outbox when it is large."""
    return isinstance(entry, BuriedOut) or (isinstance(entry, PublishOut) and entry.dead)


def item_of(entry: Out) -> str | None:
    """The item that an outgoing entry still needs when it is delivered: it must outlive the run that put it."""
    return entry.value_item if isinstance(entry, PublishOut | BuriedOut) else None


def buries(entry: Out, event_id: str) -> bool:
    """Whether an outgoing entry is the dead letter of this event."""
    match entry:
        case BuriedOut(event=event):
            return event.id == event_id
        case PublishOut(dead=True, headers=headers):
            return dict(headers[-REASON_HEADERS:]).get("tenuto-invocation") == event_id.encode()
        case _:
            return False


def cut(reason: str) -> str:
    """A reason as it is kept: encodable, and no longer than `REASON_BYTES_MAX`."""
    return reason.encode(errors="backslashreplace")[:REASON_BYTES_MAX].decode(errors="ignore")


def _record(event: Event, source: KafkaSource, topic: str, reason: str, value_item: str | None) -> PublishOut:
    headers = (
        *event.headers,
        ("tenuto-reason", cut(reason).encode()),
        ("tenuto-source-topic", source.topic.encode()),
        ("tenuto-source-partition", str(source.partition).encode()),
        ("tenuto-source-offset", str(source.offset).encode()),
        ("tenuto-handler", f"{event.invocation.lane.service}/{event.handler}".encode()),
        ("tenuto-invocation", event.id.encode()),
    )
    value = event.input if value_item is None else None
    return PublishOut(topic, value, source.raw_key, headers, dead=True, value_item=value_item)


# --- letters in the table -------------------------------------------------------------------------------------------


class Letter(msgspec.Struct, frozen=True):
    """What is told of a dead letter without reading its payload. Times are in milliseconds since the epoch, 0 unknown.

    `kind` is "message" for an event, which runs again in its lane, or "record" for one that goes to `topic`. `origin`
    says in words where it came from. `lane` is a partition key, "" where there is none. `data` holds a small payload;
    a larger one is in `parts`. `redriven_ms` is when somebody began to run it again.
    """

    id: str
    kind: str
    reason: str
    status_code: int
    at_ms: int
    origin: str
    lane: str = ""
    invocation: str = ""
    handler: str = ""
    topic: str = ""
    first_ms: int = 0
    attempts: int = 0
    size: int = 0
    parts: int = 0
    data: bytes | None = None
    redriven_ms: int | None = None


_encoder = msgspec.msgpack.Encoder()
_decode = bounded(msgspec.msgpack.Decoder(Letter))


def message_letter_id(invocation: str) -> str:
    """The name of the letter of an event, which ends once: a commit that is tried again leaves no second one."""
    return digest("message", invocation)


def record_letter_id(*identity: str) -> str:
    """The name of the letter of a record, from what tells it from all others."""
    return digest("record", *identity)


def letter_key(letter: str) -> Key:
    """Where a letter is."""
    return Key(_partition(sum(letter.encode()) % LETTER_SHARDS), letter)


def letter_partitions() -> Iterator[str]:
    """Partition keys that all letters are in."""
    return (_partition(shard) for shard in range(LETTER_SHARDS))


def letter_parts(letter: str, data: bytes) -> tuple[Put, ...]:
    """Before `letter_put`: the parts of a payload that is too large to go along; none for any other."""
    if len(data) <= INLINE_BYTES_MAX:
        return ()
    starts = range(0, len(data), VALUE_BYTES_MAX)
    return tuple(
        Put(letter_part_key(letter, n), {"input": data[at : at + VALUE_BYTES_MAX]}) for n, at in enumerate(starts)
    )


def letter_part_key(letter: str, number: int) -> Key:
    """Where a part of a letter's payload is."""
    return Key(f"D#{letter}", f"P#{number:03d}")


def letter_put(letter: Letter) -> Put:
    """A dead letter. Put again it is refused, also when it has been redriven or discarded since."""
    return Put(letter_key(letter.id), {"letter": _encoder.encode(letter), "live": 1}, (Absent("letter.absent", "pk"),))


def letter_redriving(letter: str, now_ms: int) -> Update:
    """Mark a letter as being redriven, unless it is marked already."""
    clauses = (Equals("redrive.live", "live", 1), Absent("redrive.first", "since"))
    return Update(letter_key(letter), {"since": now_ms}, (), clauses)


def letter_done(letter: str, now_ms: int) -> Put:
    """What stays of a letter that was redriven or discarded, so that a late duplicate is refused."""
    return tombstone_at(letter_key(letter), now_ms)


def parse_letter(item: Mapping[str, Value]) -> Letter | None:
    """The letter in an item; None when it has been dealt with. Raises ValueError when it is none."""
    if is_tombstone(item):
        return None
    packed, since = item.get("letter"), item.get("since")
    if not isinstance(packed, bytes):
        raise ValueError(f"not a dead letter: {sorted(item)}")  # noqa: TRY004 - bad data, not a bad call
    letter = _decode(packed)
    return replace(letter, redriven_ms=since) if isinstance(since, int) else letter


def _partition(shard: int) -> str:
    return f"D#{shard:02d}"
