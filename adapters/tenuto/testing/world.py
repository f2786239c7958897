"""One environment's world: the production control plane over a table and topics in memory, in virtual time.

Owns ways in, coming to rest, letting time pass, and a control plane that dies and is replaced. Does not own functions
(`processes`), what a test is told of a wait (`waits`), nor the face that tests see (`environment`).

Nothing happens between two requests of a test: time passes only while there is one. At rest, the clock is moved to the
next moment at which something is due, so that a month takes as many turns as things happen in it.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from tenuto.lane.head import HEAD_SK, head_key, parse_head
from tenuto.lane.timers import SendTimer, Timer, parse_timer
from tenuto.lane.tombstones import is_tombstone
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.messages import Head, ServiceManifest
from tenuto.protocol.records import Event, Result
from tenuto.runtime.handler_loop import NeverRestsError
from tenuto.service import Service, Services, VirtualObject
from tenuto.store.memory import MemoryTable
from tenuto.testing.courses import WatchedServices
from tenuto.testing.errors import HarnessError, HungError, KeepsFailingError, NothingWaitsError, StillWaitingError
from tenuto.testing.letters import dead_letters
from tenuto.testing.processes import FUNCTION_TIMEOUT_MS, Crash, Functions, Gate, Process, ProcessTable
from tenuto.testing.topics import Topics
from tenuto.testing.views import DeadLetter, Record
from tenuto.testing.virtual_loop import LoopThread
from tenuto.testing.waits import error_of, waiting_awakeables, waits_of
from tenuto_control.core.metrics import Uncounted
from tenuto_control.core.routing import Quarantine, Subscription, dead_letter_forms, route
from tenuto_control.dispatcher import Dispatcher, Wiring
from tenuto_control.dispatcher.outages import watched
from tenuto_control.limits import Limits
from tenuto_control.ports import LogRecord, Pending, Resolution, Target, Unknown

T = TypeVar("T")

TICK_S: Final = 0.001
"""In so much virtual time, whatever is ready has run."""

SETTLE_MS_MAX: Final = 3_600_000
"""How long something may be at work, in virtual time: much longer than a function may run."""

LEAPS_MAX: Final = 10_000
"""Moments at which something is due that one request of a test may wait for, such as messages that come for ever."""

CALL_WAIT_MS: Final = 25_000
"""How long a caller over HTTP waits for an answer before it is told where to ask for it."""

FUNCTION: Final = "function"


@dataclass(frozen=True, slots=True)
class Setup:
    """What a world begins from. Equal ones, and equal requests, give equal worlds.

    `attempts_max`: after so many failed attempts in a row at an invocation that is retried without end, a test fails.
    """

    services: tuple[Service | VirtualObject, ...]
    subscriptions: tuple[Subscription, ...]
    start_ms: int
    attempts_max: int
    crash: Crash | None = None


@dataclass(slots=True)
class Control:
    """One process of the control plane. `died` is done when it is no more."""

    process: Process
    dispatcher: Dispatcher
    died: asyncio.Future[None]


@dataclass(slots=True)
class Answered:
    """A result that was given to a caller."""

    target: str
    key: str
    result: Result


@dataclass(slots=True)
class World:
    """Everything of one environment. Methods run on the loop of `thread`."""

    setup: Setup
    thread: LoopThread
    table: MemoryTable = field(default_factory=MemoryTable)
    topics: Topics = field(init=False)
    gate: Gate = field(init=False)
    services: Services = field(init=False)
    watched: WatchedServices = field(init=False)
    functions: Functions = field(init=False)
    answered: list[Answered] = field(default_factory=list)
    _calls: int = 0
    _recovering_ms: int = 0
    _manifests: Sequence[ServiceManifest] = ()
    _control: Control | None = None
    _controls: int = 0
    _replacing: asyncio.Task[None] | None = None
    _held: dict[tuple[str, int], Event] = field(default_factory=dict)
    _looked_at: set[tuple[str, str]] = field(default_factory=set)
    _leaping: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        """Wire the parts; the world itself plays clock, targets and scheduler."""
        self.topics = Topics(self.event, {subscription.topic for subscription in self.setup.subscriptions})
        self.gate = Gate(self.setup.crash)
        self.services = Services(self.setup.services)
        self.watched = WatchedServices(self.services, self._step)
        self.functions = Functions(self.table, self.gate, self.watched, self.now_ms)
        self._manifests = self.services.manifest(FUNCTION_TIMEOUT_MS).services

    def _step(self, change: int) -> None:
        self.thread.loop.steps += change

    # --- ways in ----------------------------------------------------------------------------------------------------

    async def event(self, topic: str, key: bytes | None, value: bytes | None, headers: Any = ()) -> Event | None:
        """A record arrives. The event it becomes; None when it went to the dead letters at once."""
        record = LogRecord(topic, 0, self.topics.next_offset(topic), self.now_ms(), key, value, headers)
        subscription = next(s for s in self.setup.subscriptions if s.topic == topic)
        meaning = route(record, subscription)
        if isinstance(meaning, Quarantine):
            letter = dead_letter_forms(record, meaning.reason)[0]
            await self.topics.produce(subscription.dead_letter_topic, letter.value, letter.key, letter.headers)
            return None
        at = (topic, record.offset)
        self._held[at] = meaning
        self._deliver(await self._living(), at, meaning)
        return meaning

    async def call(self, event: Event, idempotency_key: str, *, shared: bool) -> Result:
        """The result of a call, however long it takes. Raises StillWaitingError when it does not end by itself."""
        del idempotency_key  # The event\'s id is made of it.
        if shared:
            result = await self.ask(lambda dispatcher: dispatcher.call_shared(event))
        else:
            asking = asyncio.ensure_future(self.ask(lambda dispatcher: dispatcher.call(event, CALL_WAIT_MS)))
            try:
                await self.until(lambda: _true_or_none(asking.done()), event.id)
                answer = asking.result()
            finally:
                asking.cancel()
            result = await self._found(event.id) if isinstance(answer, Pending | Unknown) else answer
        self._note(event.id, event.handler, result)
        return result

    async def send(self, event: Event, idempotency_key: str, delay_ms: int) -> None:
        """A message is accepted."""
        del idempotency_key  # The event\'s id is made of it.
        await self.ask(lambda dispatcher: dispatcher.send(event, delay_ms))

    async def result(self, invocation: str, handler: str) -> Result:
        """The result of an invocation that keeps it, however long it takes. Raises as `call`."""
        result = await self._found(invocation)
        self._note(invocation, handler, result)
        return result

    def place(self, invocation: str) -> str | None:
        """The user's line at which the last attempt of an invocation failed."""
        course = self.watched.courses.get(invocation)
        return None if course is None else course.at

    async def resolve(self, awakeable: str, result: Result) -> None:
        """Give an awakeable its result. Raises NothingWaitsError."""
        match await self.ask(lambda dispatcher: dispatcher.resolve(awakeable, result)):
            case Resolution.ACCEPTED | Resolution.REPEATED:
                pass
            case Resolution.CONFLICT:
                raise NothingWaitsError(f"awakeable {awakeable} has another answer already, which stays")
            case Resolution.UNKNOWN:
                others = waiting_awakeables(self.heads())
                known = f"waited for are: {', '.join(others)}" if others else "no awakeable is waited for"
                raise NothingWaitsError(f"nothing waits for awakeable {awakeable}; {known}")

    def idempotency_key(self) -> str:
        """A key that no call before had: of equal requests in equal order, equal ones."""
        self._calls += 1
        return f"call-{self._calls}"

    # --- looking ----------------------------------------------------------------------------------------------------

    async def state(self, lane: Lane) -> Mapping[str, bytes]:
        """The stored state of a lane."""
        at = head_key(lane)
        return parse_head(self.table.items.get((at.pk, at.sk))).state

    async def published(self, topic: str) -> list[Record]:
        """The records that were produced to a topic."""
        return list(self.topics.published.get(topic, ()))

    async def dead_letters(self) -> list[DeadLetter]:
        """See `letters.dead_letters`."""
        topics = sorted({subscription.dead_letter_topic for subscription in self.setup.subscriptions})
        return await dead_letters(self.table, self.topics, self, [await self.published(topic) for topic in topics])

    # --- the control plane, as its callers see it -------------------------------------------------------------------

    async def ask(self, act: Callable[[Dispatcher], Awaitable[T]]) -> T:
        """Ask the control plane for something, and its successor when it dies meanwhile, as a client over HTTP does."""
        while True:
            control = await self._living()
            asking = asyncio.ensure_future(act(control.dispatcher))
            either: list[asyncio.Future[Any]] = [asking, control.died]
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if asking.done():
                    return asking.result()
            finally:
                asking.cancel()

    async def _found(self, invocation: str) -> Result:
        async def look() -> Result | None:
            answer = await self.ask(lambda dispatcher: dispatcher.result(invocation, 0))
            return None if isinstance(answer, Pending | Unknown) else answer

        return await self.until(look, invocation)

    def _note(self, invocation: str, handler: str, result: Result) -> None:
        lane = InvocationId.parse(invocation).lane
        self.answered.append(Answered(f"{lane.service}/{handler}", lane.key, result))

    # --- rest and time ----------------------------------------------------------------------------------------------

    def now_ms(self) -> int:
        """Milliseconds since the epoch (the Clock port)."""
        return self.setup.start_ms + round(self.thread.loop.time() * 1_000)

    async def settle(self) -> None:
        """Until nothing is in progress at this moment. After a crash, until everything has recovered from it."""
        await self._rest()
        began_ms = self.now_ms()
        while self.gate.crashed and self._unfinished():
            self.check()
            if not await self._leap():
                break
        self._recovering_ms += self.now_ms() - began_ms

    async def settled(self) -> None:
        """The same, for a test. Raises what no passing of time will heal."""
        await self.settle()
        self.check()

    async def until(self, look: Callable[[], Awaitable[T | None]], invocation: str) -> T:
        """Let time pass until `look` finds something. Raises HarnessErrors for what will never come."""
        for _ in range(LEAPS_MAX):
            await self.settle()
            self.check()
            found = await look()
            if found is not None:
                return found
            if not await self._leap():
                break
        raise StillWaitingError("\n  ".join(["this does not end by itself, and waits for:", *self.waits(invocation)]))

    async def advance(self, duration_ms: int) -> None:
        """Let time pass: what is due meanwhile happens in order, each at its time."""
        # A crash may cost a minute, until the lease of a function is over. That is no part of what a test lets pass.
        target_ms = self.now_ms() + duration_ms - self._recovering_ms
        await self.settle()
        while await self._leap(target_ms + self._recovering_ms):
            await self.settle()
            self.check()
        self._jump_to(target_ms + self._recovering_ms)
        await self._look_at_due()
        await self.settle()

    async def finish(self) -> None:
        """Until everything has ended that can without time passing, and has been delivered."""
        self.gate.crashed = True
        await self.settle()

    def waits(self, invocation: str | None = None) -> list[str]:
        """What everything waits for, in words; that of one invocation first."""
        return waits_of(self.heads(), self.watched.courses, self.now_ms(), invocation)

    def check(self) -> None:
        """Raise what no passing of time will heal: a diverged replay, a handler that fails each time or never rests."""
        for course in self.watched.courses.values():
            if course.diverged is not None:
                raise course.diverged
            if isinstance(course.error, NeverRestsError):
                at = f" ({course.at})" if course.at else ""
                raise HungError(f"{course.target} does not return: {course.error}{at}") from course.error
            if course.error is None or course.failures < self.setup.attempts_max:
                continue
            spec = self.services.find(*course.target.split("/", 1))
            if spec is None or spec.retry.max_attempts is None:
                failures, course.failures = course.failures, 0
                raise KeepsFailingError(
                    f"{course.target} has failed {failures} times in a row, and is retried without end: "
                    f"{error_of(course)}"
                ) from course.error

    def heads(self) -> Iterator[tuple[Lane, Head]]:
        """The record of each lane."""
        for (pk, sk), item in list(self.table.items.items()):
            if sk == HEAD_SK:
                yield Lane.from_pk(pk), parse_head(item)

    async def _rest(self) -> None:
        await asyncio.sleep(TICK_S)
        deadline_ms = self.now_ms() + SETTLE_MS_MAX
        while self.now_ms() < deadline_ms:
            control = await self._living()
            settling = asyncio.ensure_future(control.dispatcher.settle(deadline_ms))
            await asyncio.wait([settling, control.died], return_when=asyncio.FIRST_COMPLETED)
            settling.cancel()
            if control.process.alive and self.functions.running:
                await asyncio.wait(self.functions.running)
            elif control.process.alive:
                return
        raise HarnessError(f"something has been at work for an hour of virtual time: {'; '.join(self.waits())}")

    async def _leap(self, limit_ms: int | None = None) -> bool:
        """Move the clock to the next moment at which something is due. False when there is none (until a time)."""
        async with self._leaping:
            control = await self._living()
            dues = [rest.until_ms for rest in control.dispatcher.resting().values()]
            dues += [timer.due_ms for at, timer in self._timers() if at not in self._looked_at]
            due_ms = min(dues, default=None)
            if due_ms is None or (limit_ms is not None and due_ms > limit_ms):
                return False
            self._jump_to(max(due_ms, self.now_ms() + 1))
            await self._look_at_due()
            return True

    def _jump_to(self, time_ms: int) -> None:
        self.thread.loop.jump(max(0.0, (time_ms - self.setup.start_ms) / 1_000 - self.thread.loop.time()))

    async def _look_at_due(self) -> None:
        """Do what a sweep does with the timers that are due, but for those that have fired by themselves."""
        await self._rest()
        due = [(timer, at) for at, timer in self._timers() if timer.due_ms <= self.now_ms()]
        for timer, at in sorted(due, key=lambda found: (found[0].due_ms, found[1])):
            if at in self._looked_at:
                continue
            self._looked_at.add(at)
            if isinstance(timer, SendTimer):
                await self.ask(functools.partial(_deliver_delayed, timer))
            else:
                (await self._living()).dispatcher.look(timer.lane)
        await self._rest()

    def _timers(self) -> Iterator[tuple[tuple[str, str], Timer]]:
        for at, item in list(self.table.items.items()):
            if at[0].startswith("T#"):
                yield at, parse_timer(item)

    def _unfinished(self) -> bool:
        """Whether anything is left over that needs no more than time."""
        busy = {lane for lane, head in self.heads() if head.run is not None}
        if any(head.out or _goes_on(head) for _, head in self.heads()):
            return True
        if any(event.invocation.lane not in busy for event in self._held.values()):
            return True
        for (pk, sk), item in list(self.table.items.items()):
            if sk.startswith("I#") and not is_tombstone(item) and Lane.from_pk(pk) not in busy:
                return True
        return any(isinstance(timer, SendTimer) and timer.due_ms <= self.now_ms() for _, timer in self._timers())

    # --- the control plane ------------------------------------------------------------------------------------------

    async def _living(self) -> Control:
        if self._replacing is not None:
            await self._replacing
        if self._control is None:
            self._control = self._new_control()
        return self._control

    def _new_control(self) -> Control:
        self._controls += 1
        process = Process("control plane", f"control-{self._controls}")
        wiring = Wiring(
            table=watched(ProcessTable(self.table, self.gate, process), Uncounted()),
            invoker=self.functions,
            sink=self.topics,
            targets=self,
            scheduler=self,
            clock=self,
            rng=random.Random(1),
            limits=Limits(),
            process=process.name,
            table_name="tenuto",
        )
        control = Control(process, Dispatcher(wiring), asyncio.get_running_loop().create_future())
        process.die = lambda: self._replace(control)
        return control

    def _replace(self, control: Control) -> None:
        control.died.set_result(None)
        self._replacing = asyncio.get_running_loop().create_task(self._succeed(control))

    async def _succeed(self, control: Control) -> None:
        """Another process takes over: what no offset has released is read again."""
        await control.dispatcher.kill()
        self._looked_at.clear()
        self._control, self._replacing = self._new_control(), None
        for at, event in list(self._held.items()):
            self._deliver(self._control, at, event)

    def _deliver(self, control: Control, at: tuple[str, int], event: Event) -> None:
        def released() -> None:
            self._held.pop(at, None)

        control.dispatcher.deliver(event, released)

    # --- ports ------------------------------------------------------------------------------------------------------

    def find(self, service: str) -> Target | None:
        """See `Targets.find`."""
        found = next((manifest for manifest in self._manifests if manifest.name == service), None)
        return None if found is None else Target(FUNCTION, found, FUNCTION_TIMEOUT_MS)

    def listed(self) -> Sequence[ServiceManifest]:
        """See `Targets.listed`."""
        return self._manifests

    async def schedule(self, name: str, at_ms: int, payload: bytes) -> None:
        """See `WakeScheduler.schedule`: the world itself looks at each timer when it is due."""

    async def cancel(self, name: str) -> None:
        """See `WakeScheduler.cancel`."""


async def _deliver_delayed(timer: SendTimer, dispatcher: Dispatcher) -> None:
    await dispatcher.deliver_delayed(timer)


def _goes_on(head: Head) -> bool:
    """Whether a run can continue now: it is held by a function, or what it waits for is there."""
    run = head.run
    return run is not None and (not run.suspended or any(slot in head.slots for slot in run.awaits or ()))


async def _true_or_none(found: bool) -> bool | None:  # noqa: FBT001 - the one thing it is about
    return True if found else None
