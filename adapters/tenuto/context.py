"""The contexts handlers are given, and the functions that combine durable futures.

Owns the public face of commands: names, type hints, units. Does not own what a command does (`tenuto.runtime`).
"""

from __future__ import annotations

import functools
import random as _random
import types
import uuid as _uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, Never, ParamSpec, TypeVar, overload

from msgspec import Struct

from tenuto import checks
from tenuto.errors import BadInputError, TenutoError, UnserialisableError
from tenuto.handler import Handler
from tenuto.protocol.durations import Duration, milliseconds
from tenuto.protocol.failures import describe, rejection_of
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import RetryPolicy
from tenuto.protocol.records import Failed, KafkaSource, PublishOut, Success
from tenuto.result_hints import inspectable, result_hint
from tenuto.runtime.commands import Commands
from tenuto.runtime.futures import AwakeableFuture, DurableFuture
from tenuto.runtime.steps import RunLimits, step_key
from tenuto.runtime.unawaited import refuse_unawaited
from tenuto.serde import BytesSerde, OutboundSerde, OwnTypesSerde, Serde, serde_for

T = TypeVar("T")
P = ParamSpec("P")

_NO_LIMITS = RunLimits()


@dataclass(frozen=True, slots=True)
class KafkaOrigin:
    """The record an invocation came from. `timestamp_ms` is the record's, in milliseconds since the epoch."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None


@dataclass(frozen=True, slots=True)
class Request:
    """What is known of the invocation itself. `headers` keeps order and repeated names, as the sender gave them."""

    id: str
    headers: tuple[tuple[str, bytes], ...]
    body: bytes | None
    kafka: KafkaOrigin | None = None

    def header(self, name: str) -> bytes | None:
        """The last value of a header, None when it was not sent."""
        return next((value for n, value in reversed(self.headers) if n == name), None)


# Without slots: on Python 3.11 `RunOptions[str](...)` fails for a generic dataclass that is frozen and slotted.
@dataclass(frozen=True)
class RunOptions(Generic[T]):
    """How a step is retried and serialised.

    Without any retry setting a failing step fails the attempt, which the handler's retry policy repeats. With
    `max_attempts` or `max_duration` the step itself gives up: awaiting it then raises TerminalError. Durations are
    timedeltas or seconds as numbers; intervals are above zero and at most 365 days, and no pause is shorter than 10 ms.

    Raises TypeError and ValueError for settings that make no sense, such as a serde without its methods or a type hint
    whose values cannot be read back.
    """

    serde: Serde[T] | None = None
    type_hint: Any = None
    max_attempts: int | None = None
    max_duration: Duration | None = None
    initial_retry_interval: Duration = timedelta(milliseconds=50)
    max_retry_interval: Duration = timedelta(seconds=60)
    retry_interval_factor: float = 2.0

    def __post_init__(self) -> None:
        if self.serde is not None:
            checks.serde(self.serde)
        elif self.type_hint is not None:
            _serde_for(self.type_hint, "type_hint")
        initial = checks.interval(self.initial_retry_interval, "initial_retry_interval")
        longest = checks.interval(self.max_retry_interval, "max_retry_interval")
        checks.policy(initial, longest, ("initial_retry_interval", "max_retry_interval"))
        # Equal settings are equal options, however they were written.
        object.__setattr__(self, "initial_retry_interval", initial)
        object.__setattr__(self, "max_retry_interval", longest)
        object.__setattr__(
            self, "retry_interval_factor", checks.factor(self.retry_interval_factor, "retry_interval_factor")
        )
        object.__setattr__(self, "max_attempts", checks.attempts(self.max_attempts, "max_attempts"))
        if self.max_duration is not None:
            object.__setattr__(self, "max_duration", checks.interval(self.max_duration, "max_duration", zero=True))

    def limits(self) -> RunLimits:
        """The retry settings as the runtime takes them."""
        if self == RunOptions(self.serde, self.type_hint):
            return _NO_LIMITS
        policy = RetryPolicy(
            milliseconds(self.initial_retry_interval, "initial_retry_interval"),
            self.retry_interval_factor,
            milliseconds(self.max_retry_interval, "max_retry_interval"),
            self.max_attempts,
        )
        return RunLimits(policy, None if self.max_duration is None else milliseconds(self.max_duration, "max_duration"))


_PLAIN: RunOptions[Any] = RunOptions()


@dataclass(frozen=True, slots=True)
class _Shared:
    """What every context has."""

    _commands: Commands

    def request(self) -> Request:
        """Id, headers and, for an event, the Kafka record it came from."""
        return _request_of(self._commands)

    def time(self) -> float:
        """The time now, in seconds since the epoch. It is journaled: a replay is told the same.

        In a shared handler, which is not replayed, it is the clock's.
        """
        return self._commands.now_ms() / 1000

    def start_time(self) -> float:
        """When the invocation began, in seconds since the epoch: its first attempt that took a durable step.

        The same on every attempt from then on. Before, nothing is durable, and each attempt begins anew.
        """
        return self._commands.start_ms / 1000

    def random(self) -> _random.Random:
        """Random numbers that come out the same on every attempt. Not for secrets."""
        return self._commands.random

    def uuid(self) -> _uuid.UUID:
        """A random UUID that comes out the same on every attempt."""
        return _uuid.UUID(int=self._commands.random.getrandbits(128), version=4)


class _Durable(_Shared):
    """Commands of handlers that may do more than read."""

    __slots__ = ()

    @overload
    def run(
        self, name: str, action: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> DurableFuture[T]: ...

    @overload
    def run(self, name: str, action: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> DurableFuture[T]: ...

    def run(self, name: str, action: Callable[..., Any], /, *args: Any, **kwargs: Any) -> DurableFuture[Any]:
        """Execute a step and journal its result: once finished it never runs again.

        An async callable is awaited on the function's own loop. A sync one runs in the function's own thread while
        nothing else is in flight, in a worker thread otherwise. The step starts when the handler next waits, or ends.
        Await the future for its value. A step that was in flight at a crash runs again, with the same
        `idempotency_key()`. Raises TerminalError on await when the step raised one or its options say to give up.
        """
        return self._run(_PLAIN, _NO_LIMITS, name, action, args, kwargs)

    def run_with(
        self, options: RunOptions[T], name: str, action: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> DurableFuture[T]:
        """`run` with retry limits, a serde or a type hint for the result."""
        if not isinstance(options, RunOptions):
            checks.wrong_type(
                f"ctx.run_with takes RunOptions first, not {type(options).__name__}: "
                'ctx.run_with(RunOptions(max_attempts=3), "pay", pay)'
            )
        return self._run(options, options.limits(), name, action, args, kwargs)

    def _run(
        self,
        options: RunOptions[T],
        limits: RunLimits,
        name: object,
        action: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> DurableFuture[T]:
        called = checks.step_name(name)
        if not callable(action):
            checks.wrong_type(
                f"ctx.run({checks.shown(called)}, ...) takes a callable and its arguments, not {type(action).__name__}"
            )
        for argument in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(argument, DurableFuture):
                refuse_unawaited(argument, f"{checks.where()}an argument of ctx.run({checks.shown(called)}, ...)")
        plain = action if type(action) is types.FunctionType else inspectable(action)
        call = functools.partial(plain, *args, **kwargs) if args or kwargs else plain
        serde = options.serde
        if serde is None:
            hint = result_hint(action) if options.type_hint is None else options.type_hint
            serde = _serde_for(hint, f"ctx.run({called!r})")
        return self._commands.run(called, call, _Named(serde, f"the result of run {called!r}"), limits)

    def sleep(self, duration: Duration) -> DurableFuture[None]:
        """Wait at least this long, a timedelta or seconds as a number. What is not above zero is over at once.

        Beyond a few hundred milliseconds the function returns and is resumed. Raises TypeError for anything else than a
        duration, and InvalidArgumentError for nan, infinity or more than 100 years.
        """
        return self._commands.sleep(checks.sleep_ms(duration))

    @overload
    def awakeable(self, type_hint: type[T]) -> tuple[str, AwakeableFuture[T]]: ...

    @overload
    def awakeable(self, type_hint: Any = None) -> tuple[str, AwakeableFuture[Any]]: ...

    def awakeable(self, type_hint: Any = None) -> tuple[str, AwakeableFuture[Any]]:
        """An id, and the future that `POST /awakeables/{id}/resolve` or `resolve_awakeable` completes.

        Hand the id out inside `ctx.run` or with a send: before the first durable step nobody could resolve it.
        """
        serde = _serde_for(type_hint, "ctx.awakeable")
        name, future = self._commands.awakeable(_Named(serde, "the result of an awakeable"))
        future.reads_bytes = isinstance(serde, BytesSerde)
        return name, future

    def resolve_awakeable(self, awakeable_id: str, value: Any = None, type_hint: Any = None) -> None:
        """Complete somebody's awakeable with a value. A type hint is needed as for `ObjectContext.set`.

        Raises InvalidArgumentError when the id is none, UnserialisableError and StateTooLargeError for the value.
        """
        named = checks.awakeable_id(awakeable_id, "resolve_awakeable")
        self._commands.resolve(named, Success(_encoded(value, "the value of an awakeable", type_hint)))

    def reject_awakeable(self, awakeable_id: str, reason: str) -> None:
        """Fail somebody's awakeable: its waiter gets TerminalError(reason), cut to 4,096 bytes.

        Raises InvalidArgumentError when the id is none.
        """
        self._commands.resolve(checks.awakeable_id(awakeable_id, "reject_awakeable"), Failed(rejection_of(reason)))

    def service_send(
        self, handler: Handler[Any, Any], argument: Any = None, *, send_delay: Duration | None = None
    ) -> str:
        """Send to a service's handler, without waiting. Returns the new invocation's id.

        `send_delay` is a timedelta or seconds as a number. Raises TypeError for a handler of a virtual object,
        UnserialisableError for an argument that does not fit, StateTooLargeError above 350,000 bytes or when 4,000,000
        bytes are sent without a durable step between, InvalidArgumentError.
        """
        _require_handler(handler, "service_send", keyed=False)
        return self._send(None, handler, argument, send_delay)

    def object_send(
        self, handler: Handler[Any, Any], key: str, argument: Any = None, *, send_delay: Duration | None = None
    ) -> str:
        """Send to an object's handler, without waiting. Messages to one key arrive in the order they were sent.

        The key is text of 1 to 1,024 bytes without control characters. Raises as `service_send` does, and TypeError for
        a handler of a service and for a shared one.
        """
        _require_handler(handler, "object_send", keyed=True)
        lane = Lane(handler.service, checks.object_key(handler.service, key))
        return self._send(lane, handler, argument, send_delay)

    def _send(self, lane: Lane | None, handler: Handler[Any, Any], argument: Any, send_delay: Duration | None) -> str:
        delay_ms = checks.delay_ms(send_delay)
        what = f"the message to {handler.spec.target}"
        data = handler.encode(argument)
        if data is not None:
            checks.fitting(len(data), what)
        return self._commands.send(lane, handler.service, handler.name, data, delay_ms)

    def publish(
        self,
        topic: str,
        value: Any,
        *,
        key: str | bytes | None = None,
        headers: Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]] | None = None,
    ) -> None:
        """Produce a record to a Kafka topic when this invocation commits.

        A `value` of bytes goes as it is, others as JSON; None is a tombstone. Headers are a mapping, or pairs where a
        name comes twice. After a crash the record may be produced twice, with the same `tenuto-id` header. One that is
        larger than the topic's `max.message.bytes` is not produced: it is kept in the table, and the control plane's
        log has an error that names it. A record weighs 350,000 bytes at most, below the brokers' default of 1 MB.

        Raises TypeError, InvalidArgumentError for what Kafka takes as no name of a topic, UnserialisableError and
        StateTooLargeError.
        """
        name = checks.topic(topic)
        raw_key = checks.record_key(key, name)
        pairs = checks.record_headers(headers, name)
        what = f"the record for {name!r}"
        written: Serde[Any] = BytesSerde() if isinstance(value, bytes | bytearray | memoryview) else OutboundSerde()
        data = None if value is None else _Named(written, what).serialize(value)
        size = sum(len(n.encode()) + len(v) for n, v in pairs) + len(raw_key or b"") + len(data or b"")
        checks.fitting(size, what)
        self._commands.publish(PublishOut(name, data, raw_key, pairs))

    async def gather(self, *futures: DurableFuture[Any]) -> list[Any]:
        """Wait for all futures; values in order. Raises the first failure in order, once all are done.

        Raises TypeError for what is no future of this invocation.
        """
        checks.futures(futures, DurableFuture, self._commands, "ctx.gather")
        return await self._commands.gather(futures)

    async def select(self, *unnamed: Never, **futures: DurableFuture[Any]) -> tuple[str, Any]:
        """Wait for the first future to complete: its name and value. Replays get the same one.

            match await ctx.select(answer=answer, timeout=ctx.sleep(timedelta(minutes=5))):
                case "answer", value: ...
                case "timeout", _: ...

        Raises TerminalError when the first one failed, TypeError for what is no future of this invocation.
        """
        checks.all_named(unnamed, "ctx.select")
        checks.futures(futures.values(), DurableFuture, self._commands, "ctx.select")
        names = list(futures)
        winner = await self._commands.select(list(futures.values()))
        return names[winner], futures[names[winner]].value()


class _Reads(_Shared):
    """Reading an object's state."""

    __slots__ = ()

    @property
    def key(self) -> str:
        """The object's key."""
        return self._commands.lane.key

    @overload
    async def get(self, name: str, type_hint: type[T]) -> T | None: ...

    @overload
    async def get(self, name: str, type_hint: None = None) -> Any: ...

    async def get(self, name: str, type_hint: Any = None) -> Any:
        """The value stored under a name, None when there is none. It came with the request: no I/O."""
        data = self._commands.state.get(checks.state_name(name, "get"))
        serde = _serde_for(type_hint, "ctx.get")
        if data is None:
            return None
        try:
            return serde.deserialize(data)
        except BadInputError as e:
            raise e.naming(f"state {name!r}") from None

    async def state_keys(self) -> list[str]:
        """Names that have a value, sorted."""
        return self._commands.state.names()


class Context(_Durable):
    """What a service's handler is given."""

    __slots__ = ()


class ObjectSharedContext(_Reads):
    """What a shared (read-only) handler of an object is given."""

    __slots__ = ()


class ObjectContext(_Durable, _Reads):
    """What an object's handler is given: the only one at work on this key."""

    __slots__ = ()

    def set(self, name: str, value: Any, type_hint: Any = None) -> None:
        """Store a value under a name; None stores null. Committed with the invocation.

        Plain JSON needs no hint, and objects are written by their own class, which `get` takes as hint. Anything else,
        such as tuples, sets and keys that are no text, needs the hint that `get` is given:
        `ctx.set("seen", {1, 2}, set[int])`. A name has 1 to 255 bytes and no control characters.

        Raises InvalidArgumentError, UnserialisableError when the value would not come back equal, and
        StateTooLargeError when the object's state outgrows its limit.
        """
        named = checks.state_name(name, "set")
        self._commands.state.set(named, _encoded(value, f"state {named!r}", type_hint))

    def clear(self, name: str) -> None:
        """Forget the value of a name."""
        self._commands.state.clear(checks.state_name(name, "clear"))

    def clear_all(self) -> None:
        """Forget every value."""
        for name in self._commands.state.names():
            self._commands.state.clear(name)


def idempotency_key() -> str:
    """A key that is the same each time the running step is tried.

    Hand it to the outside, so that it can recognise a repetition. Raises TenutoError outside of a step.
    """
    try:
        return step_key()
    except LookupError:
        raise TenutoError("idempotency_key() is for code that runs inside ctx.run") from None


async def gather(*futures: DurableFuture[Any]) -> list[Any]:
    """See `ObjectContext.gather`."""
    if not futures:
        return []
    commands = getattr(futures[0], "waiter", None)
    checks.futures(futures, DurableFuture, commands, "gather")
    if not isinstance(commands, Commands):
        raise TypeError("gather takes the futures that context methods return")
    return await commands.gather(futures)


class _Named(Struct, Generic[T], frozen=True):
    """A serde whose errors say what was being written or read."""

    serde: Serde[T]
    what: str

    def serialize(self, value: T) -> bytes:
        try:
            return self.serde.serialize(value)
        except UnserialisableError as e:
            what = checks.where() + self.what
            refuse_unawaited(value, what)
            raise e.naming(what) from None

    def deserialize(self, data: bytes) -> T:
        try:
            return self.serde.deserialize(data)
        except BadInputError as e:
            raise e.naming(self.what) from None


def _encoded(value: Any, what: str, type_hint: Any = None) -> bytes:
    serde: Serde[Any] = OwnTypesSerde() if type_hint is None else _serde_for(type_hint, what)
    return _Named(serde, what).serialize(value)


def _serde_for(hint: Any, what: str) -> Serde[Any]:
    try:
        return serde_for(hint)
    except Exception as e:  # noqa: BLE001 - what is no type may raise anything when it is looked at
        checks.wrong_type(f"{what}: {describe(e)}")


def _require_handler(handler: object, method: str, *, keyed: bool) -> None:
    if not isinstance(handler, Handler):
        checks.wrong_type(
            f"ctx.{method} takes a declared handler, not {type(handler).__name__}: "
            "the function below its @service.handler(), or service.handlers[name]"
        )
    target = handler.spec.target
    if handler.kind == "shared":
        checks.wrong_type(
            f"ctx.{method}: {target} is a shared handler, which only reads, and a message has no answer: send to an "
            "exclusive handler of the object with ctx.object_send, or call it over HTTP"
        )
    if handler.kind == "stateless" and keyed:
        checks.wrong_type(f"ctx.{method}: {target} belongs to a service, which has no keys: use ctx.service_send")
    if handler.kind == "exclusive" and not keyed:
        checks.wrong_type(f"ctx.{method}: {target} belongs to a virtual object: use ctx.object_send with a key")


def _request_of(commands: Commands) -> Request:
    event = commands.event
    origin = None
    if isinstance(event.source, KafkaSource):
        came = event.source
        origin = KafkaOrigin(came.topic, came.partition, came.offset, came.timestamp_ms, came.raw_key)
    return Request(event.id, event.headers, event.input, origin)
