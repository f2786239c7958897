"""Fetching, one partition at a time: what one of them cannot give costs no other a record, nor the process its life.

Owns what becomes of each partition's share of an answer, the position of each partition, and the pauses after which one
that cannot be read is tried again. Does not own batches (`kafka_batches`), assignments (`kafka_membership`), nor log
lines: who asks for the troubles reports them.

aiokafka's own fetcher drains all partitions in one go. An error in the middle loses what was drained before it, whose
positions have moved, and some errors end the fetcher for good. Here a position moves only with the records that are
handed out, and an error is kept beside the partition it is of.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiokafka
from aiokafka.consumer.fetcher import Fetcher, OffsetResetStrategy
from aiokafka.errors import NoError, OffsetOutOfRangeError, for_code

from tenuto.protocol.messages import RetryPolicy
from tenuto_control.core.backoff import pause_ms
from tenuto_control.drivers.kafka_batches import Answer, Fetched, UnreadableError, one_line
from tenuto_control.limits import Limits

STABLE_VERSION, START_VERSION = 4, 5
"""Versions of the fetch answer from which on it tells the end of what is committed, and the start of the log."""

KEPT_PART = 4
"""This part of what an answer may hold is kept in all of paused partitions; what is beyond is fetched again."""

_log = logging.getLogger("tenuto_control.kafka")


@dataclass(frozen=True, slots=True)
class Bounds:
    """The first offset that a partition's log still has, and the one behind what can be read; when that was told."""

    start: int
    end: int
    told_s: float


@dataclass(slots=True)
class _Trouble:
    """Why a partition cannot be read at an offset, since when, and how often it was tried.

    A `passing` one is ordinary for a while: leaders move, brokers restart.
    """

    offset: int
    reason: str
    passing: bool
    since_s: float
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class _Hold:
    """Stands in the place of an answer until then, so that the partition is not asked for."""

    until_s: float

    def calculate_backoff(self) -> float:
        """Other partitions of the same broker need not wait."""
        return 0.0


@dataclass(frozen=True, slots=True)
class _Buffered:
    """An answer that waits to be handed out. Its broker is asked for more only after a moment (aiokafka's rule).

    It is `kept` when its partition was paused meanwhile.
    """

    answer: Answer
    assignment: Any
    wait_until_s: float
    kept: bool = False

    def calculate_backoff(self) -> float:
        """Seconds that its broker should wait yet."""
        return 0.0 if self.kept else max(0.0, self.wait_until_s - now_s())


class PartitionFetcher(Fetcher):  # type: ignore[misc] # the base class carries no types
    """aiokafka's fetcher, which asks brokers, with its own way to take answers in and to hand records out."""

    def __init__(self, client: Any, subscriptions: Any, limits: Limits, **settings: Any) -> None:
        self.bounds: dict[Any, Bounds] = {}
        self._troubles: dict[Any, _Trouble] = {}
        self._leaderless: dict[Any, float] = {}
        self._passing = RetryPolicy(initial_ms=limits.log_retry_initial_ms, max_ms=limits.log_retry_max_ms)
        self._lasting = RetryPolicy(
            initial_ms=limits.unreadable_retry_initial_ms, max_ms=limits.unreadable_retry_max_ms
        )
        self._patience_s = limits.unreadable_after_ms / 1_000
        self._poll_bytes_max = limits.poll_bytes_max
        self._kept_bytes_max = limits.fetch_bytes_max // KEPT_PART
        self._inflated_bytes_max = limits.batch_inflated_bytes_max
        # The answer whose next batch is read in a thread: one at a time, for each takes as much memory as a batch may.
        self._preparing: tuple[Answer, asyncio.Future[None]] | None = None
        super().__init__(client, subscriptions, **settings)

    @property
    def ended(self) -> bool:
        """Whether it asks brokers for nothing more, which only a fault of the client does before it is closed."""
        return bool(self._fetch_task.done())

    def troubles(self, assigned: Collection[Any]) -> Iterator[tuple[Any, int, str]]:
        """Which of these partitions cannot be read, from which offset on, and why. Passing troubles only if they stay.

        An offset of -1 is not known.
        """
        at_s = now_s()
        for known in (self._troubles, self._leaderless, self.bounds):
            for tp in [tp for tp in known if tp not in assigned]:
                del known[tp]
        for tp in assigned:
            trouble = self._troubles.get(tp)
            if self._client.cluster.leader_for_partition(tp) in {None, -1}:
                since_s = self._leaderless.setdefault(tp, at_s)
                if at_s - since_s >= self._patience_s:
                    yield tp, trouble.offset if trouble else -1, "no broker leads it at present"
                continue
            self._leaderless.pop(tp, None)
            if trouble and (not trouble.passing or at_s - trouble.since_s >= self._patience_s):
                yield tp, trouble.offset, trouble.reason

    # --- what brokers answer --------------------------------------------------------------------------------

    async def _proc_fetch_request(self, assignment: Any, node_id: int, request: Any) -> bool:
        """Send a request and take each partition's answer in. True when something waits to be handed out."""
        asked = {
            aiokafka.TopicPartition(topic, partition): offset
            for topic, partitions in request.topics
            for partition, offset, *_ in partitions
        }
        try:
            response = await self._client.send(node_id, request)
        except asyncio.CancelledError:
            return False  # The partitions are others' now, or the client is closed.
        except Exception as e:  # noqa: BLE001 - any other end of this task would end the fetcher for good
            for tp, offset in asked.items():
                self._note(tp, offset, f"broker {node_id} does not answer ({_named(e)})", passing=True)
            await asyncio.sleep(self._retry_backoff)
            return False
        waits = False
        for topic, partitions in response.topics if assignment.active else ():
            for partition, *told in partitions:
                tp = aiokafka.TopicPartition(topic, partition)
                try:
                    waits |= self._take_in(assignment, tp, asked[tp], response.API_VERSION, told)
                except Exception as e:  # noqa: BLE001 - nonsense is the fault of its partition alone
                    self._hold(
                        tp, asked.get(tp, -1), f"the broker's answer makes no sense ({_named(e)})", passing=False
                    )
        return waits

    def _take_in(self, assignment: Any, tp: Any, offset: int, version: int, told: Sequence[Any]) -> bool:
        state = assignment.state_value(tp)
        if not state.has_valid_position or state.position != offset:
            return False
        code, highwater, *more = told
        error = for_code(code)
        if error is not NoError:
            self._refused(tp, state, offset, error)
            return False
        end = more[0] if version >= STABLE_VERSION and more[0] >= 0 else highwater
        start = more[1] if version >= START_VERSION else 0
        aborted = more[2 if version >= START_VERSION else 1] if version >= STABLE_VERSION else ()
        self.bounds[tp] = Bounds(start, end, now_s())
        raw = bytes(more[-1] or b"")
        if not raw:
            self._troubles.pop(tp, None)
            return False
        wait_until_s = now_s() + self._prefetch_backoff
        self._records[tp] = _Buffered(
            Answer(raw, aborted or (), offset, self._inflated_bytes_max), assignment, wait_until_s
        )
        return True

    def _refused(self, tp: Any, state: Any, offset: int, error: Any) -> None:
        if error is OffsetOutOfRangeError:
            state.await_reset(OffsetResetStrategy.EARLIEST)
            trouble = self._hold(tp, offset, "its log has no such offset", passing=True)
            if trouble.attempts == 1:
                _log.warning(
                    "%s/%d: its log no longer has offset %d; reading resumes at its oldest record", *tp, offset
                )
            return
        if error.invalid_metadata:
            self._client.force_metadata_update()
        self._hold(tp, offset, f"its broker refuses ({error.__name__})", passing=error.retriable)

    # --- what is handed out ---------------------------------------------------------------------------------

    async def fetched_records(
        self, partitions: Sequence[Any], timeout: float = 0, max_records: int | None = None
    ) -> Mapping[Any, list[Fetched]]:
        """Records of each partition that has some, up to a number in all; none after `timeout` seconds.

        From the moment their positions move, nothing is awaited and nothing raised. Raises what ended this member's
        part in its group.
        """
        assert not partitions, "all partitions are read together"
        assert max_records is not None
        deadline_s = now_s() + timeout
        while not self._closed:
            if self._subscriptions.reassignment_in_progress:
                await self._subscriptions.wait_for_assignment()
            drained = self._drain(max_records)
            preparing = self._prepared()
            left_s = deadline_s - now_s()
            if drained or left_s <= 0:
                return drained
            waiter = self._create_fetch_waiter()
            awaited = [waiter] if preparing is None else [waiter, preparing]
            done, _ = await asyncio.wait(awaited, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if waiter in done:
                waiter.result()
            else:
                waiter.cancel()
            if not done:
                return {}
        return {}

    def _prepared(self) -> asyncio.Future[None] | None:
        """The reading of a large batch that is in progress, begun now if there is one to read."""
        if self._preparing is not None:
            _, reading = self._preparing
            if not reading.done():
                return reading
            self._preparing = None
        for entry in self._records.values():
            if isinstance(entry, _Buffered) and entry.answer.large:
                reading = asyncio.get_running_loop().run_in_executor(None, entry.answer.prepare)
                self._preparing = entry.answer, reading
                return reading
        return None

    def _is_read(self, answer: Answer) -> bool:
        """Whether a thread reads the next batch of this answer, which may not be touched then."""
        return self._preparing is not None and self._preparing[0] is answer and not self._preparing[1].done()

    def _drain(self, records_max: int) -> dict[Any, list[Fetched]]:
        drained: dict[Any, list[Fetched]] = {}
        bytes_max = self._poll_bytes_max
        for tp, entry in list(self._records.items()):
            if isinstance(entry, _Hold):
                if now_s() >= entry.until_s:
                    self._forget(tp)
                continue
            state, answer = self._wanted(tp, entry), entry.answer
            if state is None or answer.large or self._is_read(answer):
                continue
            try:
                records = answer.take(records_max, bytes_max)
            except UnreadableError as e:
                state.consumed_to(answer.next_offset)
                self._hold(tp, answer.next_offset, str(e), passing=False)
                continue
            if answer.large and not records:
                state.consumed_to(answer.next_offset)  # Past what holds no record for a reader.
                continue
            if answer.exhausted and state.position == answer.next_offset:
                # Asked for again at once, it would be told the same, and so on as fast as the broker can.
                self._hold(tp, answer.next_offset, "its broker hands out batches of other offsets", passing=True)
                continue
            state.consumed_to(answer.next_offset)
            self._troubles.pop(tp, None)
            if answer.exhausted:
                self._forget(tp)
            if records:
                drained[tp] = records
                records_max -= len(records)
                bytes_max -= sum(len(one.value or b"") + len(one.key or b"") for one in records)
                if records_max <= 0 or bytes_max <= 0:
                    break
        return drained

    def _wanted(self, tp: Any, entry: _Buffered) -> Any:
        """The state of the partition that an answer is of; None when nothing of it is to be handed out now."""
        state = entry.assignment.state_value(tp) if entry.assignment.active else None
        if state is None or not state.has_valid_position or state.position != entry.answer.next_offset:
            self._forget(tp)
            return None
        if state.paused:
            self._keep(tp, entry)
            return None
        return state

    def _keep(self, tp: Any, entry: _Buffered) -> None:
        """Keep the answer of a paused partition: another one would take a round trip, and maybe a long poll.

        Meanwhile it is no reason to let other partitions of its broker wait. What the log has lost since is not kept.
        """
        known = self.bounds.get(tp)
        if known is not None and known.start > entry.answer.next_offset:
            self._forget(tp)
            return
        if entry.kept:
            return
        others = (one.answer.size for one in self._records.values() if isinstance(one, _Buffered) and one.kept)
        if entry.answer.size + sum(others) > self._kept_bytes_max:
            self._forget(tp)
            return
        self._records[tp] = replace(entry, kept=True)
        self._notify(self._wait_consume_future)

    def resumed(self) -> None:
        """A partition is no longer paused. What was kept of it is handed out to whoever waits for records."""
        for waiter in self._fetch_waiters:
            self._notify(waiter)

    def _forget(self, tp: Any) -> None:
        """The partition may be asked for again."""
        del self._records[tp]
        self._notify(self._wait_consume_future)

    # --- troubles -------------------------------------------------------------------------------------------

    def _hold(self, tp: Any, offset: int, reason: str, *, passing: bool) -> _Trouble:
        """Leave the partition alone for a while, longer each time."""
        trouble = self._note(tp, offset, reason, passing=passing)
        pause = pause_ms(self._passing if passing else self._lasting, trouble.attempts + 1, 0.0)
        self._records[tp] = _Hold(now_s() + pause / 1_000)
        return trouble

    def _note(self, tp: Any, offset: int, reason: str, *, passing: bool) -> _Trouble:
        trouble = self._troubles.get(tp)
        if trouble is None or trouble.offset != offset:
            trouble = self._troubles[tp] = _Trouble(offset, reason, passing, now_s())
        trouble.reason, trouble.passing = reason, passing
        trouble.attempts += 1
        return trouble


def now_s() -> float:
    """Seconds on the clock of the running event loop."""
    return asyncio.get_running_loop().time()


def _named(error: BaseException) -> str:
    """An error's class and what it says."""
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
