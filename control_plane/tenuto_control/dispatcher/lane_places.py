"""Which lanes work at once: so many in all, so many of each function, and no more than their part of the memory holds.

Owns the places, the queues of lanes that wait for one, and who is next. Does not own what a lane does with its place
(`lane_worker`), nor the places of invocations (`capacity`): a lane also works before and after it invokes its function.

A lane that waits costs a few objects; one at work, a task, its requests to the table, and its head. Without a bound, a
backlog of distinct keys has all its lanes at work at once, most of them waiting for a place of their function.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Protocol, TypeAlias

from tenuto_control.core.shares import may_take
from tenuto_control.dispatcher.capacity import BEGUN_IN_A_ROW_MAX
from tenuto_control.limits import Limits
from tenuto_control.ports import Targets

LANES_PER_KEY: Final = 4
"""Lanes of a function at work for each key of its simultaneous invocations: the others read their heads and commit."""

FUNCTION_LANES_MIN: Final = 64
"""So many lanes of a function may work in any case, whatever its concurrency."""

CONTINUING_SHARE: Final = 4
"""One place in so many is for lanes that continue. Those that begin may all wait for an invocation, for long."""

WORKING_BYTES: Final = 32 * 1024
"""What a lane at work holds besides its head: its task, a request in progress with its answer, and what was parsed."""

HEAD_COPIES: Final = 2
"""How often a head is held while its lane works: parsed, and as it was read or is written."""

UNKNOWN_HEAD_BYTES: Final = 128 * 1024
"""How large the heads of a function are taken to be before one was seen."""

EXPECTATION_SHIFT: Final = 5
"""The expected size of a head follows smaller ones by a 32nd each time, and larger ones at once."""


class Kind(Enum):
    """Why a lane asks for a place."""

    BEGUN = auto()
    """It continues: something it waited for has come."""
    CALL = auto()
    """A caller waits."""
    RECORD = auto()
    """A record waits, as thousands may."""


class Waiting(Protocol):
    """A lane that waits for a place, holds one, or neither."""

    @property
    def service(self) -> str:
        """The service of the lane."""
        ...

    def start(self) -> bool:
        """Begin to work in a place. False when there is nothing left to do, and no place is needed."""
        ...


@dataclass(slots=True, eq=False)
class _Function:
    """The lanes of one function: how many are at work, how many of these have begun something, and which wait."""

    share: int
    at_work: int = 0
    beginning: int = 0
    bytes: int = 0
    head_bytes: int = UNKNOWN_HEAD_BYTES
    listed: bool = False
    begun: deque[Waiting] = field(default_factory=deque)
    calls: deque[Waiting] = field(default_factory=deque)
    records: deque[Waiting] = field(default_factory=deque)
    in_a_row: int = 0
    calls_next: bool = True

    def queue(self, kind: Kind) -> deque[Waiting]:
        match kind:
            case Kind.BEGUN:
                return self.begun
            case Kind.CALL:
                return self.calls
            case Kind.RECORD:
                return self.records

    @property
    def wanting(self) -> int:
        """How many of its lanes are at work, or wait for more than records."""
        return self.at_work + len(self.begun) + len(self.calls)

    @property
    def wants(self) -> bool:
        """Whether a lane waits that may have a place now."""
        return self.at_work < self.share and bool(self.begun or (self.may_begin and (self.calls or self.records)))

    @property
    def may_begin(self) -> bool:
        """Whether one more lane may begin something."""
        return self.beginning < self.share - self.share // CONTINUING_SHARE

    def next(self) -> tuple[Waiting, Kind]:
        """Take out who is next, and why: what continues comes first, and calls and records take turns."""
        new = self.may_begin and (self.calls or self.records)
        if self.begun and (not new or self.in_a_row < BEGUN_IN_A_ROW_MAX):
            self.in_a_row = self.in_a_row + 1 if new else 0
            return self.begun.popleft(), Kind.BEGUN
        self.in_a_row = 0
        if self.calls and (self.calls_next or not self.records):
            self.calls_next = False
            return self.calls.popleft(), Kind.CALL
        self.calls_next = True
        return self.records.popleft(), Kind.RECORD


Place: TypeAlias = tuple[_Function, int, bool]
"""A place that is held: whose it is, the bytes set aside for it, and whether its lane has begun something in it."""


class LanePlaces:
    """The places of one process."""

    def __init__(self, limits: Limits, targets: Targets, functions: int = 1) -> None:
        self._limits = limits
        self._targets = targets
        # Lanes of services that no function serves are one more that shares.
        self._count = functions + 1
        self._functions: dict[str | None, _Function] = {}
        # Functions that have a lane to start, in turns.
        self._ring: deque[_Function] = deque()
        self._held: dict[Waiting, Place] = {}
        self._bytes = 0
        self._backlog = self._hinted = 0

    @property
    def hinted(self) -> int:
        """How many lanes wait for a place for something else than records."""
        return self._hinted

    @property
    def backlog(self) -> int:
        """How many lanes wait for their first place, with records alone: their weight is the records'."""
        return self._backlog

    @property
    def at_work(self) -> int:
        """How many lanes hold a place."""
        return len(self._held)

    @property
    def bytes(self) -> int:
        """What is set aside for them."""
        return self._bytes

    def crowds(self, service: str, lanes_max: int) -> bool:
        """Whether the lanes of one function, at work or waiting for more than records, are all that it may have."""
        function = self._function(service)
        others = (other.wanting for other in self._functions.values() if other is not function and other.wanting)
        return not may_take(1, function.wanting, others, lanes_max, self._count)

    def enter(self, lane: Waiting, kind: Kind) -> None:
        """Start a lane as soon as there is a place for it, which may be at once."""
        function = self._function(lane.service)
        function.queue(kind).append(lane)
        self._backlog += kind is Kind.RECORD
        self._hinted += kind is not Kind.RECORD
        self._list(function)
        self._go()

    def leave(self, lane: Waiting, head_bytes: int | None) -> None:
        """A lane gives its place back, if it holds one. `head_bytes` is the size of its head, if that is known."""
        held = self._held.pop(lane, None)
        if held is None:
            return
        function, reserved, beginning = held
        function.at_work -= 1
        function.beginning -= beginning
        function.bytes -= reserved
        self._bytes -= reserved
        if head_bytes is not None:
            expected = function.head_bytes
            smaller = expected - max(1, (expected - head_bytes) >> EXPECTATION_SHIFT)
            function.head_bytes = max(head_bytes, smaller)
        self._list(function)
        self._go()

    def may_begin(self, lane: Waiting) -> bool:
        """Whether a lane at work may begin something in its place: one that continued may have to leave it for that."""
        held = self._held.get(lane)
        if held is None or held[-1]:
            return True
        function, reserved, _ = held
        if not function.may_begin:
            return False
        function.beginning += 1
        self._held[lane] = function, reserved, True
        return True

    def clear(self) -> None:
        """Nobody waits or works any more."""
        self._functions.clear()
        self._ring.clear()
        self._held.clear()
        self._bytes = self._backlog = self._hinted = 0

    def _function(self, service: str) -> _Function:
        target = self._targets.find(service)
        name = None if target is None else target.function
        share = FUNCTION_LANES_MIN if target is None else LANES_PER_KEY * target.concurrency * max(1, target.beside)
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = _Function(0)
        function.share = max(share, FUNCTION_LANES_MIN)
        return function

    def _list(self, function: _Function) -> None:
        if not function.listed and function.wants:
            function.listed = True
            self._ring.append(function)

    def _fits(self, function: _Function, cost: int) -> bool:
        """Whether one more lane of a function may work, by what others leave it. Its first one always may."""
        if function.at_work == 0:
            return True
        lanes_max, bytes_max = self._limits.lanes_at_work_max, self._limits.lanes_at_work_bytes_max
        others = [other for other in self._functions.values() if other.at_work and other is not function]
        if not may_take(1, function.at_work, (other.at_work for other in others), lanes_max, self._count):
            return False
        return may_take(cost, function.bytes, (other.bytes for other in others), bytes_max, self._count)

    def _go(self) -> None:
        passed_by = 0
        while passed_by < len(self._ring):
            function = self._ring[0]
            if not function.wants:
                # A lane at work has begun something meanwhile.
                self._ring.popleft()
                function.listed = False
                continue
            cost = WORKING_BYTES + HEAD_COPIES * function.head_bytes
            if not self._fits(function, cost):
                self._ring.rotate(-1)
                passed_by += 1
                continue
            passed_by = 0
            self._ring.popleft()
            function.listed = False
            lane, kind = function.next()
            beginning = kind is not Kind.BEGUN
            self._backlog -= kind is Kind.RECORD
            self._hinted -= kind is not Kind.RECORD
            if lane.start():
                function.at_work += 1
                function.beginning += beginning
                function.bytes += cost
                self._held[lane] = function, cost, beginning
                self._bytes += cost
            self._list(function)
