"""The contexts handlers are given, and the functions that combine durable futures.

Owns the public face of commands: names, type hints, units. Does not own what a command does (`tenuto.runtime`).
"""

from __future__ import annotations

import functools
import inspect
import random as _random
import uuid as _uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from tenuto.errors import BadInputError, TenutoError, TerminalError, UnserialisableError
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import RetryPolicy
from tenuto.protocol.records import Failed, Failure, KafkaSource, PublishOut, Success
from tenuto.runtime.attempt import Attempt, RunLimits, step_key
from tenuto.runtime.futures import AwakeableFuture, DurableFuture
from tenuto.serde import BytesSerde, JsonSerde, Serde, serde_for

if TYPE_CHECKING:
    from tenuto.service import Handler

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

    Without any retry setting a failing step fails the attempt, which the handler's retry policy repeats for ever. With
    `max_attempts` or `max_duration` the step itself gives up: awaiting it then raises TerminalError.
    """

    serde: Serde[T] | None = None
    type_hint: Any = None
    max_attempts: int | None = None
    max_duration: timedelta | None = None
    initial_retry_interval: timedelta = timedelta(milliseconds=50)
    max_retry_interval: timedelta = timedelta(seconds=60)
    retry_interval_factor: float = 2.0

    def limits(self) -> RunLimits:
        """The retry settings as the runtime takes them."""
        if self == RunOptions(self.serde, self.type_hint):
            return _NO_LIMITS
        policy = RetryPolicy(
            _ms(self.initial_retry_interval),
            self.retry_interval_factor,
            _ms(self.max_retry_interval),
            self.max_attempts,
        )
        return RunLimits(policy, None if self.max_duration is None else _ms(self.max_duration))


@dataclass(frozen=True, slots=True)
class _Shared:
    """What every context has."""

    _attempt: Attempt
    _request: Request = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_request", _request_of(self._attempt))

    def request(self) -> Request:
        """Id, headers and, for an event, the Kafka record it came from."""
        return self._request

    def time(self) -> float:
        """When the invocation started, in seconds since the epoch; the same on every attempt."""
        return self._attempt.start_ms / 1000

    def random(self) -> _random.Random:
        """Random numbers that come out the same on every attempt. Not for secrets."""
        return self._attempt.random

    def uuid(self) -> _uuid.UUID:
        """A random UUID that comes out the same on every attempt."""
        return _uuid.UUID(int=self._attempt.random.getrandbits(128), version=4)


class _Durable(_Shared):
    """Commands of handlers that may do more than read."""

    __slots__ = ()

    @overload
    def run(
        self, name: str, action: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> DurableFuture[T]: ...

    @overload
    def run(self, name: str, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> DurableFuture[T]: ...

    def run(self, name: str, action: Callable[..., Any], *args: Any, **kwargs: Any) -> DurableFuture[Any]:
        """Execute a step and journal its result: once finished it never runs again.

        A sync callable runs in a worker thread, an async one is awaited. The step starts at once; await the future for
        its value. A step that was in flight at a crash runs again, with the same `idempotency_key()`. Raises
        TerminalError on await when the step raised one or its options say to give up.
        """
        return self.run_with(RunOptions(), name, action, *args, **kwargs)

    def run_with(
        self, options: RunOptions[T], name: str, action: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> DurableFuture[T]:
        """`run` with retry limits, a serde or a type hint for the result."""
        if not callable(action):
            raise TypeError(f"ctx.run({name!r}, ...) takes a callable and its arguments, not {type(action).__name__}")
        call = functools.partial(action, *args, **kwargs) if args or kwargs else action
        serde = options.serde or serde_for(options.type_hint or _returns(action))
        return self._attempt.run(name, call, _Named(serde, f"the result of run {name!r}"), options.limits())

    def sleep(self, duration: timedelta) -> DurableFuture[None]:
        """Wait at least this long. Beyond a few hundred milliseconds the function returns and is resumed."""
        return self._attempt.sleep(max(0, _ms(duration)))

    @overload
    def awakeable(self, type_hint: type[T]) -> tuple[str, AwakeableFuture[T]]: ...

    @overload
    def awakeable(self, type_hint: Any = None) -> tuple[str, AwakeableFuture[Any]]: ...

    def awakeable(self, type_hint: Any = None) -> tuple[str, AwakeableFuture[Any]]:
        """An id, and the future that `POST /awakeables/{id}/resolve` or `resolve_awakeable` completes.

        Hand the id out inside `ctx.run` or with a send: before the first durable step nobody could resolve it.
        """
        serde = serde_for(type_hint)
        name, future = self._attempt.awakeable(_Named(serde, "the result of an awakeable"))
        future.reads_bytes = isinstance(serde, BytesSerde)
        return name, future

    def resolve_awakeable(self, awakeable_id: str, value: Any = None) -> None:
        """Complete somebody's awakeable with a value."""
        self._attempt.resolve(awakeable_id, Success(_encoded(value, "the value of an awakeable")))

    def reject_awakeable(self, awakeable_id: str, reason: str) -> None:
        """Fail somebody's awakeable: its waiter gets TerminalError(reason)."""
        self._attempt.resolve(awakeable_id, Failed(Failure(reason)))

    def service_send(
        self, handler: Handler[Any, Any], argument: Any = None, *, send_delay: timedelta | None = None
    ) -> str:
        """Send to a service's handler, without waiting. Returns the new invocation's id."""
        return self._attempt.send(None, handler.service, handler.name, handler.encode(argument), _delay(send_delay))

    def object_send(
        self, handler: Handler[Any, Any], key: str, argument: Any = None, *, send_delay: timedelta | None = None
    ) -> str:
        """Send to an object's handler, without waiting. Messages to one key arrive in the order they were sent."""
        lane = Lane(handler.service, key)
        return self._attempt.send(lane, handler.service, handler.name, handler.encode(argument), _delay(send_delay))

    def publish(
        self, topic: str, value: Any, *, key: str | bytes | None = None, headers: dict[str, str | bytes] | None = None
    ) -> None:
        """Produce a record to a Kafka topic when this invocation commits.

        A `value` of bytes goes as it is, others as JSON; None is a tombstone. After a crash the record may be
        produced twice, with the same `tenuto-id` header. One that is larger than the topic's `max.message.bytes` is
        not produced: it is kept in the table, and the control plane's log has an error that names it. What one commit
        publishes weighs 100 KB at most, far below the brokers' default of 1 MB.
        """
        data = value if value is None or isinstance(value, bytes) else _encoded(value, f"the record for {topic!r}")
        pairs = tuple((n, v.encode() if isinstance(v, str) else v) for n, v in (headers or {}).items())
        raw_key = key.encode() if isinstance(key, str) else key
        self._attempt.publish(PublishOut(topic, data, raw_key, pairs))

    async def gather(self, *futures: DurableFuture[Any]) -> list[Any]:
        """Wait for all futures; values in order. Raises the first failure in order, once all are done."""
        return await self._attempt.gather(futures)

    async def select(self, **futures: DurableFuture[Any]) -> tuple[str, Any]:
        """Wait for the first future to complete: its name and value. Replays get the same one.

            match await ctx.select(answer=answer, timeout=ctx.sleep(timedelta(minutes=5))):
                case "answer", value: ...
                case "timeout", _: ...

        Raises TerminalError when the first one failed.
        """
        names = list(futures)
        winner = await self._attempt.select(list(futures.values()))
        return names[winner], futures[names[winner]].value()


class _Reads(_Shared):
    """Reading an object's state."""

    __slots__ = ()

    @property
    def key(self) -> str:
        """The object's key."""
        return self._attempt.lease.lane.key

    @overload
    async def get(self, name: str, type_hint: type[T]) -> T | None: ...

    @overload
    async def get(self, name: str, type_hint: None = None) -> Any: ...

    async def get(self, name: str, type_hint: Any = None) -> Any:
        """The value stored under a name, None when there is none. It came with the request: no I/O."""
        data = self._attempt.state.get(name)
        if data is None:
            return None
        try:
            return serde_for(type_hint).deserialize(data)
        except BadInputError as e:
            raise e.naming(f"state {name!r}") from None

    async def state_keys(self) -> list[str]:
        """Names that have a value, sorted."""
        return self._attempt.state.names()


class Context(_Durable):
    """What a service's handler is given."""

    __slots__ = ()


class ObjectSharedContext(_Reads):
    """What a shared (read-only) handler of an object is given."""

    __slots__ = ()


class ObjectContext(_Durable, _Reads):
    """What an object's handler is given: the only one at work on this key."""

    __slots__ = ()

    def set(self, name: str, value: Any) -> None:
        """Store a value under a name; None stores null. Committed with the invocation.

        Raises UnserialisableError, and StateTooLargeError when the object's state outgrows its limit.
        """
        self._attempt.state.set(name, _encoded(value, f"state {name!r}"))

    def clear(self, name: str) -> None:
        """Forget the value of a name."""
        self._attempt.state.clear(name)

    def clear_all(self) -> None:
        """Forget every value."""
        for name in self._attempt.state.names():
            self._attempt.state.clear(name)


def idempotency_key() -> str:
    """A key that is the same each time the running step is tried.

    Hand it to the outside, so that it can recognise a repetition. Raises TenutoError outside of a step.
    """
    try:
        return step_key.get()
    except LookupError:
        raise TenutoError("idempotency_key() is for code that runs inside ctx.run") from None


async def gather(*futures: DurableFuture[Any]) -> list[Any]:
    """See `ObjectContext.gather`."""
    attempts = [f.waiter for f in futures]
    if not attempts:
        return []
    attempt = attempts[0]
    if not isinstance(attempt, Attempt):
        raise TypeError("gather takes the futures that context methods return")
    return await attempt.gather(futures)


@dataclass(frozen=True, slots=True)
class _Named(Generic[T]):
    """A serde whose errors say what was being written or read."""

    serde: Serde[T]
    what: str

    def serialize(self, value: T) -> bytes:
        try:
            return self.serde.serialize(value)
        except UnserialisableError as e:
            raise e.naming(self.what) from None

    def deserialize(self, data: bytes) -> T:
        try:
            return self.serde.deserialize(data)
        except BadInputError as e:
            raise e.naming(self.what) from None


def _encoded(value: Any, what: str) -> bytes:
    serde: Serde[Any] = (
        BytesSerde() if isinstance(value, bytes) else serde_for(type(value)) if _typed(value) else JsonSerde()
    )
    return _Named(serde, what).serialize(value)


def _typed(value: Any) -> bool:
    """Whether the value's own type says how to write it better than plain JSON does."""
    return not isinstance(value, (dict, list, tuple, str, int, float, bool, type(None)))


def _returns(action: Callable[..., Any]) -> Any:
    plain = action.func if isinstance(action, functools.partial) else action
    # Not inspect.signature: this runs at every step, and most actions are plain functions.
    hint = getattr(plain, "__annotations__", {}).get("return")
    if not isinstance(hint, str):
        return hint
    try:
        return inspect.get_annotations(plain, eval_str=True).get("return")
    except NameError:
        # The hint names something that is imported for type checking only.
        return None


def _request_of(attempt: Attempt) -> Request:
    event = attempt.event
    origin = None
    if isinstance(event.source, KafkaSource):
        came = event.source
        origin = KafkaOrigin(came.topic, came.partition, came.offset, came.timestamp_ms, came.raw_key)
    return Request(event.id, event.headers, event.input, origin)


def _delay(delay: timedelta | None) -> int:
    if delay is None:
        return 0
    if delay < timedelta():
        raise TerminalError("send_delay is negative", 400)
    return _ms(delay)


def _ms(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1000)
