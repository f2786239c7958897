"""How an invocation of the dispatcher's function ends, as whoever invoked it is told.

Owns the three ends and the face that invokers see. Does not own invoking (`instances`) nor what follows from an end
(`event_source`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class Answered:
    """An invocation ended with this answer."""

    value: Any


@dataclass(frozen=True, slots=True)
class Broken:
    """An invocation raised, or its process ended in the middle of it."""

    why: str


@dataclass(frozen=True, slots=True)
class Throttled:
    """An invocation was refused for concurrency."""


Ended: TypeAlias = Answered | Broken | Throttled


class Function(Protocol):
    """What a poller of Kafka knows of the function."""

    def serve(self, event: Any, what: str) -> asyncio.Future[Ended]:
        """Invoke the function with an event. The future never fails."""
        ...
