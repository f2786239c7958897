"""Quarantine: records that can never be handled go to their dead-letter topic, or else into the table.

Owns producing them, its pace and its lines. Does not own which records these are nor the smaller forms of one that its
dead-letter topic finds too large (`core.routing`), nor what waits for them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

from tenuto.protocol.messages import RetryPolicy
from tenuto.protocol.records import PublishOut
from tenuto_control.core.backoff import pause_ms
from tenuto_control.core.log_fields import shown
from tenuto_control.core.metrics import Metrics
from tenuto_control.core.routing import Record, dead_letter_forms, kept_form
from tenuto_control.dispatcher.capacity import SharedRoom
from tenuto_control.dispatcher.dead_letters import produce_largest
from tenuto_control.dispatcher.patience import TopicPatience
from tenuto_control.limits import Limits
from tenuto_control.loops.failures import FailureLog
from tenuto_control.ports import (
    Clock,
    LogUnavailableError,
    RecordRefusedError,
    RecordSink,
    RecordTooLargeError,
    TopicUnusableError,
)

_log = logging.getLogger("tenuto_control")

SetAside: TypeAlias = Callable[[PublishOut, Sequence[str], str], Awaitable[None]]
"""Keeps a record in the table (`Execution.set_aside`)."""


class DeadLetters:
    """Produces refused records, some at a time. Of these places, half is kept for the `topics` in equal parts.

    So a dead-letter topic whose broker does not answer keeps no other one waiting.
    """

    def __init__(
        self,
        sink: RecordSink,
        set_aside: SetAside,
        failures: FailureLog,
        clock: Clock,
        limits: Limits,
        metrics: Metrics,
        topics: int = 1,
    ) -> None:
        self._sink = sink
        self._set_aside = set_aside
        self._metrics = metrics
        self._clock = clock
        self._failures = failures
        self._patience = TopicPatience(clock, limits.topic_patience_ms, metrics)
        self._retry = RetryPolicy(initial_ms=limits.log_retry_initial_ms, max_ms=limits.log_retry_max_ms)
        self._producing = SharedRoom(limits.quarantine_concurrency, topics)

    async def put(self, record: Record, topic: str, reason: str, until_ms: int | None = None) -> None:
        """Return when the record is in its dead-letter topic, or in the table because no waiting brings it there.

        Tries on while the log does not take it, and waits for a topic that is not there for as long as others do. After
        `until_ms` it waits no longer, whatever the reason.
        """
        what = f'quarantine to "{topic}"'
        attempt = 1
        while True:
            try:
                async with self._place(topic):
                    await self._produce(record, topic, reason)
            except (RecordTooLargeError, RecordRefusedError) as e:
                return await self._keep(record, topic, reason, e)
            except LogUnavailableError as e:
                if isinstance(e, TopicUnusableError):
                    over = self._patience.over(topic, e)
                else:
                    over = False
                    self._failures.failed(what, e)
                if over or (until_ms is not None and self._clock.now_ms() >= until_ms):
                    return await self._keep(record, topic, reason, e)
            else:
                self._failures.succeeded(what)
                self._patience.succeeded(topic)
                return None
            attempt += 1
            await asyncio.sleep(pause_ms(self._retry, attempt, 0.0) / 1_000)

    @asynccontextmanager
    async def _place(self, topic: str) -> AsyncIterator[None]:
        beyond = await self._producing.take(topic, 1)
        try:
            yield
        finally:
            self._producing.give(topic, 1, large=beyond)

    async def _produce(self, record: Record, topic: str, reason: str) -> None:
        kept = await produce_largest(self._sink, topic, dead_letter_forms(record, reason))
        self._metrics.count("DeadLetters")
        _log.error(
            'the record %s/%d offset %d cannot be handled and is in "%s": %s',
            *(record.topic, record.partition, record.offset, topic, shown(reason)),
        )
        if kept.lacks:
            _log.error(
                'dead letter of %s/%d offset %d: too large for "%s", so it lacks %s; raise max.message.bytes there. '
                "Its reason: %s",
                *(record.topic, record.partition, record.offset, topic, kept.lacks, shown(reason)),
            )

    async def _keep(self, record: Record, topic: str, reason: str, error: LogUnavailableError) -> None:
        entry, identity = kept_form(record, topic, reason)
        await self._set_aside(entry, identity, f"{reason}; its dead-letter topic: {error}")
