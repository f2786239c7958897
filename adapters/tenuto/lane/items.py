"""Values too large for a head, in items beside it: journal segments, answers, messages, inputs.

Owns their names, their form, and how much goes into one. Each is put first, then a write of the head names it: so a
reader finds it, or does not look for it. Does not own the writes of the head (`transitions`), nor when a value is too
large (runtime, dispatcher).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from tenuto.lane.writes import Item, Key, Put, Value
from tenuto.protocol.ids import Lane, digest, out_sequence
from tenuto.protocol.limits import BUNDLE_BYTES_MAX, INLINE_BYTES_MAX
from tenuto.protocol.messages import ClaimedRun
from tenuto.protocol.records import (
    Bundle,
    BundleOut,
    Carried,
    Entry,
    Event,
    KafkaSource,
    Out,
    pack,
    unpack_carried,
)

SEQUENCE_CHARS_MAX = 64
"""Longer places of an outbox are none that tenuto makes; they are shortened where they name an item."""


def answer_name(run: ClaimedRun, slot: str, mark: str) -> str:
    """Sort key of such a result; the mark is part of it, so that answers that compete do not share it."""
    return f"A#{run.ver:012d}#{slot}#{digest(mark)}"


def answer_put(lane: Lane, name: str, data: bytes) -> Put:
    """Before 8: a result that the head has no room for."""
    return Put(Key(lane.pk, name), {"slot": data})


def bundle_name(ver: int, number: int, own: str) -> str:
    """Sort key of a bundle of outgoing entries, unique like a segment's."""
    return f"O#{ver:012d}#{number:06d}#{own}"


def bundle_put(lane: Lane, name: str, bundle: Bundle) -> Put:
    """Outgoing entries that the head has no room for, put before the write of the head that names them."""
    return Put(Key(lane.pk, name), {"outs": pack(bundle)})


def entry_aside(lane: Lane, sequence: str, entry: Out, reason: str) -> Put:
    """Keep an outgoing entry that can never be delivered in an item of its lane, with the reason: its head drops it."""
    name = sequence if len(sequence) <= SEQUENCE_CHARS_MAX else digest(sequence)
    return Put(Key(lane.pk, f"U#O#{name}"), {"out": pack(entry), "why": reason})


def input_name(nonce: str, holder: str) -> str:
    """Sort key of a large input; the holder is part of it, so that claims that compete do not share it."""
    return f"V#{nonce}#{holder}"


def input_put(lane: Lane, name: str, data: bytes | None, carried: Carried | None = None) -> Put:
    """A large input, and large headers, put before the claim that names them."""
    attributes: dict[str, Value] = {} if data is None else {"input": data}
    if carried is not None:
        attributes["carried"] = pack(carried)
    return Put(Key(lane.pk, name), attributes)


def segment_name(run: ClaimedRun, ver: int, number: int, own: str) -> str:
    """Sort key of a journal segment.

    The writer's `ver` and process are part of it, so that an attempt that was fenced off can never overwrite a segment
    of its successor, nor one of two twins a segment of the other. `number` counts that process's puts: the response to
    the write that was to name a segment may be lost, and then it may be named, whatever the process puts next.
    """
    return f"J#{run.ver:012d}#{number:06d}#{ver:012d}#{own}"


def segment_put(lane: Lane, name: str, slots: Mapping[str, bytes]) -> Put:
    """Journal slots on their way out of the head; put before the head's write drops them there."""
    return Put(Key(lane.pk, name), dict(slots))


def unbundled(sequence: str, bundle: Bundle) -> list[tuple[str, Entry]]:
    """The entries of the bundle that is at a place of an outbox, each with the place that is its own."""
    ver = sequence.partition(".")[0]
    return [(out_sequence(int(ver), position), entry) for position, entry in bundle.entries]


# --- what goes into them ---------------------------------------------------------------------------------------------


def carried_of(event: Event) -> Carried | None:
    """Headers and raw key of an event that are too large to be with it in a head."""
    raw_key = event.source.raw_key if isinstance(event.source, KafkaSource) else None
    carried = Carried(event.headers, raw_key)
    return carried if len(pack(carried)) > INLINE_BYTES_MAX else None


def without(event: Event, *, input_too: bool, carried: bool) -> Event:
    """An event without what its item holds of it: the input, or headers and raw key."""
    if input_too:
        event = replace(event, input=None)
    if carried:
        event = replace(event, headers=())
        if isinstance(event.source, KafkaSource):
            event = replace(event, source=replace(event.source, raw_key=None))
    return event


def with_item(event: Event, item: Item) -> Event:
    """An event with what its item holds of it."""
    data, packed = item.get("input"), item.get("carried")
    if isinstance(data, bytes):
        event = replace(event, input=data)
    if isinstance(packed, bytes):
        carried = unpack_carried(packed)
        event = replace(event, headers=carried.headers)
        if isinstance(event.source, KafkaSource):
            event = replace(event, source=replace(event.source, raw_key=carried.raw_key))
    return event


def bundles(out: Mapping[int, Out]) -> Iterator[Bundle]:
    """Outgoing entries, in order, in as many bundles as their size asks for. A bundle in a bundle there is not."""
    part: list[tuple[int, Entry]] = []
    size = 0
    for position, entry in sorted(out.items()):
        if isinstance(entry, BundleOut):
            raise TypeError("a bundle is made of entries")
        weight = len(pack(entry))
        if part and size + weight > BUNDLE_BYTES_MAX:
            yield Bundle(tuple(part))
            part, size = [], 0
        part.append((position, entry))
        size += weight
    if part:
        yield Bundle(tuple(part))


def parts(slots: Mapping[str, bytes]) -> Iterator[dict[str, bytes]]:
    """Slots in as many items as their size asks for."""
    part: dict[str, bytes] = {}
    for name, data in slots.items():
        if part and sum(map(len, part.values())) + len(data) > BUNDLE_BYTES_MAX:
            yield part
            part = {}
        part[name] = data
    if part:
        yield part
