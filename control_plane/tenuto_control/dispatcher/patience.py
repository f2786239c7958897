"""How long a record waits for a topic that cannot be produced to, but may be before long.

Owns that bound for each topic, and the lines about it. Does not own what happens to a record when it is over.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from tenuto_control.core.metrics import Metrics
from tenuto_control.ports import Clock, TopicUnusableError

log = logging.getLogger("tenuto.delivery")

TOPICS_MAX = 1_000
"""Topics that are remembered; names come from handlers, so there may be any number of them."""


@dataclass(slots=True)
class _Series:
    since_ms: int
    last_ms: int
    said_over: bool = False


class TopicPatience:
    """Topics that take nothing, and since when. `bound_ms` is how long their records wait.

    A topic that has been unusable for that long does not get the time again for its next record: the lane of a handler
    that publishes to it would spend it on each. It does after a pause of as long in which nobody has tried.
    """

    def __init__(self, clock: Clock, bound_ms: int, metrics: Metrics) -> None:
        self._clock = clock
        self._bound_ms = bound_ms
        self._metrics = metrics
        self._topics: dict[str, _Series] = {}

    def over(self, topic: str, error: TopicUnusableError) -> bool:
        """One more failure to produce to a topic. True when its records should wait no longer."""
        now_ms = self._clock.now_ms()
        self._metrics.count("ProduceRetries")
        series = self._topics.get(topic)
        if series is None or now_ms - series.last_ms > self._bound_ms:
            while len(self._topics) >= TOPICS_MAX:
                del self._topics[next(iter(self._topics))]
            series = self._topics[topic] = _Series(now_ms, now_ms)
            text = "%s; records for it wait for up to %d s, then they are kept as dead letters in the table"
            log.warning(text, error, self._bound_ms // 1000)
        series.last_ms = now_ms
        over = now_ms - series.since_ms >= self._bound_ms
        if over and not series.said_over:
            series.said_over = True
            log.error("%s; records for it wait no longer", error)
        return over

    def succeeded(self, topic: str) -> None:
        """A record was produced to this topic."""
        if self._topics and self._topics.pop(topic, None) is not None:
            log.info('topic "%s" accepts records now', topic)
