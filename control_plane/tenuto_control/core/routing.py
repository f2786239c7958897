"""From a Kafka record to the event of a lane, or to the reason why it can never be one.

Owns key rules, the ordering of records without a keyed service, invocation ids of records, what names their watermarks
and the forms of quarantined ones. Does not own decoding of values: only the handler's type hints know what a value
should be.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeAlias, assert_never

import msgspec

from tenuto.protocol.ids import InvocationId, Lane, check_key, kafka_nonce
from tenuto.protocol.limits import EVENT_HEADERS_BYTES_MAX
from tenuto.protocol.records import Event, KafkaSource, PublishOut, headers_bytes

DEAD_LETTER_SUFFIX = ".dead-letter"
"""Where a topic's records go that can never be handled, unless the subscription names another topic."""

OMITTED_HEADER = "tenuto-omitted"
"""Names what a dead letter had to leave out to be taken. Where it came from, the record is whole."""

REASON_BYTES_MAX = 1_024
"""A reason may quote what it is about; a dead letter has to stay small enough to be taken."""

KEYS_REMEMBERED_MAX = 1_024
"""Keys whose lanes are remembered, each of at most 1 KB."""

TOPIC_ID_DIGITS = 8
"""So much of a topic's id goes into names, which every head of the topic holds: lives of one topic differ in it."""

FORMER_LIFE = "-"
"""Before a topic's id: a life before that one, whose own id is not known."""

Headers: TypeAlias = tuple[tuple[str, bytes], ...]
Ordering: TypeAlias = Literal["key", "partition", "none"]
Start: TypeAlias = Literal["earliest", "latest"]


class Record(Protocol):
    """What routing needs of a record; `tenuto_control.ports.LogRecord` is one.

    A `value` of None is a tombstone.
    """

    @property
    def topic(self) -> str:
        """Its topic."""
        ...

    @property
    def partition(self) -> int:
        """Its partition."""
        ...

    @property
    def offset(self) -> int:
        """Its offset."""
        ...

    @property
    def timestamp_ms(self) -> int:
        """When it was produced, milliseconds since the epoch."""
        ...

    @property
    def key(self) -> bytes | None:
        """Its key, if it has one."""
        ...

    @property
    def value(self) -> bytes | None:
        """Its value; None is a tombstone."""
        ...

    @property
    def headers(self) -> tuple[tuple[str, bytes], ...]:
        """Its headers, in order; names may repeat."""
        ...

    @property
    def topic_id(self) -> str:
        """The log's name for this life of the topic; "" when it tells none."""
        ...


@dataclass(frozen=True, slots=True)
class TextKey:
    """The record's key is UTF-8 text."""


@dataclass(frozen=True, slots=True)
class BytesKey:
    """The record's key is any bytes; the lane's key is their hexadecimal form."""


@dataclass(frozen=True, slots=True)
class JsonKey:
    """The key is a field of the record's JSON value, reached by these names."""

    path: tuple[str, ...]


KeyRule: TypeAlias = TextKey | BytesKey | JsonKey


def parse_key_rule(text: str) -> KeyRule:
    """`utf-8`, `bytes` or `json:<field>[.<field>…]`. Raises ValueError with the forms that exist."""
    if text == "utf-8":
        return TextKey()
    if text == "bytes":
        return BytesKey()
    if text.startswith("json:"):
        path = tuple(text.removeprefix("json:").split("."))
        if all(path):
            return JsonKey(path)
    raise ValueError(f'"{text}" is not a key rule: use "utf-8", "bytes" or "json:<field>", for instance "json:user.id"')


@dataclass(frozen=True, slots=True)
class Subscription:
    """A topic whose records become events of one handler.

    `ordering` other than `key` is for unkeyed services: `partition` runs the records of a partition one after
    the other, `none` runs every record by itself. `epoch` is the operator's word for one pass over the topic:
    watermarks of another epoch do not count, so a new one runs again whatever is read again.
    """

    topic: str
    service: str
    handler: str
    key: KeyRule = TextKey()
    ordering: Ordering = "key"
    dead_letter: str | None = None
    epoch: str = "0"
    start: Start = "earliest"

    @property
    def dead_letter_topic(self) -> str:
        """The topic for records that can never be handled."""
        return self.dead_letter or self.topic + DEAD_LETTER_SUFFIX


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The record can never become an event, for this reason."""

    reason: str


def source_epoch(epoch: str, topic_id: str) -> str:
    """What tells a topic's offsets from those of its other lives and passes: the epoch of its records' sources.

    A recreated topic counts its offsets from zero again; under the names of its former life, lanes would take its
    records for finished ones.
    """
    return f"{epoch}.{topic_id[:TOPIC_ID_DIGITS]}" if topic_id else epoch


def life_of(offset: int, topic_id: str, end: int) -> str:
    """Which life of its topic a record is of that was read some time ago, when the present one's id and end are known.

    What lies beyond the end is of a life before: it was read, the topic was created again, and now it is handled. Under
    the present id it would have lanes take all records of the present life up to its offset for finished ones. Its own
    id is not known any more, so it gets a name that no life has: at worst it runs once more.
    """
    return FORMER_LIFE + topic_id if topic_id and offset >= end else topic_id


def route(record: Record, subscription: Subscription) -> Event | Quarantine:
    """The event a record stands for. Total: whatever the bytes are, the answer is one of the two."""
    epoch = source_epoch(subscription.epoch, record.topic_id)
    nonce = kafka_nonce(epoch, record.topic, record.partition, record.offset)
    try:
        _check_sizes(record)
        lane = _lane(record, subscription, nonce)
    except _UnusableKeyError as e:
        return Quarantine(str(e))
    # By position: this is done for every record, and a keyword costs time.
    source = KafkaSource(
        epoch,
        record.topic,
        record.partition,
        record.offset,
        record.timestamp_ms,
        record.key,
        subscription.dead_letter_topic,
    )
    return Event.of(InvocationId(lane, nonce), subscription.handler, source, record.value, record.headers)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A form in which a refused record may be kept. `lacks` names what it had to leave out, "" for nothing."""

    value: bytes | None
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    lacks: str = ""


def dead_letter_forms(record: Record, reason: str) -> tuple[DeadLetter, ...]:
    """The record with why it was refused and where it was read, then smaller forms (`smaller_forms`)."""
    return smaller_forms(record.value, record.key, record.headers, _reason_headers(record, reason))


def kept_form(record: Record, topic: str, reason: str) -> tuple[PublishOut, tuple[str, ...]]:
    """The dead letter of a refused record as the table keeps it, whole, and what tells it from all others."""
    headers = tuple((_encodable(name), content) for name, content in record.headers)
    entry = PublishOut(topic, record.value, record.key, (*headers, *_reason_headers(record, reason)), dead=True)
    return entry, (record.topic, str(record.partition), str(record.offset), record.topic_id)


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def smaller_forms(value: bytes | None, key: bytes | None, headers: Headers, reasons: Headers) -> tuple[DeadLetter, ...]:
    """A dead letter with its reasons, then ever smaller forms for a topic that takes no more.

    First without the reasons: as large as it was when its own topic took it. Then without its value, but with headers
    that say so and where the whole record is.
    """
    stub = (*reasons, (OMITTED_HEADER, b"value, headers"))
    rest = (*reasons, (OMITTED_HEADER, b"value, headers, key"))
    return (
        DeadLetter(value, key, (*headers, *reasons)),
        DeadLetter(value, key, headers, "the headers with its reason"),
        DeadLetter(None, key, stub, "its value and headers"),
        DeadLetter(None, None, rest, "its value, headers and key"),
    )


def _reason_headers(record: Record, reason: str) -> tuple[tuple[str, bytes], ...]:
    return (
        ("tenuto-reason", _encodable(reason).encode()[:REASON_BYTES_MAX].decode(errors="ignore").encode()),
        ("tenuto-source-topic", record.topic.encode()),
        ("tenuto-source-partition", str(record.partition).encode()),
        ("tenuto-source-offset", str(record.offset).encode()),
    )


class _UnusableKeyError(Exception):
    """The record gives no usable key, or holds too much beside its value; the message says why."""


def _check_sizes(record: Record) -> None:
    """Raises _UnusableKeyError for a record whose headers and key no item could hold.

    A value of any size may become an event: it has items of its own wherever it waits.
    """
    try:
        size = headers_bytes(record.headers, record.key)
    except UnicodeEncodeError as e:
        raise _UnusableKeyError("the name of a header is not text") from e
    if size > EVENT_HEADERS_BYTES_MAX:
        raise _UnusableKeyError(
            f"its {len(record.headers):,} headers and its key take {size:,} bytes, packed; an event holds at most "
            f"{EVENT_HEADERS_BYTES_MAX:,} bytes of them"
        )


def _lane(record: Record, subscription: Subscription, nonce: str) -> Lane:
    service = subscription.service
    match subscription.ordering:
        case "partition":
            return Lane(service, f"{record.topic}/{record.partition}")
        case "none":
            return Lane(service, nonce)
        case "key" if isinstance(subscription.key, JsonKey):
            return _checked(service, _json_field(record.value, subscription.key.path))
        case "key":
            return _lane_of_key(service, subscription.key, record.key)
        case _:
            assert_never(subscription.ordering)


@lru_cache(maxsize=KEYS_REMEMBERED_MAX)
def _lane_of_key(service: str, rule: TextKey | BytesKey, key: bytes | None) -> Lane:
    """The lane of a record's key. Keys repeat: those of the last records are remembered."""
    if key is None:
        raise _UnusableKeyError(
            'the record has no key; key the producer, or subscribe with key = "json:<field>" or another ordering'
        )
    match rule:
        case BytesKey():
            return _checked(service, key.hex())
        case TextKey():
            try:
                text = key.decode()
            except UnicodeDecodeError as e:
                raise _UnusableKeyError(f'the key is not UTF-8 ({e.reason}); key = "bytes" takes any key') from e
            return _checked(service, text)
        case _:
            assert_never(rule)


def _checked(service: str, key: str) -> Lane:
    try:
        check_key(service, key)
    except ValueError as e:
        raise _UnusableKeyError(str(e)) from e
    return Lane(service, key)


def _json_field(value: bytes | None, path: tuple[str, ...]) -> str:
    field = ".".join(path)
    if value is None:
        raise _UnusableKeyError(f'a tombstone has no field "{field}" to take the key from')
    try:
        found: Any = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as e:
        raise _UnusableKeyError(f'the value is not JSON, so it has no field "{field}" to take the key from: {e}') from e
    for name in path:
        if not isinstance(found, dict) or name not in found:
            raise _UnusableKeyError(f'the value has no field "{field}" to take the key from')
        found = found[name]
    # True is an int in Python; as a key it would be a mistake like any other value that is neither text nor
    # whole number.
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise _UnusableKeyError(f'the field "{field}" holds {_json_kind(found)}; a key is text or a whole number')
    try:
        return found if isinstance(found, str) else str(found)
    except ValueError as e:
        # Python refuses to print numbers of thousands of digits.
        raise _UnusableKeyError(f'the field "{field}" holds a number too long for a key') from e


def _json_kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case float():
            return "a fraction"
        case list():
            return "a list"
        case _:
            return "an object"
