"""Partitions that cannot be read: a log line when it begins, again at growing pauses, and when it is over.

Owns these lines, the metric, and the list that `/ready` shows. Does not own finding such partitions nor trying them
again: the log's driver does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tenuto_control.core.metrics import Metrics
from tenuto_control.limits import Limits
from tenuto_control.ports import Clock, TopicPartition, Unreadable

NAMED_MAX = 8
"""So many partitions that share a reason are named in its line; of the others only the number is told."""

_log = logging.getLogger("tenuto_control")


@dataclass(slots=True)
class _Case:
    """One unreadable partition: since when, and when it is to be logged again after which pause."""

    what: Unreadable
    since_ms: int
    again_ms: int
    pause_ms: int


class UnreadablePartitions:
    """What this process cannot read at present."""

    def __init__(self, clock: Clock, limits: Limits, metrics: Metrics) -> None:
        self._clock = clock
        self._first_pause_ms = limits.failure_log_interval_ms
        self._pause_ms_max = max(limits.unreadable_log_max_ms, limits.failure_log_interval_ms)
        self._metrics = metrics
        self._cases: dict[TopicPartition, _Case] = {}

    @property
    def present(self) -> Sequence[Unreadable]:
        """The partitions, each with its offset and reason."""
        return [case.what for _, case in sorted(self._cases.items())]

    def update(self, found: Iterable[Unreadable], ours: Iterable[TopicPartition]) -> None:
        """Take note of all partitions that cannot be read now. `ours` are those that this process has to read."""
        now_ms = self._clock.now_ms()
        unreadable = {one.partition: one for one in found}
        for tp in self._cases.keys() - unreadable.keys() - set(ours):
            del self._cases[tp]  # Another process tries it now.
        self._metrics.sample("UnreadablePartitions", len(unreadable))
        self._tell_those_over(unreadable.keys(), now_ms)
        telling: dict[str, list[Unreadable]] = {}
        for tp, one in unreadable.items():
            case = self._cases.get(tp)
            if case is None or case.what != one:
                since_ms = now_ms if case is None else case.since_ms
                # A partition that gets on from one bad place to the next is not news each time.
                pause_ms = self._first_pause_ms if case is None else case.pause_ms
                again_ms = now_ms if case is None else case.again_ms
                case = self._cases[tp] = _Case(one, since_ms, again_ms, pause_ms)
            if now_ms >= case.again_ms:
                telling.setdefault(one.reason, []).append(one)
                case.again_ms = now_ms + case.pause_ms
                case.pause_ms = min(case.pause_ms * 2, self._pause_ms_max)
        for reason, those in telling.items():
            named = _named([_place(one) for one in those])
            _log.error("cannot read %s: %s; other partitions continue, and this one is retried", named, reason)

    def _tell_those_over(self, unreadable: Iterable[TopicPartition], now_ms: int) -> None:
        over = sorted(self._cases.keys() - set(unreadable))
        if over:
            longest_s = max(now_ms - self._cases[tp].since_ms for tp in over) / 1_000
            named = _named([f"{tp.topic}/{tp.partition}" for tp in over])
            _log.info("reading %s again, after %.1f s", named, longest_s)
        for tp in over:
            del self._cases[tp]


def _place(one: Unreadable) -> str:
    at = f" at offset {one.offset}" if one.offset >= 0 else ""
    return f"{one.partition.topic}/{one.partition.partition}{at}"


def _named(places: Sequence[str]) -> str:
    more = f" and {len(places) - NAMED_MAX} more partitions" if len(places) > NAMED_MAX else ""
    return ", ".join(places[:NAMED_MAX]) + more
