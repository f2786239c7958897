"""An environment for tests: handlers in this process, over production code and a table in memory, in virtual time.

Owns what tests ask for, and the errors for what cannot be. Does not own how it comes about (`world`).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from os import PathLike
from types import TracebackType
from typing import Any, Final, Self, TypeVar, overload

import msgspec

from tenuto.handler import Handler
from tenuto.lane.head import head_key, parse_head
from tenuto.protocol.durations import Duration, milliseconds
from tenuto.protocol.failures import rejection_of
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane, call_nonce
from tenuto.protocol.records import CallSource, Event, Failed, Result, Success
from tenuto.serde import OutboundSerde, serde_for
from tenuto.service import Service, VirtualObject
from tenuto.testing import answers
from tenuto.testing.crashes import CrashReport, crash_everywhere
from tenuto.testing.errors import HarnessError, NothingWaitsError
from tenuto.testing.letters import dead_letters
from tenuto.testing.operations import Operation
from tenuto.testing.processes import Crash
from tenuto.testing.replays import Replayed, exported, replayed
from tenuto.testing.targets import Targets
from tenuto.testing.views import DeadLetter, Invocation, JournalEntry, Record
from tenuto.testing.virtual_loop import LoopThread
from tenuto.testing.waits import waiting_awakeables
from tenuto.testing.world import Setup, World
from tenuto_control.ports import Resolution

T = TypeVar("T")
O = TypeVar("O")  # noqa: E741 - a handler's output

ATTEMPTS_MAX: Final = 20
PATIENCE_S: Final = 10.0

Headers = Mapping[str, str | bytes]


class Environment:
    """Services and objects, ready to be called. Use it as a context manager, with `async with` or `with`.

    `topics` leads the records of a topic to a handler, `config` does so by the subscriptions of a tenuto.toml. `now` is
    what the time is at the beginning (default: the time on the wall). `attempts_max`: a handler that is retried without
    end fails the test after so many attempts in a row. `patience`: seconds of real time that user code may take at a
    stretch, None for a debugger.

    Each method begins at once and returns an `Operation`: await it, or call its `result()` where no event loop runs.
    Time passes only while one is under way. Methods raise HarnessErrors for what cannot be.
    """

    def __init__(
        self,
        *services: Service | VirtualObject,
        topics: Mapping[str, Handler[Any, Any] | str] | None = None,
        config: str | PathLike[str] | None = None,
        now: datetime | None = None,
        attempts_max: int = ATTEMPTS_MAX,
        patience: float | None = PATIENCE_S,
    ) -> None:
        self._targets = Targets(services)
        subscriptions = self._targets.subscriptions(topics or {}, config)
        start_ms = round(time.time() * 1000) if now is None else round(now.timestamp() * 1000)
        self._setup = Setup(services, subscriptions, start_ms, attempts_max)
        self._patience = patience
        self._entered: tuple[LoopThread, World] | None = None
        self._operations: list[Operation[Any]] = []

    def __enter__(self) -> Self:
        """Begin. Raises HarnessError when it has begun already."""
        if self._entered is not None:
            raise HarnessError("this environment is in use already: make one for each test")
        thread = LoopThread("tenuto-testing")
        self._entered = (thread, World(self._setup, thread))
        self._operations.clear()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """End everything. Raises what an operation failed with that was never awaited."""
        thread, _world = self._living
        self._entered = None
        thread.close()
        forgotten = [operation for operation in self._operations if not operation.looked_at]
        if kind is None and forgotten:
            raise HarnessError(f"{forgotten[0].what} was never awaited: await it, or call its result()")

    async def __aenter__(self) -> Self:
        """See `__enter__`."""
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """See `__exit__`."""
        self.__exit__(kind, error, traceback)

    # --- ways in ----------------------------------------------------------------------------------------------------

    @overload
    def call(
        self,
        handler: Handler[Any, O],
        /,
        *key_and_input: Any,
        headers: Headers | None = None,
        idempotency_key: str | None = None,
    ) -> Operation[O]: ...

    @overload
    def call(
        self, handler: str, /, *key_and_input: Any, headers: Headers | None = None, idempotency_key: str | None = None
    ) -> Operation[Any]: ...

    def call(
        self,
        handler: Handler[Any, Any] | str,
        /,
        *key_and_input: Any,
        headers: Headers | None = None,
        idempotency_key: str | None = None,
    ) -> Operation[Any]:
        """Call a handler, and let time pass until it has answered: `call(place, "order-7", order)`.

        An object's handler takes the key first, a service's handler the input alone. Returns what the handler returns,
        as its type hint reads it. Raises TerminalError as a caller sees it, StillWaitingError when it waits for what
        will not come by itself, KeepsFailingError.
        """
        target = self._targets.handler(handler)
        world = self._world
        event = self._event(target, "call", key_and_input, headers, idempotency_key, one_way=False)
        what = f"env.call({target.spec.target!r}, ...)"

        async def work() -> Any:
            result = await world.call(event, shared=target.kind == "shared")
            await self._settled()
            return answers.output_of(target, result)

        return self._begin(work, what)

    @overload
    def send(
        self,
        handler: Handler[Any, O],
        /,
        *key_and_input: Any,
        delay: Duration | None = None,
        headers: Headers | None = None,
        idempotency_key: str | None = None,
    ) -> Operation[Invocation[O]]: ...

    @overload
    def send(
        self,
        handler: str,
        /,
        *key_and_input: Any,
        delay: Duration | None = None,
        headers: Headers | None = None,
        idempotency_key: str | None = None,
    ) -> Operation[Invocation[Any]]: ...

    def send(
        self,
        handler: Handler[Any, Any] | str,
        /,
        *key_and_input: Any,
        delay: Duration | None = None,
        headers: Headers | None = None,
        idempotency_key: str | None = None,
    ) -> Operation[Invocation[Any]]:
        """Send to a handler without waiting for its end. What can happen at this moment has happened then."""
        target = self._targets.handler(handler)
        world = self._world
        event = self._event(target, "send", key_and_input, headers, idempotency_key, one_way=True)
        delay_ms = 0 if delay is None else milliseconds(delay, "delay")
        self._targets.require_sendable(target)

        async def work() -> Invocation[Any]:
            await world.send(event, delay_ms)
            await self._settled()
            return Invocation(event.id, target.spec.target, event.invocation.lane.key)

        return self._begin(work, f"env.send({target.spec.target!r}, ...)")

    @overload
    def result(self, invocation: Invocation[O]) -> Operation[O]: ...

    @overload
    def result(self, invocation: str) -> Operation[Any]: ...

    def result(self, invocation: Invocation[Any] | str) -> Operation[Any]:
        """Let time pass until an invocation that `send` began has ended: its result. Raises as `call` does."""
        world = self._world
        if isinstance(invocation, str):
            answers.require_invocation(invocation)
            course = world.watched.courses.get(invocation)
            target = None if course is None else self._targets.handler(course.target)
        else:
            target = self._targets.handler(invocation.handler)
        name = invocation if isinstance(invocation, str) else invocation.id
        if InvocationId.parse(name).nonce.startswith("k"):
            raise HarnessError("an event has no result: look at the state it left, or at what was published")

        async def work() -> Any:
            found = await world.result(name, "" if target is None else target.name)
            await self._settled()
            return answers.output_of(target, found)

        return self._begin(work, f"env.result({name!r})")

    def event(
        self,
        topic: str,
        key: str | bytes | None,
        value: Any = None,
        *,
        headers: Headers | None = None,
    ) -> Operation[Invocation[Any] | None]:
        """Have a record arrive from a topic. What can happen at this moment has happened then.

        A `value` of bytes goes as it is, others as JSON; None is a tombstone. Returns the invocation that the record
        became, None for one that is in its dead-letter topic because it can become none.
        """
        subscription = self._targets.subscription(self._setup.subscriptions, topic)
        raw_key = key.encode() if isinstance(key, str) else key
        data = value if isinstance(value, bytes) or value is None else OutboundSerde().serialize(value)
        world, pairs = self._world, answers.header_pairs(headers)

        async def work() -> Invocation[Any] | None:
            event = await world.event(topic, raw_key, data, pairs)
            await self._settled()
            if event is None:
                return None
            return Invocation(event.id, f"{subscription.service}/{subscription.handler}", event.invocation.lane.key)

        return self._begin(work, f"env.event({topic!r}, ...)")

    def resolve_awakeable(self, awakeable: str, value: Any = None) -> Operation[None]:
        """Complete an awakeable with a value, as JSON. Raises NothingWaitsError."""
        data = None if value is None else OutboundSerde().serialize(value)
        return self._answer(awakeable, Success(data), "resolve_awakeable")

    def reject_awakeable(self, awakeable: str, reason: str) -> Operation[None]:
        """Fail an awakeable: its waiter gets TerminalError(reason). Raises NothingWaitsError."""
        return self._answer(awakeable, Failed(rejection_of(reason)), "reject_awakeable")

    def advance(self, duration: timedelta | float | None = None, /, **units: float) -> Operation[None]:
        """Let time pass: `advance(days=30)`, or a timedelta, or seconds.

        Sleeps end, delayed messages arrive and attempts are made again in the order in which they are due.
        """
        passing = timedelta(**units) if duration is None else duration
        duration_ms = milliseconds(passing, "env.advance: the duration")
        if duration_ms < 0:
            raise HarnessError("time passes forwards alone: env.advance(days=30)")
        world = self._world

        async def work() -> None:
            await world.advance(duration_ms)

        return self._begin(work, "env.advance(...)")

    # --- looking ----------------------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """What the time is, in UTC."""
        return datetime.fromtimestamp(self._world.now_ms() / 1000, UTC)

    @overload
    def state(self, service: VirtualObject | str, key: str) -> Operation[dict[str, Any]]: ...

    @overload
    def state(self, service: VirtualObject | str, key: str, name: str) -> Operation[Any]: ...

    @overload
    def state(self, service: VirtualObject | str, key: str, name: str, type_hint: type[T]) -> Operation[T | None]: ...

    def state(
        self, service: VirtualObject | str, key: str, name: str | None = None, type_hint: Any = None
    ) -> Operation[Any]:
        """The stored state of an object: all of it as JSON, or one value, read by its type hint (None: absent)."""
        lane = Lane(self._targets.keyed(service), key)
        world = self._world
        serde = None if type_hint is None else serde_for(type_hint)

        async def work() -> Any:
            at = head_key(lane)
            state = parse_head(world.table.items.get((at.pk, at.sk))).state
            if name is None:
                return {one: msgspec.json.decode(data) for one, data in state.items()}
            data = state.get(name)
            if data is None:
                return None
            return msgspec.json.decode(data) if serde is None else serde.deserialize(data)

        return self._begin(work, "env.state(...)")

    def published(self, topic: str) -> Operation[list[Record]]:
        """The records that handlers have published to a topic, and those that went to it as dead letters."""
        world = self._world

        async def work() -> list[Record]:
            return list(world.topics.published.get(topic, ()))

        return self._begin(work, f"env.published({topic!r})")

    def dead_letters(self) -> Operation[list[DeadLetter]]:
        """Every event that ended as failed where nobody was told: those of topics, and those that the table keeps."""
        world = self._world

        async def work() -> list[DeadLetter]:
            return await dead_letters(world)

        return self._begin(work, "env.dead_letters()")

    def journal(self, invocation: Invocation[Any] | str) -> Operation[list[JournalEntry]]:
        """The commands of an invocation, in the order of asking, with what is known of each."""
        world, name = self._world, answers.require_invocation(invocation)

        async def work() -> list[JournalEntry]:
            return answers.journal_of(world, name)

        return self._begin(work, "env.journal(...)")

    def awakeables(self) -> Operation[list[str]]:
        """The ids of all awakeables that an invocation waits for, for `resolve_awakeable`."""
        world = self._world

        async def work() -> list[str]:
            return waiting_awakeables(world.heads())

        return self._begin(work, "env.awakeables()")

    def waits(self) -> Operation[list[str]]:
        """What everything that has not ended waits for, in words."""
        world = self._world

        async def work() -> list[str]:
            return world.waits()

        return self._begin(work, "env.waits()")

    # --- proofs -----------------------------------------------------------------------------------------------------

    async def crash_everywhere(
        self, scenario: Callable[[Environment], Awaitable[Any]], *, without: Iterable[str] = ()
    ) -> CrashReport:
        """Run a scenario with a crash before and after each durable write of it; all must lead to the same outcome.

        Each run has an environment of its own, which the scenario is given. The outcome is what the scenario returns,
        the results of its calls, all state, what was published (once for each `tenuto-id`) and the dead letters. Fields
        of the names in `without` may differ, such as those that hold a time. Raises OutcomesDifferError, which names
        the write and the line of the handler.
        """
        return await crash_everywhere(self._crashing, scenario, frozenset(without))

    def export_journal(self, invocation: Invocation[Any] | str) -> Operation[bytes]:
        """The journal of an invocation that has not ended, in the form of `tenuto journal`, to be replayed later."""
        world, name = self._world, answers.require_invocation(invocation)

        async def work() -> bytes:
            return await exported(world, name)

        return self._begin(work, "env.export_journal(...)")

    def replay(self, journal: str | PathLike[str] | bytes) -> Operation[Replayed]:
        """Replay a journal (a file of `tenuto journal`, or its contents) against the handlers as they are now.

        No step runs, and nothing is written. Raises JournalMismatchError where the handler takes another way, and
        whatever else it fails with.
        """
        services = self._targets.services
        return self._begin(lambda: replayed(journal, services), "env.replay(...)")

    # --- parts ------------------------------------------------------------------------------------------------------

    @property
    def _living(self) -> tuple[LoopThread, World]:
        if self._entered is None:
            raise HarnessError("this environment is not in use: async with Environment(...) as env")
        return self._entered

    @property
    def _world(self) -> World:
        return self._living[1]

    def _begin(self, work: Callable[[], Coroutine[Any, Any, T]], what: str) -> Operation[T]:
        thread, _ = self._living
        operation = Operation(thread.submit(work), thread, self._patience, what)
        self._operations = [one for one in self._operations if not one.looked_at]
        self._operations.append(operation)
        return operation

    async def _settled(self) -> None:
        """Wait for what can happen at this moment; not inside a step, which is part of that."""
        _, world = self._living
        await world.settle()
        world.check()

    def _event(
        self,
        target: Handler[Any, Any],
        method: str,
        key_and_input: tuple[Any, ...],
        headers: Headers | None,
        idempotency_key: str | None,
        *,
        one_way: bool,
    ) -> Event:
        world = self._world
        key, argument = self._targets.arguments(target, method, key_and_input)
        world.calls += 1
        nonce = call_nonce(target.name, f"call-{world.calls}" if idempotency_key is None else f"k{idempotency_key}")
        lane = Lane(target.service, nonce if key is None else key)
        source = CallSource(keep_result=True, one_way=one_way)
        data = self._targets.input_of(target, method, argument)
        return Event.of(InvocationId(lane, nonce), target.name, source, data, answers.header_pairs(headers))

    def _answer(self, awakeable: str, result: Result, method: str) -> Operation[None]:
        thread, world = self._living
        inside = thread.inside
        try:
            AwakeableId.parse(awakeable)
        except ValueError as e:
            raise NothingWaitsError(f"env.{method}: the id of an awakeable begins with awk_; this text is none") from e

        async def work() -> None:
            resolution = await world.ask(lambda dispatcher: dispatcher.resolve(awakeable, result))
            match resolution:
                case Resolution.ACCEPTED | Resolution.REPEATED:
                    pass
                case Resolution.CONFLICT:
                    raise NothingWaitsError(f"awakeable {awakeable} has another answer already, which stays")
                case Resolution.UNKNOWN:
                    others = waiting_awakeables(world.heads())
                    known = f"waited for are: {', '.join(others)}" if others else "no awakeable is waited for"
                    raise NothingWaitsError(f"nothing waits for awakeable {awakeable}; {known}")
            if not inside:
                await self._settled()

        return self._begin(work, f"env.{method}(...)")

    def _crashing(self, crash: Crash | None) -> tuple[Environment, Callable[[], World]]:
        """An environment like this one in which a process ends at a write, and the way to its world."""
        made = copy.copy(self)
        vars(made).update(_setup=replace(self._setup, crash=crash), _entered=None, _operations=[])
        return made, lambda: made._world  # noqa: SLF001 - another one of this class
