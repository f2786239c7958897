"""Heads that this process keeps of lanes at rest: how much memory they take, and which go first.

Owns the bound in bytes and in number. Does not own what is remembered (`core.lane_memory`). Any of them may be dropped
at any time, at the price of a read.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping
from types import NoneType
from typing import Final

from msgspec import Struct

from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Head
from tenuto_control.core.lane_memory import LaneMemory

REST_BYTES: Final = 1_600
"""What a lane at rest takes besides the contents of its head: the objects of its memory and of its place here."""

ENTRY_BYTES: Final = 224
"""What an entry of a dictionary takes besides what it holds: its place, and the objects of name and value."""

DEPTH_MAX: Final = 8
"""How deep a message is looked into."""

Kept = tuple[LaneMemory, int]


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

    def keep(self, lane: Lane, memory: LaneMemory, weight: int) -> None:
        """Remember an idle lane of this weight, at the expense of those that have been idle for longest."""
        self._idle[lane] = memory, weight
        self._bytes += weight
        self._shrink()

    def take(self, lane: Lane) -> LaneMemory | None:
        """What is remembered of a lane that has something to do again; from then on it is its own to keep."""
        kept = self._idle.pop(lane, None)
        if kept is None:
            return None
        self._bytes -= kept[1]
        return kept[0]

    def hold(self, lane: Lane, memory: LaneMemory) -> bool:
        """Make room for the head of a lane that rests. False when there is none: then it is to be dropped."""
        weight = weight_of(memory)
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
    if isinstance(value, _TEXTS):
        return sys.getsizeof(value)
    # Numbers are most of what is left, and asking whether one is a mapping takes long.
    if depth == 0 or isinstance(value, _NUMBERS):
        return 0
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
