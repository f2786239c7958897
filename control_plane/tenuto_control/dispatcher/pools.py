"""Lanes that share one invocation: who may, and how their requests come together and their answers apart.

Owns both. Does not own which lanes get a place together (`capacity`), nor what an answer means (`activations`).

Only new work of handlers that have been quick, and have written nothing, shares an invocation: one that turns out to be
slow delays its companions. A pooled invocation writes nothing (`tenuto.runtime.pool`), so one that fails has done
nothing, and each of its lanes is asked for alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from msgspec import Struct

from tenuto.protocol.messages import Outcome
from tenuto_control.core.wakes import Handler
from tenuto_control.ports import InvokeError

QUICK_MS: Final = 50
"""An invocation that takes no longer is quick."""


class Alone(Struct, frozen=True):
    """Nothing was done: the activation is to have an invocation of its own."""


ALONE: Final = Alone()

Told: TypeAlias = Outcome | InvokeError | Alone
"""What a lane hears of its activation."""

Ask: TypeAlias = Callable[[Sequence[bytes]], Awaitable[Sequence[Told]]]
"""Asks a function for several activations at once: an answer for each."""


class Quick:
    """Which handlers' activations have been quick lately, and have written nothing: `least` in a row, at least."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._in_a_row: dict[Handler, int] = {}

    def told(self, handler: Handler, *, quick: bool) -> None:
        """One more activation of a handler has ended. Only handlers that a function has served are remembered."""
        if quick:
            self._in_a_row[handler] = min(self._least, self._in_a_row.get(handler, 0) + 1)
        else:
            self._in_a_row.pop(handler, None)

    def may_share(self, handler: Handler) -> bool:
        """Whether its work may share invocations."""
        return self._in_a_row.get(handler, 0) >= self._least


class Pool:
    """One invocation of several lanes. Each of `size` joins with its request or withdraws, and leaves in the end."""

    def __init__(self, size: int) -> None:
        self._expected = size
        self._inside = size
        self._joined: list[tuple[bytes, asyncio.Future[Told | None]]] = []

    def withdraw(self) -> None:
        """One of the lanes has nothing to ask for."""
        self._expected -= 1
        self._begin()

    def leave(self) -> bool:
        """One of the lanes needs the place no more. True for the last one."""
        self._inside -= 1
        return self._inside == 0

    async def answer(self, payload: bytes, ask: Ask) -> Told:
        """Join with a request. The first one to join asks for all of them, when all others have joined or withdrawn."""
        turn: asyncio.Future[Told | None] = asyncio.get_running_loop().create_future()
        entry = payload, turn
        self._joined.append(entry)
        self._begin()
        try:
            told = await turn
        except asyncio.CancelledError:
            if entry in self._joined:
                # Nobody has asked yet, and what is asked need not contain this one.
                self._joined.remove(entry)
                self._expected -= 1
                self._begin()
            raise
        return await self._lead(ask) if told is None else told

    def _begin(self) -> None:
        """Have the first one ask, if all are there."""
        if self._joined and len(self._joined) == self._expected and not self._joined[0][1].done():
            self._joined[0][1].set_result(None)

    async def _lead(self, ask: Ask) -> Told:
        entries, self._joined = self._joined, []
        answers: Sequence[Told] = [ALONE] * len(entries)
        try:
            answers = await ask([payload for payload, _ in entries])
        finally:
            for (_, turn), told in zip(entries[1:], answers[1:], strict=True):
                if not turn.done():
                    turn.set_result(told)
        return answers[0]
