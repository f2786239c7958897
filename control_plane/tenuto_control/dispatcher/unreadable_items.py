"""Items of the table that cannot be read: counted, and said without flooding the log.

Owns the metric and the lines. Does not own what becomes of such an item: whoever met it leaves it, or moves it on.
"""

from __future__ import annotations

import logging
from collections import Counter

from tenuto.lane.transitions import stored_result
from tenuto.lane.writes import Item
from tenuto.protocol.ids import Lane
from tenuto.protocol.records import Result
from tenuto_control.core.log_fields import said_again, shown
from tenuto_control.core.metrics import Metrics

KNOWN_MAX = 1_000
"""Different things that are remembered to have been said."""

NAMED_MAX = 16
"""So many different things are each said at once; of further ones the 32nd, the 64th, and so on."""

log = logging.getLogger("tenuto.table")


class UnreadableItems:
    """What one part of a process has met. Each thing is said the first, second, fourth, eighth ... time."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._times: Counter[str] = Counter()
        self._met = 0

    def result(self, lane: Lane, item: Item | None) -> Result | None:
        """The result in a result item of a lane. One that cannot be read is none: its caller alone is affected."""
        try:
            return stored_result(item)
        except ValueError as e:
            self.met(f"a result of the key {lane.pk}", e)
            return None

    def met(self, what: str, error: BaseException) -> None:
        """`what` cannot be read, or treated, for this reason. The name may hold anything: it is cut and escaped."""
        self._metrics.count("UnreadableItems")
        what = shown(what)
        if len(self._times) >= KNOWN_MAX:
            self._times.clear()
        self._times[what] += 1
        times = self._times[what]
        if times == 1:
            self._met += 1
        if not said_again(times) or (times == 1 and self._met > NAMED_MAX and not said_again(self._met)):
            return
        again = f" ({times} times)" if times > 1 else ""
        others = f"; it is one of {self._met} such items" if self._met > NAMED_MAX else ""
        reason = shown(f"{type(error).__name__}: {error}")
        log.error("%s cannot be processed and is set aside, others continue%s%s: %s", what, again, others, reason)
