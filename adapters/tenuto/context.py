"""The contexts of handlers, and the functions that combine durable futures.

Owns the public interface of commands: names, type hints, units. Does not own what a command does (`tenuto.runtime`).
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
from tenuto.handler import Handler, ObjectHandler, ServiceHandler
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
I = TypeVar("I")  # noqa: E741 - a handler's input
P = ParamSpec("P")

_NO_LIMITS = RunLimits()


@dataclass(frozen=True, slots=True)
class KafkaOrigin:
    """The Kafka record that an invocation was made from."""

    topic: str
    """Name of the topic."""
    partition: int
    """Partition of the topic, from 0."""
    offset: int
    """Offset of the record in its partition."""
    timestamp_ms: int
    """Timestamp of the record, in milliseconds since the epoch."""
    key: bytes | None
    """Key of the record; None if it has none."""


@dataclass(frozen=True, slots=True)
class Request:
    """The request that an invocation was made from: its id, headers and raw input."""

    id: str
    """Id of the invocation. It begins with `inv_`."""
    headers: tuple[tuple[str, bytes], ...]
    """Headers in the order in which they were sent. A name may occur more than once."""
    body: bytes | None
    """Input as it was sent, before it is decoded; None for an empty body or a tombstone."""
    kafka: KafkaOrigin | None = None
    """The record that the invocation was made from; None for a call or a message."""

    def header(self, name: str) -> bytes | None:
        """Return the last value of a header, or None if the header was not sent."""
        return next((value for n, value in reversed(self.headers) if n == name), None)


# Without slots: on Python 3.11 `RunOptions[str](...)` fails for a generic dataclass that is frozen and slotted.
@dataclass(frozen=True)
class RunOptions(Generic[T]):
    """Retries and serialisation of one step, for `ctx.run_with`.

    Without a retry setting, an exception in the step fails the attempt, and the retry policy of the handler decides
    when the next attempt starts. With `max_attempts` or `max_duration`, the step gives up after that limit, and
    awaiting it raises TerminalError.

    Durations are timedeltas, or numbers of seconds. Intervals are longer than 0 and at most 365 days; a pause lasts at
    least 10 ms. Raises TypeError or ValueError for an invalid setting, such as a serde without the required methods or
    a type hint that cannot be decoded.
    """

    serde: Serde[T] | None = None
    """Serde of the result. It takes precedence over `type_hint`."""
    type_hint: Any = None
    """Type of the result. By default, the return annotation of the callable; without one, plain JSON."""
    max_attempts: int | None = None
    """Number of attempts of the step before it gives up; None for no limit."""
    max_duration: Duration | None = None
    """Time since the first attempt of the step after which it gives up; None for no limit."""
    initial_retry_interval: Duration = timedelta(milliseconds=50)
    """Pause after the first failed attempt of the step."""
    max_retry_interval: Duration = timedelta(seconds=60)
    """Longest pause between two attempts of the step."""
    retry_interval_factor: float = 2.0
    """Factor by which each pause is longer than the one before, from 1."""

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
        """Convert the retry settings for the runtime."""
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
    """Commands that every context has."""

    _commands: Commands

    def request(self) -> Request:
        """Return the id and headers of the invocation, its raw input and, for an event, its Kafka record."""
        return _request_of(self._commands)

    def time(self) -> float:
        """Return the current time, in seconds since the epoch.

        The value is journaled, so that a replay returns the same one. A shared handler is never replayed and reads the
        clock.
        """
        return self._commands.now_ms() / 1000

    def start_time(self) -> float:
        """Return the time at which the invocation started, in seconds since the epoch.

        The time is fixed by the first attempt that writes to the journal. An attempt that fails before that leaves no
        trace, so the next one has a later start time.
        """
        return self._commands.start_ms / 1000

    def random(self) -> _random.Random:
        """Return a random number generator that yields the same numbers on every attempt. Do not use it for secrets."""
        return self._commands.random

    def uuid(self) -> _uuid.UUID:
        """Return a random UUID (version 4) that is the same on every attempt."""
        return _uuid.UUID(int=self._commands.random.getrandbits(128), version=4)


class _Durable(_Shared):
    """Commands of handlers that may write."""

    __slots__ = ()

    @overload
    def run(
        self, name: str, action: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> DurableFuture[T]: ...

    @overload
    def run(self, name: str, action: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> DurableFuture[T]: ...

    def run(self, name: str, action: Callable[..., Any], /, *args: Any, **kwargs: Any) -> DurableFuture[Any]:
        """Run a step and journal its result. A completed step never runs again.

            charge = await ctx.run("charge card", charge_card, order.card, order.amount)

        The name appears in the journal, logs and traces; it has 1 to 255 bytes and no control characters. The action is
        a function, and further arguments are passed to it. A coroutine function runs on the function's event loop. A
        plain function runs in a worker thread, or in the function's own thread while nothing else is in flight. The
        step starts when the handler next awaits something, or returns.

        A step that was in flight during a crash runs again, with the same `idempotency_key()`.

        Raises TypeError for arguments of the wrong type, and InvalidArgumentError for an invalid name. Awaiting the
        future raises TerminalError if the step raised one. A result that cannot be encoded, or is larger than 350,000
        bytes, ends the invocation with UnserialisableError or StateTooLargeError.
        """
        return self._run(_PLAIN, _NO_LIMITS, name, action, args, kwargs)

    def run_with(
        self, options: RunOptions[T], name: str, action: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> DurableFuture[T]:
        """Run a step with a retry limit, a serde or a type hint for its result. See `run`.

            await ctx.run_with(RunOptions(max_attempts=3), "charge card", charge_card, order)

        Awaiting the future raises TerminalError when the step has reached a limit of its `options`.
        """
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
        """Sleep for at least `duration`, a timedelta or a number of seconds. The sleep survives crashes and restarts.

        During a sleep of more than a few hundred milliseconds no function runs. A duration of zero or less is over at
        once. Raises TypeError for anything other than a duration, and InvalidArgumentError for NaN, infinity or more
        than 100 years.
        """
        return self._commands.sleep(checks.sleep_ms(duration))

    @overload
    def awakeable(self, type_hint: type[T]) -> tuple[str, AwakeableFuture[T]]: ...

    @overload
    def awakeable(self, type_hint: Any = None) -> tuple[str, AwakeableFuture[Any]]: ...

    def awakeable(self, type_hint: Any = None) -> tuple[str, AwakeableFuture[Any]]:
        """Create an awakeable: an id, and a future that someone else completes.

        The future is completed by `POST /awakeables/{id}/resolve` or by `resolve_awakeable` in another handler. Pass
        the id on in a step or a message; an awakeable cannot be resolved before it is in the journal. `type_hint` is
        the type of the value; without it, the value is plain JSON.

        Raises TypeError for a type hint that cannot be decoded. Awaiting the future raises TerminalError if the
        awakeable was rejected, or resolved with a value that does not fit the type.
        """
        serde = _serde_for(type_hint, "ctx.awakeable")
        name, future = self._commands.awakeable(_Named(serde, "the result of an awakeable"))
        future.reads_bytes = isinstance(serde, BytesSerde)
        return name, future

    def resolve_awakeable(self, awakeable_id: str, value: Any = None, type_hint: Any = None) -> None:
        """Complete the awakeable of another invocation with a value.

        `type_hint` is needed for the same values as in `ObjectContext.set`. Raises InvalidArgumentError if
        `awakeable_id` is not the id of an awakeable, UnserialisableError if the value cannot be encoded, and
        StateTooLargeError if it is larger than 32,768 bytes.
        """
        named = checks.awakeable_id(awakeable_id, "resolve_awakeable")
        self._commands.resolve(named, Success(_encoded(value, "the value of an awakeable", type_hint)))

    def reject_awakeable(self, awakeable_id: str, reason: str) -> None:
        """Reject the awakeable of another invocation, in which awaiting it raises TerminalError with the `reason`.

        The reason is cut to 4,096 bytes. Raises InvalidArgumentError if `awakeable_id` is not the id of an awakeable.
        """
        self._commands.resolve(checks.awakeable_id(awakeable_id, "reject_awakeable"), Failed(rejection_of(reason)))

    @overload
    def service_send(self, handler: ServiceHandler[I | None, Any], *, send_delay: Duration | None = None) -> str: ...

    @overload
    def service_send(
        self, handler: ServiceHandler[I, Any], argument: I, *, send_delay: Duration | None = None
    ) -> str: ...

    def service_send(
        self, handler: ServiceHandler[Any, Any], argument: Any = None, *, send_delay: Duration | None = None
    ) -> str:
        """Send a message to a handler of a service. Return the id of the new invocation without waiting for it.

        `send_delay` is a timedelta or a number of seconds, by default 0.

        Raises TypeError if the handler belongs to a virtual object, InvalidArgumentError for an invalid delay, and
        UnserialisableError if the argument does not fit the type hint of the handler. Raises StateTooLargeError if the
        argument is larger than 350,000 bytes, or if messages of more than 4,000,000 bytes are sent without a durable
        step in between.
        """
        _require_handler(handler, "service_send", keyed=False)
        return self._send(None, handler, argument, send_delay)

    @overload
    def object_send(
        self, handler: ObjectHandler[I | None, Any], key: str, *, send_delay: Duration | None = None
    ) -> str: ...

    @overload
    def object_send(
        self, handler: ObjectHandler[I, Any], key: str, argument: I, *, send_delay: Duration | None = None
    ) -> str: ...

    def object_send(
        self, handler: ObjectHandler[Any, Any], key: str, argument: Any = None, *, send_delay: Duration | None = None
    ) -> str:
        """Send a message to a handler of a virtual object. Return the id of the new invocation without waiting for it.

        Messages from one invocation to one key are delivered in the order in which they were sent. The key has 1 to
        1,024 bytes and no control characters. `send_delay` is a timedelta or a number of seconds, by default 0.

        Raises TypeError if the handler belongs to a service or is shared, InvalidArgumentError for an invalid key, and
        otherwise the errors of `service_send`.
        """
        _require_handler(handler, "object_send", keyed=True)
        lane = Lane(handler.service, checks.object_key(handler.service, key))
        return self._send(lane, handler, argument, send_delay)

    def _send(self, lane: Lane | None, handler: Handler[Any, Any], argument: Any, send_delay: Duration | None) -> str:
        delay_ms = checks.delay_ms(send_delay)
        what = f"the message to {handler.target}"
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
        """Produce a record to a Kafka topic when the invocation commits.

        A `value` of bytes is sent unchanged, any other value as JSON; None is a tombstone. `key` chooses the partition,
        and records with equal keys keep their order. `headers` is a mapping, or a sequence of pairs if a name occurs
        more than once. Key, headers and value have at most 350,000 bytes together.

        A crash may cause the record to be produced twice, both times with the same `tenuto-id` header. A record above
        the topic's `max.message.bytes` is not produced: it becomes a dead letter in the table, and the control plane
        logs an error that names it.

        Raises TypeError for arguments of the wrong type, InvalidArgumentError for an invalid name of a topic,
        UnserialisableError if the value cannot be encoded, and StateTooLargeError if the record is too large.
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
        """Wait for all futures and return their values, in the order of the arguments.

        When all are done and any has failed, raises the TerminalError of the first such argument. Raises TypeError for
        an argument that is not a future of this invocation.
        """
        checks.futures(futures, DurableFuture, self._commands, "ctx.gather")
        return await self._commands.gather(futures)

    async def select(self, *unnamed: Never, **futures: DurableFuture[Any]) -> tuple[str, Any]:
        """Wait for the first of several futures and return its name and value. A replay returns the same one.

            match await ctx.select(answer=answer, timeout=ctx.sleep(timedelta(minutes=5))):
                case "answer", value: ...
                case "timeout", _: ...

        Raises TerminalError if the first one failed, and TypeError for an argument that is not a future of this
        invocation.
        """
        checks.all_named(unnamed, "ctx.select")
        checks.futures(futures.values(), DurableFuture, self._commands, "ctx.select")
        names = list(futures)
        winner = await self._commands.select(list(futures.values()))
        return names[winner], futures[names[winner]].value()


class _Reads(_Shared):
    """Commands that read the state of a virtual object."""

    __slots__ = ()

    @property
    def key(self) -> str:
        """Key of the virtual object."""
        return self._commands.lane.key

    @overload
    async def get(self, name: str, type_hint: type[T]) -> T | None: ...

    @overload
    async def get(self, name: str, type_hint: None = None) -> Any: ...

    async def get(self, name: str, type_hint: Any = None) -> Any:
        """Return the state value stored under `name`, or None if there is none.

        `type_hint` is the type of the value; without it, the value is plain JSON. State is delivered with the request,
        so that reading it needs no I/O. Raises InvalidArgumentError for an invalid name, TypeError for a type hint that
        cannot be decoded, and BadInputError if the stored value does not fit the type hint.
        """
        data = self._commands.state.get(checks.state_name(name, "get"))
        serde = _serde_for(type_hint, "ctx.get")
        if data is None:
            return None
        try:
            return serde.deserialize(data)
        except BadInputError as e:
            raise e.naming(f"state {name!r}") from None

    async def state_keys(self) -> list[str]:
        """Return the names of all state values, sorted."""
        return self._commands.state.names()


class Context(_Durable):
    """Context of a handler of a service."""

    __slots__ = ()


class ObjectSharedContext(_Reads):
    """Context of a shared handler of a virtual object. It reads state and changes nothing."""

    __slots__ = ()


class ObjectContext(_Durable, _Reads):
    """Context of an exclusive handler of a virtual object. For one key, only one such handler runs at a time."""

    __slots__ = ()

    def set(self, name: str, value: Any, type_hint: Any = None) -> None:
        """Store a state value under `name`. The change is committed when the invocation ends or suspends.

        Plain JSON needs no type hint. A Struct, dataclass, pydantic model or enum is written by its own class; pass
        that class to `get`. Other values, such as tuples, sets and dicts with keys other than text, need the type hint
        here and in `get`: `ctx.set("seen", {1, 2}, set[int])`. None stores a JSON null. A name has 1 to 255 bytes and
        no control characters.

        Raises InvalidArgumentError for an invalid name, UnserialisableError if `get` would not return an equal value,
        and StateTooLargeError if the state of the key would be larger than 120,000 bytes.
        """
        named = checks.state_name(name, "set")
        self._commands.state.set(named, _encoded(value, f"state {named!r}", type_hint))

    def clear(self, name: str) -> None:
        """Delete the state value stored under `name`. Raises InvalidArgumentError for an invalid name."""
        self._commands.state.clear(checks.state_name(name, "clear"))

    def clear_all(self) -> None:
        """Delete all state values of the key."""
        for name in self._commands.state.names():
            self._commands.state.clear(name)


def idempotency_key() -> str:
    """Return a key for the running step that is the same each time the step is attempted.

    Send it to an external system, so that the system recognises a repeated request. Raises TenutoError outside a step.
    """
    try:
        return step_key()
    except LookupError:
        raise TenutoError("idempotency_key() is for code that runs inside ctx.run") from None


async def gather(*futures: DurableFuture[Any]) -> list[Any]:
    """Wait for all futures and return their values, in the order of the arguments.

    The same as `ctx.gather`, for code that has no context. Raises TypeError for an argument that is not a durable
    future, or belongs to another invocation.
    """
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
    target = handler.target
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
