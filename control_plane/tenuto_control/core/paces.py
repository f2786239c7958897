"""How long runs of a handler last, as one process has seen of late, over all of the handler's keys.

Owns what is remembered of each handler, and whether that tells when a run will end. Does not own who observes
(`dispatcher.lane_worker`), nor what follows for the next look (`looks`). A struct for the reason that `lane_memory`
gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from tenuto.protocol.messages import Head
from tenuto.protocol.records import Event
from tenuto_control.core.wakes import Handler

RECENT: Final = 4
"""So many runs tell how long the next one lasts, if they have lasted about as long as each other."""

DIFFER_PARTS: Final = 4
DIFFER_MS_MIN: Final = 100
DIFFER_MS_MAX: Final = 200
"""About as long: they differ by a fourth of the shortest, within these bounds. Who looks when the longest would have
ended is late by no more than that."""


class Pace(Struct, frozen=True):
    """How long the last runs have lasted, in ms."""

    recent: tuple[int, ...] = ()

    def after(self, lasted_ms: int) -> Pace:
        """One more run has ended."""
        return Pace((*self.recent[1 - RECENT :], lasted_ms))

    @property
    def usual_ms(self) -> int | None:
        """How long a run lasts; None when that cannot be told."""
        return max(self.recent) if len(self.recent) == RECENT and self._alike else None

    @property
    def varies(self) -> bool:
        """Whether its runs are known to be unlike each other."""
        return len(self.recent) > 1 and not self._alike

    @property
    def _alike(self) -> bool:
        shortest, longest = min(self.recent), max(self.recent)
        return longest - shortest <= min(max(shortest // DIFFER_PARTS, DIFFER_MS_MIN), DIFFER_MS_MAX)


class Paces:
    """The paces of one process's handlers. Only handlers that a function has served are remembered."""

    def __init__(self) -> None:
        self._paces: dict[Handler, Pace] = {}

    def told(self, handler: Handler, lasted_ms: int) -> None:
        """A run of this handler has ended."""
        self._paces[handler] = self._paces.get(handler, UNKNOWN).after(lasted_ms)

    def told_of_all(self, events: Sequence[Event], head: Head, left: Head | None, took_ms: int) -> None:
        """An activation of these events took so long, from one head to the other. Counts if each had a run of its own.

        A claim, what joins each run to the next, and the end each raise `ver` by one.
        """
        handlers = {(event.invocation.lane.service, event.handler) for event in events}
        if left is not None and left.ver - head.ver == len(events) + 1 and len(handlers) == 1:
            self.told(handlers.pop(), took_ms // len(events))

    def of(self, handler: Handler) -> Pace:
        """How long its runs last."""
        return self._paces.get(handler, UNKNOWN)


UNKNOWN: Final = Pace()
"""Of a handler that this process has not seen at work."""
