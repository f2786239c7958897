"""An asyncio event loop on virtual time: when nothing is ready, the clock jumps to the next timer.

Owns time, the order of ready callbacks and the bounds of a run. Does not own processes: it only asks `adopt` what to
do with each new task. No threads, no I/O, no wall clock: equal seeds give equal runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from types import CoroutineType
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH_MS = 1_790_000_000_000
"""The true time at which every simulation begins, in milliseconds since the epoch."""

TURNS_MAX = 6_000_000
"""Turns of the loop after which a run that does not end is called endless."""

TURNS_A_SECOND_MAX = 200_000
"""Turns within one virtual second after which something is called to be spinning."""


CLEANUPS_MAX = 10
"""Nested `finally` clauses with an await in each that a task may have when it is abandoned."""


class StuckError(Exception):
    """The run cannot end: nothing is left to happen, or there is no end to it. The message lists what still waits."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """Virtual time for one run.

    `shuffle`, when given, permutes the callbacks that are ready at the same time (asyncio promises an order; a program
    that needs it across tasks is fragile).
    """

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, shuffle: random.Random | None = None) -> None:
        super().__init__()
        self._selector = self
        self._now_s = 0.0
        self._turns = 0
        self._second = self._second_began = 0
        self._shuffle = shuffle
        self.adopt: Callable[[asyncio.Task[Any], Context], None] = lambda _task, _context: None
        self.set_exception_handler(self._note)
        self.unhandled: list[str] = []
        # asyncio refers to tasks weakly. A task of a dead process waits for what nobody will ever bring, so memory
        # management would reclaim it, and run its cleanups, at a moment that no seed decides.
        self._tasks: set[asyncio.Task[Any]] = set()

    def time(self) -> float:
        """Virtual seconds since the run began."""
        return self._now_s

    def now_ms(self) -> int:
        """True time in milliseconds since the epoch."""
        return EPOCH_MS + round(self._now_s * 1_000)

    def select(self, timeout: float | None) -> list[Any]:
        """What BaseEventLoop asks a selector: here waiting costs nothing."""
        if timeout is None:
            raise StuckError("nothing is left to happen:\n" + self._waiting())
        self._turns += 1
        if int(self._now_s) != self._second:
            self._second, self._second_began = int(self._now_s), self._turns
        if self._turns > TURNS_MAX:
            raise StuckError(f"no end after {self._turns} turns and {self._now_s:.3f} s:\n" + self._waiting())
        if self._turns - self._second_began > TURNS_A_SECOND_MAX:
            raise StuckError(f"spinning at {self._now_s:.3f} s:\n" + self._waiting())
        self._now_s += max(0.0, timeout)
        if self._shuffle is not None and len(self._ready) > 1:
            handles = list(self._ready)
            self._shuffle.shuffle(handles)
            self._ready.clear()
            self._ready.extend(handles)
        return []

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """A task that its process knows of."""
        task = asyncio.Task(coro, loop=self, name=None if name is None else str(name), context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.adopt(task, copy_context() if context is None else context)
        return task

    def cancel_timers(self, whose: Callable[[Context], bool]) -> None:
        """Cancel the timers that were set in such contexts."""
        for handle in list(self._scheduled):
            # asyncio has no public way to ask whose a timer is.
            if whose(getattr(handle, "_context")):  # noqa: B009 - the attribute is not in the type stubs
                handle.cancel()

    def timers(self, whose: Callable[[Context], bool]) -> list[str]:
        """The timers that were set in such contexts and are still to fire."""
        live = (handle for handle in self._scheduled if not handle.cancelled())
        return [str(handle) for handle in live if whose(getattr(handle, "_context"))]  # noqa: B009 - not in type stubs

    def abandon(self) -> None:
        """End the run where it is: what still waits is never heard of again."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for task in list(self._tasks):
                # Asyncio's own way to be told that a task is left behind on purpose.
                setattr(task, "_log_destroy_pending", False)  # noqa: B010 - the attribute is not in the type stubs
                coroutine = task.get_coro()
                assert isinstance(coroutine, CoroutineType)
                # Without a loop no cleanup can go far; it is cut off here rather than whenever memory is reclaimed.
                # Each `close` ends one cleanup that wants to wait.
                for _ in range(CLEANUPS_MAX):
                    with contextlib.suppress(BaseException):
                        coroutine.close()
                    if inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED:
                        break
            self.close()

    def _process_events(self, _events: list[Any]) -> None:
        """Nothing comes from outside."""

    def _write_to_self(self) -> None:
        """Nothing has to be woken: there are no threads."""

    def _waiting(self) -> str:
        return "\n".join(sorted(f"  {t.get_name()}: {t.get_coro()}" for t in self._tasks))

    def _note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None:
            self.unhandled.append(f"{context.get('message')}: {error!r}")
