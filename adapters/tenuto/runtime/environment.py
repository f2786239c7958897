"""What an activation needs from its surroundings, injected so that the simulation can own all of it.

Owns the ports of the runtime (clock, threads, the loop that durable writes run on). Does not own their wiring
(`tenuto.aws`).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from tenuto.lane.timers import NOT_SPREAD, Minutes
from tenuto.protocol.limits import DEADLINE_MARGIN_MS, HOLD_RETRY_MS_MAX, HOLD_SLEEP_MS_MAX
from tenuto.store.port import Table

T = TypeVar("T")

STEP_THREADS_MAX: Final = 32
"""Sync steps that one attempt runs at the same time; more wait for their turn."""


class WriteLoop(Protocol):
    """Where durable writes run: beside the handler's loop, so that blocking user code cannot hold them up."""

    def post(self, action: Callable[[], None]) -> None:
        """Run something there soon, without waiting for it."""
        ...

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for its result."""
        ...


class InlineWriteLoop:
    """The handler's own loop: for tests and the simulation, where nothing blocks."""

    def post(self, action: Callable[[], None]) -> None:
        """See `WriteLoop.post`."""
        action()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """See `WriteLoop.run`."""
        return await work


class ThreadWriteLoop:
    """A loop in a daemon thread of its own, started at the first durable write."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def post(self, action: Callable[[], None]) -> None:
        """See `WriteLoop.post`."""
        self._running().call_soon_threadsafe(action)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """See `WriteLoop.run`. The work of a caller that is cancelled goes on."""
        there, here = self._running(), asyncio.get_running_loop()
        answered: asyncio.Future[asyncio.Task[T]] = here.create_future()

        def start() -> None:
            there.create_task(work).add_done_callback(hand_back)

        def hand_back(task: asyncio.Task[T]) -> None:
            here.call_soon_threadsafe(answer, task)

        def answer(task: asyncio.Task[T]) -> None:
            if answered.done():
                task.exception()  # Nobody waits for it any more, so its failure is nobody's.
            else:
                answered.set_result(task)

        # Two messages between the loops. The standard way makes a future with a lock of its own for each, and four.
        there.call_soon_threadsafe(start)
        return (await answered).result()

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="tenuto-writes", daemon=True).start()
        return self._loop


async def in_thread(call: Callable[[], T]) -> T:
    """Run a blocking step in a worker thread, with this task's context variables."""
    return await asyncio.to_thread(call)


def abandon(task: asyncio.Task[None]) -> None:
    """Leave a step to itself that nobody waits for any more. A thread cannot be ended, so its pool is replaced."""
    task.cancel()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(STEP_THREADS_MAX, "tenuto-step"))


class ProcessEnded(BaseException):
    """The end of the process, where a test environment has it end: no failure of whatever code it passes through."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Surroundings of one activation. `deadline_ms` is when the function will be stopped, by its own clock.

    `nonce` is this process's own: it tells it from a twin, when one invocation was delivered twice. Sleeps up to
    `hold_ms` are waited for inside the function. `trace` names the control plane's span, when it traces.
    `spread` are the minutes whose timers are put into more partitions.
    """

    table: Table
    now_ms: Callable[[], int]
    deadline_ms: int
    writes: WriteLoop
    thread: Callable[[Callable[[], Any]], Awaitable[Any]] = in_thread
    abandon: Callable[[asyncio.Task[None]], None] = abandon
    random_bytes: Callable[[int], bytes] = os.urandom
    jitter: Callable[[], float] = lambda: 0.0
    nonce: str = ""
    hold_ms: int = HOLD_SLEEP_MS_MAX
    trace: str | None = None
    spread: Minutes = NOT_SPREAD

    def remaining_ms(self) -> int:
        """Milliseconds this function may still run."""
        return self.deadline_ms - self.now_ms()

    def can_hold(self, pause_ms: int) -> bool:
        """Whether a pause before another try is short enough to stay inside the function."""
        return pause_ms <= min(HOLD_RETRY_MS_MAX, self.remaining_ms() - DEADLINE_MARGIN_MS)
