"""The clock of this machine."""

from __future__ import annotations

import time

NANOSECONDS_PER_MS = 1_000_000


class SystemClock:
    """Wall-clock time (the Clock port)."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return time.time_ns() // NANOSECONDS_PER_MS
