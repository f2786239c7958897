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
from tenuto_control.core.clocks import TableClock, UncheckedClock, differs, lease_from_ms
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.ports import Clock

AFTERWARDS_REMEMBERED_MAX: Final = 10_000
"""Guards for leftovers that are known to be there. One that was forgotten is put once more, in the same place."""

SHARED_REMEMBERED_MAX: Final = 10_000
"""Guards for what was handed over that are known to be there. One that was forgotten is put once more."""

SHARED_DELAYS: Final = 2
"""A guard that is shared is due after so many delays, so that it is not for one of them."""


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
    _shared: dict[Lane, int] = field(default_factory=dict)

    async def put(self, lane: Lane, invocation: str, delay_ms: int, ver: int | None = None) -> None:
        """Make sure that someone looks at a lane after this delay; `ver` is what a write that follows expects."""
        now_ms = self.clock.now_ms()
        since_ms = lease_from_ms(self.table_clock.check, now_ms, self.margin_ms)
        since = None if ver is None else since_ms
        guard = GuardTimer(lane, invocation, now_ms + delay_ms, self.token(), ver=ver, since_ms=since)
        await self.writer.write(timer_put(guard))

    async def put_shared(self, lane: Lane, invocation: str, delay_ms: int) -> None:
        """Make sure that someone looks at a lane, after this delay or up to twice as much.

        What it protects is in the table already, or this is called again once it is. A guard that this process has put
        before protects that as well if nobody judges it meanwhile: so it must not be due for a while, by a clock that
        is known to be right.
        """
        check, now_ms = self.table_clock.check, self.clock.now_ms()
        surely = check is not None and not differs(check, self.margin_ms)
        if surely and self._shared.get(lane, 0) - now_ms >= delay_ms:
            return
        due_ms = now_ms + SHARED_DELAYS * delay_ms
        await self.writer.write(timer_put(GuardTimer(lane, invocation, due_ms, self.token(), since_ms=now_ms)))
        if len(self._shared) >= SHARED_REMEMBERED_MAX:
            self._shared.clear()
        self._shared[lane] = due_ms

    async def put_afterwards(self, lane: Lane) -> None:
        """Have somebody look, in an hour or two, for what a lost attempt has left beside the head of its lane."""
        guard = leftovers_guard(lane, self.clock.now_ms())
        if guard.key in self._afterwards:
            return
        await self.writer.write(timer_put(guard))
        if len(self._afterwards) >= AFTERWARDS_REMEMBERED_MAX:
            self._afterwards.clear()
        self._afterwards[guard.key] = None
