"""Timers of a busy deployment: near minutes are spread over more partitions, and marked so that sweeps look there.

Owns when this process is busy, and the marks of the minutes that may be spread. Does not own where a timer lies
(`tenuto.lane.timers`), nor looking there (`loops.sweep`).

The mark is put before any activation says that the minute may be spread, so no timer is where nobody looks. It costs a
write a minute in each busy process, and an idle deployment's sweep asks for no partition more than before.
"""

from __future__ import annotations

from typing import Final

from tenuto.lane.timers import NOT_SPREAD, Minutes, wide_mark
from tenuto.protocol.limits import TIMER_BUCKET_MS
from tenuto_control.dispatcher.background import Background
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.limits import Limits
from tenuto_control.ports import Clock

BUSY_MS: Final = 60_000
"""How long a process counts as busy after its last busy second."""

BEFORE_MINUTES: Final = 2
"""Minutes before this one that are marked as well: a function's clock may be behind."""

AHEAD_MINUTES: Final = 20
"""Minutes that are marked ahead: guards fall due when their function must have ended, which may take 15 minutes."""

MARKING_MS_MAX: Final = 10_000
"""After so long, marks that were begun to be put are begun once more."""


class WideTimers:
    """Counts a process's activations by the second, and knows which minutes are marked."""

    def __init__(self, writer: Writer, background: Background, clock: Clock, limits: Limits) -> None:
        self._writer = writer
        self._background = background
        self._clock = clock
        self._busy_per_s = limits.timers_wide_per_s
        self._second = 0
        self._count = 0
        self._busy_until_ms = 0
        self._marked = NOT_SPREAD
        self._marking_since_ms = 0

    def activating(self) -> Minutes:
        """Another activation begins: the minutes whose timers it may spread."""
        now_ms = self._clock.now_ms()
        if now_ms // 1_000 != self._second:
            self._second, self._count = now_ms // 1_000, 0
        self._count += 1
        if self._count >= self._busy_per_s:
            self._busy_until_ms = now_ms + BUSY_MS
        if now_ms >= self._busy_until_ms:
            return NOT_SPREAD
        minute = now_ms // TIMER_BUCKET_MS
        wanted = (minute - BEFORE_MINUTES, minute + AHEAD_MINUTES)
        if self._marked[1] < wanted[1] and now_ms - self._marking_since_ms > MARKING_MS_MAX:
            self._marking_since_ms = now_ms
            self._background.spawn(self._mark(wanted))
        return self._marked

    async def _mark(self, wanted: Minutes) -> None:
        begins, ends = self._marked
        if ends < wanted[0]:
            begins = ends = wanted[0]
        for minute in range(max(ends, wanted[0]), wanted[1]):
            await self._writer.write(wide_mark(minute))
        self._marked = begins, max(ends, wanted[1])
        self._marking_since_ms = 0
