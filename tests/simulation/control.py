"""The control plane that runs all the time: production dispatchers, consumers and sweepers in processes that can die.

Owns what both shapes of it are asked for (`Shape`), the wiring of one process to the world's twins, and the group of
them: who dies, who comes instead, who is left behind by a rebalance. Does not own any of their behaviour, nor the shape
that is a function (`instances`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tenuto.hosts import event_scheduler
from tenuto.protocol.ids import Lane
from tenuto_control.core.clocks import ClockCheck, joined, reading
from tenuto_control.core.metrics import Uncounted
from tenuto_control.dispatcher import Dispatcher, Errand, Wiring
from tenuto_control.dispatcher.outages import watched
from tenuto_control.loops.consume import Consumer
from tenuto_control.loops.sweep import Sweeper
from tenuto_control.ports import LogUnavailableError, RecordSink
from tests.simulation.gate import Process

if TYPE_CHECKING:
    from tests.simulation.world import Simulation

T = TypeVar("T")

OUTSIDE_WAIT_S = 30.0
"""How long a caller or resolver waits for an answer before asking again."""


class Shape(Protocol):
    """One of the two shapes of the control plane, as the world around it meets it."""

    def start(self) -> None:
        """Begin to work. The topics are there."""
        ...

    async def ask(self, act: Callable[[Dispatcher], Awaitable[T]], what: str) -> T | None:
        """Ask for something as the ingress would; None when no answer came."""
        ...

    def woken(self, payload: bytes) -> None:
        """A wake-up of the outside scheduler arrives."""
        ...

    def polled(self, member: str) -> None:
        """A member of the consumer group has polled."""
        ...


def wiring_of(world: Simulation, process: Process, rng: random.Random, sink: RecordSink) -> Wiring:
    """What the production dispatcher of one process is wired to: the world's twins."""
    return Wiring(
        table=watched(world.table, Uncounted()),
        invoker=world.functions,
        sink=sink,
        targets=world,
        scheduler=world.scheduler,
        clock=process,
        table_clock=DatedClock(process),
        rng=rng,
        limits=world.limits,
        process=process.name,
        table_name="tenuto",
    )


class DatedClock:
    """What the dates of the table's answers tell one process of its clock (the TableClock port)."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._known: ClockCheck | None = None

    @property
    def check(self) -> ClockCheck | None:
        """See `TableClock.check`."""
        now_ms, true_ms = self._process.now_ms(), self._process.loop.now_ms()
        told = reading(now_ms, now_ms, true_ms - true_ms % 1_000)
        if told is not None:
            self._known = joined(self._known, told)
        return self._known


class ControlPlane:
    """One process of the group."""

    def __init__(self, world: Simulation, process: Process, rng: random.Random) -> None:
        self.process = process
        self.member = world.kafka.member()
        sink = world.kafka.sink()
        wiring = wiring_of(world, process, rng, sink)
        self.dispatcher = process.within(lambda: Dispatcher(wiring))
        self._consumer = Consumer(self.member, sink, self.dispatcher, world.subscriptions, world.limits, process)
        self._sweeper = Sweeper(wiring, self.dispatcher)

    def start(self) -> None:
        """Begin to work."""
        self.process.spawn(self._run(), "main")

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sweeper.run(), name=f"{self.process.name}: sweep")
            tasks.create_task(self._consumer.run(), name=f"{self.process.name}: consume")


class AlwaysOn:
    """The group of control planes. One that dies is replaced."""

    def __init__(self, world: Simulation, count: int) -> None:
        self._world = world
        self._count = count
        self._planes: list[ControlPlane] = []
        self._made = 0

    def start(self) -> None:
        """See `Shape.start`."""
        for _ in range(self._count):
            self._start_plane()

    async def ask(self, act: Callable[[Dispatcher], Awaitable[T]], what: str) -> T | None:
        """See `Shape.ask`: any living process answers."""
        if not self._planes:
            await asyncio.sleep(1)
            return None
        plane = self._world.rng.choice(self._planes)

        async def work() -> T:
            return await act(plane.dispatcher)

        task = plane.process.spawn(work(), what)
        await asyncio.wait([task], timeout=OUTSIDE_WAIT_S)
        if not task.done() or task.cancelled():
            return None
        if (error := task.exception()) is not None:
            self._world.trace(f"{what} failed: {error!r}")
            return None
        result: T = task.result()
        return result

    def woken(self, payload: bytes) -> None:
        """See `Shape.woken`: by the ingress of some process."""
        woken = event_scheduler.decode(payload)
        assert isinstance(woken, event_scheduler.WakeUp)
        errand = Errand(Lane.from_pk(woken.lane), woken.timer)
        self._world.person(_once(lambda: self.ask(lambda dispatcher: dispatcher.woken(errand), "wake-up")))

    def polled(self, member: str) -> None:
        """See `Shape.polled`: now and then one is left behind without knowing, or another one comes and goes."""
        if self._world.plan.happens("expelled"):
            for plane in self._planes:
                if plane.member.name == member:
                    self._world.kafka.expel(plane.member)
        if self._world.plan.happens("rebalance"):
            self._world.person(self._visit())

    def _start_plane(self) -> None:
        world = self._world
        self._made += 1
        process = world.plane(f"cp-{self._made}")
        process.mourn = world.failed
        plane = ControlPlane(world, process, random.Random(world.rng.random()))
        self._planes.append(plane)
        process.last_words.append(lambda: self._lost(plane))
        plane.start()

    def _lost(self, plane: ControlPlane) -> None:
        world = self._world
        world.trace(f"{plane.process.name} dies")
        self._planes.remove(plane)
        plane.member.crash()
        session_s = world.rng.uniform(0.5, world.limits.session_timeout_ms / 1_000)
        world.loop.call_later(session_s, world.kafka.expel, plane.member, context=Context())
        world.loop.call_later(world.plan.crash_pause_s(), self._start_plane, context=Context())

    async def _visit(self) -> None:
        visitor = self._world.kafka.member()
        with contextlib.suppress(LogUnavailableError):
            await visitor.start(list(self._world.scenario.topics), _Nobody())
        await asyncio.sleep(self._world.rng.uniform(0.1, 5))
        with contextlib.suppress(LogUnavailableError):
            await visitor.stop()


async def _once(act: Callable[[], Awaitable[Any]]) -> None:
    await act()


class _Nobody:
    """The listener of a group member that does no work."""

    async def revoked(self, partitions: Any) -> None:
        """Nothing to finish."""

    async def assigned(self, partitions: Any) -> None:
        """Nothing to start."""
