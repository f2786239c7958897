"""Services and virtual objects, with which users declare handlers.

Owns the decorators and the registry of the handlers of one function. Does not own running handlers (`tenuto.runtime`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, overload

from tenuto import checks
from tenuto.context import Context, ObjectContext, ObjectSharedContext
from tenuto.declarations import declaring, require_hints, require_no_default
from tenuto.handler import HANDLERS, Handler
from tenuto.late_names import may_come_later
from tenuto.protocol.durations import Duration, milliseconds
from tenuto.protocol.failures import describe
from tenuto.protocol.messages import HandlerManifest, Manifest, RetryPolicy, ServiceManifest
from tenuto.runtime.commands import Commands
from tenuto.runtime.handlers import HandlerSpec, Kind, admits_nothing, input_form
from tenuto.runtime.lines import line_of
from tenuto.serde import MISSING, hints_of, output_serde_for, serde_for
from tenuto.serde.hints import unresolved

if TYPE_CHECKING:
    from tenuto.declares import DeclaresObject, DeclaresService, DeclaresShared

KEYED_KINDS = ("exclusive", "shared")
"""Kinds of handlers that a virtual object may have."""

CONTEXTS: Mapping[Kind, type] = {
    "stateless": Context,
    "exclusive": ObjectContext,
    "shared": ObjectSharedContext,
}
"""What each kind of handler is given."""

RECEIVERS = frozenset({"self", "cls"})
"""Names of a first parameter that show a method."""


@dataclass(frozen=True, slots=True)
class InvocationRetryPolicy:
    """Pauses between the attempts of a failing invocation: exponential backoff with jitter.

    Intervals are timedeltas, or numbers of seconds, longer than 0 and at most 365 days; a pause lasts at least 10 ms.
    Raises TypeError or ValueError for an invalid setting.
    """

    initial_interval: Duration = timedelta(milliseconds=50)
    """Pause after the first failed attempt."""
    factor: float = 2.0
    """Factor by which each pause is longer than the one before, from 1."""
    max_interval: Duration = timedelta(seconds=60)
    """Longest pause between two attempts."""
    max_attempts: int | None = None
    """Number of attempts after which the invocation fails; None to retry indefinitely.

    A Kafka event that fails is produced to its dead-letter topic.
    """

    def __post_init__(self) -> None:
        with declaring():
            initial = checks.interval(self.initial_interval, "initial_interval")
            longest = checks.interval(self.max_interval, "max_interval")
            checks.policy(initial, longest, ("initial_interval", "max_interval"))
            factor = checks.factor(self.factor, "factor")
            attempts = checks.attempts(self.max_attempts, "max_attempts")
        # Equal settings are equal policies, however they were written.
        object.__setattr__(self, "initial_interval", initial)
        object.__setattr__(self, "max_interval", longest)
        object.__setattr__(self, "factor", factor)
        object.__setattr__(self, "max_attempts", attempts)

    def wire(self) -> RetryPolicy:
        """Convert the policy for a message to the control plane."""
        initial, longest = (milliseconds(d, "interval") for d in (self.initial_interval, self.max_interval))
        return RetryPolicy(initial, self.factor, longest, self.max_attempts)


@dataclass(slots=True)
class _Declared:
    """What services and objects share."""

    name: str
    """Name under which the handlers are called: 1 to 128 bytes of printable characters without `/`."""
    retry_policy: InvocationRetryPolicy = field(default_factory=InvocationRetryPolicy)
    """Retry policy of the handlers that declare none."""
    handlers: dict[str, Any] = field(default_factory=dict, init=False)
    """The declared handlers, by name: each is a `Handler`."""

    keyed = False

    def __post_init__(self) -> None:
        with declaring():
            self.name = checks.target_name(self.name, "service name")
            _require_policy(self.retry_policy, self.name)

    def _checked(self, name: str | Callable[..., object] | None) -> str | None:
        with declaring(name):
            if callable(name):
                raise TypeError(f"the decorator of {self.name} takes parentheses: @{self.name}.handler()")
            return None if name is None else checks.target_name(name, f"handler name of {self.name}")

    def _called(self, function: object) -> str:
        """The name of a handler that is given none: its function's."""
        _refuse_declared(function, self.name)
        if not callable(function):
            raise TypeError(
                f"a handler of {self.name} is declared on a {type(function).__name__}, not on a function: "
                f"@{self.name}.handler() above async def place(ctx, event)"
            )
        if not hasattr(function, "__name__"):
            raise TypeError(f'a {type(function).__name__} has no name to use: {self.name}.handler("name")(...)')
        return checks.target_name(function.__name__, "handler name")

    def _add(
        self,
        function: Callable[..., Awaitable[Any]],
        name: str | None,
        kind: Kind,
        policy: InvocationRetryPolicy | None,
    ) -> Any:
        with declaring(function.function if isinstance(function, Handler) else function):
            called = self._called(function) if name is None else name
            target = f"{self.name}/{called}"
            if called in self.handlers:
                first = line_of(self.handlers[called].function)
                raise ValueError(f"{target} is declared twice" + (f", first at {first}" if first else ""))
            if policy is not None:
                _require_policy(policy, target)
            _require_function(function, target)
        retry = (policy or self.retry_policy).wire()
        described = functools.cache(functools.partial(_spec_of, function, self.name, called, kind, retry))
        try:
            described()
        except TypeError as e:
            if not may_come_later(e):
                raise
        handler = HANDLERS[kind](self.name, called, kind, function, described)
        self.handlers[called] = handler
        return handler


@dataclass(slots=True)
class Service(_Declared):
    """A group of handlers without a key. Invocations are independent of each other.

        mailer = Service("mailer")

    Raises TypeError or ValueError for an invalid name or retry policy.
    """

    def handler(self, name: str | None = None, *, retry_policy: InvocationRetryPolicy | None = None) -> DeclaresService:
        """Declare a coroutine function `(ctx: Context, event: Type)` as a handler.

            @mailer.handler()
            async def welcome(ctx: Context, address: str) -> None: ...

        `name` is by default the name of the function; `retry_policy` replaces the policy of the service. The input
        parameter may be left out.

        Raises TypeError if the function is not a coroutine function, expects another context, or if a type hint is
        missing or cannot be resolved or decoded, and ValueError if the name is invalid or already taken.
        """
        called = self._checked(name)

        def declare(function: Callable[..., Awaitable[Any]]) -> Any:
            return self._add(function, called, "stateless", retry_policy)

        return declare


@dataclass(slots=True)
class VirtualObject(_Declared):
    """A group of handlers with a key. Each key has its own state, and its own queue of invocations.

        account = VirtualObject("account")

    For one key, exclusive handlers run one at a time, in order; different keys run concurrently. Raises TypeError or
    ValueError for an invalid name or retry policy.
    """

    keyed = True

    @overload
    def handler(
        self,
        name: str | None = None,
        *,
        kind: Literal["exclusive"] = "exclusive",
        retry_policy: InvocationRetryPolicy | None = None,
    ) -> DeclaresObject: ...

    @overload
    def handler(
        self,
        name: str | None = None,
        *,
        kind: Literal["shared"],
        retry_policy: InvocationRetryPolicy | None = None,
    ) -> DeclaresShared: ...

    def handler(
        self,
        name: str | None = None,
        *,
        kind: Literal["exclusive", "shared"] = "exclusive",
        retry_policy: InvocationRetryPolicy | None = None,
    ) -> DeclaresObject | DeclaresShared:
        """Declare a coroutine function `(ctx: ObjectContext, event: Type)` as a handler.

            @account.handler()
            async def deposit(ctx: ObjectContext, amount: int) -> int: ...

        A handler of `kind="shared"` takes an ObjectSharedContext. It only reads state, runs concurrently with other
        handlers of the key and never waits in the queue of the key.

        `name` is by default the name of the function; `retry_policy` replaces the policy of the object. The input
        parameter may be left out.

        Raises TypeError if the function is not a coroutine function, expects another context, or if a type hint is
        missing or cannot be resolved or decoded, and ValueError if the name is invalid or already taken, or for an
        unknown kind.
        """
        called = self._checked(name)
        with declaring():
            if kind not in KEYED_KINDS:
                kinds = " or ".join(map(repr, KEYED_KINDS))
                raise ValueError(f"the kind of a handler of {self.name} is {kinds}, not {checks.shown(kind)}")

        def declare(function: Callable[..., Awaitable[Any]]) -> Any:
            return self._add(function, called, kind, retry_policy)

        return declare


class Services:
    """Everything one function serves: the runtime's registry."""

    def __init__(self, services: Iterable[Service | VirtualObject]) -> None:
        self._services: dict[str, Service | VirtualObject] = {}
        for service in services:
            if not isinstance(service, (Service, VirtualObject)):
                raise TypeError(f"a Service or VirtualObject is expected, not {_instead(service)}")
            if self._services.get(service.name) is service:
                raise ValueError(f"{service.name} is given twice")
            if service.name in self._services:
                raise ValueError(
                    f"two services are called {service.name!r}{_places(service, self._services[service.name])}: "
                    "give one of them another name"
                )
            self._services[service.name] = service
        # A class may be defined further down in its module than the handler that names it, and exists by now.
        for service in self._services.values():
            for handler in service.handlers.values():
                _ = handler.spec

    @property
    def declared(self) -> tuple[Service | VirtualObject, ...]:
        """The services and objects, as they were declared."""
        return tuple(self._services.values())

    def find(self, service: str, handler: str) -> HandlerSpec | None:
        """See `Registry.find`."""
        declared = self._services.get(service)
        found = declared.handlers.get(handler) if declared else None
        return found.spec if found else None

    def keyed(self, service: str) -> bool:
        """See `Registry.keyed`."""
        return self._services[service].keyed

    def context(self, spec: HandlerSpec, commands: Commands) -> Context | ObjectContext | ObjectSharedContext:
        """See `Registry.context`."""
        match spec.kind:
            case "stateless":
                return Context(commands)
            case "exclusive":
                return ObjectContext(commands)
            case "shared":
                return ObjectSharedContext(commands)

    def manifest(self, timeout_ms: int) -> Manifest:
        """What discovery reports."""
        return Manifest(
            tuple(
                ServiceManifest(s.name, s.keyed, tuple(_manifest(h.spec) for h in s.handlers.values()))
                for s in self._services.values()
            ),
            timeout_ms,
        )


def _instead(found: object) -> str:
    """What is where a service belongs, and the way out."""
    if isinstance(found, Handler):
        return f"the handler {found.target}: give its service, {found.service}"
    if isinstance(found, type):
        return f"the class {found.__name__}: give an instance"
    if isinstance(found, Iterable):
        return f"a {type(found).__name__}: give each one by itself, or *services"
    return type(found).__name__


def _places(*services: Service | VirtualObject) -> str:
    """Where the first handler of each service is, for a message about all of them."""
    firsts = (next(iter(service.handlers.values()), None) for service in services)
    lines = [line_of(first.function) for first in firsts if first is not None]
    found = sorted(line for line in lines if line is not None)
    return f", with handlers at {' and '.join(found)}" if found else ""


def _require_policy(policy: object, of: str) -> None:
    if not isinstance(policy, InvocationRetryPolicy):
        raise TypeError(
            f"{of}: retry_policy is an InvocationRetryPolicy, not {type(policy).__name__}: "
            "retry_policy=InvocationRetryPolicy(max_attempts=3)"
        )


def _refuse_declared(function: object, service: str) -> None:
    """Raises TypeError for what is a handler already, of this service or of another one."""
    if isinstance(function, Handler):
        raise TypeError(
            f"{function.target} is a handler already, and cannot be one of {service} too: declare a function for each"
        )


def _require_function(function: Any, target: str) -> None:
    """Refuse anything but an async function, a bound method or an object with an async `__call__`. Raises TypeError."""
    _refuse_declared(function, target.rpartition("/")[0])
    form = f"async def {target.rpartition('/')[2]}(ctx, event)"
    if not callable(function):
        raise TypeError(f"{target} is declared on a {type(function).__name__}, not on a function: {form}")
    plain = inspect.unwrap(function)
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise TypeError(f"{target} is a generator, which a handler cannot be: {form}, without yield")
    if not inspect.iscoroutinefunction(plain) and not inspect.iscoroutinefunction(type(plain).__call__):
        raise TypeError(f"{target} is not an async function: declare handlers with `async def`: {form}")
    if hasattr(function, "cache_parameters"):
        raise TypeError(f"{target} is cached, and a coroutine cannot be awaited twice: declare it without the cache")
    # A bound method has its instance, a static method needs none.
    if inspect.ismethod(function) or isinstance(function, staticmethod) or not inspect.isfunction(plain):
        return
    first = next(iter(inspect.signature(plain).parameters.values()), None)
    scope = plain.__qualname__.rpartition(".")[0]
    in_class = bool(scope) and not scope.endswith("<locals>")
    if first is not None and (first.name in RECEIVERS or (in_class and first.annotation is first.empty)):
        raise TypeError(
            f"{target} is a method, and would be called without its {first.name}: declare a function of the "
            f"module, {form}, or a bound method, service.handler()(instance.method)"
        )


def _spec_of(
    function: Callable[..., Awaitable[Any]], service: str, name: str, kind: Kind, retry: RetryPolicy
) -> HandlerSpec:
    """What the runtime knows of a handler, by its hints. Raises TypeError that names handler, file and line."""
    target = f"{service}/{name}"
    with declaring(function, target):
        try:
            require_hints(function, CONTEXTS[kind], target)
            hint, output = hints_of(function)
            takes, gives = serde_for(None if hint is MISSING else hint), output_serde_for(output)
            nullable = hint is MISSING or admits_nothing(takes)
            require_no_default(function, target, nullable=nullable)
        except (TypeError, ValueError):
            raise
        except NameError as e:  # Of an alias, which is evaluated when it is looked at.
            raise unresolved(None, e) from e
        except Exception as e:  # What is no type may raise anything when it is looked at.
            raise TypeError(describe(e)) from e
    return HandlerSpec(
        service=service,
        name=name,
        kind=kind,
        call=function,
        takes_input=hint is not MISSING,
        input=takes,
        output=gives,
        retry=retry,
        nullable=nullable,
    )


def _manifest(spec: HandlerSpec) -> HandlerManifest:
    return HandlerManifest(spec.name, spec.kind, spec.retry, spec.takes_input, spec.nullable, input_form(spec.input))
