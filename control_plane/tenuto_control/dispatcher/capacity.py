"""How many invocations run at once, in all and per function, what their requests may hold together, and who is next.

Owns the places and the room for requests. Does not own what is done with them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from tenuto_control.core.shares import may_take
from tenuto_control.ports import Target

BEGUN_IN_A_ROW_MAX: Final = 4
"""So many begun invocations may pass by one that has not begun.

Lanes that wake for ever, such as failing ones, must not keep new work out.
"""


class Capacity:
    """Places for invocations: what has begun comes first, and otherwise who came first.

    A sleep that has ended is late from then on, while an event that still waits is merely not early; and an invocation
    that ends makes its lane's head small again.
    """

    def __init__(self, total: int, request_bytes_max: int) -> None:
        self._all = _Places(total)
        self._functions: dict[str, _Places] = {}
        self._room = _Room(request_bytes_max)

    @asynccontextmanager
    async def room(self, target: Target, size_bytes: int) -> AsyncIterator[None]:
        """Hold room for a request while it is under way: with a place, and before the request is made."""
        await self._room.take(target.function, size_bytes)
        try:
            yield
        finally:
            self._room.give(target.function, size_bytes)

    @asynccontextmanager
    async def place(self, target: Target, *, begun: bool = False) -> AsyncIterator[None]:
        """Hold a place while an invocation of the target's function runs; `begun`: it goes on with a claimed run."""
        own = self._functions.setdefault(target.function, _Places(target.concurrency))
        async with own.held(begun=begun), self._all.held(begun=begun):
            yield


class _Places:
    """A semaphore with two queues."""

    def __init__(self, free: int) -> None:
        self._free = free
        self._begun: deque[asyncio.Future[None]] = deque()
        self._new: deque[asyncio.Future[None]] = deque()
        self._in_a_row = 0

    @asynccontextmanager
    async def held(self, *, begun: bool) -> AsyncIterator[None]:
        """Wait for a place and hold it."""
        await self._take(begun=begun)
        try:
            yield
        finally:
            self._give()

    async def _take(self, *, begun: bool) -> None:
        if self._free > 0:
            # Nobody waits then: a place that is given back goes to who waits.
            self._free -= 1
            return
        queue = self._begun if begun else self._new
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):
                    queue.remove(turn)
            else:
                # The place came at the moment of giving up.
                self._give()
            raise

    def _give(self) -> None:
        while (turn := self._next()) is not None:
            if not turn.cancelled():
                turn.set_result(None)
                return
        self._free += 1

    def _next(self) -> asyncio.Future[None] | None:
        """Take who is next out of its queue."""
        if self._begun and (not self._new or self._in_a_row < BEGUN_IN_A_ROW_MAX):
            self._in_a_row = self._in_a_row + 1 if self._new else 0
            return self._begun.popleft()
        self._in_a_row = 0
        return self._new.popleft() if self._new else None


class _Room:
    """A number of bytes that requests share, each function's in the order in which they ask.

    A function that holds some of it takes more by `core.shares`. A request that is larger than all goes alone.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held: dict[str, int] = {}
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}

    async def take(self, function: str, size: int) -> None:
        """Wait until there is room for that much, and hold it."""
        if function not in self._waiting and self._fits(function, size):
            self._hold(function, size)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(function, deque()).append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # The room came at the moment of giving up.
                self._hold(function, -size)
            self._go_on()
            raise

    def give(self, function: str, size: int) -> None:
        """Give room back."""
        self._hold(function, -size)
        self._go_on()

    def _hold(self, function: str, size: int) -> None:
        held = self._held.get(function, 0) + size
        if held:
            self._held[function] = held
        else:
            self._held.pop(function, None)

    def _fits(self, function: str, size: int) -> bool:
        held, own = sum(self._held.values()), self._held.get(function, 0)
        if held == 0:
            return True
        if held + size > self._bytes_max:
            return False
        # What holds nothing yet may need more than is free at any one time: meanwhile nobody else takes more.
        passed_by = own > 0 and any(other not in self._held for other in self._waiting)
        return not passed_by and may_take(size, own, held - own, self._bytes_max)

    def _go_on(self) -> None:
        for function, waiting in list(self._waiting.items()):
            while waiting:
                size, turn = waiting[0]
                if not turn.cancelled():
                    if not self._fits(function, size):
                        break
                    self._hold(function, size)
                    turn.set_result(None)
                waiting.popleft()
            if not waiting:
                del self._waiting[function]
