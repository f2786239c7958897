"""Coroutines on virtual time (`tenuto.testing.virtual_loop`), and code of handlers that blocks it.

Owns running one, and the clock that goes with it; knows no sockets and no threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from tenuto.testing.virtual_loop import VirtualTimeLoop

EPOCH_MS = 1_700_000_000_000
"""What wall clocks show when a virtual loop begins."""

T = TypeVar("T")


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
