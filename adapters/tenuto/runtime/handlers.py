"""What the runtime needs to know of a handler.

Owns the resolved form of a handler: serdes, kind, policy. Does not own how users declare one (`tenuto.service`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from tenuto.errors import BadInputError
from tenuto.protocol.messages import InputForm, RetryPolicy
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


_SAMPLES: Final[Mapping[InputForm, bytes]] = {
    "object": b"{}",
    "array": b"[]",
    "text": b'"text"',
    "number": b"1",
    "boolean": b"true",
}


def input_form(serde: Serde[Any]) -> InputForm:
    """What an input looks like: the first form that is not refused for what it is. A serde of the user's: an object."""
    if isinstance(serde, BytesSerde):
        return "bytes"
    for form, sample in _SAMPLES.items():
        try:
            serde.deserialize(sample)
        except BadInputError as e:
            if _is_another_type(e):
                continue
        except Exception:  # noqa: BLE001 - a validator of the user's own, which has something to say about this form
            return form
        return form
    # Dates, ids and the like.
    return "text"


def _is_another_type(error: BadInputError) -> bool:
    """Whether the whole of a value is of the wrong type, rather than wrong in a part or in its contents."""
    several = error.problem.startswith("$")
    return error.at == "$" and (
        several or (error.problem.startswith(("Expected `", "expected ")) and "length" not in error.problem)
    )


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
