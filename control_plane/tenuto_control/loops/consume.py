"""Moves records from the event log to the dispatcher, and offsets back once their work no longer needs them.

Owns delivery order within a partition, back-pressure, commits, rebalances and the quarantine of records that
can never be handled. Does not own what an event does (`tenuto_control.dispatcher`) nor what a record means
(`core.routing`).

    poll -> route -+-> execution.deliver -> released -+-> window -> commit
                   +-> quarantine -> acknowledged ----+

An offset is committed when everything below it was released or quarantined. Records of a partition that moves
away before that are delivered again to its next owner, where the lane's watermark recognises them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from tenuto.protocol.messages import RetryPolicy
from tenuto.protocol.records import Event
from tenuto_control.core.backoff import pause_ms
from tenuto_control.core.metrics import Metrics, Uncounted
from tenuto_control.core.offsets import OffsetWindow
from tenuto_control.core.routing import Quarantine, Subscription, route
from tenuto_control.limits import Limits
from tenuto_control.loops.failures import FailureLog
from tenuto_control.loops.quarantine import DeadLetters
from tenuto_control.loops.unreadable import UnreadablePartitions
from tenuto_control.ports import (
    Clock,
    EventLog,
    Execution,
    LogRecord,
    LogUnavailableError,
    RecordSink,
    TopicPartition,
)

_log = logging.getLogger("tenuto_control")


@dataclass(slots=True)
class _Assigned:
    """A partition while it is ours. A new assignment of the same partition is a new object."""

    window: OffsetWindow = field(default_factory=OffsetWindow)
    committed: int | None = None
    paused: bool = False
    leaving: bool = False
    gone: bool = False
    quarantines: set[asyncio.Task[None]] = field(default_factory=set)


class Consumer:
    """One member of the group, as long as `run` runs."""

    def __init__(
        self,
        log: EventLog,
        sink: RecordSink,
        execution: Execution,
        subscriptions: Iterable[Subscription],
        limits: Limits,
        clock: Clock,
        metrics: Metrics | None = None,
        unreadable: UnreadablePartitions | None = None,
    ) -> None:
        self._log = log
        self._metrics = metrics or Uncounted()
        self._unreadable = unreadable or UnreadablePartitions(clock, limits, self._metrics)
        self._execution = execution
        self._subscriptions = {subscription.topic: subscription for subscription in subscriptions}
        self._limits = limits
        self._failures = FailureLog(clock, limits.failure_log_interval_ms)
        topics = len({one.dead_letter_topic for one in self._subscriptions.values()})
        self._dead_letters = DeadLetters(
            sink, execution.set_aside, self._failures, clock, limits, self._metrics, max(1, topics)
        )
        self._retry = RetryPolicy(initial_ms=limits.log_retry_initial_ms, max_ms=limits.log_retry_max_ms)
        self._partitions: dict[TopicPartition, _Assigned] = {}
        # What the windows of all partitions hold.
        self._records = self._bytes = 0
        self._relieved_ms = 0
        self._clock = clock
        self._stopping = asyncio.Event()
        self._committing = asyncio.Lock()
        self._tasks = asyncio.TaskGroup()

    async def run(self) -> None:
        """Consume until `stop` is called or the task is cancelled; then drain, commit and leave the group."""
        if not await self._join():
            return
        try:
            async with self._tasks:
                committing = self._tasks.create_task(self._commit_regularly(), name="commit offsets")
                await self._consume()
                committing.cancel()
                await self.revoked(list(self._partitions))
        finally:
            # After an orderly stop nothing is left to revoke; after a cancellation this is where it happens.
            await self.revoked(list(self._partitions))
            await self._log.stop()

    def stop(self) -> None:
        """Ask `run` to come to its orderly end; returns at once."""
        self._stopping.set()

    # --- the group's calls (AssignmentListener) -------------------------------------------------------------

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Start from the group's committed offsets, with nothing in flight."""
        for tp in partitions:
            if tp in self._partitions:
                self._forget(tp)
            self._partitions[tp] = _Assigned()

    async def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Finish or drop the partitions' work and commit what is done, within the drain timeout."""
        ours = {tp: self._partitions[tp] for tp in partitions if tp in self._partitions}
        for assigned in ours.values():
            assigned.leaving = True
        await self._execution.withdraw(list(ours), self._limits.drain_timeout_ms)
        for assigned in ours.values():
            for task in assigned.quarantines:
                task.cancel()
        await self._commit(ours)
        for tp, assigned in ours.items():
            if self._partitions.get(tp) is assigned:
                self._forget(tp)

    def _forget(self, tp: TopicPartition) -> None:
        """The partition is ours no more; what it still releases counts for nothing."""
        assigned = self._partitions.pop(tp)
        assigned.gone = True
        self._records -= assigned.window.records
        self._bytes -= assigned.window.bytes

    # --- in -------------------------------------------------------------------------------------------------

    async def _join(self) -> bool:
        """Start the log, however long it takes; False when told to stop first."""
        attempt = 1
        while not self._stopping.is_set():
            try:
                await self._log.start(sorted(self._subscriptions), self)
            except LogUnavailableError as e:
                attempt += 1
                self._failures.failed("joining the consumer group", e)
                await self._pause(attempt)
            else:
                self._failures.succeeded("joining the consumer group")
                return True
        return False

    async def _consume(self) -> None:
        attempt = 1
        while not self._stopping.is_set():
            try:
                records = await self._log.poll(self._limits.poll_records_max, self._limits.poll_timeout_ms)
            except LogUnavailableError as e:
                attempt += 1
                self._failures.failed("reading from the log", e)
                await self._pause(attempt)
                continue
            if attempt > 1:
                attempt = 1
                self._failures.succeeded("reading from the log")
            await self._take_all(records)

    async def _take_all(self, records: Sequence[LogRecord]) -> None:
        """Take records in, some at a time: in between, the work of others gets its turn, and partitions may go."""
        partitions = dict(self._partitions)
        for at in range(0, max(1, len(records)), TAKEN_AT_ONCE):
            tp, assigned = None, None
            for record in records[at : at + TAKEN_AT_ONCE]:
                if tp is None or record.partition != tp.partition or record.topic != tp.topic:
                    tp = TopicPartition(record.topic, record.partition)
                    assigned = partitions.get(tp)
                    # A partition that has come back meanwhile is read again, from what was committed.
                    if self._partitions.get(tp) is not assigned:
                        assigned = None
                if assigned is not None:
                    self._take(assigned, record)
            self._apply_pressure()
            # A log with records at hand answers without a pause.
            await asyncio.sleep(0)

    def _take(self, assigned: _Assigned, record: LogRecord) -> None:
        if assigned.leaving:
            return  # The partition is on its way to another member, who reads this record again.
        subscription = self._subscriptions[record.topic]
        meaning = _meaning(record, subscription)
        weight = weight_of(record) + (QUARANTINE_BYTES if isinstance(meaning, Quarantine) else 0)
        if not assigned.window.deliver(record.offset, weight):
            return
        self._records += 1
        self._bytes += weight
        released = partial(self._release, assigned, record.offset)
        match meaning:
            case Quarantine(reason):
                task = self._tasks.create_task(
                    self._quarantine(record, subscription.dead_letter_topic, reason, released),
                    name=f"quarantine {record.topic}/{record.partition}/{record.offset}",
                )
                assigned.quarantines.add(task)
                task.add_done_callback(assigned.quarantines.discard)
            case event:
                self._execution.deliver(event, released)

    def _release(self, assigned: _Assigned, offset: int) -> None:
        weight = assigned.window.finish(offset)
        if assigned.gone or not weight:
            return
        self._records -= 1
        self._bytes -= weight
        if assigned.paused and self._pressure(assigned) <= RELIEVED:
            self._apply_pressure()

    async def _quarantine(self, record: LogRecord, topic: str, reason: str, released: Callable[[], None]) -> None:
        """Produce the record to its dead-letter topic; only its own offset waits."""
        await self._dead_letters.put(record, topic, reason)
        released()

    # --- back-pressure --------------------------------------------------------------------------------------

    def _apply_pressure(self) -> None:
        """Pause what is above its bound, resume what has fallen below half of it."""
        pausing: list[TopicPartition] = []
        resuming: list[TopicPartition] = []
        for tp, assigned in self._partitions.items():
            if assigned.leaving:
                continue
            pressure = self._pressure(assigned)
            if not assigned.paused and pressure >= FULL:
                assigned.paused = True
                pausing.append(tp)
            elif assigned.paused and pressure <= RELIEVED:
                assigned.paused = False
                resuming.append(tp)
        if pausing:
            self._log.pause(pausing)
        if resuming:
            self._log.resume(resuming)
        self._relieve()

    def _relieve(self) -> None:
        """Have slow keys make room in partitions that can take no more; each time, all lanes with work are asked."""
        now_ms = self._clock.now_ms()
        if now_ms - self._relieved_ms < RELIEVE_INTERVAL_MS:
            return
        full = [tp for tp, assigned in self._partitions.items() if assigned.paused and not assigned.leaving]
        if full:
            self._relieved_ms = now_ms
            self._execution.relieve(full)

    def _pressure(self, assigned: _Assigned) -> float:
        """How full a partition is, of its own bound or of the process's.

        The process being full, a partition is stopped that holds a fair part of it: others hold little, and their
        handlers have nothing to do with what holds the rest up. What they add has a bound, too.
        """
        window, limits = assigned.window, self._limits
        own = max(window.records / limits.partition_records_max, window.bytes / limits.partition_bytes_max)
        process = max(self._records / limits.process_records_max, self._bytes / limits.process_bytes_max)
        if process < FULL + FAIR_PART:
            share = max(window.records / limits.process_records_max, window.bytes / limits.process_bytes_max)
            fair = FAIR_PART / len(self._partitions)
            if share < (fair / 2 if assigned.paused else fair):
                return own
        return max(own, process)

    # --- out ------------------------------------------------------------------------------------------------

    async def _commit_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._limits.commit_interval_ms / 1_000)
            self._metrics.sample("Lag", self._log.lag())
            self._unreadable.update(self._log.unreadable(), self._partitions)
            await self._commit({tp: assigned for tp, assigned in self._partitions.items() if not assigned.leaving})

    async def _commit(self, partitions: dict[TopicPartition, _Assigned]) -> None:
        """Commit what has advanced.

        A failure is logged only: the next commit covers it, or redelivery does.
        """
        async with self._committing:
            offsets = {
                tp: offset
                for tp, assigned in partitions.items()
                if (offset := assigned.window.committable) is not None and offset != assigned.committed
            }
            if not offsets:
                return
            try:
                await self._log.commit(offsets)
            except LogUnavailableError as e:
                self._failures.failed("committing offsets", e)
                return
            self._failures.succeeded("committing offsets")
            for tp, offset in offsets.items():
                partitions[tp].committed = offset

    async def _pause(self, attempt: int) -> None:
        """Wait before `attempt`, or until told to stop."""
        try:
            async with asyncio.timeout(pause_ms(self._retry, attempt, 0.0) / 1_000):
                await self._stopping.wait()
        except TimeoutError:
            pass


def _meaning(record: LogRecord, subscription: Subscription) -> Event | Quarantine:
    """What a record stands for. Whatever it makes routing raise is its own fault, and no other record's."""
    if record.unreadable:
        return Quarantine(record.unreadable)
    try:
        return route(record, subscription)
    except Exception as e:  # noqa: BLE001 - whatever it is, the process has other records to see to
        # What the error says may quote the record, and a log holds nothing of those.
        _log.error(
            "%s/%d offset %d: routing it failed (%s)", record.topic, record.partition, record.offset, type(e).__name__
        )
        return Quarantine(f"routing it failed: {type(e).__name__}")


TAKEN_AT_ONCE = 50
"""Records that are taken in before other work gets its turn: about a millisecond."""

FULL = 1.0
"""The share of its bound at which a partition is paused."""

RELIEVED = 0.5
"""The share of its bound at which a paused partition continues.

Apart from `FULL`, so that it does not flutter.
"""

FAIR_PART = 0.25
"""So much of the process's bound comes on top, divided among partitions that hold little when others have filled it."""

RELIEVE_INTERVAL_MS = 1_000
"""How often lanes are asked to make room while partitions are paused."""

RECORD_OVERHEAD_BYTES = 2_560
"""What a record costs in memory besides its contents: its event, its place in a queue and in its window, and a lane
that waits for it alone, as most do in a backlog of many keys. Measured are 1,800 bytes (`tests/attack/test_memory`),
to which comes what an allocator loses."""

QUARANTINE_BYTES = 8 * 1024
"""What a record costs besides while its dead letter waits to be produced: a task, and what it is written from."""

KEY_COPIES = 4
"""A key is held as it came, as text, and in an invocation's id."""


def weight_of(record: LogRecord) -> int:
    """Bytes a record holds in memory while it is in flight, roughly."""
    size = RECORD_OVERHEAD_BYTES + KEY_COPIES * len(record.key or b"") + len(record.value or b"")
    for name, value in record.headers:
        size += HEADER_BYTES + len(name) + len(value)
    return size


HEADER_BYTES = 160
"""A header's tuple, text and bytes, besides what they hold."""
