"""How many invocations run at once, in all and per function, what their requests may hold together, and who is next.

Owns the places and the room for requests, and who waits for them. Does not own how much of them is one function's
(`core.shares`), nor what is done with them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from tenuto_control.core.shares import may_take
from tenuto_control.dispatcher.answer_room import AnswerRoom, HeldAnswer
from tenuto_control.limits import MIB
from tenuto_control.ports import Target

BEGUN_IN_A_ROW_MAX: Final = 4
"""So many begun invocations may pass by one that has not begun.

Lanes that wake indefinitely, such as failing ones, must not keep new work out.
"""


class Capacity:
    """Places for invocations, and room for their requests and answers.

    Of one function, what has begun comes first, and otherwise who came first. A sleep that has ended is late from then
    on, while an event that still waits is merely not early; and an invocation that ends makes its lane's head small
    again. Functions take turns, and each holds no more than `core.shares` leaves it of the `functions` that there are.
    """

    def __init__(self, total: int, request_bytes_max: int, functions: int = 1, answer_bytes_max: int = MIB) -> None:
        self._total = total
        self._count = functions
        self._functions: dict[str, _Function] = {}
        # Functions for which somebody waits, in turns.
        self._ring: deque[_Function] = deque()
        self._room = SharedRoom(request_bytes_max, functions)
        self._answers = AnswerRoom(answer_bytes_max)

    def answer(self, target: Target) -> HeldAnswer:
        """What holds room for the answer of one invocation, from when it is read to the end of the block."""
        return self._answers.answer(target.function)

    def room(self, target: Target, size_bytes: int) -> HeldRoom:
        """Hold room for a request while it is in progress: with a place, and before the request is made."""
        return HeldRoom(self._room, target.function, size_bytes)

    def place(self, target: Target, *, begun: bool = False) -> HeldPlace:
        """Hold a place while an invocation of the target's function runs; `begun`: it continues with a claimed run."""
        function = self._functions.get(target.function)
        if function is None:
            function = self._functions[target.function] = _Function()
        function.most = target.concurrency
        return HeldPlace(self, function, begun=begun)

    def begun_wait(self, target: Target) -> bool:
        """Whether as much waits that has begun, such as sleeps that have ended, as the target's function has places."""
        function = self._functions.get(target.function)
        return function is not None and len(function.begun) >= function.most

    def _may_begin(self, function: _Function) -> bool:
        if function.held >= function.most:
            return False
        others = (other.held for other in self._functions.values() if other.held and other is not function)
        return may_take(1, function.held, others, self._total, self._count)

    async def take(self, function: _Function, *, begun: bool) -> None:
        """Wait for a place of a function, and hold it."""
        if not function.waits and self._may_begin(function):
            function.held += 1
            return
        queue = function.begun if begun else function.new
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        if not function.listed:
            function.listed = True
            self._ring.append(function)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):
                    queue.remove(turn)
            else:
                # The place came at the moment of giving up.
                self.give(function)
            raise

    def give(self, function: _Function) -> None:
        """Give a place back."""
        function.held -= 1
        passed_by = 0
        while passed_by < len(self._ring):
            first = self._ring.popleft()
            if first.waits and not self._may_begin(first):
                self._ring.append(first)
                passed_by += 1
                continue
            passed_by = 0
            turn = first.next()
            if turn is None:
                first.listed = False
                continue
            self._ring.append(first)
            if not turn.cancelled():
                first.held += 1
                turn.set_result(None)


class HeldPlace:
    """A place that is held from the beginning of the block to its end. As a generator it would take twice as long."""

    __slots__ = ("_begun", "_capacity", "_function")

    def __init__(self, capacity: Capacity, function: _Function, *, begun: bool) -> None:
        self._capacity = capacity
        self._function = function
        self._begun = begun

    async def __aenter__(self) -> None:
        """Wait for the place."""
        await self._capacity.take(self._function, begun=self._begun)

    async def __aexit__(self, *_: object) -> None:
        """Give it back."""
        self._capacity.give(self._function)


class HeldRoom:
    """Room for a request that is held from the beginning of the block to its end."""

    __slots__ = ("_function", "_large", "_room", "_size")

    def __init__(self, room: SharedRoom, function: str, size: int) -> None:
        self._room = room
        self._function = function
        self._size = size
        self._large = False

    async def __aenter__(self) -> None:
        """Wait for the room."""
        self._large = await self._room.take(self._function, self._size)

    async def __aexit__(self, *_: object) -> None:
        """Give it back."""
        self._room.give(self._function, self._size, large=self._large)


@dataclass(slots=True, eq=False)
class _Function:
    """The places of one function: how many it may have and holds, and who waits for one."""

    most: int = 1
    held: int = 0
    listed: bool = False
    begun: deque[asyncio.Future[None]] = field(default_factory=deque)
    new: deque[asyncio.Future[None]] = field(default_factory=deque)
    in_a_row: int = 0

    @property
    def waits(self) -> bool:
        """Whether somebody waits, who may have given up meanwhile."""
        return bool(self.begun or self.new)

    def next(self) -> asyncio.Future[None] | None:
        """Take who is next out of its queue."""
        if self.begun and (not self.new or self.in_a_row < BEGUN_IN_A_ROW_MAX):
            self.in_a_row = self.in_a_row + 1 if self.new else 0
            return self.begun.popleft()
        self.in_a_row = 0
        return self.new.popleft() if self.new else None


class SharedRoom:
    """A number that functions, or others, share: bytes or places, each one's in the order in which they are asked for.

    A function takes of it by `core.shares`. A request that is larger than what is kept for its function might find no
    room for as long as others hold theirs: one such request at a time, whose function holds nothing else, goes beyond
    the bound.
    """

    def __init__(self, bytes_max: int, functions: int) -> None:
        self._bytes_max = bytes_max
        self._functions = functions
        self._held: dict[str, int] = {}
        self._large: str | None = None
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[bool]]]] = {}

    async def take(self, function: str, size: int) -> bool:
        """Wait until there is room for that much, and hold it. Returns whether it is held beyond the bound."""
        if function not in self._waiting and self._fits(function, size):
            return self._hold(function, size)
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(function, deque()).append((size, turn))
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # The room came at the moment of giving up.
                self.give(function, size, large=turn.result())
            else:
                self._go_on()
            raise

    def give(self, function: str, size: int, *, large: bool) -> None:
        """Give room back."""
        if large:
            self._large = None
        else:
            held = self._held.get(function, 0) - size
            if held:
                self._held[function] = held
            else:
                self._held.pop(function, None)
        self._go_on()

    def _hold(self, function: str, size: int) -> bool:
        if self._within(function, size):
            self._held[function] = self._held.get(function, 0) + size
            return False
        self._large = function
        return True

    def _within(self, function: str, size: int) -> bool:
        """Whether it fits beside what others hold."""
        others = (held for other, held in self._held.items() if other != function)
        own = self._held.get(function, 0)
        alone = not self._held and self._large is None
        return alone or may_take(size, own, others, self._bytes_max, self._functions)

    def _fits(self, function: str, size: int) -> bool:
        if self._within(function, size):
            return True
        return self._large is None and function not in self._held

    def _go_on(self) -> None:
        for function, waiting in list(self._waiting.items()):
            before = len(waiting)
            while waiting:
                size, turn = waiting[0]
                if not turn.cancelled():
                    if not self._fits(function, size):
                        break
                    turn.set_result(self._hold(function, size))
                waiting.popleft()
            if len(waiting) < before:
                # The next one that goes beyond the bound is another function's, if any waits.
                del self._waiting[function]
                if waiting:
                    self._waiting[function] = waiting
