"""Records: what a lane stores and what crosses the wire inside messages.

Owns the frozen structs for events, results, journal slots and outgoing entries, and their binary codec. Does not own
where they are stored (`tenuto.lane`) nor what they mean to a running handler (`tenuto.machine`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeAlias

import msgspec
from msgspec import Struct

from tenuto.protocol.decoding import bounded
from tenuto.protocol.ids import InvocationId, Lane, source_of_partition


class Failure(Struct, frozen=True, array_like=True):
    """Why an invocation or a step ended for good.

    The text of a `foreign` one is payload: whoever rejected an awakeable has written it. It is in no line of a log.
    """

    message: str
    status_code: int = 500
    metadata: dict[str, str] = {}
    foreign: bool = False


class Success(Struct, frozen=True, tag="ok"):
    """A result: serialised bytes, None for a handler that returned nothing serialisable to send."""

    value: bytes | None = None


class Failed(Struct, frozen=True, tag="failed"):
    """A terminal failure as a result."""

    failure: Failure


Result: TypeAlias = Success | Failed


class KafkaSource(Struct, frozen=True, tag="kafka"):
    """Where a Kafka event came from. `dead_letter` is the topic for events that can never be handled."""

    epoch: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    raw_key: bytes | None = None
    dead_letter: str | None = None

    @property
    def watermark(self) -> str:
        """The name of the lane's watermark for this partition."""
        return source_of_partition(self.epoch, self.topic, self.partition)


class MessageSource(Struct, frozen=True, tag="message"):
    """A message from another lane: `sender` is that lane's partition key, `sequence` the position in its outbox."""

    sender: str
    sequence: str


class CallSource(Struct, frozen=True, tag="call"):
    """A call or send over HTTP. `keep_result` stores the result so that it can be attached to later.

    `one_way`: it was sent, and nobody waits for its end. A message that an operator runs again is one, too.
    """

    keep_result: bool = False
    one_way: bool = False


Source: TypeAlias = KafkaSource | MessageSource | CallSource


class Event(Struct, frozen=True, dict=True):
    """One thing to handle: becomes exactly one invocation, whatever repeats."""

    id: str
    handler: str
    source: Source
    input: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def of(
        cls,
        invocation: InvocationId,
        handler: str,
        source: Source,
        input: bytes | None = None,  # noqa: A002 - the field's name
        headers: tuple[tuple[str, bytes], ...] = (),
    ) -> Event:
        """An event whose id is known as a value: it is not parsed again."""
        event = cls(str(invocation), handler, source, input, headers)
        event.__dict__["invocation"] = invocation
        return event

    @cached_property
    def invocation(self) -> InvocationId:
        """The id as a value, parsed at the first use. Raises ValueError when `id` is none."""
        return InvocationId.parse(self.id)

    @property
    def nonce(self) -> str:
        """The id's part that is unique within the lane."""
        return self.invocation.nonce


# --- journal slots -------------------------------------------------------------------------------------------------


class RunSlot(Struct, frozen=True, tag="run", rename={"after_ms": "t"}):
    """The result of a `ctx.run` step, and how long after the run's start it was there (ms)."""

    name: str
    result: Result
    after_ms: int = 0


class DueSlot(Struct, frozen=True, tag="due"):
    """When a sleep ends, fixed at its first suspension (milliseconds since the epoch)."""

    wake_ms: int


class TriedSlot(Struct, frozen=True, tag="tried"):
    """A step with retry limits waits for its next try outside the function: how often it failed, since when (ms)."""

    name: str
    tries: int
    since_ms: int


class SleptSlot(Struct, frozen=True, tag="slept", rename={"after_ms": "t"}):
    """A sleep that is over, and how long after the run's start that was known (ms)."""

    after_ms: int = 0


class AwakeableSlot(Struct, frozen=True, tag="awakeable"):
    """The result an awakeable was resolved or rejected with, and when (ms since the epoch, by the resolver's clock)."""

    result: Result
    at_ms: int = 0


class ElsewhereSlot(Struct, frozen=True, tag="elsewhere"):
    """An awakeable's result that is in its own item, because the head had no room for it: the item's sort key."""

    item: str
    at_ms: int = 0


class SentSlot(Struct, frozen=True, tag="sent"):
    """A message that already left, so that a replay does not send it again."""

    target: str


class NowSlot(Struct, frozen=True, tag="now"):
    """What time a handler was told (milliseconds since the epoch)."""

    at_ms: int


class OrderSlot(Struct, frozen=True, tag="order"):
    """The order in which concurrent commands completed, as the handler was told: their indexes."""

    commands: tuple[int, ...]


Slot: TypeAlias = (
    RunSlot | TriedSlot | DueSlot | SleptSlot | AwakeableSlot | ElsewhereSlot | SentSlot | NowSlot | OrderSlot
)


# --- outgoing entries ----------------------------------------------------------------------------------------------


class SendOut(Struct, frozen=True, tag="send"):
    """A message to another lane, delivered at once or, with `due_ms`, not before that time."""

    service: str
    key: str
    event_id: str
    handler: str
    input: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    due_ms: int | None = None
    keep_result: bool = False

    @property
    def lane(self) -> Lane:
        """The receiving lane."""
        return Lane(self.service, self.key)


class PublishOut(Struct, frozen=True, tag="publish"):
    """A record for a Kafka topic; a `dead` one is a dead letter, whose large value may be in the item `value_item`."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    dead: bool = False
    value_item: str | None = None


class ResultOut(Struct, frozen=True, tag="result"):
    """The result of an invocation, on its way to its result item."""

    invocation: str
    result: Result


class ResolveOut(Struct, frozen=True, tag="resolve"):
    """The resolution of another invocation's awakeable."""

    awakeable: str
    result: Result


class BuriedOut(Struct, frozen=True, tag="buried"):
    """An event that ended in a failure that would otherwise go unnoticed, on its way to the table's dead letters.

    `at_ms` is when it ended, `first_ms` when it was first tried, 0 where that is not known; `attempts` likewise. A
    large input may be in the item `value_item`, or all of the event in `parts` that were put before; `event` then lacks
    it, and `size` is what the input weighs. `foreign` as in `Failure`.
    """

    event: Event
    reason: str
    status_code: int = 500
    at_ms: int = 0
    first_ms: int = 0
    attempts: int = 0
    value_item: str | None = None
    parts: int = 0
    size: int = 0
    foreign: bool = False


class BundleOut(Struct, frozen=True, tag="bundle"):
    """Many entries, or large ones, that are in their own item: the head had no room for them. `item` names it."""

    item: str


Entry: TypeAlias = SendOut | PublishOut | ResultOut | ResolveOut | BuriedOut
"""What a handler or its end sends."""


class UnreadableOut(Struct, frozen=True, tag="unreadable"):
    """Stands for an outgoing entry that is in the table and cannot be read, and says why. It is never written."""

    reason: str


Out: TypeAlias = Entry | BundleOut | UnreadableOut
"""What an outbox holds."""


class Bundle(Struct, frozen=True, array_like=True):
    """What the item of a `BundleOut` holds: entries, each with its position in the outbox."""

    entries: tuple[tuple[int, Entry], ...]


class _SealedBundle(Struct, frozen=True, array_like=True):
    """A bundle whose entries are left as they are."""

    entries: tuple[tuple[int, msgspec.Raw], ...]


class Carried(Struct, frozen=True, array_like=True):
    """What of a large event is beside its input in the item that holds it: headers and the record's raw key."""

    headers: tuple[tuple[str, bytes], ...]
    raw_key: bytes | None


_encoder = msgspec.msgpack.Encoder()
_decode_slot: Callable[[bytes], Slot] = bounded(msgspec.msgpack.Decoder(Slot))
_decode_out: Callable[[bytes], Out] = bounded(msgspec.msgpack.Decoder(Out))
_decode_event: Callable[[bytes], Event] = bounded(msgspec.msgpack.Decoder(Event))
_decode_events: Callable[[bytes], tuple[Event, ...]] = bounded(msgspec.msgpack.Decoder(tuple[Event, ...]))
_decode_result: Callable[[bytes], Result] = bounded(msgspec.msgpack.Decoder(Result))
_decode_bundle: Callable[[bytes], Bundle] = bounded(msgspec.msgpack.Decoder(Bundle))
_decode_sealed_bundle: Callable[[bytes], _SealedBundle] = bounded(msgspec.msgpack.Decoder(_SealedBundle))
_decode_carried: Callable[[bytes], Carried] = bounded(msgspec.msgpack.Decoder(Carried))


def pack(record: Slot | Out | Event | Result | Bundle | Carried) -> bytes:
    """The stored form of a record."""
    return _encoder.encode(record)


def headers_bytes(headers: tuple[tuple[str, bytes], ...], raw_key: bytes | None = None) -> int:
    """What headers, and the raw key of a record, weigh in a stored event. Raises ValueError for a name that is no text.

    Measured packed, because ten thousand headers of a byte weigh more than their bytes.
    """
    packed = len(_encoder.encode(headers)) if headers else 1
    return packed + len(raw_key or b"")


def event_bytes(event: Event) -> int:
    """What the payload of an event weighs in an item or a request: input, headers and raw key, packed."""
    source = event.source
    raw_key = source.raw_key if isinstance(source, KafkaSource) else None
    return len(event.input or b"") + headers_bytes(event.headers, raw_key)


def unpack_slot(data: bytes) -> Slot:
    """Raises msgspec.DecodeError when `data` is not a journal slot."""
    return _decode_slot(data)


def unpack_out(data: bytes) -> Out:
    """Raises msgspec.DecodeError when `data` is not an outgoing entry."""
    return _decode_out(data)


def unpack_event(data: bytes) -> Event:
    """Raises msgspec.DecodeError when `data` is not an event."""
    return _decode_event(data)


def pack_events(events: Sequence[Event]) -> bytes:
    """The stored form of several events."""
    return _encoder.encode(events)


def unpack_events(data: bytes) -> tuple[Event, ...]:
    """Raises msgspec.DecodeError when `data` is not a list of events."""
    return _decode_events(data)


def unpack_result(data: bytes) -> Result:
    """Raises msgspec.DecodeError when `data` is not a result."""
    return _decode_result(data)


def answer_bytes(result: Result) -> int:
    """What a result weighs that an awakeable is given: its value, or the text of its failure."""
    if isinstance(result, Success):
        return len(result.value or b"")
    return len(result.failure.message.encode(errors="surrogatepass"))


def unpack_bundle(data: bytes) -> Bundle:
    """Raises msgspec.DecodeError when `data` is no bundle of outgoing entries."""
    return _decode_bundle(data)


def unpack_bundle_apart(data: bytes) -> tuple[tuple[int, Entry | bytes], ...]:
    """The entries of a bundle with their positions; the bytes of each that cannot be read, or is no entry.

    Raises msgspec.DecodeError when `data` is no bundle of anything.
    """
    found: list[tuple[int, Entry | bytes]] = []
    for position, raw in _decode_sealed_bundle(data).entries:
        packed = bytes(raw)
        try:
            entry = _decode_out(packed)
        except msgspec.DecodeError:
            found.append((position, packed))
        else:
            found.append((position, packed if isinstance(entry, BundleOut | UnreadableOut) else entry))
    return tuple(found)


def unpack_carried(data: bytes) -> Carried:
    """Raises msgspec.DecodeError when `data` is not what a large event carries beside its input."""
    return _decode_carried(data)
