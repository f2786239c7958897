"""Lanes that share one invocation: who may, and how their requests come together and their answers apart.

Owns both. Does not own which lanes get a place together (`capacity`), nor what an answer means (`activations`).

Work of handlers that have been quick shares invocations, since one that turns out to be slow delays its companions. If
they have written nothing, either, it has one after the other, and such an invocation writes nothing
(`tenuto.runtime.pool`). Otherwise lanes are worked on side by side, and each writes what it does alone
(`tenuto.runtime.beside`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, TypeAlias

from msgspec import Struct

from tenuto.protocol.limits import BESIDE_MS_MAX
from tenuto.protocol.messages import Outcome
from tenuto_control.core.flights import Trace
from tenuto_control.core.wakes import Handler
from tenuto_control.ports import InvokeError, Target
from tenuto_control.waiting import settled

QUICK_MS: Final = 50
"""An invocation that takes no longer for each of its events is quick."""

PATIENCE_MS: Final = 500
"""So long a lane waits for an invocation that others share, before it looks whether it has ended there; then longer."""


class Alone(Struct, frozen=True):
    """Nothing was done: the activation is to have an invocation of its own."""


ALONE: Final = Alone()


class Forsaken(Struct, frozen=True):
    """It is at work, or has left nothing but an answer, which comes with those of companions that are slow."""


FORSAKEN: Final = Forsaken()


class Unheard(Struct, frozen=True):
    """What came of the activation is in its lane's head; the answer comes with those of companions that are slow."""


UNHEARD: Final = Unheard()


class InvolvedError(InvokeError):
    """An invocation that several lanes shared has failed: whose fault it was, nobody knows."""


Told: TypeAlias = Outcome | InvokeError | Alone | Forsaken | Unheard
"""What a lane hears of its activation."""

Ask: TypeAlias = Callable[[Sequence[bytes]], Awaitable[Sequence[Told]]]
"""Asks a function for several activations at once: an answer for each."""


class Watch(Struct, frozen=True):
    """How a lane sees what its head shows of an activation, and is told of an answer that it has not waited for."""

    look: Callable[[], Awaitable[Trace]]
    late: Callable[[], None]


class Sharing(Struct, frozen=True):
    """With how many others a lane may share an invocation, itself included; `beside`: side by side, and all write."""

    most: int = 1
    beside: bool = False


UNSHARED: Final = Sharing()


class Pace(Struct, frozen=True):
    """How activations of a handler have gone lately: so many in a row were quick, and so many wrote nothing besides."""

    quick: int = 0
    quiet: int = 0


class Quick:
    """Which handlers' activations have been quick lately: `least` in a row, at least."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._paces: dict[Handler, Pace] = {}

    def told(self, handler: Handler, *, quick: bool, wrote: bool) -> None:
        """One more activation of a handler has ended. Only handlers that a function has served are remembered."""
        if not quick:
            self._paces.pop(handler, None)
            return
        before = self._paces.get(handler, Pace())
        quiet = 0 if wrote else min(self._least, before.quiet + 1)
        self._paces[handler] = Pace(min(self._least, before.quick + 1), quiet)

    def sharing(self, handler: Handler, target: Target) -> Sharing:
        """How its work may share invocations of a function."""
        pace = self._paces.get(handler, Pace())
        if pace.quiet >= self._least and target.pools > 1:
            return Sharing(target.pools)
        if pace.quick >= self._least and target.beside > 1:
            return Sharing(target.beside, beside=True)
        return UNSHARED


def is_quick(took_ms: int, events: int, *, shared: bool) -> bool:
    """Whether an activation of so many events was quick. One of several has been given more time than it took."""
    return took_ms <= QUICK_MS * max(1, events) or (shared and took_ms <= BESIDE_MS_MAX + QUICK_MS)


class Invocation(Struct, frozen=True):
    """How a function is asked, what holds the answer meanwhile, who runs that task, and who is told that it is over.

    `lost` is what lanes are told if the task ends without an answer.
    """

    ask: Ask
    lost: Told
    room: AbstractContextManager[object]
    start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    over: Callable[[], None]


class Pool:
    """One invocation of several lanes. Each of `size` joins with its request or withdraws, and leaves in the end.

    The invocation is a task of its own: it ends when it has been answered and all have left.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._expected = size
        self._inside = size
        self._joined: dict[asyncio.Future[Told], bytes] = {}
        self._asking: asyncio.Task[None] | None = None
        self._empty: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._given_up = False
        # Whether one of them has been seen at work, or to have been: all are begun at the same time.
        self._seen = False

    def withdraw(self) -> None:
        """One of the lanes has nothing to ask for."""
        self._expected -= 1
        self._begin()

    def leave(self) -> bool:
        """One of the lanes needs the invocation no more. True for the last one, if there is none."""
        self._inside -= 1
        if self._inside:
            return False
        if self._asking is None:
            return True
        self._empty.set_result(None)
        if self._given_up:
            self._asking.cancel()
        return False

    async def answer(self, payload: bytes, invocation: Invocation, watch: Watch | None = None) -> Told:
        """Join with a request, and wait for its answer. The function is asked when all have joined or withdrawn.

        A lane that can `watch` its head does not wait for those that take long.
        """
        turn: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self._joined[turn] = payload
        self._invocation = invocation
        self._begin()
        try:
            return await (turn if watch is None else self._heard(turn, watch))
        except asyncio.CancelledError:
            if self._joined.pop(turn, None) is None:
                self._given_up = True
            else:
                # Nobody has asked yet, and what is asked need not contain this one.
                self.withdraw()
            raise

    async def _heard(self, turn: asyncio.Future[Told], watch: Watch) -> Told:
        patience_s = PATIENCE_MS / 1_000
        while True:
            await settled(turn, patience_s)
            trace = Trace.UNTOLD if turn.done() or turn in self._joined else await watch.look()
            if turn.done():
                return turn.result()
            match trace:
                case Trace.LEFT:
                    self._seen = True
                    turn.add_done_callback(lambda _: watch.late())
                    return UNHEARD
                case Trace.BEGUN:
                    self._seen = True
                case Trace.NONE if self._seen:
                    turn.add_done_callback(lambda _: watch.late())
                    return FORSAKEN
            patience_s *= 2

    def _begin(self) -> None:
        """Ask, if all are there."""
        if self._joined and len(self._joined) == self._expected:
            joined, self._joined = self._joined, {}
            invocation = self._invocation
            self._asking = invocation.start(self._asked(joined, invocation))
            # Not at the end of the task's own code, which one that is cancelled at once never comes to.
            self._asking.add_done_callback(lambda _: invocation.over())

    async def _asked(self, joined: dict[asyncio.Future[Told], bytes], invocation: Invocation) -> None:
        answers = [invocation.lost] * len(joined)
        with invocation.room:
            try:
                answers = [*await invocation.ask(tuple(joined.values()))]
            finally:
                for turn, told in zip(joined, answers, strict=True):
                    if not turn.done():
                        turn.set_result(told)
            await self._empty
