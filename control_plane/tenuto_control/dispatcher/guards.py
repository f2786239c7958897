"""Guards: timers that lead somebody to a lane whatever process dies.

Owns putting one. Does not own when a lane needs one, nor when it may go (`loops.sweep`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tenuto.lane.timers import GuardTimer, timer_put
from tenuto.protocol.ids import Lane
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.ports import Clock


@dataclass(frozen=True, slots=True)
class Guards:
    """Puts guards. `token` gives a name that nobody else uses."""

    writer: Writer
    clock: Clock
    token: Callable[[], str]

    async def put(self, lane: Lane, invocation: str, delay_ms: int, ver: int | None = None) -> None:
        """Make sure that someone looks at a lane after this delay; `ver` is what a write that follows expects."""
        now_ms = self.clock.now_ms()
        guard = GuardTimer(lane, invocation, now_ms + delay_ms, self.token(), ver=ver, since_ms=now_ms)
        await self.writer.write(timer_put(guard))
