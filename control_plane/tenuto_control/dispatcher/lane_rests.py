"""When the rests of lanes end: one alarm of the event loop for all of them, set to the next one.

Owns the alarm and which rest is over. Does not own why a lane rests (`core.lane_policy`), nor what it does afterwards
(`lane_task`). Thousands of lanes may rest, and a timer of the event loop for each would be a quarter of what they take.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from typing import Final, Protocol

ALIKE_S: Final = 0.0005
"""Rests that end so soon after another are over with it: event loops count in milliseconds, and round."""

EARLY_MIN: Final = 64
"""So many rests that have ended early stay in the heap, at least, before it is built again without them."""


class Sleeper(Protocol):
    """A lane that rests."""

    def awake(self) -> None:
        """The rest is over."""
        ...


class Ending:
    """The end of one rest. Once it is over, early or not, it has no `sleeper` any more."""

    __slots__ = ("sleeper", "when_s")

    def __init__(self, when_s: float, sleeper: Sleeper) -> None:
        self.when_s = when_s
        self.sleeper: Sleeper | None = sleeper

    def __lt__(self, other: Ending) -> bool:
        return self.when_s < other.when_s


class Rests:
    """The rests of one process's lanes."""

    def __init__(self) -> None:
        self._endings: list[Ending] = []
        self._early = 0
        self._alarm: asyncio.TimerHandle | None = None
        # Not the context of the lane that happens to set the alarm: what an alarm starts inherits it.
        self._context = contextvars.copy_context()

    def __len__(self) -> int:
        """How many rests are not over."""
        return len(self._endings) - self._early

    def begin(self, sleeper: Sleeper, seconds: float) -> Ending:
        """Wake it after this time."""
        ending = Ending(asyncio.get_running_loop().time() + seconds, sleeper)
        heapq.heappush(self._endings, ending)
        if self._endings[0] is ending:
            self._set_alarm()
        return ending

    def end(self, ending: Ending) -> None:
        """The rest is over before its time, or was over already."""
        if ending.sleeper is None:
            return
        ending.sleeper = None
        self._early += 1
        if self._early > EARLY_MIN + len(self._endings) // 2:
            self._endings = [one for one in self._endings if one.sleeper is not None]
            self._early = 0
            heapq.heapify(self._endings)
            self._set_alarm()
        elif self._endings[0] is ending:
            self._set_alarm()

    def clear(self) -> None:
        """All rests are over, and wake nobody."""
        for ending in self._endings:
            ending.sleeper = None
        self._endings.clear()
        self._early = 0
        self._set_alarm()

    def _set_alarm(self) -> None:
        """Have the alarm ring when the next rest is over that has not ended early."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while self._endings and self._endings[0].sleeper is None:
            heapq.heappop(self._endings)
            self._early -= 1
        if self._endings:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_at(self._endings[0].when_s, self._ring, context=self._context)

    def _ring(self) -> None:
        over_s = asyncio.get_running_loop().time() + ALIKE_S
        try:
            while self._endings and self._endings[0].when_s <= over_s:
                ending = heapq.heappop(self._endings)
                sleeper, ending.sleeper = ending.sleeper, None
                if sleeper is None:
                    self._early -= 1
                else:
                    sleeper.awake()
        finally:
            self._set_alarm()
