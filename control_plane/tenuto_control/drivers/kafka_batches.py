"""What a broker's answer to a fetch holds for one partition, one record batch after the other.

Owns the framing of batches, their checksums, aborted transactions, and a decoder that no record with a sound frame can
stop. Does not own when a partition is fetched, nor what follows when a batch cannot be read (`kafka_fetcher`), nor the
codecs (`kafka_codecs`). The layout is that of Kafka's `DefaultRecordBatch` (format 2); formats 0 and 1 are left to
aiokafka.

Only `UnreadableError` leaves this module. A record is handed out when its whole batch is sound; nothing before the
first batch that is not is held back. Of a batch with many records few are held at a time, and one that would take too
much memory is handed out as it was sent, in the place of its last record.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from typing import Any, Final, NamedTuple, TypeAlias

from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch

from tenuto_control.drivers.kafka_codecs import UNCOMPRESSED, TooLargeInflatedError, UnknownCodecError, inflated

HEADER = struct.Struct(">qiibIhiqqqhii")
"""Base offset, length, leader epoch, format, checksum, attributes, last offset delta, first and largest timestamp,
producer id, producer epoch, base sequence, number of records."""

FRAME = struct.Struct(">qi")
"""The first two fields, which all formats have: base offset, and the length of what follows them."""

FORMAT_AT = 16
LEGACY_BYTES_MIN = 26
"""The shortest message of format 0, its frame included."""

LEGACY_ATTRIBUTES_AT = 17
LEGACY_LENGTH = struct.Struct(">i")
LEGACY_SHARE = 8
"""A compressed set of an old format may be inflated to this part of the bound: all its messages are held at once."""
ATTRIBUTES_AT = 21
CODEC_BITS, APPEND_TIME_BIT, TRANSACTION_BIT, CONTROL_BIT = 0x07, 0x08, 0x10, 0x20
CONTROL_KEY = struct.Struct(">hh")
ABORT_MARKER = 0
NO_PRODUCER = -1
NO_TIMESTAMP = -1

VARINT_BYTES_MAX = 10
INT64 = 1 << 64

SMALL_BYTES: Final = 1024 * 1024
"""What is inflated to more than that is so in a thread."""

HELD_MAX: Final = 5_000
"""So many records of a batch are held at a time; the next ones are decoded when these have been taken."""

REASON_CHARS_MAX = 300
"""So much of what a codec or the client says goes into a reason."""


class UnreadableError(Exception):
    """A batch cannot be read. The message is one line, fit for a log; nothing of a record is in it."""


class Fetched(NamedTuple):
    """A record as it was fetched.

    `unreadable` says why its content cannot be told; then `value` is the record as it lies in its batch. A byte of a
    header's name that is not UTF-8 is written as a backslash, `x` and two hexadecimal digits.
    """

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    unreadable: str = ""


Source: TypeAlias = Callable[[], Iterator[Fetched]]
"""Decodes the records of a batch, each time anew."""


class Answer:
    """One partition's share of an answer, read from `next_offset` on.

    `aborted` are the transactions that were aborted in it, as producer id and first offset. `inflated_bytes_max` bounds
    what a batch may be inflated to. While it is `large`, the next batch takes time to read: `prepare` does it.
    """

    def __init__(
        self, raw: bytes, aborted: Sequence[tuple[int, int]], next_offset: int, inflated_bytes_max: int = 1 << 24
    ) -> None:
        self._raw = raw
        self._at = 0
        self._aborted = sorted(aborted, key=lambda one: one[1])
        self._aborting: set[int] = set()
        self._ready: list[Fetched] = []
        self._more: Iterator[Fetched] = iter(())
        self._after_ready = next_offset
        self._bytes_max = inflated_bytes_max
        self._failed: UnreadableError | None = None
        self.next_offset = next_offset
        self.large = False

    @property
    def size(self) -> int:
        """Bytes that were fetched, those that were taken included."""
        return len(self._raw)

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to take."""
        return not self._ready and self._at >= len(self._raw)

    def take(self, records_max: int, bytes_max: int | None = None) -> list[Fetched]:
        """Up to so many records; `next_offset` then is the offset behind them, and behind what holds none.

        No further ones when the bytes are reached. Raises UnreadableError for a batch that cannot be read, once all
        before it were taken, and every time anew.
        """
        taken: list[Fetched] = []
        size = 0
        while len(taken) < records_max and not self.exhausted and (bytes_max is None or size < bytes_max):
            if not self._ready:
                try:
                    self._read_batch(min(SMALL_BYTES, self._bytes_max))
                except TooLargeInflatedError:
                    self.large = True
                    break
                except UnreadableError:
                    if taken:
                        break
                    raise
            room = records_max - len(taken)
            if bytes_max is not None:
                room, size = _fitting(self._ready, room, size, bytes_max)
            taken += self._ready[:room]
            del self._ready[:room]
            if not self._ready:
                self._ready = list(islice(self._more, HELD_MAX))
            self.next_offset = self._ready[0].offset if self._ready else self._after_ready
        return taken

    def prepare(self) -> None:
        """Read the next batch, which is `large`: in a thread, while nothing is taken. Raises nothing: `take` does."""
        try:
            self._read_batch(self._bytes_max)
        except UnreadableError as e:
            self._failed = e
        except Exception as e:  # noqa: BLE001 - whatever it is, it is this batch's, and not the reader's
            self._failed = UnreadableError(f"it cannot be read ({type(e).__name__})")
        self.large = False

    def _read_batch(self, bytes_max: int) -> None:
        """Make the next batch's records ready. What is incomplete at the end was cut off and is fetched again.

        Raises TooLargeInflatedError when the batch needs more bytes than these, and may have more.
        """
        if self._failed is not None:
            raise self._failed
        raw, at = self._raw, self._at
        end = len(raw)
        if at + FRAME.size <= end:
            _, length = FRAME.unpack_from(raw, at)
            if length < LEGACY_BYTES_MIN - FRAME.size:
                raise UnreadableError(f"a batch that claims {length} bytes")
            end = at + FRAME.size + length
        if at + FRAME.size > len(raw) or end > len(raw):
            if at == 0:
                raise UnreadableError(f"its next batch is larger than the {len(raw)} bytes that the broker handed out")
            self._at = len(raw)
            return
        batch = raw[at:end]
        legacy = batch[FORMAT_AT] < 2  # noqa: PLR2004 - the formats have no other names than their numbers
        try:
            found, after = _legacy_records(batch, bytes_max) if legacy else self._records(batch, bytes_max)
        except TooLargeInflatedError:
            if bytes_max < self._bytes_max:
                raise
            found, after = _as_it_is(batch, self._bytes_max, legacy=legacy)
        begin = self.next_offset
        records = (record for record in found if record.offset >= begin)
        self._ready = list(islice(records, HELD_MAX))
        self._more = records
        self._after_ready = max(after, self.next_offset)
        self._at = end

    def _records(self, batch: bytes, bytes_max: int) -> tuple[Iterator[Fetched], int]:
        """The records of a batch that are for readers of what was committed, and the offset behind it."""
        head = _Head(batch)
        if head.producer != NO_PRODUCER:
            while self._aborted and self._aborted[0][1] <= head.base:
                self._aborting.add(self._aborted.pop(0)[0])
        if head.control:
            if _aborts(batch, head, bytes_max):
                self._aborting.discard(head.producer)
            return iter(()), head.after
        if head.after <= self.next_offset or (head.transaction and head.producer in self._aborting):
            return iter(()), head.after
        return _decoded(batch, head, bytes_max), head.after


class _Head:
    """The fields of a batch's header that reading it needs, checked against each other and the checksum."""

    __slots__ = ("after", "append_time", "base", "codec", "control", "count", "first_ms", "producer", "transaction")

    def __init__(self, batch: bytes) -> None:
        if len(batch) < HEADER.size:
            raise UnreadableError(f"a batch of {len(batch)} bytes, shorter than its header")
        base, _, _, version, checksum, attributes, delta, first, largest, producer, _, _, count = HEADER.unpack_from(
            batch
        )
        if version != 2:  # noqa: PLR2004 - the formats have no other names than their numbers
            raise UnreadableError(f"a batch of format {version}, which is not known")
        if base < 0 or delta < 0 or count < 0 or count > delta + 1:
            raise UnreadableError(f"a batch of {count} records between {base} and {base + delta}")
        with _reasons("its checksum cannot be computed"):
            sound = DefaultRecordBatch(batch).validate_crc()
        if not sound:
            raise UnreadableError(f"a batch whose checksum is not {checksum:08x}: it was damaged in storage")
        self.base = base
        self.after = base + delta + 1
        self.count = count
        self.codec = attributes & CODEC_BITS
        self.transaction = bool(attributes & TRANSACTION_BIT)
        self.control = bool(attributes & CONTROL_BIT)
        self.producer = producer
        self.first_ms = first
        self.append_time = largest if attributes & APPEND_TIME_BIT else None


def _fitting(records: Sequence[Fetched], count: int, size: int, bytes_max: int) -> tuple[int, int]:
    """How many of these records to take, with the one that reaches the bound, and the size with them."""
    for index, record in enumerate(islice(records, count)):
        size += len(record.value or b"") + len(record.key or b"")
        if size >= bytes_max:
            return index + 1, size
    return count, size


def _as_it_is(batch: bytes, bytes_max: int, *, legacy: bool) -> tuple[Iterator[Fetched], int]:
    """A batch that would take too much memory, in the place of its last record. What it holds, nobody can tell."""
    base, _ = FRAME.unpack_from(batch)
    last, those = base, "a set of messages of an old format"
    if legacy:
        bytes_max //= LEGACY_SHARE
    if not legacy:
        head = _Head(batch)
        last, those = head.after - 1, f"a batch of {head.count} records from offset {head.base} on"
    reason = (
        f"{those} takes more than {bytes_max:,} bytes when it is decompressed; it is kept as it was sent, compressed. "
        "The bound is batch_inflated_bytes_max in [limits]"
    )
    return iter((Fetched(last, NO_TIMESTAMP, None, batch, (), reason),)), last + 1


def _decoded(batch: bytes, head: _Head, bytes_max: int) -> Iterator[Fetched]:
    """aiokafka's decoder is the fast one; where it refuses, the one of this module says why, or has no objection."""
    if head.count == 0:
        return iter(())  # Compaction leaves the header alone, which is nothing that a codec could read.
    with _reasons("it cannot be decompressed"):
        body = inflated(head.codec, batch[HEADER.size :], bytes_max)
    if head.codec != UNCOMPRESSED:
        batch = _uncompressed(batch, body)
    try:
        return _checked(partial(_fast, batch), head)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001, S110 - even a codec's panic is a reason to look closer, and none to end
        pass
    with _reasons("its records have no sound frames"):
        return _checked(partial(_patient, body, head), head)


def _uncompressed(batch: bytes, body: bytes) -> bytes:
    """The same batch as if it had never been compressed. Its checksum is that of before."""
    changed = bytearray(batch[: HEADER.size])
    changed[ATTRIBUTES_AT + 1] &= ~CODEC_BITS
    return b"".join((changed, body))


def _checked(source: Source, head: _Head) -> Iterator[Fetched]:
    """The records, once it is sure that all of them can be read. Many are decoded twice, rather than held at once."""
    records = source()
    first = list(islice(records, HELD_MAX))
    before = _in_order(first, head, head.base - 1)
    if len(first) < HELD_MAX:
        return iter(first)
    while some := list(islice(records, HELD_MAX)):
        before = _in_order(some, head, before)
    return chain(first, islice(source(), HELD_MAX, None))


def _fast(batch: bytes) -> Iterator[Fetched]:
    for one in DefaultRecordBatch(batch):
        yield Fetched(one.offset, one.timestamp, one.key, one.value, one.headers)


def _in_order(records: Sequence[Fetched], head: _Head, before: int) -> int:
    """The last of these offsets, which follow `before`. Raises _BrokenError when they do not."""
    for record in records:
        if not before < record.offset < head.after:
            raise _BrokenError("its records are out of order")
        before = record.offset
    return before


def _patient(body: bytes, head: _Head) -> Iterator[Fetched]:
    at = 0
    for index in range(head.count):
        length, at = _varint(body, at, len(body))
        end = at + length
        if length < 0 or end > len(body):
            raise _BrokenError(f"record {index + 1} of {head.count} claims {length} bytes")
        yield _record(body[at:end], head, index)
        at = end
    if at != len(body):
        raise _BrokenError(f"{len(body) - at} bytes are left over after its {head.count} records")


class _BrokenError(Exception):
    """A record breaks the format; the message says how."""


def _record(body: bytes, head: _Head, index: int) -> Fetched:
    """A record, or what lies in its place and why it is none.

    Unless compaction has left gaps, a record's place says its offset, whatever its own field does.
    """
    expected = head.base + index if head.count == head.after - head.base else None
    try:
        record = _sound_record(body, head)
    except _BrokenError as e:
        problem = str(e)
    else:
        if expected in (None, record.offset):
            return record
        problem = f"its offset is {record.offset}"
    if expected is None:
        raise _BrokenError(f"record {index + 1} of {head.count}: {problem}")
    return Fetched(expected, NO_TIMESTAMP, None, body, (), f"the record breaks Kafka's format: {problem}")


def _sound_record(body: bytes, head: _Head) -> Fetched:
    # The byte before has the attributes of a record, none of which has a meaning yet.
    since, at = _varint(body, 1, len(body))
    delta, at = _varint(body, at, len(body))
    key, at = _text(body, at)
    value, at = _text(body, at)
    count, at = _varint(body, at, len(body))
    if not 0 <= count <= len(body):
        raise _BrokenError(f"it claims {count} headers")
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        name, at = _text(body, at)
        if name is None:
            raise _BrokenError("a header has no name")
        content, at = _text(body, at)
        headers.append((name.decode("utf-8", "backslashreplace"), content))
    if at != len(body):
        raise _BrokenError(f"{len(body) - at} of its bytes are left over")
    timestamp = head.append_time if head.append_time is not None else _int64(head.first_ms + since)
    return Fetched(head.base + delta, timestamp, key, value, headers)


def _text(body: bytes, at: int) -> tuple[bytes | None, int]:
    """A field with its length before it; a negative one stands for no field at all."""
    length, at = _varint(body, at, len(body))
    if length < 0:
        return None, at
    if at + length > len(body):
        raise _BrokenError(f"a field claims {length} bytes of {len(body) - at}")
    return body[at : at + length], at + length


def _varint(body: bytes, at: int, end: int) -> tuple[int, int]:
    """A signed number in Kafka's zigzag form, and where it ends."""
    number = 0
    for index in range(VARINT_BYTES_MAX):
        if at + index >= end:
            raise _BrokenError("a number is cut off")
        byte = body[at + index]
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follows
            return _int64((number >> 1) ^ -(number & 1)), at + index + 1
    raise _BrokenError("a number does not end")


def _int64(number: int) -> int:
    """As Java's long and the fast decoder compute: beyond its bounds, a sum wraps around."""
    return (number + INT64 // 2) % INT64 - INT64 // 2


def _aborts(batch: bytes, head: _Head, bytes_max: int) -> bool:
    """Whether a control batch ends a transaction by taking it back. Compaction may leave one without its record."""
    for record in _decoded(batch, head, bytes_max):
        if record.key is not None and len(record.key) >= CONTROL_KEY.size:
            return bool(CONTROL_KEY.unpack_from(record.key)[1] == ABORT_MARKER)
    return False


def _legacy_records(batch: bytes, bytes_max: int) -> tuple[Iterator[Fetched], int]:
    """The records of a message of format 0 or 1, which may be a compressed set of them, and the offset behind it."""
    with _reasons("a message of an old format"):
        message: Any = LegacyRecordBatch(batch, batch[FORMAT_AT])
        if not message.validate_crc():
            raise _BrokenError("its checksum differs: it was damaged in storage")
        kind = batch[LEGACY_ATTRIBUTES_AT] & CODEC_BITS
        if kind != UNCOMPRESSED:
            # aiokafka inflates all there is. A set holds small messages by the thousand, each of them an object.
            inflated(kind, _legacy_value(batch), bytes_max // LEGACY_SHARE)
        records = [
            Fetched(one.offset, NO_TIMESTAMP if one.timestamp is None else one.timestamp, one.key, one.value, ())
            for one in message
        ]
    return iter(records), int(message.next_offset)


def _legacy_value(batch: bytes) -> bytes:
    at = LEGACY_ATTRIBUTES_AT + 1 + (8 if batch[FORMAT_AT] else 0)
    (key,) = LEGACY_LENGTH.unpack_from(batch, at)
    at += LEGACY_LENGTH.size + max(0, key)
    (value,) = LEGACY_LENGTH.unpack_from(batch, at)
    at += LEGACY_LENGTH.size
    return batch[at : at + max(0, value)]


@contextmanager
def _reasons(what: str) -> Iterator[None]:
    """Turns whatever is raised inside into an UnreadableError that says what for."""
    try:
        yield
    except (UnreadableError, TooLargeInflatedError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except UnknownCodecError as e:
        raise UnreadableError(str(e)) from e
    except BaseException as e:
        # A codec's panic is no Exception, and it is as little a reason to end the process as any other of a batch's.
        name = "" if isinstance(e, _BrokenError) else f"{type(e).__name__}: "
        raise UnreadableError(f"{what} ({name}{one_line(e)})") from e


def one_line(error: object) -> str:
    """What an error says, short, on one line and in characters that any log takes."""
    text = " ".join(str(error).split())[:REASON_CHARS_MAX]
    return "".join(one if one.isprintable() else "?" for one in text)
