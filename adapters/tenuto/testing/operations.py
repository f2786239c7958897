"""A request of a test, in progress from the moment it is made.

Owns both ways to its result and the detection of user code that does not return. Does not own the request itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitTimeoutError
from typing import Final, Generic, TypeVar

from tenuto.testing import places
from tenuto.testing.errors import HarnessError, HungError
from tenuto.testing.virtual_loop import LoopThread

T = TypeVar("T")

LOOK_S: Final = 0.25
"""Seconds between two looks at whether the thread of an environment makes progress."""


class Operation(Generic[T]):
    """A request to an environment, already in progress. Await it, or call `result()` where no event loop runs."""

    def __init__(self, future: Future[T], thread: LoopThread, patience_s: float | None, what: str) -> None:
        self.what = what
        self.looked_at = thread.inside
        self._future = future
        self._thread = thread
        self._patience_s = patience_s

    def result(self) -> T:
        """Wait for the result without an event loop.

        Raises the errors of the method that returned the operation, HungError if user code runs for too long, and
        HarnessError inside a handler or step, which must await the operation.
        """
        self.looked_at = True
        if self._thread.inside:
            raise HarnessError(
                f"{self.what} was called inside a handler or a step, and its result() would wait for itself: await it"
            )
        watch = _Watch(self._thread, self._patience_s)
        while True:
            try:
                return self._future.result(LOOK_S)
            except WaitTimeoutError:
                if self._future.done():
                    raise
                watch.look(self.what)

    def __await__(self) -> Generator[object, None, T]:
        self.looked_at = True
        return self._awaited().__await__()

    async def _awaited(self) -> T:
        waiting = asyncio.wrap_future(self._future)
        watch = _Watch(self._thread, self._patience_s)
        while not waiting.done():
            await asyncio.wait([waiting], timeout=LOOK_S)
            if not self._thread.inside and not waiting.done():
                watch.look(self.what)
        return waiting.result()


class _Watch:
    """Detects that a thread makes no progress."""

    def __init__(self, thread: LoopThread, patience_s: float | None) -> None:
        self._thread = thread
        self._patience_s = patience_s
        self._turns = -1
        self._since_s = time.monotonic()

    def look(self, what: str) -> None:
        """Raise HungError when there has been no turn of the loop for too long."""
        turns, now_s = self._thread.loop.turns, time.monotonic()
        if turns != self._turns:
            self._turns, self._since_s = turns, now_s
        elif self._patience_s is not None and now_s - self._since_s > self._patience_s:
            at = places.of_thread(self._thread.ident)
            raise HungError(
                f"{what} does not return: user code has been running for {self._patience_s:g} s"
                f"{f', and is at {at}' if at else ', or waits for something outside'}; pass Environment(patience=None) "
                "for a debugger"
            )
