"""What an activation needs from its surroundings, injected so that the simulation can own all of it.

Owns the ports of the runtime (clock, threads, the loop that durable writes run on). Does not own their wiring
(`tenuto.aws`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from tenuto.lane.timers import NOT_SPREAD, Minutes
from tenuto.protocol.limits import BESIDE_HOLD_MS_MAX, DEADLINE_MARGIN_MS, HOLD_RETRY_MS_MAX, HOLD_SLEEP_MS_MAX
from tenuto.protocol.messages import NapLeave
from tenuto.runtime.placement import QuickSteps
from tenuto.store.port import Table

T = TypeVar("T")

STEP_THREADS_MAX: Final = 32
"""Sync steps that one process runs at the same time; more wait for their turn."""


class WriteLoop(Protocol):
    """Where the durable writes of an activation run, so that blocking user code cannot hold them up."""

    async def run(self, work: Coroutine[Any, Any, T], *, here: bool) -> T:
        """The result of a coroutine. `here`: nothing else needs the caller's thread meanwhile, so it may be held."""
        ...

    def flush_within(self, delay_ms: int, flush: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin a flush within so long, whatever the caller's thread does, unless one is to begin before."""
        ...

    def flushed(self) -> None:
        """There is nothing to flush any more."""
        ...


class InlineWriteLoop:
    """The handler's own loop: for tests and the simulation, where nothing blocks."""

    def __init__(self) -> None:
        self._due: asyncio.TimerHandle | None = None

    async def run(self, work: Coroutine[Any, Any, T], *, here: bool) -> T:  # noqa: ARG002 - it is always here
        """See `WriteLoop.run`."""
        return await work

    def flush_within(self, delay_ms: int, flush: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """See `WriteLoop.flush_within`."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(delay_ms / 1_000, self._begin, flush)

    def flushed(self) -> None:
        """See `WriteLoop.flushed`."""
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _begin(self, flush: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._due = None
        self._flushing = asyncio.ensure_future(flush())


async def in_thread(call: Callable[[], T]) -> T:
    """Run a blocking step in a worker thread, with this task's context variables."""
    return await asyncio.to_thread(call)


def abandon(task: asyncio.Task[None]) -> None:
    """Leave a step to itself that nobody waits for any more. A thread cannot be ended, so its pool is replaced."""
    task.cancel()
    asyncio.get_running_loop().set_default_executor(step_threads())


def step_threads() -> ThreadPoolExecutor:
    """Threads for sync steps; each begins when it is needed."""
    return ThreadPoolExecutor(STEP_THREADS_MAX, "tenuto-step")


class ProcessEnded(BaseException):
    """The end of the process, where a test environment has it end: no failure of whatever code it passes through."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What lanes keep to that are worked on side by side in one thread.

    None begins an event from `until_ms` on. `quick` knows which sync steps may hold the thread.
    """

    until_ms: int
    quick: QuickSteps


@dataclass(frozen=True, slots=True)
class Environment:
    """Surroundings of one activation. `deadline_ms` is when the function will be stopped, by its own clock.

    `nonce` is this process's own: it tells it from a twin, when one invocation was delivered twice. Sleeps up to
    `hold_ms` are waited for inside the function. `trace` names the control plane's span, when it traces.
    `spread` are the minutes whose timers are put into more partitions. `nap` is leave to nap. `pooled`: the activation
    has the invocation together with others, and may write nothing. `beside`: others are worked on at the same time, in
    the same thread.
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
    nap: NapLeave | None = None
    pooled: bool = False
    beside: Beside | None = None

    def may_begin(self, margin_ms: int) -> bool:
        """Whether the function may begin another event, for which it should have more than a margin left."""
        in_turn = self.beside is None or self.now_ms() < self.beside.until_ms
        return in_turn and self.remaining_ms() > margin_ms

    def remaining_ms(self) -> int:
        """Milliseconds this function may still run."""
        return self.deadline_ms - self.now_ms()

    def can_hold(self, pause_ms: int) -> bool:
        """Whether a pause before another try is short enough to stay inside the function."""
        most_ms = HOLD_RETRY_MS_MAX if self.beside is None else BESIDE_HOLD_MS_MAX
        return pause_ms <= min(most_ms, self.remaining_ms() - DEADLINE_MARGIN_MS)
