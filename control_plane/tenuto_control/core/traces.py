"""Traces of activations: the port, its twin for whoever does not trace, and which trace an invocation belongs to.

Owns that all activations of an invocation are in one trace, however many processes and months they are spread over: the
trace is the one that the event's `traceparent` header names, or one that follows from the invocation's id. Does not own
how spans are made and sent (`drivers.otel`), nor spans in functions (`tenuto.tracing`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol, Self

from msgspec import Struct

from tenuto.protocol.ids import Lane
from tenuto.protocol.records import Event
from tenuto.protocol.traces import TRACEPARENT

TRACE_BYTES, SPAN_BYTES = 16, 8
SAMPLED: Final = "01"

PARENT_FORM: Final = re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context, section 3.2."""


class Activating(Struct, frozen=True):
    """What a span is about: the activation of a lane, for these events, of which there is at least one."""

    lane: Lane
    mode: str
    events: Sequence[Event]
    attempt: int


class Traced(Protocol):
    """A span in progress."""

    @property
    def parent(self) -> str | None:
        """The `traceparent` that makes what the function does a part of this span; None when nothing is traced."""
        ...

    def end(self, outcome: str, *, failed: bool) -> None:
        """How the activation ended."""
        ...


class Tracer(Protocol):
    """Where the spans of a control plane go."""

    def activation(self, activating: Activating) -> AbstractContextManager[Traced]:
        """A span around one invocation of a function."""
        ...


class Untraced:
    """For whoever looks at no traces: tracer and span in one."""

    parent: None = None

    def activation(self, _activating: Activating) -> Self:
        """See `Tracer.activation`."""
        return self

    def __enter__(self) -> Self:
        """There is no span to begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """There is no span to end."""

    def end(self, outcome: str, *, failed: bool) -> None:
        """See `Traced.end`: nothing is kept."""


def parent_of(event: Event) -> str:
    """The `traceparent` that an event's spans are parts of."""
    raw = next((value for name, value in event.headers if name.lower() == TRACEPARENT), b"")
    given = raw.decode("ascii", "replace")
    if PARENT_FORM.fullmatch(given):
        return given
    made = hashlib.sha256(event.id.encode()).hexdigest()
    trace, span = made[: 2 * TRACE_BYTES], made[2 * TRACE_BYTES : 2 * (TRACE_BYTES + SPAN_BYTES)]
    return f"00-{trace}-{span}-{SAMPLED}"
