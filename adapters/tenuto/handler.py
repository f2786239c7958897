"""A declared handler, which takes the place of the decorated function.

Owns calling it in a unit test, and encoding the input of a message to it. Does not own its declaration
(`tenuto.service`) or sending to it (`tenuto.context`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from tenuto import checks
from tenuto.errors import TenutoError, UnserialisableError
from tenuto.runtime.handlers import HandlerSpec, Kind
from tenuto.runtime.unawaited import refuse_unawaited
from tenuto.serde import BytesSerde

I = TypeVar("I")  # noqa: E741 - the handler's input
O = TypeVar("O", covariant=True)  # noqa: E741, PLC0105 - the handler's output


@dataclass(frozen=True, slots=True)
class Handler(Generic[I, O]):
    """A declared handler, which takes the place of the decorated function.

    It is a `ServiceHandler`, an `ObjectHandler` or a `SharedHandler`. `I` is the type of its input (None without one)
    and `O` that of its result, so that type checkers find an argument that does not fit. Pass it to `ctx.service_send`,
    `ctx.object_send` or a `tenuto.testing.Environment`. Calling it calls the function.
    """

    service: str
    """Name of its service or virtual object."""
    name: str
    """Name of the handler."""
    kind: Kind
    """`"stateless"` in a service; `"exclusive"` or `"shared"` in a virtual object."""
    function: Callable[..., Awaitable[O]]
    """The decorated function."""
    _described: Callable[[], HandlerSpec] = field(repr=False)

    @property
    def spec(self) -> HandlerSpec:
        """What the runtime knows of the handler. Raises TypeError if a type hint cannot be resolved even now."""
        return self._described()

    @property
    def target(self) -> str:
        """Name of the service and of the handler, such as `orders/place`."""
        return f"{self.service}/{self.name}"

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[O]:
        """Call the decorated function, with a context that the caller provides."""
        return self.function(*args, **kwargs)

    def encode(self, argument: Any) -> bytes | None:
        """Encode the input of a message to this handler; None stays None. Raises UnserialisableError, TenutoError."""
        if not self.spec.takes_input:
            if argument is None:
                return None
            raise TenutoError(f"{checks.where()}{self.target} takes no input: send None")
        if argument is None and isinstance(self.spec.input, BytesSerde):
            return None
        try:
            data = self.spec.input.serialize(argument)
        except UnserialisableError as e:
            what = f"{checks.where()}the message to {self.target}"
            refuse_unawaited(argument, what)
            raise e.naming(what) from None
        # None is sent as no input at all, once its type has admitted it.
        return None if argument is None else data


@dataclass(frozen=True, slots=True)
class ServiceHandler(Handler[I, O]):
    """A handler of a service: what `@service.handler()` makes. See `Handler`."""


@dataclass(frozen=True, slots=True)
class ObjectHandler(Handler[I, O]):
    """An exclusive handler of a virtual object: what `@object.handler()` makes. See `Handler`."""


@dataclass(frozen=True, slots=True)
class SharedHandler(Handler[I, O]):
    """A shared handler of a virtual object: what `@object.handler(kind="shared")` makes. See `Handler`."""


HANDLERS: Final[Mapping[Kind, type[Handler[Any, Any]]]] = {
    "stateless": ServiceHandler,
    "exclusive": ObjectHandler,
    "shared": SharedHandler,
}
"""The class of each kind of handler."""
