"""Says once that something fails, again while it continues, and once that it is over.

Owns log lines, no retries.
"""

from __future__ import annotations

import logging

from tenuto_control.core.log_fields import shown
from tenuto_control.ports import Clock

_log = logging.getLogger("tenuto_control")


class FailureLog:
    """Log lines of failure series, each named by what fails (a short, bounded set of names)."""

    def __init__(self, clock: Clock, interval_ms: int) -> None:
        self._clock = clock
        self._interval_ms = interval_ms
        self._said_ms: dict[str, int] = {}

    def failed(self, what: str, error: Exception) -> None:
        """One more failure of `what`."""
        now_ms = self._clock.now_ms()
        said_ms = self._said_ms.get(what)
        if said_ms is None or now_ms - said_ms >= self._interval_ms:
            self._said_ms[what] = now_ms
            _log.warning("%s: %s; trying again", what, shown(str(error)))

    def succeeded(self, what: str) -> None:
        """`what` works; ends its series if there was one."""
        if self._said_ms.pop(what, None) is not None:
            _log.info("%s: works again", what)
