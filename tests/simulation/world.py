"""One simulated world: control planes, functions, Kafka, the people outside, and what befalls them.

Owns a run from start to rest: produces events, calls and answers, kills and replaces control planes, stops the faults,
and then waits until everything that was accepted is done. Does not own the laws (`oracles`) nor the faults' draw
(`faults`).
"""

from __future__ import annotations

import asyncio
import random
import traceback
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import msgspec

from tenuto.errors import RetryableError
from tenuto.lane.head import HEAD_SK, parse_head
from tenuto.lane.writes import Item, Write
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane, call_nonce, kafka_nonce, source_of_partition
from tenuto.protocol.limits import BESIDE_MAX, POOLED_MAX
from tenuto.protocol.messages import ServiceManifest
from tenuto.protocol.records import CallSource, Event, Failed, Result, Success
from tenuto_control.core.routing import Subscription
from tenuto_control.dispatcher import Dispatcher
from tenuto_control.dispatcher.batches import LOST_WITH_ITS_PROCESS
from tenuto_control.limits import SERVERLESS, Limits
from tenuto_control.ports import LogUnavailableError, Pending, Resolution, Target, TopicPartition, Unknown
from tests.simulation import faults, programs
from tests.simulation.control import AlwaysOn, Shape
from tests.simulation.gaps import Gaps
from tests.simulation.gate import CrashPoint, Gate, Process, adopt, current
from tests.simulation.instances import ScaledToZero, ScaleToZero
from tests.simulation.loop import EPOCH_MS, SimulatedLoop, StuckError
from tests.simulation.oracles import Oracles, Violation, chain_of, kept_letters
from tests.simulation.twins import (
    FUNCTION_TIMEOUT_AT_ZERO_MS,
    FUNCTION_TIMEOUT_MS,
    GatedTable,
    SimulatedLambda,
    SimulatedScheduler,
    World,
)
from tests.support.memory_kafka import MemoryKafka, Operation

PROGRESS_WITHIN_S = 1_000.0
"""Virtual time without faults within which some event or step must finish: the longest sleeps and pauses, several
times."""

REST_WITHIN_S = 100_000.0
"""Virtual time without faults within which everything must be done."""

LOOK_EVERY_S = 0.5
RETRYABLE_SHARE = 0.3
RETRY_AFTER_MS = (0, 300, 5_000, 30_000)
"""User code that fails says in so many cases when it may be tried again."""

WRONG_CLOCKS_SHARE = 0.4
"""How many of the control planes have a wrong clock, where any has."""

TRACE_LINES = 400
CALL_WAITS_MS = (50, 1_000, 20_000, 20_000)
SLOW_STEP_S = 3.0
WAITS_SHOWN = 20
SWEEP_LOOKBACK_MS = 300_000
"""Shorter than in production, so that runs of virtual hours stay quick and the deep sweep gets its share of work."""

LARGE_ANSWER_BYTES = 40_000
"""More than the results of awakeables in a head may weigh: such a one has an item of its own. JSON allows blanks."""

POISON = b"{ this is no cargo"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A record to produce at a time: to a topic, for a key, with a program (None: a value that nobody can read).

    `ballast` makes it larger.
    """

    at_s: float
    topic: str
    key: str | None
    program: int | None
    ballast: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """A call (or, with `delay_ms`, a send) from outside, repeated with its idempotency key until it is answered."""

    at_s: float
    key: str
    idempotency_key: str
    program: int
    delay_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything a run starts from. Equal scenarios give equal runs.

    `hops`: functions write beside their handlers, as they do with a thread for it. `kept` finds the ids of messages
    that the table keeps as dead letters, for the law that none vanishes. `large_answers` is the share of answers to
    awakeables that are too large for the head. `wrong_clock_ms`: clocks of some control planes are off by so much,
    until faults stop. `suspends`: no sleep is a nap. `gap_ms` bounds how long work may wait for a lane that nobody
    uses, and a caller for a result that is committed (`gaps`); for scenarios without faults. `pools`: how many
    invocations run at once, and how many of a handler have to be quick before its lanes share them.
    """

    seed: int
    rates: faults.Rates
    programs: tuple[programs.Program, ...]
    topics: Mapping[str, int]
    deliveries: tuple[Delivery, ...]
    requests: tuple[Request, ...] = ()
    control_planes: int = 2
    scale_to_zero: ScaleToZero | None = None
    loose_ordering: Literal["partition", "none"] = "none"
    faults_until_s: float = 30.0
    hops: bool = False
    kept: Callable[[Mapping[tuple[str, str], Item]], Collection[str]] = kept_letters
    large_answers: float = 0.0
    wrong_clock_ms: int = 0
    shuffle: bool = False
    spill_after_ms: int | None = None
    sweep_interval_ms: int | None = None
    suspends: bool = False
    pools: tuple[int, int] | None = None
    gap_ms: int | None = None
    call_wait_ms: int | None = None
    crash: CrashPoint | None = None
    without: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Report:
    """How a run went. `work_requests` are those of the table that are not a sweep's.

    `delivered` is how many records each member of the consumer group was given.
    """

    scenario: Scenario
    violations: list[Violation]
    took_ms: int
    writes: dict[str, int]
    requests: dict[str, int]
    invocations: int
    faults: Counter[str]
    trace: list[str]
    work_requests: int
    delivered: Counter[str]

    @property
    def passed(self) -> bool:
        """Whether every law held."""
        return not self.violations


def run(scenario: Scenario, trace: Callable[[str], None] | None = None) -> Report:
    """Run a scenario to its end. Uses no wall clock, no thread and no I/O."""
    rng = random.Random(scenario.seed)
    loop = SimulatedLoop(random.Random(rng.random()) if scenario.shuffle else None)
    loop.adopt = adopt
    simulation = Simulation(scenario, loop, rng, trace)
    try:
        loop.run_until_complete(simulation.play())
    except StuckError as e:
        simulation.oracles.report("liveness", str(e))
    finally:
        loop.abandon()
    return simulation.outcome()


class Simulation:
    """A world while it runs. Also plays the outside of `programs.Outside`."""

    def __init__(
        self, scenario: Scenario, loop: SimulatedLoop, rng: random.Random, trace: Callable[[str], None] | None
    ) -> None:
        self.scenario = scenario
        self.loop = loop
        self.rng = rng
        self._trace_to = trace
        self._trace: deque[str] = deque(maxlen=TRACE_LINES)
        self.plan = faults.FaultPlan(random.Random(rng.random()), scenario.rates)
        self.plan.on_fault = lambda name: self.trace(f"FAULT {name}")
        self.gate = Gate(loop, self.plan, scenario.crash)
        self.oracles = Oracles(loop, 2 * scenario.rates.skew_ms + scenario.wrong_clock_ms)
        self.world = World(self._wrote, scenario.without)
        self.oracles.table = self.world.items
        self.oracles.published = self._published
        self.oracles.kept = scenario.kept
        self.oracles.sent = {_id_of(request) for request in scenario.requests if request.delay_ms is not None}
        self.oracles.let_go = lambda source: (
            (self.kafka.committed(TopicPartition(source.topic, source.partition)) or 0) > source.offset
        )
        self.table = GatedTable(self.world, self.gate)
        self.kafka = MemoryKafka(self._kafka_hook, loop.now_ms)
        self.services = programs.services(scenario.programs, self)
        at_zero = scenario.scale_to_zero
        timeout_ms = FUNCTION_TIMEOUT_MS if at_zero is None else FUNCTION_TIMEOUT_AT_ZERO_MS
        hops = random.Random(f"hops {scenario.seed}") if scenario.hops else None
        self.functions = SimulatedLambda(self.services, self.table, self.gate, rng, self.trace, timeout_ms, hops)
        self.functions.asked = self.oracles.asked
        self._manifest = self.services.manifest(self.functions.timeout_ms)
        self.scheduler = SimulatedScheduler(self.gate, rng, self._woken)
        self.limits = Limits(sweep_lookback_ms=SWEEP_LOOKBACK_MS, **({} if at_zero is None else SERVERLESS))
        if scenario.suspends:
            self.limits = replace(self.limits, nap_sleep_ms=1)
        if scenario.spill_after_ms is not None:
            self.limits = replace(self.limits, spill_after_ms=scenario.spill_after_ms)
        if scenario.pools is not None:
            self.limits = replace(self.limits, quick_in_a_row=scenario.pools[1])
        if scenario.sweep_interval_ms is not None:
            self.limits = replace(self.limits, sweep_interval_ms=scenario.sweep_interval_ms)
        self.gaps = Gaps(loop, scenario.gap_ms, self.oracles.report)
        self.shape: Shape = AlwaysOn(self, scenario.control_planes) if at_zero is None else ScaledToZero(self, at_zero)
        self.subscriptions = [
            Subscription(t, "box", "event")
            if t != programs.LOOSE
            else Subscription(t, programs.LOOSE, "single", ordering=scenario.loose_ordering)
            for t in scenario.topics
        ]
        self._numbers: dict[asyncio.Task[Any] | None, int] = {}
        self._lanes: dict[TopicPartition, dict[int, str]] = {}
        self._poison: set[tuple[str, int, int]] = set()
        self._checked: dict[TopicPartition, int] = {}
        self._answers: dict[str, Result] = {}
        self._effects = 0
        # By a generator of its own, so that the other draws of a seed stay what they are.
        self._moods = random.Random(f"moods {scenario.seed}")
        self._sizes = random.Random(f"sizes {scenario.seed}")
        self._people: set[asyncio.Task[None]] = set()
        self._clocks = random.Random(f"clocks {scenario.seed}")
        self._planes: list[Process] = []

    # --- what control planes find (Targets) --------------------------------------------------------------------------

    def find(self, service: str) -> Target | None:
        """Every service is in the one function."""
        found = next((s for s in self._manifest.services if s.name == service), None)
        if found is None:
            return None
        if self.scenario.pools is None:
            return Target("sim", found, self.functions.timeout_ms)
        return Target("sim", found, self.functions.timeout_ms, self.scenario.pools[0], POOLED_MAX, BESIDE_MAX)

    def listed(self) -> Sequence[ServiceManifest]:
        """See `Targets.listed`."""
        return self._manifest.services

    # --- clocks ------------------------------------------------------------------------------------------------------

    def plane(self, name: str) -> Process:
        """A new process of the control plane, whose clock may be wrong as long as there are faults."""
        process = Process(name, "control", self.loop, self.plan.skew_ms())
        if self.scenario.wrong_clock_ms and self._clocks.random() < WRONG_CLOCKS_SHARE:
            process.skew_ms += self._clocks.choice([-1, 1]) * self.scenario.wrong_clock_ms
        self._planes.append(process)
        if self.plan.quiet:
            self._put_clocks_right()
        return process

    def _put_clocks_right(self) -> None:
        """What an operator does about clocks that differ by more than the margin of leases."""
        margin_ms = self.limits.lease_margin_ms
        for process in self._planes:
            process.skew_ms = max(-margin_ms, min(process.skew_ms, margin_ms))
        self._planes.clear()

    # --- the run -----------------------------------------------------------------------------------------------------

    async def play(self) -> None:
        """From the first event to rest, or to the first violation."""
        for topic, partitions in self.scenario.topics.items():
            self.kafka.create_topic(topic, partitions)
            self.kafka.create_topic(f"{topic}.dead-letter")
        self.kafka.create_topic(programs.ANNOUNCEMENTS)
        self.shape.start()
        living = asyncio.ensure_future(self._live())
        tripped = asyncio.ensure_future(self.oracles.tripped.wait())
        await asyncio.wait([living, tripped], return_when=asyncio.FIRST_COMPLETED)
        if living.done():
            living.result()
        for text in self.loop.unhandled:
            self.oracles.report("unhandled", text)

    async def _live(self) -> None:
        for delivery in self.scenario.deliveries:
            self.loop.call_later(delivery.at_s, self._produce, delivery)
        for request in self.scenario.requests:
            self.person(self._ask(request))
        last = max([0.0, *(d.at_s for d in self.scenario.deliveries), *(r.at_s for r in self.scenario.requests)])
        await asyncio.sleep(max(last, self.scenario.faults_until_s))
        self.plan.quiet = True
        self._put_clocks_right()
        self.trace("quiet from here on")
        quiet_at = moved_at = self.loop.time()
        progress = -1
        while waits := self._unsettled():
            now = self.loop.time()
            if progress != self.oracles.progress:
                progress, moved_at = self.oracles.progress, now
            if now > moved_at + PROGRESS_WITHIN_S or now > quiet_at + REST_WITHIN_S:
                still = "\n  ".join(waits[:WAITS_SHOWN])
                self.oracles.report("liveness", f"nothing moves since {now - moved_at:.0f} s, but:\n  {still}")
                return
            await asyncio.sleep(LOOK_EVERY_S)
        self.trace("at rest")

    def outcome(self) -> Report:
        """The run's report."""
        return Report(
            self.scenario,
            self.oracles.violations,
            round(self.loop.time() * 1_000),
            {str(role): n for role, n in self.gate.writes.items()},
            dict(self.world.requests),
            self.functions.invocations,
            self.plan.counts,
            list(self._trace),
            sum(self.world.requests.values()) - self.world.sweep_requests,
            +self.kafka.delivered,
        )

    def trace(self, text: str) -> None:
        """A line of the run's history."""
        process = current.get()
        line = f"{self.loop.time() * 1_000:11.1f} {process.name if process else '-':7} {text}"
        self._trace.append(line)
        if self._trace_to is not None:
            self._trace_to(line)

    def _woken(self, payload: bytes) -> None:
        self.shape.woken(payload)

    def failed(self, task: asyncio.Task[Any], error: BaseException) -> None:
        """A task of a control plane's process ended in an error that nobody took."""
        where = "".join(traceback.format_exception(error)[-4:])
        self.trace(f"{task.get_name()} failed: {error!r}\n{where}")
        if task.get_name().startswith("lane "):
            self.oracles.report("liveness", f"the worker of {task.get_name()} died: {where}")

    # --- Kafka -------------------------------------------------------------------------------------------------------

    def _produce(self, delivery: Delivery) -> None:
        value = (
            POISON
            if delivery.program is None
            else msgspec.json.encode(programs.Cargo(delivery.program, delivery.ballast))
        )
        key = None if delivery.key is None else delivery.key.encode()
        record = self.kafka.append(delivery.topic, value, key)
        tp = TopicPartition(record.topic, record.partition)
        if delivery.topic == programs.LOOSE:
            alone = kafka_nonce("0", record.topic, record.partition, record.offset)
            name = alone if self.scenario.loose_ordering == "none" else f"{record.topic}/{record.partition}"
            self._lanes.setdefault(tp, {})[record.offset] = Lane(programs.LOOSE, name).pk
            return
        if (
            delivery.key is None
            or delivery.program is None
            or programs.overfills(self.scenario.programs[delivery.program])
        ):
            self._poison.add((record.topic, record.partition, record.offset))
        if delivery.key is not None:
            lane = Lane("box", delivery.key)
            self._lanes.setdefault(tp, {})[record.offset] = lane.pk
            self.gaps.produced(lane.pk, source_of_partition("0", record.topic, record.partition), record.offset)

    async def _kafka_hook(self, operation: Operation) -> None:
        task = asyncio.current_task()
        if operation.when == "before":
            write = operation.name in ("commit", "produce")
            self._numbers[task] = await self.gate.enter(operation.name, write=write)
            if operation.name != "stop" and self.plan.happens("refused"):
                raise LogUnavailableError(f"{operation.name}: the broker did not answer")
            return
        number = self._numbers.pop(task, 0)
        if operation.name == "commit":
            self.check_commits()
        if operation.name == "poll":
            self.shape.polled(operation.member)
        await self.gate.leave(operation.name, number)
        if operation.name != "start" and self.plan.happens("lost"):
            raise LogUnavailableError(f"the answer to {operation.name} was lost")

    def check_commits(self) -> None:
        """Offsets were committed."""
        for topic, partitions in self.scenario.topics.items():
            for partition in range(partitions):
                tp = TopicPartition(topic, partition)
                high, low = self.kafka.committed(tp) or 0, self._checked.get(tp, 0)
                if high > low:
                    lanes = self._lanes.get(tp, {})
                    source = source_of_partition("0", topic, partition)
                    self.oracles.committed(lanes, source, low, high, self.world.items)
                    self._checked[tp] = high

    def _published(self, topic: str) -> set[bytes]:
        return {value for r in self.kafka.records(topic) for name, value in r.headers if name == "tenuto-id"}

    # --- people outside ----------------------------------------------------------------------------------------------

    async def effect(self, key: str, what: str) -> int:
        """See `programs.Outside`."""
        self.oracles.executes(current.get(), key, what)
        if self.plan.happens("step_fails"):
            raise ConnectionError("the outside is out of order, nothing happened")
        slow_s = self.rng.uniform(0, SLOW_STEP_S) if self.plan.happens("step_slow") else 0.0
        await asyncio.sleep(self.plan.latency_s() + slow_s)
        self._effects += 1
        if self.plan.happens("step_fails"):
            raise ConnectionError("the outside is out of order, after it happened")
        return self._effects

    async def hand_out(self, awakeable: str) -> None:
        """See `programs.Outside`."""
        for _ in range(self.rng.choice([1, 1, 2])):
            self.person(self._answer(awakeable, self.rng.choice([0.001, 0.05, 0.5, 3.0, 20.0])))

    def stumble(self) -> None:
        """See `programs.Outside`."""
        if self.plan.happens("step_fails"):
            if self._moods.random() < RETRYABLE_SHARE:
                raise RetryableError("not now", timedelta(milliseconds=self._moods.choice(RETRY_AFTER_MS)))
            raise RuntimeError("user code stumbles")

    async def _answer(self, awakeable: str, after_s: float) -> None:
        await asyncio.sleep(self.rng.uniform(0, after_s))
        while True:
            # No two answers are alike, so that a second one would show.
            self._effects += 1
            large = self._sizes.random() < self.scenario.large_answers
            value = Success(str(self._effects).encode().rjust(LARGE_ANSWER_BYTES if large else 0))
            known = await self.shape.ask(partial(_resolve, awakeable, value), "resolve")
            self.trace(f"answer to {AwakeableId.parse(awakeable)[0].nonce}: {known}")
            if known is not None:
                return
            await asyncio.sleep(1)

    async def _ask(self, request: Request) -> None:
        await asyncio.sleep(request.at_s)
        cargo = msgspec.json.encode(programs.Cargo(request.program))
        invocation = _id_of(request)
        event = Event(invocation, "call", CallSource(keep_result=True), cargo)
        delay_ms = request.delay_ms
        # Some callers wait for less than what they call takes. Drawn apart, so that scenarios stay what they were.
        wait_ms = self.scenario.call_wait_ms or random.Random(invocation).choice(CALL_WAITS_MS)
        self.gaps.asked(event)

        async def send(dispatcher: Dispatcher) -> bool:
            await dispatcher.send(event, delay_ms or 0)
            return True

        while True:
            if delay_ms is not None:
                if await self.shape.ask(send, "send"):
                    self._answers.setdefault(invocation, Success())
                    return
            else:
                answer = await self.shape.ask(lambda dispatcher: dispatcher.call(event, wait_ms), "call")
                match answer:
                    case Success() | Failed():
                        self._answered(invocation, answer)
                        return
                    case Pending() | Unknown() | None:
                        pass
            await asyncio.sleep(self.rng.uniform(0.1, 3))

    def _answered(self, invocation: str, answer: Result) -> None:
        self.gaps.answered(invocation)
        if isinstance(answer, Failed) and answer.failure.message == LOST_WITH_ITS_PROCESS:
            self.oracles.report("order", f"{invocation} has a key, and its result is said to be lost")
        known = self._answers.setdefault(invocation, answer)
        if known != answer:
            self.oracles.report("order", f"{invocation} was answered with {known} and with {answer}")

    def person(self, work: Any) -> None:
        """Somebody outside does something."""
        context = Context()
        task = self.loop.create_task(work, context=context)
        self._people.add(task)
        task.add_done_callback(self._people.discard)

    # --- judgement ---------------------------------------------------------------------------------------------------

    def _wrote(self, process: Process | None, write: Write, before: Item | None, after: Item | None) -> None:
        self.trace(_change(write, before, after))
        self.oracles.wrote(process, write, before, after)
        if self.scenario.gap_ms is not None and write.key.sk == HEAD_SK:
            self.gaps.wrote(write.key.pk, parse_head(before), parse_head(after))

    def _unsettled(self) -> list[str]:
        expected: dict[str, dict[str, str]] = {}
        counts: Counter[str] = Counter()
        for tp, lanes in self._lanes.items():
            for pk in set(lanes.values()) if tp.topic != programs.LOOSE else ():
                offsets = [
                    (tp.partition, offset)
                    for offset, lane in sorted(lanes.items())
                    if lane == pk and (*tp, offset) not in self._poison
                ]
                counts[pk] += len(offsets)
                if offsets:
                    expected.setdefault(pk, {})[f"chain.{tp.topic}"] = chain_of(offsets)
        waits = self.oracles.unsettled(expected, counts, self.world.items)
        if self.loop.now_ms() == EPOCH_MS:
            return waits
        return waits + self._dead_letters() + self._calls()

    def _dead_letters(self) -> list[str]:
        found: set[tuple[str, int, int]] = set()
        for topic in self.scenario.topics:
            for record in self.kafka.records(f"{topic}.dead-letter"):
                headers = {name: value.decode() for name, value in record.headers}
                partition, offset = headers["tenuto-source-partition"], headers["tenuto-source-offset"]
                found.add((headers["tenuto-source-topic"], int(partition), int(offset)))
        waits = self._loose({(p, o) for topic, p, o in found if topic == programs.LOOSE})
        found = {origin for origin in found if origin[0] != programs.LOOSE}
        if found - self._poison:
            self.oracles.report("nothing-lost", f"sound events in the dead-letter topic: {found - self._poison}")
        return waits + [f"dead letter {record} has not come" for record in sorted(self._poison - found)]

    def _loose(self, dead: set[tuple[int, int]]) -> list[str]:
        """An event without a key has taken effect, or is in the dead-letter topic after all of its attempts."""
        state = parse_head(self.world.items.get((f"box/{programs.LOOSE}", HEAD_SK))).state
        slips = set(msgspec.json.decode(state.get("slips", b"[]"), type=list[str]))
        dead_slips = {f"{partition}:{offset}" for partition, offset in dead}
        if both := slips & dead_slips:
            self.oracles.report("nothing-lost", f"took effect, and is in the dead-letter topic: {sorted(both)}")
        sent = {f"{r.partition}:{r.offset}": r.value for r in self.kafka.records(programs.LOOSE)}
        doomed = msgspec.json.encode(programs.Cargo(programs.LOOSE_PLAYS.index("doomed")))
        if sound := {origin for origin in slips if sent[origin] == doomed}:
            self.oracles.report("nothing-lost", f"a doomed event took effect: {sorted(sound)}")
        return [
            f"the event {origin} of {programs.LOOSE} has not ended"
            for origin in sent
            if origin not in slips | dead_slips
        ]

    def _calls(self) -> list[str]:
        waits = []
        for request in self.scenario.requests:
            lane, invocation = Lane("box", request.key), _id_of(request)
            item = self.world.items.get((lane.pk, "H"), {})
            taken = item.get("s.calls", b"[]")
            assert isinstance(taken, bytes)
            if invocation not in msgspec.json.decode(taken):
                waits.append(f"{lane.pk}: call {request.idempotency_key} has not taken effect")
            if invocation not in self._answers:
                waits.append(f"{lane.pk}: call {request.idempotency_key} is not answered")
        return waits


def _id_of(request: Request) -> str:
    return str(InvocationId(Lane("box", request.key), call_nonce("call", request.idempotency_key)))


async def _resolve(awakeable: str, result: Result, dispatcher: Dispatcher) -> Resolution:
    return await dispatcher.resolve(awakeable, result)


def _change(write: Write, before: Item | None, after: Item | None) -> str:
    at = f"{write.key.pk} {write.key.sk}"
    if after is None:
        return f"delete {at}"
    was = before or {}
    news = [_short(n, v) for n, v in after.items() if was.get(n) != v and n not in ("pk", "sk", "ttl")]
    gone = [f"-{n}" for n in was if n not in after]
    return f"{at}: {' '.join([*news, *gone])}"


def _short(name: str, value: Any) -> str:
    return f"{name}={value}" if isinstance(value, int) or (isinstance(value, str) and len(value) < 40) else name
