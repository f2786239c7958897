"""How a lane goes on after one action, and who hears of it when that takes a place, or gives one back.

Owns both vocabularies. Does not own what is decided (`core.lane_policy`), nor the places (`lane_places`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from tenuto_control.dispatcher.lane_worker import LaneWorker


@dataclass(frozen=True, slots=True)
class Continue:
    """The next action is decided at once."""


@dataclass(frozen=True, slots=True)
class Rest:
    """The next action is decided at `until_ms`, or when something arrives."""

    until_ms: int


@dataclass(frozen=True, slots=True)
class Sleeps:
    """The lane is idle until `wake_ms`, or (None) until something arrives: its worker ends."""

    wake_ms: int | None


Onward: TypeAlias = Continue | Rest | Sleeps
"""How a lane goes on after one action."""

CONTINUE = Continue()


class Owner(Protocol):
    """Who has lanes work, one after the other when they are many."""

    def ready(self, worker: LaneWorker) -> None:
        """The worker's rest is over: it is to be started again."""
        ...

    def rests(self, worker: LaneWorker) -> None:
        """The worker has come to rest, and needs no place meanwhile."""
        ...

    def idle(self, worker: LaneWorker, wake_ms: int | None) -> None:
        """Nothing is left to do until `wake_ms`, or (None) until something arrives."""
        ...

    def unneeded(self, worker: LaneWorker) -> None:
        """The worker has nothing to do any more, before it has begun."""
        ...
