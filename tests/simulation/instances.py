"""The control plane scaled to zero: the production dispatcher as a Lambda function, in instances that come and go.

Owns the platform around it: instances that serve one invocation at a time and are frozen in between, deadlines that
kill, asynchronous invocations that come late, twice or never, the rule that ticks, and what asks over HTTP. Checks that
an instance is frozen with nothing under way. Does not own what an invocation does (`loops.serverless`), nor the pollers
of Kafka (`event_source`).

What `lambda_entry` adds to `loops.serverless` is here as well, around the same parts: the deadline, the answer to a
batch, and the invocation of itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from contextvars import Context
from dataclasses import dataclass
from os import environ
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, assert_never
from unittest import mock

import msgspec

from tenuto.hosts import event_scheduler, kafka_event_source
from tenuto_control import lambda_entry
from tenuto_control.dispatcher import Dispatcher
from tenuto_control.loops.serverless import Serverless
from tenuto_control.loops.sweep import Sweeper
from tenuto_control.ports import Life, LogUnavailableError, TopicPartition
from tests.simulation.control import OUTSIDE_WAIT_S, wiring_of
from tests.simulation.event_source import EventSourceMapping
from tests.simulation.gate import Gate, Process, current
from tests.simulation.invocations import Answered, Broken, Ended, Throttled
from tests.support.memory_topic_lives import MemoryTopicLives

if TYPE_CHECKING:
    from tests.simulation.world import Simulation

T = TypeVar("T")

TIMEOUT_MS = 120_000
"""As in `infra/dispatcher.yaml`."""

TICK_EVERY_S = 60.0
TICK = msgspec.json.encode(event_scheduler.SweepTick())

RETRIES_AFTER_S = (60.0, 120.0)
"""When Lambda invokes again what was invoked asynchronously and failed; then it gives up."""

THROTTLED_PAUSE_S = 1.0
THROTTLED_TRIES_MAX = 600
COLD_START_S = 1.0
LATE_S = 60.0

CARRIED_ON_MAX = 4
"""Invocations at a time to which the same lane was handed on by name: one that ends, the next, and their doubles, which
find out that they are. However often batches, ticks and wake-ups come, there are no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleToZero:
    """How the mappings and the function are set up.

    `partial_batches`: the mappings take partial answers. `partitions_apart`: each partition has a poller of its own,
    where otherwise a batch may hold records of all partitions of its topic. `instances_max`: the function's reserved
    concurrency. `cold_start_s`: how long a new process takes to begin, at most.
    """

    partial_batches: bool = True
    partitions_apart: bool = True
    batch_records_max: int = 100
    instances_max: int = 16
    cold_start_s: float = COLD_START_S


Handed: TypeAlias = event_scheduler.Continue | event_scheduler.SweepTick

Work: TypeAlias = "Callable[[Instance, int], Awaitable[Any]]"


class HandOnFailedError(Exception):
    """What the client of Lambda raises when it cannot invoke."""


class Instance:
    """One process of the function with its warm parts. Serves one invocation at a time."""

    def __init__(
        self,
        world: Simulation,
        process: Process,
        rng: random.Random,
        hand_on: Callable[[Handed], Coroutine[Any, Any, None]],
    ) -> None:
        self.process = process
        self.busy = False
        self.cold = True
        self._partial = world.scenario.scale_to_zero is not None and world.scenario.scale_to_zero.partial_batches
        sink = world.kafka.sink()
        wiring = wiring_of(world, process, rng, sink)
        self.dispatcher = process.within(lambda: Dispatcher(wiring))
        self.serverless = Serverless(
            self.dispatcher,
            Sweeper(wiring, self.dispatcher),
            wiring.table,
            sink,
            _Lives(MemoryTopicLives(world.kafka), world.gate),
            world.subscriptions,
            process,
            world.limits,
            hand_on,
        )

    async def serve(self, event: Any, deadline_ms: int) -> Any:
        """What `lambda_entry` does with an event that is no request."""
        if kafka_event_source.is_batch(event):
            records = kafka_event_source.read(event)
            left = await self.serverless.records(records, deadline_ms)
            with mock.patch.dict(environ, {lambda_entry.PARTIAL_VARIABLE: "true" if self._partial else "false"}):
                return lambda_entry._answered(records, left)
        match event_scheduler.read(event):
            case event_scheduler.WakeUp() as wake:
                return await self.serverless.woken(wake, deadline_ms)
            case event_scheduler.SweepTick() as tick:
                return await self.serverless.tick(tick, deadline_ms)
            case event_scheduler.Continue() as handed:
                return await self.serverless.carried_on(handed, deadline_ms)
            case payload:
                assert_never(payload)


class ScaledToZero:
    """All instances of the function, and what invokes it (a `control.Shape`)."""

    def __init__(self, world: Simulation, setup: ScaleToZero) -> None:
        self._world = world
        self._setup = setup
        self._rng = random.Random(world.rng.random())
        self._instances: list[Instance] = []
        self._made = 0
        self._carried_on: Counter[str] = Counter()

    def start(self) -> None:
        """See `Shape.start`: the mappings begin to poll, and the rule to tick."""
        for topic, count in self._world.scenario.topics.items():
            partitions = [TopicPartition(topic, partition) for partition in range(count)]
            groups = [[tp] for tp in partitions] if self._setup.partitions_apart else [partitions]
            for group in groups:
                rng = random.Random(self._rng.random())
                mapping = EventSourceMapping(self._world, self, group, rng, self._setup.batch_records_max)
                self._world.person(mapping.run(partial=self._setup.partial_batches))
        self._world.person(self._tick())

    async def ask(self, act: Callable[[Dispatcher], Awaitable[T]], what: str) -> T | None:
        """See `Shape.ask`: a synchronous invocation, by way of API Gateway."""

        async def work(instance: Instance, _deadline_ms: int) -> T:
            try:
                return await act(instance.dispatcher)
            finally:
                await instance.serverless.answered()

        ended = self.invoke(work, what)
        await asyncio.wait([ended], timeout=OUTSIDE_WAIT_S)
        if not ended.done():
            return None
        match ended.result():
            case Answered(value):
                answer: T = value
                return answer
            case Broken() | Throttled():
                return None
            case how:
                assert_never(how)

    def woken(self, payload: bytes) -> None:
        """See `Shape.woken`: EventBridge Scheduler invokes asynchronously."""
        self.post(payload, "wake-up")

    def polled(self, member: str) -> None:
        """See `Shape.polled`: pollers of a mapping are no members that could be left behind."""

    # --- invocations -------------------------------------------------------------------------------------------------

    def serve(self, event: Any, what: str) -> asyncio.Future[Ended]:
        """See `Function.serve`."""
        ended = self._serve(event, what)
        lanes = [pk for pk in _carried_on(event) if not ended.done()]
        self._carried_on.update(lanes)
        ended.add_done_callback(lambda _: self._carried_on.subtract(lanes))
        for pk in lanes:
            if self._carried_on[pk] > CARRIED_ON_MAX:
                self._world.oracles.report("runaway", f"{self._carried_on[pk]} invocations carry on with {pk}")
        return ended

    def _serve(self, event: Any, what: str) -> asyncio.Future[Ended]:
        return self.invoke(lambda instance, deadline_ms: instance.serve(event, deadline_ms), what)

    def invoke(self, work: Work, what: str) -> asyncio.Future[Ended]:
        """Start an invocation now, in a process of the function. The future never fails."""
        world = self._world
        ended: asyncio.Future[Ended] = world.loop.create_future()
        busy = sum(instance.busy for instance in self._instances)
        if busy >= self._setup.instances_max or world.plan.happens("invoke_throttled"):
            ended.set_result(Throttled())
            return ended
        instance = self._instance()
        instance.busy = True
        timeout_ms = TIMEOUT_MS
        if world.plan.happens("deadline_short"):
            timeout_ms = self._rng.choice([1_000, 2_500, 4_000, 15_000])

        def end(how: Ended) -> None:
            if not ended.done():
                instance.busy = False
                timer.cancel()
                world.trace(f"{instance.process.name} ends {what}: {_short(how)}")
                ended.set_result(how)

        # Timers of the platform belong to no process.
        timer = world.loop.call_later(timeout_ms / 1_000, instance.process.kill, context=Context())
        instance.process.last_words.append(lambda: end(Broken("the process ended: crash or time-out")))
        world.trace(f"{instance.process.name} begins {what}")
        instance.process.spawn(self._run(instance, work, timeout_ms, end), what)
        return ended

    async def _run(self, instance: Instance, work: Work, timeout_ms: int, end: Callable[[Ended], None]) -> None:
        began_ms = self._world.loop.now_ms()
        if instance.cold:
            instance.cold = False
            await asyncio.sleep(self._rng.uniform(0, self._setup.cold_start_s))
        left_ms = timeout_ms - (self._world.loop.now_ms() - began_ms)
        deadline_ms = instance.process.now_ms() + left_ms - lambda_entry.LEAVE_MARGIN_MS
        try:
            how: Ended = Answered(await work(instance, deadline_ms))
        except Exception as e:  # noqa: BLE001 - Lambda answers any error of a handler with its text
            how = Broken(f"{type(e).__name__}: {e}")
        # A turn, in which tasks that were cancelled are taken off the books.
        await asyncio.sleep(0)
        self._frozen(instance)
        end(how)

    def _frozen(self, instance: Instance) -> None:
        """Between its invocations a process stands still, so nothing may be under way then."""
        process = instance.process
        if not process.alive:
            return
        here = asyncio.current_task()
        left = sorted(t.get_name() for t in process.tasks if t is not here and not t.done())
        timers = self._world.loop.timers(lambda context: context.get(current) is process)
        if left or timers:
            self._world.oracles.report("frozen", f"{process.name} is frozen in the middle of {left + timers}")

    def _instance(self) -> Instance:
        """An idle instance, if there is one and the platform so pleases; otherwise a new one."""
        plan = self._world.plan
        for idle in [instance for instance in self._instances if not instance.busy]:
            if plan.happens("instance_lost"):
                idle.process.kill()
        warm = [instance for instance in self._instances if not instance.busy]
        if warm and not plan.happens("instance_new"):
            return self._rng.choice(warm)
        self._made += 1
        process = self._world.plane(f"df-{self._made}")
        process.mourn = self._world.failed
        new = Instance(self._world, process, random.Random(self._rng.random()), self._hand_on)
        process.last_words.append(lambda: self._lost(new))
        self._instances.append(new)
        return new

    def _lost(self, instance: Instance) -> None:
        self._world.trace(f"{instance.process.name} {'dies' if instance.busy else 'is thrown away'}")
        self._instances.remove(instance)

    # --- asynchronous invocations ------------------------------------------------------------------------------------

    def post(self, payload: bytes, what: str) -> None:
        """An asynchronous invocation is accepted. It comes at least once as a rule, and sooner or later."""
        plan = self._world.plan
        if plan.happens("event_lost"):
            return
        for _ in range(2 if plan.happens("event_doubled") else 1):
            delay_s = self._rng.uniform(0, LATE_S) if plan.happens("event_late") else plan.latency_s()
            self._world.loop.call_later(delay_s, self._arrives, payload, what, context=Context())

    def _arrives(self, payload: bytes, what: str) -> None:
        self._world.person(self._deliver(msgspec.json.decode(payload), f"{what} {payload.decode()}"))

    async def _deliver(self, event: Any, what: str) -> None:
        for pause_s in (*RETRIES_AFTER_S, 0.0):
            ended = await self.serve(event, what)
            for _ in range(THROTTLED_TRIES_MAX):
                if not isinstance(ended, Throttled):
                    break
                await asyncio.sleep(THROTTLED_PAUSE_S)
                ended = await self.serve(event, what)
            if isinstance(ended, Answered):
                return
            await asyncio.sleep(pause_s)

    async def _hand_on(self, payload: Handed) -> None:
        """The function invokes itself, without waiting; a failure is left to the sweep."""

        async def act() -> None:
            self.post(event_scheduler.encode(payload), "continuation")

        with contextlib.suppress(HandOnFailedError):
            await self._world.gate.cross("hand on", act, HandOnFailedError, write=True)

    async def _tick(self) -> None:
        """The rule: about once a minute; now and then a tick comes late, twice or not at all."""
        plan = self._world.plan
        await asyncio.sleep(self._rng.uniform(0, TICK_EVERY_S))
        while True:
            if not plan.happens("tick_lost"):
                for _ in range(2 if plan.happens("tick_doubled") else 1):
                    delay_s = self._rng.uniform(0, LATE_S) if plan.happens("tick_late") else 0.0
                    self._world.loop.call_later(delay_s, self.post, TICK, "tick", context=Context())
            await asyncio.sleep(TICK_EVERY_S)


class _Lives:
    """Brokers' word on the lives of topics, as one process hears it (the TopicLives port)."""

    def __init__(self, lives: MemoryTopicLives, gate: Gate) -> None:
        self._lives = lives
        self._gate = gate

    async def of(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Life]:
        """See `TopicLives.of`."""
        return await self._gate.cross("lives", lambda: self._lives.of(partitions), LogUnavailableError, write=False)


def _carried_on(event: Any) -> list[str]:
    """The lanes that were handed on to an invocation by name."""
    if not isinstance(event, dict) or event.get("tenuto") not in ("continue", "wake"):
        return []
    match event_scheduler.read(event):
        case event_scheduler.Continue(lanes):
            return [handed.lane for handed in lanes if handed.owner is not None]
        case event_scheduler.WakeUp(lane, owner=str()):
            return [lane]
        case _:
            return []


def _short(how: Ended) -> str:
    text = repr(how)
    return text if len(text) < 200 else text[:200] + "…"
