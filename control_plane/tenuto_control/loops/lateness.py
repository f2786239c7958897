"""How late the event loop of a process is: what its own health answer tells of it.

Owns the measurement. Does not own the answer (`ingress`). A caller that sees `/health` take long cannot tell whether
the process, the network or itself was late; this number is the process's own.
"""

from __future__ import annotations

import asyncio
from typing import Final

LOOK_S: Final = 0.05
"""How often the loop is asked to come back."""

WINDOW_S: Final = 5.0
"""The worst is told of the last five to ten seconds."""


class Lateness:
    """Remembers by how much the loop was late at most, of late."""

    def __init__(self) -> None:
        self._worst_s: float | None = None
        self._before_s = 0.0

    @property
    def worst_ms(self) -> int | None:
        """By how many milliseconds the loop was late at most in the last five to ten seconds; None if unmeasured."""
        return None if self._worst_s is None else round(1_000 * max(self._worst_s, self._before_s))

    async def run(self) -> None:
        """Measure indefinitely."""
        loop = asyncio.get_running_loop()
        self._worst_s, since_s = self._worst_s or 0.0, loop.time()
        while True:
            asked_s = loop.time()
            await asyncio.sleep(LOOK_S)
            now_s = loop.time()
            self._worst_s = max(self._worst_s, now_s - asked_s - LOOK_S)
            if now_s - since_s > WINDOW_S:
                self._before_s, self._worst_s, since_s = self._worst_s, 0.0, now_s
