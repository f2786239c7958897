"""Room for answers of functions: what they hold in memory together, from their first bytes until they are dealt with.

Owns the bytes and who is next: functions take turns, each in the order in which its answers came. Does not own reading
(`drivers.lambda_invoke`), which waits here before it continues, so that what waits stays with Lambda.

Nobody holds room for long: an answer is complete when it comes, and is committed or thrown away then. So one that does
not fit has all others wait behind it, and no part is kept for anybody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Self

ANSWER_COPIES: Final = 2
"""How often an answer is held: as it came, and decoded."""

ANSWER_FREE_BYTES: Final = 8 * 1024
"""A smaller answer takes no room: what a lane at work holds includes it (`lane_places.WORKING_BYTES`)."""


class AnswerRoom:
    """The answers of one process, of `bytes_max` together. One that is larger goes alone."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held = 0
        # Functions whose answers wait, in turns.
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}

    @property
    def held(self) -> int:
        """Bytes that are held now, copies included."""
        return self._held

    def answer(self, function: str) -> HeldAnswer:
        """What holds the answer of one invocation; it begins with nothing."""
        return HeldAnswer(self, function)

    async def take(self, function: str, size: int) -> None:
        """Wait until there is room for that much, and hold it."""
        if not self._waiting and self._fits(size):
            self._held += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(function, deque()).append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # The room came at the moment of giving up.
                self._held -= size
            self._go_on()
            raise

    def give(self, size: int) -> None:
        """Give room back."""
        self._held -= size
        self._go_on()

    def _fits(self, size: int) -> bool:
        return self._held == 0 or self._held + size <= self._bytes_max

    def _go_on(self) -> None:
        while self._waiting:
            function, answers = next(iter(self._waiting.items()))
            size, turn = answers[0]
            if not turn.cancelled():
                if not self._fits(size):
                    return
                self._held += size
                turn.set_result(None)
            answers.popleft()
            del self._waiting[function]
            if answers:
                self._waiting[function] = answers


class HeldAnswer:
    """What the answer of one invocation holds (the AnswerHolder port), until the block ends that it is used in."""

    __slots__ = ("_function", "_room", "_size")

    def __init__(self, room: AnswerRoom, function: str) -> None:
        self._room = room
        self._function = function
        self._size = 0

    async def hold(self, size: int) -> None:
        """See `AnswerHolder.hold`."""
        if self._size or size <= ANSWER_FREE_BYTES:
            return
        wanted = ANSWER_COPIES * size
        await self._room.take(self._function, wanted)
        self._size = wanted

    def __enter__(self) -> Self:
        """Nothing is held yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """The answer has been dealt with."""
        if self._size:
            self._room.give(self._size)
            self._size = 0
