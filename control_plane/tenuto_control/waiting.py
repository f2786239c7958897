"""Waiting with a bound, for what waits once for each event: asyncio's own ways take several times as long.

Owns two ways to wait. Does not own how long anybody waits.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any


class Within:
    """A block that may take so many seconds. Raises TimeoutError when it has been cancelled for taking longer.

    As `asyncio.timeout`, which awaits twice and can be rescheduled.
    """

    __slots__ = ("_alarm", "_before", "_over", "_seconds", "_task")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._over = False

    def __enter__(self) -> None:
        """The time begins."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can be cancelled")
        self._task = task
        self._before = task.cancelling()
        self._alarm = task.get_loop().call_later(max(0.0, self._seconds), self._end)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """The block has ended, in time or not. Raises TimeoutError."""
        self._alarm.cancel()
        # Whoever else has cancelled the task meanwhile is heard.
        if self._over and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _end(self) -> None:
        self._over = True
        self._task.cancel()


async def settled(future: asyncio.Future[Any], seconds: float) -> None:
    """Wait until a future is done, for so many seconds at most, and leave it as it is."""
    if future.done():
        return
    loop = future.get_loop()
    over: asyncio.Future[None] = loop.create_future()

    def end(_: object = None) -> None:
        if not over.done():
            over.set_result(None)

    alarm = loop.call_later(max(0.0, seconds), end)
    future.add_done_callback(end)
    try:
        await over
    finally:
        alarm.cancel()
        future.remove_done_callback(end)
