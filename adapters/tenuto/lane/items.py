"""Values too large for a head, in items beside it: journal segments, answers, messages, inputs.

Owns their names, their form, how much goes into one, and which of them are over. Each is put first, then a write of the
head names it: so a reader finds it, or does not look for it. Does not own the writes of the head (`transitions`), nor
when a value is too large (runtime, dispatcher).

Whoever ends a run deletes its items. What an attempt has left that was fenced off, or whose process died, is deleted by
the sweep when it finds a guard of the lane to be needed no more (`is_over`): that of a call's claim, or the one that is
put after each such attempt (`timers.leftovers_guard`). All names lie between `BESIDE_LOW` and `BESIDE_HIGH`, as the
inbox does, so that one query finds them and what waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from msgspec.structs import replace

from tenuto.lane.timers import GuardTimer
from tenuto.lane.writes import Delete, Foreign, Item, Key, Put, Value
from tenuto.protocol.ids import Lane, digest, out_sequence
from tenuto.protocol.limits import BUNDLE_BYTES_MAX, GUARDED_WRITE_MS_MAX, INLINE_BYTES_MAX, TOMBSTONE_TTL_S
from tenuto.protocol.messages import ClaimedRun, Head
from tenuto.protocol.records import (
    Bundle,
    BundleOut,
    Carried,
    Entry,
    Event,
    KafkaSource,
    Out,
    UnreadableOut,
    pack,
    unpack_bundle_apart,
    unpack_carried,
)

SEQUENCE_CHARS_MAX = 64
"""Longer places of an outbox are none that tenuto makes; they are shortened where they name an item."""
SET_ASIDE: Final = "U#"
"""What the names of items begin with that were set aside."""

BESIDE_LOW: Final = "I#"
BESIDE_HIGH: Final = "V$"
"""Bounds of a query for the inbox and all items beside a head."""

_WRITER: Final = 3
"""Which part of a segment's name is the `ver` that its writer expects."""


class UnreadableItemError(ValueError):
    """An item beside a head does not hold what it should: a newer version wrote it, or another process."""


def answer_name(run: ClaimedRun, slot: str, mark: str) -> str:
    """Sort key of such a result; the mark is part of it, so that answers that compete do not share it."""
    return f"Q#{run.ver:012d}#{slot}#{digest(mark)}"


def answer_put(lane: Lane, name: str, data: bytes) -> Put:
    """Before 8: a result that the head has no room for."""
    return Put(Key(lane.pk, name), {"slot": data})


def bundle_name(ver: int, number: int, own: str) -> str:
    """Sort key of a bundle of outgoing entries, unique like a segment's."""
    return f"O#{ver:012d}#{number:06d}#{own}"


def bundle_put(lane: Lane, name: str, bundle: Bundle) -> Put:
    """Outgoing entries that the head has no room for, put before the write of the head that names them."""
    return Put(Key(lane.pk, name), {"outs": pack(bundle)})


def entry_aside(lane: Lane, sequence: str, entry: Value, reason: str) -> Put:
    """Keep what stands for an outgoing entry, and is never delivered, in an item of its lane, with the reason."""
    name = sequence if len(sequence) <= SEQUENCE_CHARS_MAX else digest(sequence)
    return Put(Key(lane.pk, f"{SET_ASIDE}O#{name}"), {"out": entry, "why": reason})


def item_aside(item: Item, reason: str) -> Put:
    """Keep an item beside a head that cannot be read as it is, under its name after `U#`, with the reason."""
    attributes = {name: value for name, value in item.items() if name not in ("pk", "sk")}
    return Put(Key(str(item["pk"]), f"{SET_ASIDE}{item['sk']!s}"), {**attributes, "why": reason})


def input_name(nonce: str, holder: str) -> str:
    """Sort key of a large input; the holder is part of it, so that claims that compete do not share it."""
    return f"V#{nonce}#{holder}"


def input_put(lane: Lane, name: str, data: bytes | None, carried: Carried | None = None, at_ms: int = 0) -> Put:
    """A large input, and large headers, put at `at_ms` before the claim that names them."""
    attributes: dict[str, Value] = {"at": at_ms} if data is None else {"at": at_ms, "input": data}
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


def unbundled_apart(sequence: str, item: Item) -> dict[str, Entry | bytes]:
    """The same for the item of a bundle, with the bytes of each entry that cannot be read.

    Raises ValueError when the item holds no bundle of anything.
    """
    packed = item.get("outs")
    if not isinstance(packed, bytes):
        raise UnreadableItemError(f"the item of a bundle holds no entries{_why(packed)}")
    ver = sequence.partition(".")[0]
    return {out_sequence(int(ver), position): entry for position, entry in unpack_bundle_apart(packed)}


def payload_in(item: Item) -> tuple[bytes | None, Carried | None]:
    """The input in an item of an event, and what is carried beside it. Raises UnreadableItemError."""
    for name in ("input", "carried"):
        if not isinstance(item.get(name), bytes | None):
            raise UnreadableItemError(f"the {name} in its item cannot be read{_why(item[name])}")
    data, packed = item.get("input"), item.get("carried")
    try:
        carried = unpack_carried(packed) if isinstance(packed, bytes) else None
    except ValueError as e:
        raise UnreadableItemError(f"the headers in its item cannot be read: {e}") from e
    return data if isinstance(data, bytes) else None, carried


def _why(value: Value) -> str:
    return f": {value.reason}" if isinstance(value, Foreign) else ""


# --- how long they stay ----------------------------------------------------------------------------------------------


def is_over(item: Item, head: Head, guard: GuardTimer, now_ms: int) -> bool:
    """Whether an item beside a head is needed by nobody, now or later.

    `guard` was put for a write that can come no more, and its invocation is not the head's run. The outbox of `head`
    is empty, nothing waits in the inbox, and both were found at the `ver` of `head`.

    What belongs to a `ver` that the lane has reached, other than that of its run, belongs to a run or commit that is
    over. So does a segment of the run that is not in its list, and whose writer expects a `ver` that has passed. An
    input may be named by a claim as long as its writer lives, but for the guard's own; the parts of a waiting event by
    the event, which is put next by a process that may take its time.
    """
    name, at_ms = str(item["sk"]), item.get("at")
    age_ms = now_ms - at_ms if isinstance(at_ms, int) else 0
    match name[:2]:
        case "J#" | "O#" | "Q#":
            parts = name.split("#")
            ver = _number(parts[1])
            if ver is None or ver > head.ver:
                return False
            if head.run is None or ver != head.run.ver:
                return True
            writer = _number(parts[_WRITER]) if name.startswith("J#") and len(parts) > _WRITER + 1 else None
            return writer is not None and writer < head.ver and name not in head.segments
        case "V#":
            named = head.run is not None and head.run.input_item == name
            return not named and (name == input_name(guard.invocation, guard.nonce) or age_ms > GUARDED_WRITE_MS_MAX)
        case "P#":
            return age_ms > TOMBSTONE_TTL_S * 1_000
        case _:
            return False


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() else None


def leftover_delete(lane: Lane, name: str) -> Delete:
    """Forget an item beside a head that is over."""
    return Delete(Key(lane.pk, name))


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
        if isinstance(entry, BundleOut | UnreadableOut):
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
