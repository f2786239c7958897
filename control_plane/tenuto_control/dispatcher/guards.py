"""Guards: timers that lead somebody to a lane whatever process dies.

Owns putting one. Does not own when a lane needs one, nor when it may go (`loops.sweep`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tenuto.lane.timers import GuardTimer, leftovers_guard, timer_put
from tenuto.lane.writes import Key
from tenuto.protocol.ids import Lane
from tenuto_control.core.clocks import TableClock, UncheckedClock, lease_from_ms
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.ports import Clock

AFTERWARDS_REMEMBERED_MAX: Final = 10_000
"""Guards for leftovers that are known to be there. One that was forgotten is put once more, in the same place."""


@dataclass(frozen=True, slots=True)
class Guards:
    """Puts guards, and remembers those for leftovers.

    `token` gives a name that no other process uses. Where the clock is known to be behind the table's by more than
    `margin_ms`, guards say by the table's when they were put: others count from then, and would let them go too early.
    """

    writer: Writer
    clock: Clock
    token: Callable[[], str]
    table_clock: TableClock = field(default_factory=UncheckedClock)
    margin_ms: int = 0
    _afterwards: dict[Key, None] = field(default_factory=dict)

    async def put(self, lane: Lane, invocation: str, delay_ms: int, ver: int | None = None) -> None:
        """Make sure that someone looks at a lane after this delay; `ver` is what a write that follows expects."""
        now_ms = self.clock.now_ms()
        since_ms = lease_from_ms(self.table_clock.check, now_ms, self.margin_ms)
        guard = GuardTimer(lane, invocation, now_ms + delay_ms, self.token(), ver=ver, since_ms=since_ms)
        await self.writer.write(timer_put(guard))

    async def put_afterwards(self, lane: Lane) -> None:
        """Have somebody look, in an hour or two, for what a lost attempt has left beside the head of its lane."""
        guard = leftovers_guard(lane, self.clock.now_ms())
        if guard.key in self._afterwards:
            return
        await self.writer.write(timer_put(guard))
        if len(self._afterwards) >= AFTERWARDS_REMEMBERED_MAX:
            self._afterwards.clear()
        self._afterwards[guard.key] = None
