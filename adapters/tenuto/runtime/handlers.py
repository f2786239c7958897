"""What the runtime needs to know of a handler.

Owns the resolved form of a handler: serdes, kind, policy. Does not own how users declare one (`tenuto.service`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tenuto.protocol.messages import RetryPolicy
from tenuto.serde import Serde

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


class Registry(Protocol):
    """Finds handlers, and makes the context each kind of handler is given."""

    def find(self, service: str, handler: str) -> HandlerSpec | None:
        """None when this function does not serve it."""
        ...

    def keyed(self, service: str) -> bool:
        """Whether the service is a virtual object."""
        ...

    def context(self, spec: HandlerSpec, attempt: Any) -> Any:
        """The context object for one attempt at one invocation."""
        ...
