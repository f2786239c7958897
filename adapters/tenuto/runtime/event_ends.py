"""How an event of an activation ended, and what those that have ended leave together.

Owns the ways to end, and the changes that wait for a commit. Does not own what an end leads to (`activation`), nor the
commit (`lease`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from msgspec import Struct

from tenuto.lane.transitions import Effects, effects_of
from tenuto.protocol.limits import OUT_BYTES_MAX, WRITE_ATTRIBUTES_MAX
from tenuto.protocol.messages import EventResult
from tenuto.protocol.records import CallSource, Event, Failure, Out, Result, Success, pack
from tenuto.runtime.environment import Environment
from tenuto.runtime.lane_news import Left


class Done(Struct, frozen=True):
    """The handler ended. `left` is what its commit left of the lane, None while its changes are not written yet."""

    result: Result
    state: Mapping[str, bytes | None]
    out: Mapping[int, Out]
    left: Left | None = None


class Failing(Struct, frozen=True):
    """The attempt failed while nothing was owned: the control plane tries again."""

    failure: Failure
    retry_after_ms: int


class RunSuspended(Struct, frozen=True):
    """The invocation is suspended."""


class Lost(Struct, frozen=True):
    """Another attempt owns the lane."""

    reason: str


End: TypeAlias = Done | Failing | RunSuspended | Lost


@dataclass(slots=True)
class Batch:
    """What the finished events of an activation have changed so far."""

    state: dict[str, bytes]
    changed: dict[str, bytes | None] = field(default_factory=dict)
    out: dict[int, Out] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    results: list[EventResult] = field(default_factory=list)
    size: int = 0

    def add(self, event: Event, done: Done) -> None:
        """Lay a finished event over the ones before it."""
        self.events.append(event)
        self.results.append(EventResult(event.id, as_answered(event, done.result)))
        self.changed.update(done.state)
        for name, value in done.state.items():
            if value is None:
                self.state.pop(name, None)
            else:
                self.state[name] = value
        if done.out:
            self.out.update(done.out)
            self.size += sum(len(pack(entry)) for entry in done.out.values())

    def effects(self, env: Environment, *, expires: bool) -> Effects:
        """What a write commits of the finished events, or a claim along with itself."""
        return effects_of(self.events, self.changed, self.out, env.now_ms(), expires=expires)

    def full(self) -> bool:
        """Whether another event might not fit into the same commit."""
        attributes = len(self.changed) + len(self.out) + len(self.events)
        return self.size > OUT_BYTES_MAX // 2 or attributes > WRITE_ATTRIBUTES_MAX // 3


def as_answered(event: Event, result: Result) -> Result:
    """What goes back to the control plane: only a caller has use for the value."""
    if isinstance(result, Success) and not isinstance(event.source, CallSource):
        return Success()
    return result
