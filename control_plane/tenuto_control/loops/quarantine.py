"""Quarantine: records that can never be handled go to their dead-letter topic, however long that takes.

Owns producing them, its pace and its complaints. Does not own which records these are nor the smaller forms of one that
its dead-letter topic finds too large (`core.routing`), nor what waits for them.
"""

from __future__ import annotations

import asyncio
import logging

from tenuto.protocol.messages import RetryPolicy
from tenuto_control.core.backoff import pause_ms
from tenuto_control.core.metrics import Metrics
from tenuto_control.core.routing import Record, dead_letter_forms
from tenuto_control.dispatcher.dead_letters import produce_largest
from tenuto_control.limits import Limits
from tenuto_control.loops.failures import FailureLog
from tenuto_control.ports import LogUnavailableError, RecordSink

_log = logging.getLogger("tenuto_control")


class DeadLetters:
    """Produces refused records, some at a time."""

    def __init__(self, sink: RecordSink, failures: FailureLog, limits: Limits, metrics: Metrics) -> None:
        self._sink = sink
        self._metrics = metrics
        self._failures = failures
        self._retry = RetryPolicy(initial_ms=limits.log_retry_initial_ms, max_ms=limits.log_retry_max_ms)
        self._producing = asyncio.Semaphore(limits.quarantine_concurrency)

    async def put(self, record: Record, topic: str, reason: str) -> None:
        """Return when the record is in its dead-letter topic; tries on while the log does not take it."""
        what = f'quarantine to "{topic}"'
        forms = dead_letter_forms(record, reason)
        attempt = 1
        while True:
            try:
                async with self._producing:
                    kept = await produce_largest(self._sink, topic, forms)
            except LogUnavailableError as e:
                attempt += 1
                self._failures.failed(what, e)
                await asyncio.sleep(pause_ms(self._retry, attempt, 0.0) / 1_000)
            else:
                self._failures.succeeded(what)
                self._metrics.count("DeadLetters")
                if kept.lacks:
                    _log.error(
                        'dead letter of %s/%d offset %d: too large for "%s", so it lacks %s; raise max.message.bytes '
                        "there. Its reason: %s",
                        *(record.topic, record.partition, record.offset, topic, kept.lacks, reason),
                    )
                return
