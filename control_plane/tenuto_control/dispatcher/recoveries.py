"""Handlers that work again: their waiting retries are brought forward, rather than wait out pauses made by an outage.

Owns which lanes have failed since a handler last succeeded, and the pace at which they are told. Does not own the
pauses, nor the attempts (`lane_worker`).

An outage is told from a poisoned event by numbers: at least `OUTAGE_LANES_MIN` lanes of one handler have failed, and
none has succeeded in between. A lane whose early retry fails as well waits out its pauses from then on, until its event
has ended: what an outage did not cause must not be tried as often as others succeed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from tenuto.protocol.ids import Lane
from tenuto_control.dispatcher.background import Background, Kind

OUTAGE_LANES_MIN: Final = 2
LANES_MAX: Final = 1_000
"""Lanes of one handler that are remembered as failing. Others wait out their pauses."""

HANDLERS_MAX: Final = 100
"""Handlers of which that is remembered."""

EARLY_RETRY_EVERY_S: Final = 0.02
"""The pace of early retries of one handler: what it depends on has only just come back."""

HandlerName: TypeAlias = tuple[str, str]
"""Service and handler."""


@dataclass(slots=True)
class Recoveries:
    """The failing lanes of each handler of one process. `retry` tells a lane that its next attempt need not wait."""

    background: Background
    retry: Callable[[Lane], None]
    _failing: dict[HandlerName, dict[Lane, None]] = field(default_factory=dict)
    _hurried: dict[HandlerName, set[Lane]] = field(default_factory=dict)

    def failed(self, handler: HandlerName, lane: Lane) -> None:
        """An attempt has failed, and the lane pauses."""
        if lane in self._hurried.get(handler, ()):
            return
        lanes = self._failing.get(handler)
        if lanes is None:
            while len(self._failing) >= HANDLERS_MAX:
                # Its lanes wait out their pauses. A message may name any handler.
                del self._failing[next(iter(self._failing))]
            lanes = self._failing[handler] = {}
        lanes[lane] = None
        while len(lanes) > LANES_MAX:
            del lanes[next(iter(lanes))]

    def gave_up(self, handler: HandlerName, lane: Lane) -> None:
        """An event of the handler has ended as failed for good: its lane continues with others."""
        failing, hurried = self._failing.get(handler), self._hurried.get(handler)
        if failing is not None:
            failing.pop(lane, None)
        if hurried is not None:
            hurried.discard(lane)

    def succeeded(self, handler: HandlerName, lane: Lane) -> None:
        """An event of the handler has taken effect."""
        if not self._failing and not self._hurried:
            return
        failing = self._failing.pop(handler, {})
        self.gave_up(handler, lane)
        if len(failing) < OUTAGE_LANES_MIN or (handler not in self._hurried and len(self._hurried) >= HANDLERS_MAX):
            return
        hurried = self._hurried.setdefault(handler, set())
        failing.pop(lane, None)
        # The others wait out their pauses: whoever is retried early is remembered until its event has ended.
        lanes = tuple(failing)[: LANES_MAX - len(hurried)]
        hurried.update(lanes)
        self.background.spawn(self._retried(lanes), Kind.PACE)

    async def _retried(self, lanes: Sequence[Lane]) -> None:
        for lane in lanes:
            self.retry(lane)
            await asyncio.sleep(EARLY_RETRY_EVERY_S)
