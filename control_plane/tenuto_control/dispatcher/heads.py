"""Heads that this process keeps of lanes at rest: in which form, how much memory they take, and which go first.

Owns the bound in bytes and in number. Does not own what is remembered (`core.lane_memory`). Any of them may be dropped
at any time, at the price of a read.

What is remembered of an idle lane is kept encoded: as objects, a sleeping run of 400 bytes would be 2,500.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping
from types import NoneType
from typing import Final

import msgspec
from msgspec import Struct

from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Head
from tenuto_control.core.lane_facts import EMPTY
from tenuto_control.core.lane_memory import Known, LaneMemory
from tenuto_control.core.sightings import Sighting

REST_BYTES: Final = 1_200
"""What a lane at rest takes besides the contents of its head: the objects of its memory and of its place here."""

IDLE_BYTES: Final = 480
"""The same for one whose memory is encoded: its name, its place here, and the object of the bytes."""

ENTRY_BYTES: Final = 224
"""What an entry of a dictionary takes besides what it holds: its place, and the objects of name and value."""

DEPTH_MAX: Final = 8
"""How deep a message is looked into."""


class _Encoded(Struct, frozen=True, array_like=True):
    """What is remembered of an idle lane whose head is known, as it is encoded."""

    head: Head
    shipped: frozenset[str]
    finished: frozenset[str]
    sighting: Sighting
    overtaken_ms: int | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Encoded).decode

Kept = tuple[LaneMemory | bytes, int]
"""What is remembered of a lane, and its weight."""


class Heads:
    """What is remembered of idle lanes, and how much room the heads of resting ones may take besides."""

    def __init__(self, lanes_max: int, bytes_max: int) -> None:
        self._lanes_max = lanes_max
        self._bytes_max = bytes_max
        self._idle: OrderedDict[Lane, Kept] = OrderedDict()
        self._resting: dict[Lane, int] = {}
        self._bytes = 0

    def __len__(self) -> int:
        """How many lanes are remembered that are idle."""
        return len(self._idle)

    def __contains__(self, lane: object) -> bool:
        """Whether something is remembered of a lane that is idle."""
        return lane in self._idle

    @property
    def bytes(self) -> int:
        """What all of it weighs."""
        return self._bytes

    def keep(self, lane: Lane, memory: LaneMemory) -> None:
        """Remember an idle lane, at the expense of those that have been idle for longest."""
        encoded = encoded_memory(memory)
        weight = weight_of(memory) if encoded is None else IDLE_BYTES + len(lane.key) + len(encoded)
        self._idle[lane] = memory if encoded is None else encoded, weight
        self._bytes += weight
        self._shrink()

    def take(self, lane: Lane) -> LaneMemory | None:
        """What is remembered of a lane that has something to do again; from then on it is its own to keep."""
        kept = self._idle.pop(lane, None)
        if kept is None:
            return None
        memory, weight = kept
        self._bytes -= weight
        return decoded_memory(memory) if isinstance(memory, bytes) else memory

    def hold(self, lane: Lane, weight: int) -> bool:
        """Make room for the head of a lane that rests. False when there is none: then it is to be dropped."""
        self._resting[lane] = weight
        self._bytes += weight
        self._shrink()
        if self._bytes <= self._bytes_max:
            return True
        self.release(lane)
        return False

    def release(self, lane: Lane) -> None:
        """The lane rests no more."""
        self._bytes -= self._resting.pop(lane, 0)

    def clear(self) -> None:
        """Nobody rests any more. What is known of idle lanes stays."""
        self._bytes -= sum(self._resting.values())
        self._resting.clear()

    def _shrink(self) -> None:
        while self._idle and (self._bytes > self._bytes_max or len(self._idle) > self._lanes_max):
            _, (_, weight) = self._idle.popitem(last=False)
            self._bytes -= weight


def encoded_memory(memory: LaneMemory) -> bytes | None:
    """What is remembered of an idle lane, as bytes. None when it is to be kept as it is.

    So is a head that has something to send: what users have put there may change when it is encoded once more.
    """
    head = memory.head
    if head is None or head.out:
        return None
    try:
        encoded = _encode(_Encoded(head, memory.shipped, memory.finished, memory.sighting, memory.overtaken_ms))
    except (ValueError, OverflowError):
        return None  # Text that is no UTF-8, or a number of more than 64 bits: the table takes both.
    # A copy has the size of what it holds; what the encoder has made has up to half as much more.
    return bytes(memoryview(encoded))


def decoded_memory(encoded: bytes) -> LaneMemory:
    """The memory that was encoded."""
    kept = _decode(encoded)
    return LaneMemory(
        Known(kept.head),
        kept.shipped or EMPTY,
        kept.finished or EMPTY,
        sighting=kept.sighting,
        overtaken_ms=kept.overtaken_ms,
    )


def weight_of(memory: LaneMemory) -> int:
    """Bytes that are kept with a lane at rest, roughly, and rather too many."""
    head = memory.head
    named = sum(map(len, memory.shipped)) + sum(map(len, memory.finished))
    named += ENTRY_BYTES * (len(memory.shipped) + len(memory.finished))
    return REST_BYTES + named + (0 if head is None else head_bytes(head))


def head_bytes(head: Head) -> int:
    """What a head holds, in bytes, roughly: its values, and what each entry costs."""
    weight = 0
    for values in (head.state, head.base, head.slots):
        for name, value in values.items():
            weight += ENTRY_BYTES + len(name) + (0 if value is None else len(value))
    weight += ENTRY_BYTES * (len(head.watermarks) + len(head.fin) + len(head.stray) + len(head.segments))
    weight += sum(ENTRY_BYTES + _held(entry) for entry in head.out.values()) if head.out else 0
    return weight + (0 if head.run is None else _held(head.run))


def _held(value: object, depth: int = DEPTH_MAX) -> int:
    """What a message holds: texts and bytes, in whatever it is made of."""
    # By the type itself first, as it is for nearly all: asking whether one is a mapping takes long.
    kind = type(value)
    if kind is bytes or kind is str:
        return sys.getsizeof(value)
    if kind is int or value is None or depth == 0 or isinstance(value, _NUMBERS):
        return 0
    if isinstance(value, _TEXTS):
        return sys.getsizeof(value)
    held = ENTRY_BYTES
    if isinstance(value, Struct):
        for name in value.__struct_fields__:
            held += _held(getattr(value, name), depth - 1)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            held += _held(key) + _held(one, depth - 1)
    elif isinstance(value, _ROWS):
        for one in value:
            held += _held(one, depth - 1)
    else:
        return 0
    return held


_TEXTS: Final = (bytes, str)
_NUMBERS: Final = (int, NoneType)
_ROWS: Final = (tuple, list)
