"""Where the durable writes of a function run whose table blocks: in the caller's own thread, or beside it.

Owns the second thread, the promise that a flush begins in time whatever the first one does, and that only one of the
two is at work on a lane. Does not own what is written (`lane_writer`), nor who may block (`placement`).
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class BlockingWriteLoop:
    """A `WriteLoop` for a table that blocks, as one function process has it.

    Work that may hold its caller's thread runs there at once. Everything else runs on an event loop in a daemon thread,
    which is started when it is first needed; so does a flush whose time has come. Neither thread waits for the other:
    what finds one at work is done by the second thread afterwards.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        # Guards all that follows.
        self._lock = threading.Lock()
        self._here = False
        self._there = 0
        self._put_off: list[Callable[[], None]] = []
        self._flush: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._flush_s = 0.0
        # Whether the second thread looks for a flush every now and then, and whether one was asked for since its last
        # look. Waking it costs more than a look.
        self._looks = self._asked = False

    async def run(self, work: Coroutine[Any, Any, T], *, here: bool) -> T:
        """See `WriteLoop.run`. In the second thread, the work of a caller that is cancelled goes on."""
        if not here or not self._take():
            return await self._beside(work)
        try:
            return await work
        finally:
            self._give_back()

    def flush_within(self, delay_ms: int, flush: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """See `WriteLoop.flush_within`."""
        with self._lock:
            if self._flush is not None:
                return
            self._flush, self._flush_s = flush, time.monotonic() + delay_ms / 1_000
            self._asked = True
            # Its next look comes before this is due, since all flushes have the same delay.
            looks, self._looks = self._looks, True
        if not looks:
            self._running().call_soon_threadsafe(self._look, delay_ms / 1_000)

    def flushed(self) -> None:
        """See `WriteLoop.flushed`."""
        # Nobody but this thread asks for one.
        if self._flush is not None:
            with self._lock:
                self._flush = None

    # --- the caller's thread ----------------------------------------------------------------------------------------

    def _take(self) -> bool:
        """Begin to work here, unless the second thread is at work."""
        with self._lock:
            if self._here or self._there:
                return False
            self._here = True
            return True

    def _give_back(self) -> None:
        with self._lock:
            self._here = False
            if not self._put_off:
                return
            put_off, self._put_off = self._put_off, []
        for action in put_off:
            self._running().call_soon_threadsafe(action)

    # --- the second thread ------------------------------------------------------------------------------------------

    async def _beside(self, work: Coroutine[Any, Any, T]) -> T:
        here = asyncio.get_running_loop()
        answered: asyncio.Future[asyncio.Task[T]] = here.create_future()

        def start() -> None:
            self._running().create_task(work).add_done_callback(hand_back)

        def hand_back(task: asyncio.Task[T]) -> None:
            self._ended()
            here.call_soon_threadsafe(answer, task)

        def answer(task: asyncio.Task[T]) -> None:
            if answered.done():
                task.exception()  # Nobody waits for it any more, so its failure is nobody's.
            else:
                answered.set_result(task)

        with self._lock:
            self._there += 1
            waits = self._here
            if waits:
                self._put_off.append(start)
        # Two messages between the loops. The standard way makes a future with a lock of its own for each, and four.
        if not waits:
            self._running().call_soon_threadsafe(start)
        return (await answered).result()

    def _look(self, every_s: float) -> None:
        """Begin the flush that is due, and look again when the next one may be."""
        with self._lock:
            # As long as somebody asks, another look costs less than to be woken for it.
            self._looks, self._asked = self._asked or self._flush is not None, False
            left_s = every_s if self._flush is None else self._flush_s - time.monotonic()
            flush = None
            if self._flush is not None and left_s <= 0:
                if self._here:
                    # What is written there now most likely takes along what this flush is for.
                    self._put_off.append(functools.partial(self._look, every_s))
                    return
                flush, self._flush, left_s = self._flush, None, every_s
                self._there += 1
            looks = self._looks
        loop = self._running()
        if looks:
            loop.call_later(left_s, self._look, every_s)
        if flush is not None:
            loop.create_task(flush()).add_done_callback(lambda _: self._ended())

    def _ended(self) -> None:
        with self._lock:
            self._there -= 1

    def _running(self) -> asyncio.AbstractEventLoop:
        """The second thread's loop. Only the first thread makes it, at its first need."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="tenuto-writes", daemon=True).start()
        return self._loop
