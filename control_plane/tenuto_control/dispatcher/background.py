"""Tasks that nobody waits for to their end.

Owns keeping them alive, how many run at once, their errors and their end. Does not own what they do.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Coroutine
from enum import Enum, auto
from typing import Any, Final, TypeVar

from tenuto_control.ports import UndecidedError

log = logging.getLogger("tenuto.dispatcher")

T = TypeVar("T")


AT_ONCE_MAX: Final = 128
"""So much of one kind of what a sweep repeats runs at a time: due messages and schedules come in crowds."""

WAITING_MAX: Final = 10_000
"""So much of all kinds waits for that. The rest is left to the sweep."""


class Kind(Enum):
    """What runs on its own, by whom it waits for. What one of them does not answer keeps the others from nothing."""

    TABLE = auto()
    """Messages whose time has come, and marks of minutes: the table."""
    SCHEDULER = auto()
    """Wake-ups from outside: EventBridge Scheduler."""
    PACE = auto()
    """What continues at its own pace: the time."""


class Background:
    """The tasks of one process that run on their own."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._spawned: Counter[Kind] = Counter()
        self._waiting: dict[Kind, deque[Coroutine[Any, Any, None]]] = {kind: deque() for kind in Kind}

    @property
    def tasks(self) -> tuple[asyncio.Task[Any], ...]:
        """Those that run and have not ended."""
        return tuple(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, None], kind: Kind = Kind.TABLE) -> None:
        """Do something that a sweep repeats, should it fail, or should too much wait already."""
        if self._spawned[kind] < AT_ONCE_MAX:
            self._begin(work, kind)
        elif sum(map(len, self._waiting.values())) < WAITING_MAX:
            self._waiting[kind].append(work)
        else:
            work.close()

    def halt(self) -> tuple[asyncio.Task[Any], ...]:
        """Begin nothing of what waits. Returns what runs."""
        for waiting in self._waiting.values():
            while waiting:
                waiting.popleft().close()
        return self.tasks

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
        """Wait until all have ended that run or wait now, or for the timeout."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        while self._tasks and (left_s := until_s - loop.time()) > 0:
            await asyncio.wait(self.tasks, timeout=left_s)

    def _begin(self, work: Coroutine[Any, Any, None], kind: Kind) -> None:
        self._spawned[kind] += 1
        task = self._started(_quietly(work))
        # A task that is cancelled before it begins never comes to its work, which would complain about that.
        task.add_done_callback(lambda _: self._ended(work, kind))

    def _ended(self, work: Coroutine[Any, Any, None], kind: Kind) -> None:
        work.close()
        self._spawned[kind] -= 1
        if self._waiting[kind]:
            self._begin(self._waiting[kind].popleft(), kind)

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
