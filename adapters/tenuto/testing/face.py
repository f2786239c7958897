"""The methods that every environment for tests has.

Owns the requests that tests make, their arguments and their types. Does not own how they are carried out: in memory
(`environment`) or by a running system (`real`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar, overload

from tenuto.handler import Handler, ObjectHandler, ServiceHandler, SharedHandler
from tenuto.protocol.durations import Duration, milliseconds
from tenuto.protocol.failures import rejection_of
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane, call_nonce
from tenuto.protocol.records import CallSource, Event, Failed, Result, Success
from tenuto.serde import OutboundSerde, serde_for
from tenuto.service import VirtualObject
from tenuto.testing import answers
from tenuto.testing.errors import HarnessError, NothingWaitsError
from tenuto.testing.operations import Operation
from tenuto.testing.targets import Targets
from tenuto.testing.views import DeadLetter, Invocation, Record
from tenuto_control.core.routing import Subscription

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741 - a handler's input
O = TypeVar("O")  # noqa: E741 - a handler's output

Headers = Mapping[str, str | bytes]


class Behind(Protocol):
    """What stands behind an environment. Methods run on its own loop."""

    async def call(self, event: Event, idempotency_key: str, *, shared: bool) -> Result:
        """The result of a call, of whose key the event's id is made."""
        ...

    async def send(self, event: Event, idempotency_key: str, delay_ms: int) -> None:
        """A message is accepted."""
        ...

    async def result(self, invocation: str, handler: str) -> Result:
        """The result of an invocation that keeps it."""
        ...

    async def event(
        self, topic: str, key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...]
    ) -> Event | None:
        """A record arrives. The event it becomes, where that is known."""
        ...

    async def resolve(self, awakeable: str, result: Result) -> None:
        """Give an awakeable its result. Raises NothingWaitsError."""
        ...

    async def state(self, lane: Lane) -> Mapping[str, bytes]:
        """The stored state of a lane."""
        ...

    async def published(self, topic: str) -> list[Record]:
        """The records of a topic, but for those that a test has put there."""
        ...

    async def dead_letters(self) -> list[DeadLetter]:
        """Every event that ended as failed where nobody was told."""
        ...

    async def settled(self) -> None:
        """Return when what can happen at this moment has happened, as far as that is known."""
        ...

    def place(self, invocation: str) -> str | None:
        """The user's line at which the last attempt of an invocation failed, as far as that is known."""
        ...

    def idempotency_key(self) -> str:
        """A key that no call before had."""
        ...


class Face:
    """The methods that all environments share. Each begins at once and returns an `Operation`."""

    _targets: Targets

    @property
    def _behind(self) -> Behind:
        raise NotImplementedError

    @property
    def _subscriptions(self) -> tuple[Subscription, ...]:
        raise NotImplementedError

    @property
    def _inside(self) -> bool:
        """Whether the caller is a handler or a step of this environment."""
        raise NotImplementedError

    def _begin(self, work: Callable[[], Coroutine[Any, Any, T]], what: str) -> Operation[T]:
        raise NotImplementedError

    # --- ways in ----------------------------------------------------------------------------------------------------

    @overload
    def call(
        self,
        handler: ServiceHandler[I | None, O],
        /,
        *,
        headers: Headers | None = None,
        idempotency_key: str | None = None,
    ) -> Operation[O]: ...

    @overload
    def call(
        self,
        handler: ServiceHandler[I, O],
        argument: I,
        /,
        *,
        headers: Headers | None = None,
        idempotency_key: str | None = None,
    ) -> Operation[O]: ...

    @overload
    def call(
        self,
        handler: ObjectHandler[I | None, O] | SharedHandler[I | None, O],
        key: str,
        /,
        *,
        headers: Headers | None = None,
        idempotency_key: str | None = None,
    ) -> Operation[O]: ...

    @overload
    def call(
        self,
        handler: ObjectHandler[I, O] | SharedHandler[I, O],
        key: str,
        argument: I,
        /,
        *,
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
        """Call a handler and let time pass until it returns: `await env.call(place, "order-7", order)`.

        `handler` is the handler itself or its name, "orders/place". A handler of a virtual object takes the key before
        the input. `headers` and `idempotency_key` are those of the call over HTTP. Returns the result of the handler,
        decoded by its type hint.

        Raises the TerminalError that ends the invocation, StillWaitingError if the handler waits for something that
        does not happen by itself, and KeepsFailingError if every attempt fails.
        """
        target = self._targets.handler(handler)
        behind = self._behind
        event, named = self._event(target, "call", key_and_input, headers, idempotency_key, one_way=False)
        what = f"env.call({target.target!r}, ...)"

        async def work() -> Any:
            result = await behind.call(event, named, shared=target.kind == "shared")
            await behind.settled()
            return answers.output_of(target, result, behind.place(event.id))

        return self._begin(work, what)

    @overload
    def send(
        self,
        handler: ServiceHandler[I | None, O],
        /,
        *,
        delay: Duration | None = None,
        headers: Headers | None = None,
        idempotency_key: str | None = None,
    ) -> Operation[Invocation[O]]: ...

    @overload
    def send(
        self,
        handler: ServiceHandler[I, O],
        argument: I,
        /,
        *,
        delay: Duration | None = None,
        headers: Headers | None = None,
        idempotency_key: str | None = None,
    ) -> Operation[Invocation[O]]: ...

    @overload
    def send(
        self,
        handler: ObjectHandler[I | None, O],
        key: str,
        /,
        *,
        delay: Duration | None = None,
        headers: Headers | None = None,
        idempotency_key: str | None = None,
    ) -> Operation[Invocation[O]]: ...

    @overload
    def send(
        self,
        handler: ObjectHandler[I, O],
        key: str,
        argument: I,
        /,
        *,
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
        """Send a message to a handler: `invocation = await env.send(place, "order-7", order)`.

        The arguments are those of `call`. `delay` postpones the delivery: a timedelta or a number of seconds. Returns
        when everything that can happen without time passing has happened. Raises HarnessError for a shared handler.
        """
        target = self._targets.handler(handler)
        behind = self._behind
        event, named = self._event(target, "send", key_and_input, headers, idempotency_key, one_way=True)
        delay_ms = 0 if delay is None else milliseconds(delay, "delay")
        self._targets.require_sendable(target)

        async def work() -> Invocation[Any]:
            await behind.send(event, named, delay_ms)
            await behind.settled()
            return Invocation(event.id, target.target, event.invocation.lane.key)

        return self._begin(work, f"env.send({target.target!r}, ...)")

    @overload
    def result(self, invocation: Invocation[O]) -> Operation[O]: ...

    @overload
    def result(self, invocation: str) -> Operation[Any]: ...

    def result(self, invocation: Invocation[Any] | str) -> Operation[Any]:
        """Let time pass until an invocation that `send` started has ended, and return its result.

        Raises the errors of `call`, and HarnessError for an invocation that `event` started, which has no result.
        """
        behind = self._behind
        if isinstance(invocation, str):
            answers.require_invocation(invocation)
            target = None
        else:
            target = self._targets.handler(invocation.handler)
        name = invocation if isinstance(invocation, str) else invocation.id
        if InvocationId.parse(name).nonce.startswith("k"):
            raise HarnessError("an event has no result: look at the state it left, or at what was published")

        async def work() -> Any:
            found = await behind.result(name, "" if target is None else target.name)
            await behind.settled()
            return answers.output_of(target, found, behind.place(name))

        return self._begin(work, f"env.result({name!r})")

    def event(
        self,
        topic: str,
        key: str | bytes | None,
        value: Any = None,
        *,
        headers: Headers | None = None,
    ) -> Operation[Invocation[Any] | None]:
        """Deliver a record of a topic: `await env.event("orders", "order-7", order)`.

        A `value` of bytes is delivered unchanged, any other value as JSON; None is a tombstone. Returns when everything
        that can happen without time passing has happened: the invocation, or None if the record went to its dead-letter
        topic because it is invalid. Raises NoSuchHandlerError if no handler subscribes to the topic.
        """
        subscription = self._targets.subscription(self._subscriptions, topic)
        raw_key = key.encode() if isinstance(key, str) else key
        data = value if isinstance(value, bytes) or value is None else OutboundSerde().serialize(value)
        behind, pairs = self._behind, answers.header_pairs(headers)

        async def work() -> Invocation[Any] | None:
            event = await behind.event(topic, raw_key, data, pairs)
            await behind.settled()
            if event is None:
                return None
            return Invocation(event.id, f"{subscription.service}/{subscription.handler}", event.invocation.lane.key)

        return self._begin(work, f"env.event({topic!r}, ...)")

    def resolve_awakeable(self, awakeable: str, value: Any = None) -> Operation[None]:
        """Complete an awakeable with a value, as JSON. Raises NothingWaitsError if nothing waits for it."""
        data = None if value is None else OutboundSerde().serialize(value)
        return self._answer(awakeable, Success(data), "resolve_awakeable")

    def reject_awakeable(self, awakeable: str, reason: str) -> Operation[None]:
        """Reject an awakeable: awaiting it raises TerminalError with the `reason`. Raises NothingWaitsError."""
        return self._answer(awakeable, Failed(rejection_of(reason)), "reject_awakeable")

    # --- looking ----------------------------------------------------------------------------------------------------

    @overload
    def state(self, service: VirtualObject | str, key: str) -> Operation[dict[str, Any]]: ...

    @overload
    def state(self, service: VirtualObject | str, key: str, name: str) -> Operation[Any]: ...

    @overload
    def state(self, service: VirtualObject | str, key: str, name: str, type_hint: type[T]) -> Operation[T | None]: ...

    def state(
        self, service: VirtualObject | str, key: str, name: str | None = None, type_hint: Any = None
    ) -> Operation[Any]:
        """Return the committed state of one key of a virtual object.

        Without `name`, returns all state values as JSON, by name. With it, returns one value, decoded by `type_hint`,
        or None if there is none. Raises NoSuchHandlerError for an unknown object, and HarnessError for a service.
        """
        lane = Lane(self._targets.keyed(service), key)
        behind = self._behind
        serde = None if type_hint is None else serde_for(type_hint)

        async def work() -> Any:
            state = await behind.state(lane)
            if name is None:
                return {one: answers.plain(data) for one, data in state.items()}
            data = state.get(name)
            if data is None or serde is None:
                return answers.plain(data)
            return serde.deserialize(data)

        return self._begin(work, "env.state(...)")

    def published(self, topic: str) -> Operation[list[Record]]:
        """Return the records that handlers have published to a topic, dead letters included, in order."""
        behind = self._behind
        return self._begin(lambda: behind.published(topic), f"env.published({topic!r})")

    def dead_letters(self) -> Operation[list[DeadLetter]]:
        """Return all dead letters: those of the dead-letter topics, then those that are kept in the table."""
        return self._begin(self._behind.dead_letters, "env.dead_letters()")

    # --- parts ------------------------------------------------------------------------------------------------------

    def _event(
        self,
        target: Handler[Any, Any],
        method: str,
        key_and_input: tuple[Any, ...],
        headers: Headers | None,
        idempotency_key: str | None,
        *,
        one_way: bool,
    ) -> tuple[Event, str]:
        key, argument = self._targets.arguments(target, method, key_and_input)
        named = self._behind.idempotency_key() if idempotency_key is None else idempotency_key
        nonce = call_nonce(target.name, named)
        lane = Lane(target.service, nonce if key is None else key)
        source = CallSource(keep_result=True, one_way=one_way)
        data = self._targets.input_of(target, method, argument)
        pairs = answers.header_pairs(headers)
        return Event.of(InvocationId(lane, nonce), target.name, source, data, pairs), named

    def _answer(self, awakeable: str, result: Result, method: str) -> Operation[None]:
        behind, inside = self._behind, self._inside
        try:
            AwakeableId.parse(awakeable)
        except ValueError as e:
            raise NothingWaitsError(
                f"env.{method}: the id of an awakeable begins with awk_; this text is not such an id"
            ) from e

        async def work() -> None:
            await behind.resolve(awakeable, result)
            if not inside:
                await behind.settled()

        return self._begin(work, f"env.{method}(...)")
