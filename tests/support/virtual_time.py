"""An asyncio loop whose clock jumps to the next timer when nothing is ready.

Owns time; knows no sockets and no threads.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

EPOCH_MS = 1_700_000_000_000
"""What wall clocks show when a virtual loop begins."""

TURNS_MAX = 200_000
"""Turns of a loop at one moment; what takes more does not end."""

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs callbacks in the usual order, and sleeps take no real time."""

    def __init__(self) -> None:
        self._elapsed_s = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Virtual seconds since the loop began."""
        return self._elapsed_s

    def jump(self, seconds: float) -> None:
        """Let time pass."""
        self._elapsed_s += seconds


class _JumpingSelector(selectors.DefaultSelector):
    """Where the loop would wait for its next timer, time passes instead."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._virtual = loop
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "every task waits for another: a deadlock"
        self._turns += 1
        if timeout > 0:
            self._virtual.jump(timeout)
            self._turns = 0
        assert self._turns < TURNS_MAX, f"{TURNS_MAX} turns without time passing: something is spinning"
        return super().select(0)


def block(seconds: float) -> None:
    """What slow code of a handler does: it holds its thread, while durable writes go on beside it."""
    inner = asyncio.get_running_loop()
    outer = _running[-1]
    over = outer.create_future()
    outer.call_later(seconds, over.set_result, None)
    # A step that the handler has asked for runs on the outer loop, whose turn this is now.
    asyncio._set_running_loop(outer)
    try:
        while not over.done():
            outer._run_once()  # type: ignore[attr-defined]  # asyncio has no public way to run a part of a loop
    finally:
        asyncio._set_running_loop(inner)


_running: list[VirtualTimeLoop] = []
"""The virtual loop that runs now, the innermost last."""


class VirtualClock:
    """The Clock port on the running virtual loop."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return EPOCH_MS + round(asyncio.get_running_loop().time() * 1_000)


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a virtual loop."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualTimeLoop)
        _running.append(loop)
        try:
            return runner.run(main)
        finally:
            _running.remove(loop)
