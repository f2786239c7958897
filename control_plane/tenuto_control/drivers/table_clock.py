"""The table's clock, as the `Date` of DynamoDB's answers tells it.

Owns reading these dates, about once a second, the lines about a clock that differs, and the metric. Does not own what
a date says (`core.clocks`) nor what follows from it (`core.lane_policy`). Kafka's answers carry no time, so the table's
clock is the only one that this machine's is compared with.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, MutableMapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

from tenuto.wire.dynamodb import Watcher, WireDynamo
from tenuto_control.core.clocks import ClockCheck, joined, reading
from tenuto_control.core.metrics import Metrics
from tenuto_control.ports import Clock

log = logging.getLogger("tenuto.clock")

READING_INTERVAL_S: Final = 1.38
"""The pause between two readings. Requests in between pass by without being looked at, and cost nothing more. No whole
number of seconds: dates are cut to the second, and readings tell more when they fall into different parts of it."""

_DATE: Final = re.compile(r"[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} 2\d{3} \d{2}:\d{2}:\d{2} GMT")
"""The one form of a date that HTTP servers send (RFC 9110). The parser takes many others, and guesses."""

ASKED: Final = "tenuto_asked_ms"
"""The name in a request's context under which the time of its sending is kept."""


class DynamoClock:
    """Compares a clock with the dates of a DynamoDB client's answers (the TableClock port).

    `margin_ms` is the difference beyond which leases of others are not judged: `lease_margin_ms`.
    """

    def __init__(self, client: Any, clock: Clock, margin_ms: int, metrics: Metrics) -> None:
        self.check: ClockCheck | None = None
        self._clock = clock
        self._margin_ms = margin_ms
        self._metrics = metrics
        self._client = client if isinstance(client, WireDynamo) else _Events(client.meta.events)
        self._listen()

    def _listen(self) -> None:
        """Look at requests, until one has been answered with a date."""
        self._client.watcher = self

    def asked(self) -> int:
        """See `Watcher.asked`."""
        return self._clock.now_ms()

    def answered(self, asked_ms: int, date: str | None) -> None:
        """See `Watcher.answered`."""
        told = None if date is None else _told(asked_ms, self._clock.now_ms(), date)
        # Of several requests in progress at the same time, the first answer is enough.
        if told is None or self._client.watcher is None:
            return
        self._client.watcher = None
        asyncio.get_running_loop().call_later(READING_INTERVAL_S, self._listen)
        self._learn(told)

    def _learn(self, told: ClockCheck) -> None:
        known, self.check = self.check, joined(self.check, told)
        self._metrics.sample("ClockDifferenceMs", self.check.certain_ms)
        differed = known is not None and known.differs(self._margin_ms)
        if self.check.differs(self._margin_ms):
            if not differed:
                log.error(
                    "%s, more than lease_margin_ms (%d ms): no run of another process is taken over until it is "
                    "corrected",
                    said(self.check),
                    self._margin_ms,
                )
        elif known is None or differed:
            log.info("%s", said(self.check))


class _Events:
    """The dates of an aiobotocore client's answers, for the watcher that is there."""

    def __init__(self, events: Any) -> None:
        self._events = events
        self._watcher: Watcher | None = None

    @property
    def watcher(self) -> Watcher | None:
        """Who looks at them; nothing is looked at for nobody."""
        return self._watcher

    @watcher.setter
    def watcher(self, watcher: Watcher | None) -> None:
        change = self._events.register if watcher is not None else self._events.unregister
        change("before-call.dynamodb", self._asked)
        change("response-received.dynamodb", self._answered)
        self._watcher = watcher

    def _asked(self, context: MutableMapping[str, Any], **_: Any) -> None:
        if self._watcher is not None:
            context[ASKED] = self._watcher.asked()

    def _answered(
        self, context: MutableMapping[str, Any], response_dict: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        asked_ms = context.get(ASKED)
        if self._watcher is not None and asked_ms is not None and response_dict is not None:
            self._watcher.answered(asked_ms, response_dict["headers"].get("date"))


def _told(asked_ms: int, answered_ms: int, date: str) -> ClockCheck | None:
    """What an answer with this `Date` says; None when that is no date."""
    if _DATE.fullmatch(date) is None:
        return None
    try:
        dated_ms = int(parsedate_to_datetime(date).timestamp()) * 1_000
    except (ValueError, OverflowError):
        return None
    return reading(asked_ms, answered_ms, dated_ms)


def said(check: ClockCheck) -> str:
    """A check in words."""
    side = "ahead of" if check.offset_ms >= 0 else "behind"
    return f"this machine's clock is {abs(check.offset_ms)} ms {side} the table's, give or take {check.within_ms} ms"
