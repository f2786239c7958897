"""The table's dead letters: messages that ended unseen, and records that no topic takes.

Owns their items and the reading of them. Does not own which events have one (`tenuto.protocol.dead_letters`), nor when
one is put, listed or run again (`tenuto_control`).

A letter is one item in one of `LETTER_SHARDS` partitions of their own, so that all of them are found by as many queries
and never by a scan. What is large of it is in parts, in a partition of its own, put before: a listing reads no payload.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from tenuto.lane.writes import Absent, Equals, Key, Put, Update, Value
from tenuto.protocol.ids import digest
from tenuto.protocol.limits import INLINE_BYTES_MAX, TOMBSTONE_TTL_S, VALUE_BYTES_MAX

LETTER_SHARDS: Final = 16
"""Partitions that letters are spread over: a storm of failures puts thousands a second (DynamoDB: 1,000 write units a
second for each partition)."""

LETTERS_LOW, LETTERS_HIGH = "0", "g"
"""Bounds of a query for the letters of a partition: their names are hexadecimal."""


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
_decoder = msgspec.msgpack.Decoder(Letter)


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
    """A dead letter. Put again it is refused, also when it has been run again or thrown away since."""
    return Put(letter_key(letter.id), {"letter": _encoder.encode(letter), "live": 1}, (Absent("letter.absent", "pk"),))


def letter_redriving(letter: str, now_ms: int) -> Update:
    """Say that somebody begins to run a letter again, unless somebody did so before."""
    clauses = (Equals("redrive.live", "live", 1), Absent("redrive.first", "since"))
    return Update(letter_key(letter), {"since": now_ms}, (), clauses)


def letter_done(letter: str, now_ms: int) -> Put:
    """What stays of a letter that was run again or thrown away, so that a late duplicate is refused."""
    return Put(letter_key(letter), {"done": 1, "ttl": now_ms // 1000 + TOMBSTONE_TTL_S})


def parse_letter(item: Mapping[str, Value]) -> Letter | None:
    """The letter in an item; None when it has been dealt with. Raises ValueError when it is none."""
    if "done" in item:
        return None
    packed, since = item.get("letter"), item.get("since")
    if not isinstance(packed, bytes):
        raise ValueError(f"not a dead letter: {sorted(item)}")  # noqa: TRY004 - bad data, not a bad call
    letter = _decoder.decode(packed)
    return msgspec.structs.replace(letter, redriven_ms=since) if isinstance(since, int) else letter


def _partition(shard: int) -> str:
    return f"D#{shard:02d}"
