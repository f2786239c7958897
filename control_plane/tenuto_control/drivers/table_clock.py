"""The table's clock, as the `Date` of DynamoDB's answers tells it.

Owns reading these dates, at most once a second, the lines about a clock that differs, and the metric. Does not own what
a date says (`core.clocks`) nor what follows from it (`core.lane_policy`). Kafka's answers carry no time, so the table's
clock is the only one that this machine's is compared with.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

from tenuto_control.core.clocks import ClockCheck, joined, reading
from tenuto_control.core.metrics import Metrics
from tenuto_control.ports import Clock

log = logging.getLogger("tenuto.clock")

READING_INTERVAL_MS: Final = 1_000
"""A date is read this often at most: that is what a request costs more, and not each one."""

ASKED: Final = "tenuto_asked_ms"
"""The name in a request's context under which the time of its sending is kept."""


class DynamoClock:
    """Compares a clock with the dates of a DynamoDB client's answers (the TableClock port).

    `margin_ms` is the difference beyond which leases of others are not judged: `lease_margin_ms`.
    """

    def __init__(self, clock: Clock, margin_ms: int, metrics: Metrics) -> None:
        self.check: ClockCheck | None = None
        self._clock = clock
        self._margin_ms = margin_ms
        self._metrics = metrics
        self._next_ms = 0

    @classmethod
    def watching(cls, client: Any, clock: Clock, margin_ms: int, metrics: Metrics) -> DynamoClock:
        """One that reads the dates of this client's answers from now on."""
        table_clock = cls(clock, margin_ms, metrics)
        client.meta.events.register("before-call.dynamodb", table_clock._asked)
        client.meta.events.register("response-received.dynamodb", table_clock._answered)
        return table_clock

    def _asked(self, context: MutableMapping[str, Any], **_: Any) -> None:
        now_ms = self._clock.now_ms()
        # A clock that was set back reads the next date at once, too.
        if not self._next_ms - READING_INTERVAL_MS <= now_ms < self._next_ms:
            self._next_ms = now_ms + READING_INTERVAL_MS
            context[ASKED] = now_ms

    def _answered(
        self, context: MutableMapping[str, Any], response_dict: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        asked_ms = context.pop(ASKED, None)
        date = None if response_dict is None else response_dict["headers"].get("date")
        if asked_ms is None or date is None:
            return
        try:
            dated_ms = int(parsedate_to_datetime(date).timestamp()) * 1_000
        except (ValueError, OverflowError):
            return
        told = reading(asked_ms, self._clock.now_ms(), dated_ms)
        if told is not None:
            self._learn(told)

    def _learn(self, told: ClockCheck) -> None:
        known, self.check = self.check, joined(self.check, told)
        self._metrics.sample("ClockDifferenceMs", self.check.certain_ms)
        differed = known is not None and known.differs(self._margin_ms)
        if self.check.differs(self._margin_ms):
            if not differed:
                log.error(
                    "%s, more than lease_margin_ms (%d ms): no run of another process is taken over until it is put "
                    "right",
                    said(self.check),
                    self._margin_ms,
                )
        elif known is None or differed:
            log.info("%s", said(self.check))


def said(check: ClockCheck) -> str:
    """A check in words."""
    side = "ahead of" if check.offset_ms >= 0 else "behind"
    return f"this machine's clock is {abs(check.offset_ms)} ms {side} the table's, give or take {check.within_ms} ms"
