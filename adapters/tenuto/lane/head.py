"""The head item: one flat DynamoDB item per lane, and its reading.

Owns attribute names and the parse from item to `Head`. Does not own the writes that change it (`transitions`).

Every part of the head is a top-level attribute, so a write names just what it changes and needs no parent map to exist:

    ver tok pend                fencing token, id of the last writer, unique mark "look into the inbox"
    s.<name>  b.<name>          state; what the run first saw of a name it has published since (NULL: absent)
    w.<source>                  next offset the lane accepts of a topic-partition
    x.<source>                  when a newer life of its topic was met (ms), and the watermark then
    o.<sequence>  f.<nonce>     outbox entry; a finished message or call (value: when, ms)
    rid run att holder lease    the active invocation: nonce, its fixed part, attempt, holder, lease end (ms)
    own                         the process that has written for this attempt, which shuts out its twin
    fails err awaits wake seg   failed attempts, last error, awaited slots and wake time, names of journal segments
    tried                       an event that has not claimed, and how often it has failed
    ans took                    unique mark of the last result of an awakeable; those that have left the head
    j.<ver>.<slot>              journal slots of the invocation claimed at that ver
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec

from tenuto.lane.writes import Foreign, Item, Key, Value
from tenuto.protocol.decoding import bounded
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import ClaimedRun, Head
from tenuto.protocol.records import Event, Out, UnreadableOut, unpack_out

HEAD_SK = "H"
STATE, BASE, WATERMARK, OUT, FIN = "s.", "b.", "w.", "o.", "f."
FORMER = "x."
JOURNAL = "j."
T = TypeVar("T")


class RunRecord(msgspec.Struct, frozen=True, array_like=True):
    """The part of a run that never changes after its claim."""

    event: Event
    ver: int
    start_ms: int
    first_out: int
    input_item: str | None
    secret: bytes = b""


OWN = "own"
ANS = "ans"
TOOK = "took"
TRIED = "tried"

NUMBER_MIN, NUMBER_MAX = -(2**63), 2**63 - 1
EVERY_RUN = ("rid", "run", "att", "holder", "lease", OWN, ANS)
"""What a head with a run has, or may be given by others at any time."""

RUN_ATTRIBUTES = (*EVERY_RUN, "fails", "err", "awaits", "wake", "seg", TOOK)
"""What only a head with a run has."""

_run_encoder = msgspec.msgpack.Encoder()
_decode_run = bounded(msgspec.msgpack.Decoder(RunRecord))
_decode_took = bounded(msgspec.msgpack.Decoder(tuple[int, ...]))


def head_key(lane: Lane) -> Key:
    """Where a lane's head is."""
    return Key(lane.pk, HEAD_SK)


def slot_attribute(run_ver: int, slot: str) -> str:
    """The attribute of a journal slot; the claim's `ver` tells it from a stray slot of an older run."""
    return f"{JOURNAL}{run_ver}.{slot}"


def run_attributes(head: Head) -> Iterator[str]:
    """Which of RUN_ATTRIBUTES go when the run of a head ends, in the view of the attempt that owns it.

    Each name in a write costs the table time, so what no head of this run can have is left out. Others put results of
    awakeables and their mark at any time; all else is written by the owner alone, which has seen what it wrote, and by
    those who begin another attempt. Whether an attribute holds zero failures or is absent, a view does not tell.
    """
    run = head.run
    if run is None:
        raise ValueError("there is no run")
    yield from EVERY_RUN
    seen = (
        ("fails", run.failures > 0 or run.attempt > 1),
        ("err", run.error is not None),
        ("awaits", run.awaits is not None),
        ("wake", run.wake_ms is not None),
        ("seg", bool(head.segments)),
        (TOOK, bool(head.took)),
    )
    yield from (name for name, there in seen if there)


def pack_run(run: ClaimedRun) -> bytes:
    """The stored form of a run's fixed part."""
    return _run_encoder.encode(RunRecord(run.event, run.ver, run.start_ms, run.first_out, run.input_item, run.secret))


class UnreadableHeadError(ValueError):
    """An attribute that a lane goes by does not hold what it should: a newer version wrote it, or another process."""


def parse_head(item: Item | None) -> Head:
    """The head in an item; None (no item) is the head of a lane that never did anything.

    An outgoing entry that cannot be read is an `UnreadableOut`. Raises UnreadableHeadError when any other attribute
    that the lane goes by does not hold what the schema says: without its state, its watermarks or its run's journal,
    work would be forgotten, or done twice.
    """
    if item is None:
        return Head()
    try:
        return _parse_item(item)
    except ValueError as e:
        raise UnreadableHeadError(str(e)) from e


def _parse_item(item: Item) -> Head:
    run = _parse_run(item)
    state: dict[str, bytes] = {}
    base: dict[str, bytes | None] = {}
    watermarks: dict[str, int] = {}
    former: dict[str, tuple[int, int]] = {}
    out, fin, slots = {}, {}, {}
    stray: list[str] = []
    journal = f"{JOURNAL}{run.ver}." if run else None
    for name, value in item.items():
        if name[1:2] != ".":
            continue  # A part of its own, read below.
        prefix, rest = name[:2], name[2:]
        if prefix == STATE:
            state[rest] = _as(bytes, name, value)
        elif prefix == BASE:
            if run is None:
                stray.append(name)
            else:
                base[rest] = None if value is None else _as(bytes, name, value)
        elif prefix == WATERMARK:
            watermarks[rest] = _as(int, name, value)
        elif prefix == FORMER:
            former |= _mark(rest, value)
        elif prefix == OUT:
            out[rest] = _outgoing(name, value)
        elif prefix == FIN:
            # Its name says what has finished. Without its time it counts as one of long ago.
            fin[rest] = value if isinstance(value, int) and _is_number(value) else 0
        elif prefix == JOURNAL:
            if journal and name.startswith(journal):
                slots[name[len(journal) :]] = _as(bytes, name, value)
            else:
                stray.append(name)
    return Head(
        ver=_optional(int, "ver", item) or 0,
        tok=_text("tok", item),
        pend=_optional(str, "pend", item),
        state=state,
        base=base,
        watermarks=watermarks,
        former=former,
        out=dict(sorted(out.items())),
        fin=fin,
        run=run,
        slots=slots,
        # Without a run they mean nothing, whatever they hold.
        segments=(_texts("seg", item) or ()) if run else (),
        ans=_optional(str, ANS, item) if run else _text(ANS, item),
        took=_took(item) if run else (),
        stray=tuple(stray),
        tried=_tried(item),
    )


def _parse_run(item: Item) -> ClaimedRun | None:
    packed = _optional(bytes, "run", item)
    if packed is None:
        return None
    fixed = _decode_run(packed)
    return ClaimedRun(
        event=fixed.event,
        ver=fixed.ver,
        start_ms=fixed.start_ms,
        first_out=fixed.first_out,
        input_item=fixed.input_item,
        secret=fixed.secret,
        attempt=_as(int, "att", item.get("att")),
        holder=_as(str, "holder", item.get("holder")),
        lease_ms=_as(int, "lease", item.get("lease")),
        failures=_optional(int, "fails", item) or 0,
        awaits=_texts("awaits", item),
        wake_ms=_optional(int, "wake", item),
        error=_text("err", item),
    )


def _outgoing(name: str, value: Value) -> Out:
    """An outgoing entry. One that cannot be read concerns no other, nor the lane: whoever delivers sets it aside."""
    try:
        return unpack_out(_as(bytes, name, value))
    except ValueError as e:
        return UnreadableOut(str(e))


def _is_number(value: Value) -> bool:
    """Whether a value is a number of 64 bits: DynamoDB's have 38 digits, which no message to a function holds."""
    return isinstance(value, int) and NUMBER_MIN <= value <= NUMBER_MAX


def _as(kind: type[T], name: str, value: Value) -> T:
    if kind is int and isinstance(value, int) and not _is_number(value):
        raise ValueError(f"attribute {name!r} of a head should hold a number of 64 bits")
    if not isinstance(value, kind):
        found = value.reason if isinstance(value, Foreign) else f"not {type(value).__name__}"
        problem = f"attribute {name!r} of a head should hold {kind.__name__}: {found}"
        raise ValueError(problem)  # noqa: TRY004 - bad data, not a bad call
    return value


def _optional(kind: type[T], name: str, item: Item) -> T | None:
    value = item.get(name)
    return None if value is None else _as(kind, name, value)


def _text(name: str, item: Item) -> str | None:
    """A text that only tells something: one that cannot be read is none."""
    value = item.get(name)
    return value if isinstance(value, str) else None


def pack_took(indexes: Iterable[int]) -> bytes:
    """The stored form of the awakeables whose results have left the head."""
    return _run_encoder.encode(sorted(indexes))


def _took(item: Item) -> tuple[int, ...]:
    packed = _optional(bytes, TOOK, item)
    return () if packed is None else _decode_took(packed)


def _tried(item: Item) -> tuple[str, int] | None:
    match item.get(TRIED):
        case [str() as nonce, int() as failures] if _is_number(failures):
            return nonce, failures
        case _:
            return None


def _mark(source: str, value: Value) -> dict[str, tuple[int, int]]:
    """What cannot be read is no mark: it is put once more."""
    match value:
        case [int() as at_ms, int() as watermark] if _is_number(at_ms) and _is_number(watermark):
            return {source: (at_ms, watermark)}
        case _:
            return {}


def _texts(name: str, item: Item) -> tuple[str, ...] | None:
    values = _optional(list, name, item)
    return None if values is None else tuple(_as(str, name, v) for v in values)
