"""A dispatcher that runs as a function: what it does for one batch of records, one wake-up, one tick or one request.

Owns when such an invocation is over and what is handed on. Between invocations the process is frozen, so each ends
with nothing under way: what is left to do is given to `hand_on`, which has somebody woken for it at once; where that
fails, the lane's own timer item brings the sweep. Does not own the shape of events (`tenuto.hosts`) nor the wiring
(`lambda_entry`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from tenuto.hosts.event_scheduler import WakeUp
from tenuto.hosts.kafka_event_source import SourceRecord
from tenuto.protocol.ids import Lane
from tenuto_control.core.routing import Quarantine, Subscription, life_of, route
from tenuto_control.limits import Limits
from tenuto_control.loops.failures import FailureLog
from tenuto_control.loops.quarantine import DeadLetters
from tenuto_control.loops.sweep import Sweeper
from tenuto_control.ports import Clock, Errand, Interruptible, RecordSink, TopicLives, TopicPartition

log = logging.getLogger("tenuto.serverless")

HANDED_ON_MAX = 64
"""Lanes one invocation hands on; what is more, the sweep finds."""

LEAVE_GRACE_MS = 50
"""How long an invocation stays for what follows its end at once: a result that is stored, a lane that comes to rest."""

HandOn: TypeAlias = Callable[[Errand], Awaitable[None]]
"""Has an errand run soon by another invocation. It may fail silently."""


class UnsubscribedError(Exception):
    """Records of a topic that the configuration has no subscription for. The message says what to do."""


class Serverless:
    """Serves one event at a time. Deadlines are times of the clock, in milliseconds."""

    def __init__(
        self,
        dispatcher: Interruptible,
        sweeper: Sweeper,
        sink: RecordSink,
        lives: TopicLives,
        subscriptions: Iterable[Subscription],
        clock: Clock,
        limits: Limits,
        hand_on: HandOn,
    ) -> None:
        self._dispatcher = dispatcher
        self._sweeper = sweeper
        self._lives = lives
        self._subscriptions: Mapping[str, Subscription] = {s.topic: s for s in subscriptions}
        self._clock = clock
        self._limits = limits
        self._hand_on = hand_on
        failures = FailureLog(clock, limits.failure_log_interval_ms)
        self._dead_letters = DeadLetters(sink, dispatcher.set_aside, failures, clock, limits, dispatcher.metrics)

    async def records(self, records: Sequence[SourceRecord], deadline_ms: int) -> list[SourceRecord]:
        """Run a batch. Returns the records that need their offsets still, to be delivered again.

        Raises UnsubscribedError, and LogUnavailableError when nobody tells which life of its topic it is of, before
        anything is done.
        """
        for topic in sorted({record.topic for record in records} - self._subscriptions.keys()):
            raise UnsubscribedError(
                f"topic {topic!r} has no subscription: add [[subscriptions]] topic = {topic!r} to the dispatcher's "
                "tenuto.toml, or remove the topic's event source mapping"
            )
        records = await self._with_lives(records)
        batch = _Batch(records)
        quarantining: list[asyncio.Task[None]] = []
        try:
            for record in records:
                subscription = self._subscriptions[record.topic]
                released = partial(batch.release, record)
                match route(record, subscription):
                    case Quarantine(reason):
                        work = self._quarantine(record, subscription.dead_letter_topic, reason, released)
                        quarantining.append(asyncio.create_task(work))
                    case event:
                        self._dispatcher.deliver(event, released)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0, deadline_ms - self._clock.now_ms()) / 1000):
                    await batch.empty.wait()
        finally:
            for task in quarantining:
                task.cancel()
            # What is cut off below releases nothing any more: its record is delivered again.
            left = list(batch.unfinished)
            # A cancelled task ends in a turn of its own, and without this the process may be frozen before it comes.
            await asyncio.gather(*quarantining, return_exceptions=True)
            await self._leave()
        return left

    async def _with_lives(self, records: Sequence[SourceRecord]) -> list[SourceRecord]:
        """The records with the id of their topic's life, which a mapping does not tell.

        Asked for each batch: a process may have been frozen while a topic was deleted and created again.
        """
        lives = await self._lives.of({TopicPartition(record.topic, record.partition) for record in records})
        named = []
        for record in records:
            life = lives[TopicPartition(record.topic, record.partition)]
            named.append(replace(record, topic_id=life_of(record.offset, life.topic_id, life.end)))
        return named

    async def woken(self, wake: WakeUp, deadline_ms: int) -> None:
        """Look after a lane, and whatever comes of it."""
        try:
            await self._dispatcher.woken(Errand(Lane.from_pk(wake.lane), wake.timer))
            await self._dispatcher.settle(deadline_ms, self._limits.linger_ms)
        finally:
            await self._leave()

    async def tick(self, deadline_ms: int) -> None:
        """Look at the timers that are due, and at the lanes behind them."""
        try:
            await self._sweeper.sweep()
            await self._sweeper.sweep_deep()
            await self._dispatcher.settle(deadline_ms, self._limits.linger_ms)
        finally:
            # A table that does not answer ends the sweep, when lanes it has looked at are at work and timers are armed.
            await self._leave()

    async def answered(self) -> None:
        """A request has its answer: its caller waits for nothing more."""
        await self._leave()

    async def _leave(self) -> None:
        """Stop, and hand on what is in the middle of something, or would be soon."""
        await self._dispatcher.settle(self._clock.now_ms() + LEAVE_GRACE_MS)
        errands = await self._dispatcher.halt(self._clock.now_ms() + self._limits.linger_ms)
        if len(errands) > HANDED_ON_MAX:
            log.warning("%d lanes are left to the sweep", len(errands) - HANDED_ON_MAX)
        await asyncio.gather(*(self._hand_on(errand) for errand in errands[:HANDED_ON_MAX]))

    async def _quarantine(self, record: SourceRecord, topic: str, reason: str, released: Callable[[], None]) -> None:
        await self._dead_letters.put(record, topic, reason)
        released()


class _Batch:
    """The records of a batch whose offsets are still needed."""

    def __init__(self, records: Sequence[SourceRecord]) -> None:
        self.unfinished = dict.fromkeys(records)
        self.empty = asyncio.Event()
        if not records:
            self.empty.set()

    def release(self, record: SourceRecord) -> None:
        """An offset need not be held any more."""
        self.unfinished.pop(record, None)
        if not self.unfinished:
            self.empty.set()
