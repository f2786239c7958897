"""Services and virtual objects: how users declare handlers.

Owns the decorators and the registry of what one function serves. Does not own how handlers run (`tenuto.runtime`).
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, Literal, ParamSpec, TypeVar

from tenuto.context import Context, ObjectContext, ObjectSharedContext
from tenuto.errors import TenutoError, UnserialisableError
from tenuto.protocol.messages import HandlerManifest, Manifest, RetryPolicy, ServiceManifest
from tenuto.runtime.attempt import Attempt
from tenuto.runtime.handlers import HandlerSpec, Kind, admits_nothing
from tenuto.serde import MISSING, Serde, hints_of, serde_for

I = TypeVar("I")  # noqa: E741 - the handler's input
O = TypeVar("O")  # noqa: E741 - the handler's output
P = ParamSpec("P")


NAME_CHARS_MAX = 128
"""Longest service name: it is part of every key of its lanes."""


@dataclass(frozen=True, slots=True)
class InvocationRetryPolicy:
    """Pauses between attempts of a failing invocation: exponential with jitter, for ever by default.

    With `max_attempts` the invocation fails after that many, and an event from Kafka goes to its dead-letter topic.
    """

    initial_interval: timedelta = timedelta(milliseconds=50)
    factor: float = 2.0
    max_interval: timedelta = timedelta(seconds=60)
    max_attempts: int | None = None

    def __post_init__(self) -> None:
        if self.initial_interval <= timedelta() or self.max_interval < self.initial_interval or self.factor < 1:
            raise ValueError("a retry policy needs 0 < initial_interval <= max_interval and factor >= 1")
        if self.max_attempts is not None and self.max_attempts < 1:
            raise ValueError("max_attempts is at least 1")

    def wire(self) -> RetryPolicy:
        """The policy as it travels."""
        initial, longest = (round(d.total_seconds() * 1000) for d in (self.initial_interval, self.max_interval))
        return RetryPolicy(max(1, initial), self.factor, longest, self.max_attempts)


@dataclass(frozen=True, slots=True)
class Handler(Generic[I, O]):
    """A declared handler. Call it like the function it wraps (in unit tests), or name it in a send."""

    service: str
    name: str
    kind: Kind
    function: Callable[..., Awaitable[O]]
    spec: HandlerSpec

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[O]:
        """Call the function itself, with a context of the caller's making."""
        return self.function(*args, **kwargs)

    def encode(self, argument: Any) -> bytes | None:
        """The input's bytes for a message to this handler. Raises UnserialisableError."""
        if argument is None:
            return None
        if not self.spec.takes_input:
            raise TenutoError(f"{self.spec.target} takes no input")
        try:
            return self.spec.input.serialize(argument)
        except UnserialisableError as e:
            raise e.naming(f"the message to {self.spec.target}") from None


@dataclass(slots=True)
class _Declared:
    """What services and objects share."""

    name: str
    retry_policy: InvocationRetryPolicy = field(default_factory=InvocationRetryPolicy)
    handlers: dict[str, Handler[Any, Any]] = field(default_factory=dict, init=False)

    keyed = False

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable() or len(self.name) > NAME_CHARS_MAX or "/" in self.name:
            raise ValueError(
                f"{self.name!r} is no service name: 1 to {NAME_CHARS_MAX} printable characters without '/'"
            )

    def _checked(self, name: str | Callable[..., object] | None) -> str | None:
        if callable(name):
            raise TypeError(f"the decorator of {self.name} takes parentheses: @{self.name}.handler()")
        return name

    def _add(
        self, function: Callable[..., Awaitable[O]], name: str | None, kind: Kind, policy: InvocationRetryPolicy | None
    ) -> Handler[Any, O]:
        called = name or getattr(function, "__name__", "")
        if not called or "/" in called:
            raise ValueError(f"{called!r} is no handler name")
        if called in self.handlers:
            raise ValueError(f"{self.name}/{called} is declared twice")
        if not inspect.iscoroutinefunction(inspect.unwrap(function)):
            raise TypeError(f"{self.name}/{called} is no async function: declare handlers with `async def`")
        hint, output = hints_of(function)
        plain: Serde[Any] = serde_for(None)
        spec = HandlerSpec(
            service=self.name,
            name=called,
            kind=kind,
            call=function,
            takes_input=hint is not MISSING,
            input=plain if hint is MISSING else serde_for(hint),
            output=serde_for(output),
            retry=(policy or self.retry_policy).wire(),
            nullable=hint is MISSING or admits_nothing(serde_for(hint)),
        )
        handler: Handler[Any, O] = Handler(self.name, called, kind, function, spec)
        self.handlers[called] = handler
        return handler


@dataclass(slots=True)
class Service(_Declared):
    """Handlers without a key: every invocation stands alone."""

    def handler(
        self, name: str | None = None, *, retry_policy: InvocationRetryPolicy | None = None
    ) -> Callable[[Callable[..., Awaitable[O]]], Handler[Any, O]]:
        """Make a handler of a coroutine function that takes `(ctx: Context, event: Type)`."""
        called = self._checked(name)

        def declare(function: Callable[..., Awaitable[O]]) -> Handler[Any, O]:
            return self._add(function, called, "stateless", retry_policy)

        return declare


@dataclass(slots=True)
class VirtualObject(_Declared):
    """Handlers with a key: for one key, one at a time and in order; state belongs to the key."""

    keyed = True

    def handler(
        self,
        name: str | None = None,
        *,
        kind: Literal["exclusive", "shared"] = "exclusive",
        retry_policy: InvocationRetryPolicy | None = None,
    ) -> Callable[[Callable[..., Awaitable[O]]], Handler[Any, O]]:
        """Make a handler of a coroutine function that takes `(ctx: ObjectContext, event: Type)`.

        `kind="shared"` handlers read state while others run and never wait in the key's queue.
        """
        called = self._checked(name)

        def declare(function: Callable[..., Awaitable[O]]) -> Handler[Any, O]:
            return self._add(function, called, kind, retry_policy)

        return declare


class Services:
    """Everything one function serves: the runtime's registry."""

    def __init__(self, services: Iterable[Service | VirtualObject]) -> None:
        self._services: dict[str, Service | VirtualObject] = {}
        for service in services:
            if not isinstance(service, (Service, VirtualObject)):
                raise TypeError(f"expected a Service or VirtualObject, got {type(service).__name__}")
            if service.name in self._services:
                raise ValueError(f"two services are called {service.name!r}")
            self._services[service.name] = service

    def find(self, service: str, handler: str) -> HandlerSpec | None:
        """See `Registry.find`."""
        declared = self._services.get(service)
        found = declared.handlers.get(handler) if declared else None
        return found.spec if found else None

    def keyed(self, service: str) -> bool:
        """See `Registry.keyed`."""
        return self._services[service].keyed

    def context(self, spec: HandlerSpec, attempt: Attempt) -> Context | ObjectContext | ObjectSharedContext:
        """See `Registry.context`."""
        match spec.kind:
            case "stateless":
                return Context(attempt)
            case "exclusive":
                return ObjectContext(attempt)
            case "shared":
                return ObjectSharedContext(attempt)

    def manifest(self, timeout_ms: int) -> Manifest:
        """What discovery reports."""
        return Manifest(
            tuple(
                ServiceManifest(s.name, s.keyed, tuple(_manifest(h.spec) for h in s.handlers.values()))
                for s in self._services.values()
            ),
            timeout_ms,
        )


def _manifest(spec: HandlerSpec) -> HandlerManifest:
    return HandlerManifest(spec.name, spec.kind, spec.retry, spec.takes_input, spec.nullable)
