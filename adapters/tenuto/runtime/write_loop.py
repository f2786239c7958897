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
from typing import Any, Final, TypeAlias, TypeVar

from tenuto.runtime.alarm import Alarm, open_alarm

T = TypeVar("T")

AFTER_WRITE_S: Final = 0.001
"""How long after a write in the first thread a flush that is overdue begins, if that write has not made it needless."""

Flush: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class BlockingWriteLoop:
    """A `WriteLoop` for a table that blocks, as one function process has it.

    Work that may hold its caller's thread runs there at once. Everything else runs on an event loop in a daemon thread,
    which is started when it is first needed; so does a flush whose time has come. Neither thread waits for the other:
    what finds one at work is done by the second thread afterwards.

    Nearly always the first thread flushes in time. An alarm then leaves the second one asleep; where there is none
    (`make_alarm` returns None), that one has to look at the time.
    """

    def __init__(self, make_alarm: Callable[[], Alarm | None] = open_alarm) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._make_alarm = make_alarm
        self._alarm: Alarm | None = None
        # Guards all that follows.
        self._lock = threading.Lock()
        self._here = False
        self._there = 0
        self._put_off: list[Callable[[], None]] = []
        self._flush: Flush | None = None
        self._flush_s = 0.0
        # Without an alarm: whether the second thread looks for a flush every now and then, and whether one was asked
        # for since its last look. Waking it costs more than a look.
        self._looks = self._asked = False

    async def run(self, work: Coroutine[Any, Any, T], *, here: bool) -> T:
        """See `WriteLoop.run`. In the second thread, the work of a caller that is cancelled continues."""
        if not here or not self._take():
            return await self._beside(work)
        try:
            return await work
        finally:
            self._give_back()

    def flush_within(self, delay_ms: int, flush: Flush) -> None:
        """See `WriteLoop.flush_within`."""
        loop, delay_s = self._running(), delay_ms / 1_000
        with self._lock:
            due_s = time.monotonic() + delay_s
            # One that is tried again may be due much later.
            if self._flush is not None and self._flush_s <= due_s:
                return
            self._flush, self._flush_s = flush, due_s
            if self._alarm is not None:
                self._alarm.set(delay_s)
                return
            self._asked = True
            # Its next look comes before this is due, unless one that is tried again has put it off.
            looks, self._looks = self._looks, True
        if not looks:
            loop.call_soon_threadsafe(self._look, delay_s)

    def flushed(self) -> None:
        """See `WriteLoop.flushed`."""
        # The second thread asks for none but what it tries again, and that finds nothing to store then.
        if self._flush is not None:
            with self._lock:
                self._flush = None
                if self._alarm is not None:
                    self._alarm.clear()

    # --- the caller's thread ----------------------------------------------------------------------------------------

    def _take(self) -> bool:
        """Begin to work here, unless the second thread is at work."""
        with self._lock:
            if self._here or self._there:
                return False
            self._here = True
            if self._alarm is not None and self._flush is not None:
                # What is written here now most likely takes along what the flush is for.
                self._alarm.clear()
            return True

    def _give_back(self) -> None:
        with self._lock:
            self._here = False
            if self._alarm is not None and self._flush is not None:
                # Whoever wrote says right after this whether there is anything left to flush.
                self._alarm.set(max(AFTER_WRITE_S, self._flush_s - time.monotonic()))
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
        # Two messages between the loops. The standard way makes a future with its own lock for each, and four.
        if not waits:
            self._running().call_soon_threadsafe(start)
        return (await answered).result()

    def _ring(self) -> None:
        """The alarm has gone off: begin the flush that is due."""
        assert self._alarm is not None, "somebody has heard it"
        self._alarm.quiet()
        with self._lock:
            if not self._is_due():
                return  # It was set again, or cleared, meanwhile.
            if self._here:
                # What is written there now most likely takes along what this flush is for.
                self._put_off.append(self._ring)
                return
            flush = self._take_flush()
        self._begin(flush)

    def _look(self, every_s: float) -> None:
        """Begin the flush that is due, and look again when the next one may be."""
        with self._lock:
            # As long as somebody asks, another look costs less than to be woken for it.
            self._looks, self._asked = self._asked or self._flush is not None, False
            is_due = self._is_due()
            if is_due and self._here:
                self._put_off.append(functools.partial(self._look, every_s))
                return
            left_s = every_s if is_due or self._flush is None else self._flush_s - time.monotonic()
            flush = self._take_flush() if is_due else None
            looks = self._looks
        if looks:
            self._running().call_later(left_s, self._look, every_s)
        if flush is not None:
            self._begin(flush)

    def _is_due(self) -> bool:
        return self._flush is not None and self._flush_s <= time.monotonic()

    def _take_flush(self) -> Flush:
        assert self._flush is not None, "a flush is due"
        flush, self._flush = self._flush, None
        self._there += 1
        return flush

    def _begin(self, flush: Flush) -> None:
        self._running().create_task(flush()).add_done_callback(lambda _: self._ended())

    def _ended(self) -> None:
        with self._lock:
            self._there -= 1

    def _running(self) -> asyncio.AbstractEventLoop:
        """The second thread's loop. Only the first thread makes it, at its first need."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._alarm = self._make_alarm()
            if self._alarm is not None:
                self._loop.add_reader(self._alarm.descriptor, self._ring)
            threading.Thread(target=self._loop.run_forever, name="tenuto-writes", daemon=True).start()
        return self._loop
