"""How fast new work may begin that sleeps, so that there are places when it wakes.

Owns the one rule. Does not own which lanes sleep (`dispatcher.naps`), nor the places (`dispatcher.capacity`).

What begins in 6 ms, and takes 20 ms once it has slept, could begin three times as fast as it can be resumed. Begun
whenever a place is free, it fills all places when it wakes, and sleeps end late by up to their own length. Beginning it
no faster than it can be resumed takes nothing away: it would not end any sooner.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from msgspec import Struct, field

FOLLOWED_BY: Final = 16
"""Durations that an average goes back, roughly."""

HEADROOM: Final = 1.25
"""Room for each wake-up, in units of what one takes: they do not come evenly."""

AHEAD_S: Final = 0.05
"""So much work, in seconds of all places, may have been put to sleep more than can be resumed in the time since."""

TOLD_S: Final = 0.5
LOADED: Final = 2
"""After so many seconds without any, one that continues is taken to hold its place so many times as long as the last
ones did. They had the processors to themselves; at the end of a burst of new work, nobody has."""

OWED_S_MAX: Final = 1.0
"""What is owed beyond that is forgotten: lanes that wake and sleep again for ever would owe more and more."""

Handler: TypeAlias = tuple[str, str]
"""A service and a handler of it."""


class Wakes(Struct):
    """What one function has put to sleep lately, in the time that its places will take to resume it.

    `handlers` are those whose work has slept. `new_s` and `begun_s` are how long new activations and those that
    continue hold their places, in seconds, the latter last heard of at `told_s`; `owed_s` is until when all places
    would be busy had what was put to sleep woken at once.
    """

    handlers: set[Handler] = field(default_factory=set)
    new_s: float | None = None
    begun_s: float | None = None
    owed_s: float = 0.0
    told_s: float = 0.0

    def held(self, seconds: float, now_s: float, *, begun: bool) -> None:
        """One more activation has given its place back."""
        if begun:
            self.begun_s = _followed(self.begun_s, seconds)
            self.told_s = now_s
        else:
            self.new_s = _followed(self.new_s, seconds)

    def slept(self, handler: Handler, now_s: float, places: int) -> None:
        """One more lane sleeps, and will need one of these places. It is taken to hold it as long as others have."""
        self.handlers.add(handler)
        takes_s = self._takes_s(now_s)
        if takes_s is not None:
            owed_s = max(now_s, self.owed_s) + HEADROOM * takes_s / places
            self.owed_s = min(owed_s, now_s + OWED_S_MAX)

    def _takes_s(self, now_s: float) -> float | None:
        """How long the next one that continues should hold its place, if anything tells."""
        if self.begun_s is None:
            return self.new_s
        return self.begun_s if now_s - self.told_s <= TOLD_S else LOADED * self.begun_s

    @property
    def opens_s(self) -> float:
        """From when on what begins will find a place when it wakes, should nothing else be put to sleep until then."""
        return self.owed_s - AHEAD_S


def _followed(average_s: float | None, seconds: float) -> float:
    return seconds if average_s is None else average_s + (seconds - average_s) / FOLLOWED_BY
