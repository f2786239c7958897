"""What the runtime needs to know of a handler.

Owns the resolved form of a handler: serdes, kind, policy. Does not own how users declare one (`tenuto.service`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tenuto.errors import BadInputError
from tenuto.protocol.messages import RetryPolicy
from tenuto.serde import BytesSerde, Serde

Kind = Literal["exclusive", "shared", "stateless"]


@dataclass(frozen=True, slots=True)
class HandlerSpec:
    """One handler: `call(ctx[, input])`. `takes_input` is False when it declares no input parameter."""

    service: str
    name: str
    kind: Kind
    call: Callable[..., Awaitable[Any]]
    takes_input: bool
    input: Serde[Any]
    output: Serde[Any]
    retry: RetryPolicy
    nullable: bool = True
    """Whether the input may be missing."""

    @property
    def target(self) -> str:
        """Service and handler, for messages to people."""
        return f"{self.service}/{self.name}"


def read_nothing(serde: Serde[Any]) -> Any:
    """The value where no data is: a tombstone, an empty body. Raises BadInputError if the type does not admit None."""
    return None if isinstance(serde, BytesSerde) else serde.deserialize(b"null")


def admits_nothing(serde: Serde[Any]) -> bool:
    """Whether a value may be missing, as far as that can be told without it."""
    try:
        read_nothing(serde)
    except BadInputError:
        return False
    except Exception:  # noqa: BLE001 - a validator of the user's own; its handler tells what it makes of nothing
        return True
    return True


class Registry(Protocol):
    """Finds handlers, and makes the context each kind of handler is given."""

    def find(self, service: str, handler: str) -> HandlerSpec | None:
        """None when this function does not serve it."""
        ...

    def keyed(self, service: str) -> bool:
        """Whether the service is a virtual object."""
        ...

    def context(self, spec: HandlerSpec, commands: Any) -> Any:
        """The context object over the commands of one attempt."""
        ...
