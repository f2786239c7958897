"""Processes, and the gate through which all of their effects on the world pass.

Owns life and death of simulated processes: after a crash a process has no effect any more, whatever its code still
does, and its calls never return. Counts the writes of each role, so that a run can be repeated with a crash before or
after any one of them. Does not own what the effects are (`twins`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from tests.simulation.faults import FaultPlan
from tests.simulation.loop import SimulatedLoop

T = TypeVar("T")
Role: TypeAlias = Literal["function", "control"]

current: ContextVar[Process | None] = ContextVar("process", default=None)
"""The process whose code is running; inherited by its tasks and timers."""


@dataclass(eq=False)
class Process:
    """One simulated operating system process. `skew_ms` is how far its clock is ahead of the truth."""

    name: str
    role: Role
    loop: SimulatedLoop
    skew_ms: int = 0
    alive: bool = True
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    last_words: list[Callable[[], None]] = field(default_factory=list)
    mourn: Callable[[asyncio.Task[Any], BaseException], None] = lambda _task, _error: None
    born_ms: int = field(init=False)

    def __post_init__(self) -> None:
        self.born_ms = self.loop.now_ms()

    def now_ms(self) -> int:
        """The time by this process's own clock (the Clock port)."""
        return self.loop.now_ms() + self.skew_ms

    def spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        """Run a coroutine as part of this process."""
        context = copy_context()
        context.run(current.set, self)
        return self.loop.create_task(work, name=f"{self.name}: {name}", context=context)

    def within(self, make: Callable[[], T]) -> T:
        """Make something of this process. What keeps the context in which it was made then belongs to the process."""
        context = copy_context()
        context.run(current.set, self)
        return context.run(make)

    def ended(self, task: asyncio.Task[Any]) -> None:
        """A task of this process is done."""
        self.tasks.discard(task)
        if self.alive and not task.cancelled() and (error := task.exception()) is not None:
            self.mourn(task, error)

    def kill(self) -> None:
        """End the process as SIGKILL does. Its tasks are cancelled from outside; what they do then reaches nobody."""
        if not self.alive:
            return
        self.alive = False
        self.loop.cancel_timers(lambda context: context.get(current) is self)
        for task in list(self.tasks):
            if task is not asyncio.current_task():
                task.cancel()
        for word in self.last_words:
            word()


def adopt(task: asyncio.Task[Any], context: Context) -> None:
    """Note a new task with the process that started it; a dead process starts nothing."""
    process = context.get(current)
    if process is None:
        return
    process.tasks.add(task)
    task.add_done_callback(process.ended)
    if not process.alive:
        task.cancel()


async def never() -> None:
    """What a call of a dead process waits for."""
    await asyncio.get_running_loop().create_future()


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """Crash the process of this role right before or right after its n-th write of the run (counted from 1)."""

    role: Role
    number: int
    when: Literal["before", "after"]


class Gate:
    """Every call from a process to the world goes through `cross`."""

    def __init__(self, loop: SimulatedLoop, faults: FaultPlan, crash: CrashPoint | None = None) -> None:
        self.loop = loop
        self.faults = faults
        self.writes: dict[Role, int] = {"function": 0, "control": 0}
        self._crash = crash

    async def cross(
        self, operation: str, act: Callable[[], Awaitable[T]], lost: Callable[[str], Exception], *, write: bool
    ) -> T:
        """Perform an effect of the current process, atomically; `lost` makes the error of an answer that never came."""
        number = await self.enter(operation, write=write)
        if self.faults.happens("refused"):
            raise lost(f"{operation} was throttled")
        result = await act()
        await self.leave(operation, number)
        if self.faults.happens("lost"):
            raise lost(f"the answer to {operation} was lost")
        return result

    async def enter(self, operation: str, *, write: bool) -> int:
        """The way in: a crash before the effect, the network's delay. Returns the number of the write, 0 for a read."""
        process = self._process()
        await self._alive(process)
        number = 0
        if write and process is not None:
            self.writes[process.role] += 1
            number = self.writes[process.role]
            await self._crash_at(process, number, "before")
        if process is not None and self.faults.happens(f"{process.role}_crash"):
            process.kill()
        await self._alive(process)
        await asyncio.sleep(self.faults.latency_s())
        await self._alive(process)
        return number

    async def leave(self, operation: str, number: int) -> None:
        """The way out: a crash after the effect, the network's delay."""
        process = self._process()
        if process is None:
            return
        if number:
            await self._crash_at(process, number, "after")
        await self._alive(process)
        await asyncio.sleep(self.faults.latency_s())
        await self._alive(process)

    async def _crash_at(self, process: Process, number: int, when: Literal["before", "after"]) -> None:
        if self._crash == CrashPoint(process.role, number, when):
            process.kill()
            await never()

    @staticmethod
    async def _alive(process: Process | None) -> None:
        if process is not None and not process.alive:
            await never()

    @staticmethod
    def _process() -> Process | None:
        return current.get()
