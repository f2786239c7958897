"""Pace: how many costly beginnings one turn of the event loop has.

Owns the turns. Does not own what begins. A thousand requests that are due at once would otherwise all begin in one
turn, and nothing else, such as a health check, would be answered before the last of them has.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Pace:
    """Lets so many begin in one turn of the event loop, first come first."""

    def __init__(self, per_turn: int) -> None:
        self._per_turn = per_turn
        self._begun = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def turn(self) -> None:
        """Wait for the turn in which this one may begin: this turn, unless too many others have begun in it."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # What waited on another loop went with it.
            self._loop, self._begun, self._waiting = loop, 0, deque()
        if self._begun < self._per_turn and not self._waiting:
            if self._begun == 0:
                loop.call_soon(self._next, loop)
            self._begun += 1
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:
            return
        self._begun = 0
        while self._waiting and self._begun < self._per_turn:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._begun += 1
        if self._begun:
            loop.call_soon(self._next, loop)
