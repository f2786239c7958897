"""Tasks that nobody waits for to their end.

Owns keeping them alive, their errors and their end. Does not own what they do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from tenuto_control.ports import UndecidedError

log = logging.getLogger("tenuto.dispatcher")

T = TypeVar("T")


class Background:
    """The tasks of one process that run on their own."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def tasks(self) -> tuple[asyncio.Task[Any], ...]:
        """Those that have not ended."""
        return tuple(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that a sweep repeats, should it fail."""
        task = self._started(_quietly(work))
        # A task that is cancelled before it begins never comes to its work, which would complain about that.
        task.add_done_callback(lambda _: work.close())

    async def in_time(self, work: Coroutine[Any, Any, T], timeout_ms: int) -> T:
        """Wait for something that goes on when the time is over. Raises UndecidedError then, and what the work does."""
        task = self._started(work)
        # Whoever waits may have gone by then.
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        done, _ = await asyncio.wait([task], timeout=timeout_ms / 1000)
        if not done:
            raise UndecidedError("the table did not answer in time; whether the request takes effect is unknown")
        return task.result()

    async def ended(self, timeout_s: float) -> None:
        """Wait until all have ended that run now, or for the timeout."""
        if self._tasks:
            await asyncio.wait(self.tasks, timeout=timeout_s)

    def _started(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        log.exception("a background task failed; the sweep repeats what it was for")
