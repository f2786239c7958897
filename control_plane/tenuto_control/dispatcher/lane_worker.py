"""One lane in this process: its queue, the head as last seen, and the loop that carries out what the policy decides.

Owns the execution of actions for one lane, one at a time. Does not own the decisions (`core.lane_policy`), how
functions are called and batches committed (`activations`), or the set of lanes (`dispatcher`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

from tenuto.lane.head import head_key, parse_head
from tenuto.lane.transitions import Timer, clear_pend, takeover, trim_head
from tenuto.lane.tries import failures_of
from tenuto.lane.writes import Applied
from tenuto.protocol.backoff import pause_ms
from tenuto.protocol.ids import Lane
from tenuto.protocol.limits import FINISHED_TTL_MS
from tenuto.protocol.messages import Head, Trim
from tenuto.protocol.records import Event, KafkaSource, ResultOut, SleptSlot, pack
from tenuto.store.port import TableRefusedError, TableUnavailableError
from tenuto_control import cancellation
from tenuto_control.core import log_fields
from tenuto_control.core.lane_policy import (
    Action,
    Bounds,
    Drain,
    Idle,
    Invoke,
    ReadHead,
    Release,
    Resume,
    Ship,
    Spill,
    TakeOver,
    TrimHead,
    View,
    Wait,
    decide,
    finished,
)
from tenuto_control.core.log_fields import shown
from tenuto_control.dispatcher.activations import Activations
from tenuto_control.dispatcher.inbox import Inbox
from tenuto_control.dispatcher.services import Services
from tenuto_control.dispatcher.tries import counted
from tenuto_control.dispatcher.work import Attempted, CallWork, Elsewhere, KafkaWork, Work
from tenuto_control.ports import LogUnavailableError, Target, TopicPartition, TopicUnusableError

log = logging.getLogger("tenuto.lane")

LATE_LEASES = 3
"""Time-outs of its function that a lease lasts, after the last one was over before the function began."""
TROUBLE_DOUBLINGS_MAX = 10

PAUSE_MS_MIN = 10
"""The shortest pause between attempts that a function may ask for."""

TRIMMED_MAX = 50
"""Entries of each kind that one write removes on the side: they share its expression with what the write is about."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is remembered of an idle lane: its head, and which of its entries the next write may remove."""

    head: Head | None = None
    shipped: frozenset[str] = frozenset()
    finished: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rest:
    """A lane waits until a time. `held`: a run of somebody else is active in it, whose end may come sooner."""

    until_ms: int
    held: bool


class LaneWorker:
    """Works on one lane until it is idle. `done` is called then, with the head for the cache and the next wake-up."""

    def __init__(
        self, lane: Lane, services: Services, known: Known, done: Callable[[LaneWorker, int | None], None]
    ) -> None:
        self.lane = lane
        self.head = known.head
        self.queue: deque[Work] = deque()
        self.look = False
        self._services = services
        self._done = done
        self._nudge = asyncio.Event()
        self._stale = False
        self._cut_off = False
        self._pressed = False
        self._shipped = set(known.shipped)
        self._finished = set(known.finished)
        # Finished events, each with what the outbox held when it was; None before that is known.
        self._held: dict[KafkaWork, frozenset[str] | None] = {}
        self._ended: set[str] = set()
        self._not_before_ms = 0
        self._blocked_since_ms: int | None = None
        self._failures = 0
        self._failing = ""
        self._crashed = False
        self._ship_failures = 0
        self._ship_again_ms = 0
        # How often in a row this lane has met what it cannot get past, and in which action.
        self._troubles = 0
        self._doing: type[Action] | None = None
        self._troubled: type[Action] | None = None
        self._resting_until_ms: int | None = None
        self._activations = Activations(lane, services)
        self._inbox = Inbox(lane, services.writer)
        limits = services.limits
        self._bounds = Bounds(limits.spill_after_ms, limits.spill_records_max, limits.lease_margin_ms)
        self.task: asyncio.Task[None] | None = None

    # --- what others ask of it --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to work."""
        self.task = asyncio.get_running_loop().create_task(self._work(), name=f"lane {self.lane.pk}")

    def add(self, work: Work) -> None:
        """Queue work.

        An event that is here already, from before a rebalance, only gets its new release: run twice in one batch it
        would take effect twice.
        """
        twin = self._twin(work) if self._cut_off else None
        if isinstance(twin, KafkaWork) and isinstance(work, KafkaWork):
            twin.renew(work)
        else:
            self.queue.append(work)
        self._nudge.set()

    def _twin(self, work: Work) -> Work | None:
        here = (*(self._activations.busy or ()), *self.queue, *self._held)
        return next((w for w in here if w.event.id == work.event.id), None)

    def nudge(self, *, look: bool = False) -> None:
        """Something may have changed; `look` also asks for a fresh head and an inbox query."""
        # The head is dropped by the worker's own next step: in the middle of one, it is in use.
        self.look = self.look or look
        self._stale = self._stale or look
        self._nudge.set()

    @property
    def running(self) -> bool:
        """Whether an activation or an unfinished release is under way."""
        return self._activations.busy is not None or bool(self._held)

    def busy_before(self, time_ms: int) -> bool:
        """Whether there is something to do before a time: it works, or a rest ends by then."""
        return self._resting_until_ms is None or self._resting_until_ms <= time_ms

    @property
    def rest(self) -> Rest | None:
        """What the lane waits for; None while it works."""
        if self._resting_until_ms is None:
            return None
        run = None if self.head is None else self.head.run
        return Rest(self._resting_until_ms, held=run is not None and not run.suspended)

    async def entrust(self) -> None:
        """Release the events that are finished but for what they sent: from now on a timer leads back to it."""
        held = list(self._held)
        if not held:
            return
        delay_ms = self._services.limits.guard_delay_ms
        await self._services.delivery.guard(self.lane, held[0].event.nonce, delay_ms)
        for work in held:
            if work in self._held:
                del self._held[work]
                work.release()

    def is_running(self, work: Work) -> bool:
        """Whether this work is part of the activation that runs right now."""
        return self._activations.busy is not None and work in self._activations.busy

    def known(self) -> Known:
        """What to remember while the lane is idle."""
        return Known(self.head, frozenset(self._shipped), frozenset(self._finished))

    def call_in_queue(self, event_id: str) -> CallWork | None:
        """A queued or running call with this id."""
        running = self._activations.busy or ()
        return next((w for w in (*running, *self.queue) if isinstance(w, CallWork) and w.event.id == event_id), None)

    def withdraw(self, partitions: set[TopicPartition]) -> bool:
        """Forget the events of partitions. True when some of them are being worked on right now."""
        running = [w for w in (*(self._activations.busy or ()), *self._held) if self._of(w, partitions)]
        for work in [w for w in self.queue if self._of(w, partitions)]:
            if work not in running:
                self.queue.remove(work)
                if isinstance(work, KafkaWork):
                    work.withdrawn = True
        return bool(running)

    def cut(self, partitions: set[TopicPartition]) -> None:
        """Whatever still runs of these partitions releases nothing any more."""
        for work in (*(self._activations.busy or ()), *self.queue, *self._held):
            if isinstance(work, KafkaWork) and self._of(work, partitions):
                work.withdrawn = True
                self._cut_off = True

    def relieve(self, partitions: set[TopicPartition]) -> None:
        """Make room in these partitions, if events of theirs have waited for long in this lane's queue."""
        since_ms = self._services.clock.now_ms() - self._bounds.spill_after_ms
        waiting = (w for w in self.queue if not self.is_running(w) and self._of(w, partitions))
        if any(isinstance(w, KafkaWork) and w.since_ms <= since_ms for w in waiting):
            self._pressed = True
            self._nudge.set()

    @staticmethod
    def _of(work: Work, partitions: set[TopicPartition]) -> bool:
        source = work.event.source
        return isinstance(source, KafkaSource) and TopicPartition(source.topic, source.partition) in partitions

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            self._nudge.clear()
            try:
                wake_ms = await self._step()
            except TableRefusedError as e:
                await self._rest(f"the table refuses a write: {shown(str(e))}")
                continue
            except LogUnavailableError as e:
                self._produces_in_vain(e)
                continue
            except TableUnavailableError:
                # It is said elsewhere, once for the whole process. The lane starts over from its head.
                self.head = None
                self._pause_for(self._services.limits.table_retry_max_ms)
                await self._wait_until(self._not_before_ms)
                continue
            except (Exception, asyncio.CancelledError) as e:
                # A lane must never die silently: whatever went wrong, its truth is in the table.
                if isinstance(e, asyncio.CancelledError) and cancellation.is_meant():
                    raise
                await self._rest("unforeseen, the lane starts over from its head", e)
                continue
            if self._doing is self._troubled:
                self._troubles, self._troubled = 0, None
            if wake_ms is not None:
                # Nothing has been awaited since the decision, so no work can have slipped in between.
                self._done(self, wake_ms if wake_ms >= 0 else None)
                return

    async def _rest(self, text: str, error: BaseException | None = None) -> None:
        """Let time pass after an error that what is due next may only meet again: more each time, and say so less."""
        self.head = None
        limits = self._services.limits
        self._troubles, self._troubled = self._troubles + 1, self._doing
        times = self._troubles
        if times & (times - 1) == 0:
            again = f" ({times} times)" if times > 1 else ""
            fields = log_fields.of_lane(self.lane)
            log.error("%s: %s%s", self.lane.pk, text, again, exc_info=error, extra=fields)
        pause = limits.table_retry_max_ms * 2 ** min(times - 1, TROUBLE_DOUBLINGS_MAX)
        self._pause_for(min(pause, limits.table_refused_retry_max_ms))
        await self._wait_until(self._not_before_ms)

    def _produces_in_vain(self, error: LogUnavailableError) -> None:
        """A record could not be produced: the lane waits, and what is behind it."""
        self._ship_failures += 1
        if self._ship_failures == 1 and not isinstance(error, TopicUnusableError):
            fields = log_fields.of_lane(self.lane)
            log.warning("%s: records cannot be produced, trying on: %s", self.lane.pk, error, extra=fields)
        self._pause_for(min(5_000, 100 * 2 ** min(self._ship_failures, 6)))
        self._ship_again_ms = self._not_before_ms

    async def _step(self) -> int | None:  # noqa: C901 - one case for each action
        """Carry out one action. Not None: the lane is idle until that time (-1: until something arrives)."""
        now_ms = self._services.clock.now_ms()
        if self._stale:
            self._stale = False
            self.head = None
        action = decide(self._view(now_ms), self._bounds)
        self._doing = type(action)
        match action:
            case ReadHead():
                await self._read_head()
            case Resume(over):
                await self._take_over(over, failed=False)
            case TakeOver():
                await self._take_over((), failed=True)
            case Ship():
                await self._ship()
            case Release():
                self._release_first()
            case Spill():
                await self._spill()
            case Drain():
                await self._drain()
            case Invoke():
                await self._invoke()
            case TrimHead():
                await self._trim()
            case Wait(until_ms):
                await self._wait_until(until_ms)
            case Idle(wake_ms):
                return -1 if wake_ms is None else wake_ms
            case _:
                assert_never(action)
        return None

    def _view(self, now_ms: int) -> View:
        head = self.head
        held_up = self._failures > 0 or self._ship_failures > 0 or (head is not None and head.run is not None)
        # A head that was dropped tells nothing: each sweep drops it, and would begin the wait anew.
        if not self.queue or (head is not None and not held_up):
            self._blocked_since_ms = None
        elif held_up and self._blocked_since_ms is None:
            self._blocked_since_ms = now_ms
        trim = self._trimmable() if head is not None else Trim()
        return View(
            head=head,
            now_ms=now_ms,
            first=self.queue[0].event if self.queue else None,
            queued=len(self.queue),
            shipped=frozenset(self._shipped),
            look=self.look,
            ended=frozenset(self._ended),
            not_before_ms=self._not_before_ms,
            failing=self._failures > 0,
            ship_again_ms=self._ship_again_ms,
            blocked_ms=0 if self._blocked_since_ms is None else now_ms - self._blocked_since_ms,
            trimmable=len(trim.out),
            pressed=self._pressed,
        )

    async def _wait_until(self, until_ms: int) -> None:
        """Wait until a time, or until something arrives."""
        seconds = max(1, until_ms - self._services.clock.now_ms()) / 1000
        self._resting_until_ms = until_ms
        try:
            # Not `wait_for`: before Python 3.12 it loses a cancellation that comes in the same turn as a nudge, and a
            # dispatcher that halts would wait for this lane to come to rest, after its timers are cleared.
            async with asyncio.timeout(seconds):
                await self._nudge.wait()
        except TimeoutError:
            return
        finally:
            self._resting_until_ms = None

    # --- actions ----------------------------------------------------------------------------------------------------

    async def _read_head(self) -> None:
        table = self._services.writer.table
        self._learn(parse_head(await self._services.writer.patiently(lambda: table.get(head_key(self.lane)))))

    async def _take_over(self, over: Sequence[str], *, failed: bool) -> None:
        head = self._seen()
        run = head.run
        target = self._services.targets.find(self.lane.service)
        if run is None or target is None:
            fields = log_fields.of_lane(self.lane) if run is None else log_fields.of_event(self.lane, run.event)
            log.warning("%s: no function serves %s, its work waits", self.lane.pk, self.lane.service, extra=fields)
            self._pause_for(self._services.limits.invoke_retry_max_ms)
            self.head = None
            return
        async with self._services.capacity.place(target, begun=True):
            # Only now: the lease runs from the takeover, and must not be spent on waiting for a place.
            await self._take_over_now(head, target, over, failed=failed)

    async def _take_over_now(self, head: Head, target: Target, over: Sequence[str], *, failed: bool) -> None:
        crashes = None if head.run is None or not (failed and self._crashed) else head.run.failures + 1
        self._crashed = False
        spent = self._spent(head, crashes)
        holder = self._services.token()
        now_ms = self._services.clock.now_ms()
        lease_ms = now_ms + target.timeout_ms * (LATE_LEASES if self._activations.late else 1)
        slept = {
            slot: pack(SleptSlot(max(0, now_ms - head.run.start_ms if head.run is not None else 0))) for slot in over
        }
        tok = f"{holder}.take"
        written = await self._services.writer.write(
            takeover(self.lane, head, holder, lease_ms, slept, tok, crashes), tok
        )
        self._learn(parse_head(written.answer.item))
        if not isinstance(written.answer, Applied):
            return
        if head.run is not None and head.run.wake_ms is not None and over:
            self._services.metrics.sample("WakeLatenessMs", max(0, now_ms - head.run.wake_ms))
        if head.run is not None and head.run.wake_ms is not None and not failed:
            self._services.forget(Timer(self.lane, "sleep", head.run.event.nonce, head.run.wake_ms, "over"))
        if spent is not None:
            self._attempted(await self._activations.bury_run(self._seen(), spent, self._trimmable()), [])
            return
        self._attempted(await self._activations.resume(self._seen(), holder, self._trimmable()), [])

    def _spent(self, head: Head, crashes: int | None) -> str | None:
        """Why a run whose function never answers is given up, if its policy says so."""
        if head.run is None or crashes is None:
            return None
        limit = self._services.policy(self.lane.service, head.run.event.handler).max_attempts
        if limit is None or crashes < limit:
            return None
        return f"{crashes} attempts failed, the last without an answer of its function"

    async def _ship(self) -> None:
        entries = {seq: out for seq, out in self._seen().out.items() if seq not in self._shipped}
        await self._services.delivery.ship(self.lane, entries, self._shipped)
        self._ship_failures = 0

    def _release_first(self) -> None:
        work = self.queue.popleft()
        if isinstance(work, KafkaWork):
            work.release()

    async def _spill(self) -> None:
        self._pressed = False
        works = [w for w in self.queue if isinstance(w, KafkaWork)]
        if not works:
            # Calls are made durable by their callers, when these stop waiting.
            await self._wait_until(self._services.clock.now_ms() + self._services.limits.spill_after_ms)
            return
        await self._services.delivery.accept(self.lane, [w.event for w in works])
        for work in works:
            if work in self.queue:
                self.queue.remove(work)
            work.release()
        self.head = None

    async def _drain(self) -> None:
        head = self._seen()
        self.look = False
        waiting = await self._inbox.live(head, self._services.clock.now_ms())
        await self._inbox.bury(waiting.done, self._services.clock.now_ms())
        await self._inbox.forget(waiting.passed)
        if not waiting.more:
            self._finished |= self._settled(head, {event.nonce for event in waiting.events})
        if waiting.events:
            clears = not waiting.more
            attempted = await self._activations.drain(
                head, waiting.events, self._tries, self._trimmable(), clears=clears
            )
            self._attempted(await self._counted(attempted), self.queue)
            now_ms = self._services.clock.now_ms()
            ran = [e for e in waiting.events if self.head is not None and finished(self.head, e, now_ms)]
            await self._inbox.bury(ran, now_ms)
            self._finished |= {event.nonce for event in ran}
            self.look = self.look or len(ran) < len(waiting.events)
        elif waiting.more:
            self.look = True
            self.head = None
        elif head.pend is not None:
            written = await self._services.writer.write(clear_pend(self.lane, head, self._trimmable()))
            self._learn(parse_head(written.answer.item))

    def _settled(self, head: Head, live: set[str]) -> set[str]:
        """Finished ids that nothing needs any more: no live item bears them, so their items are tombstones by now.

        A call's may still be looked for by a process that lost the response to its commit, so it stays for a while.
        """
        old = self._services.clock.now_ms() - FINISHED_TTL_MS
        return {n for n, at in head.fin.items() if n not in live and (not n.startswith("c") or at < old)}

    async def _invoke(self) -> None:
        head = self._seen()
        attempted = await self._activations.speculate(head, self.queue, self._tries, self._trimmable())
        for work in [w for w in self.queue if isinstance(w, CallWork) and (w.keep or w.answer.done())]:
            self.queue.remove(work)
            # A call that was handed over while it ran has an item in the inbox: to be run again, or to be buried.
            self.look = self.look or work.keep
            work.finish(Elsewhere())
        if attempted is not None:
            self._attempted(await self._counted(attempted), self.queue)

    async def _trim(self) -> None:
        head, trim = self._seen(), self._trimmable()
        over = head.run is None and not head.out.keys() - set(trim.out) and not self._services.keyed(self.lane.service)
        over_ms = self._services.clock.now_ms() if over else None
        written = await self._services.writer.write(trim_head(self.lane, trim, over_ms))
        self._learn(parse_head(written.answer.item))

    # --- afterwards -------------------------------------------------------------------------------------------------

    def _attempted(self, attempted: Attempted, queue: deque[Work] | list[Work]) -> None:
        """Take in what came of an activation."""
        metrics, now_ms = self._services.metrics, self._services.clock.now_ms()
        for work in attempted.finished:
            if work in queue:
                queue.remove(work)
            if isinstance(work, KafkaWork):
                self._held[work] = None
                metrics.sample("AgeMs", _age_ms(work.event, now_ms))
            self._finished.add(work.event.nonce)
        self._ended |= attempted.ended
        if attempted.failed is not None:
            # Failures are one event's: another that fails behind it has all its attempts before it.
            self._failures = self._tries(attempted.failed) - 1
            self._failing = attempted.failed.id
            policy = self._services.policy(self.lane.service, attempted.failed.handler)
            pause = pause_ms(policy, self._failures + 1, self._services.rng.random())
            asked = attempted.pause_ms
            # Whatever a function asks for: without a pause, one key would be invoked as fast as it answers.
            self._pause_for(pause if asked is None or asked <= 0 else max(asked, PAUSE_MS_MIN))
            self._failures += 0 if attempted.harmless else 1
            metrics.count("Retries", 0 if attempted.harmless else 1)
            self._crashed = self._crashed or (bool(attempted.ended) and not attempted.harmless)
        else:
            self._failures = 0
            self._not_before_ms = 0
        self._learn(attempted.head)

    async def _counted(self, attempted: Attempted) -> Attempted:
        return await counted(self._services, self.lane, attempted, self._tries, self._trimmable().out)

    def _tries(self, event: Event) -> int:
        """Which attempt at this event the next one is, as far as this process knows and the head tells."""
        return max(self._failures if event.id == self._failing else 0, failures_of(self.head, event)) + 1

    def _learn(self, head: Head | None) -> None:
        self.head = head
        if head is None:
            return
        self._shipped &= head.out.keys()
        self._finished &= head.fin.keys()
        if head.pend is None:
            # Nothing waits that could bear an old id, and whoever once lost the answer to a call has long given up.
            old = self._services.clock.now_ms() - FINISHED_TTL_MS
            self._finished |= {nonce for nonce, at in head.fin.items() if at < old}
        if head.run is None or head.run.suspended:
            self._ended.clear()
        results = {out.invocation: out.result for out in head.out.values() if isinstance(out, ResultOut)}
        for work in [w for w in self.queue if isinstance(w, CallWork)]:
            known = results.get(work.event.id)
            if known is None and work.tentative is not None:
                now_ms = self._services.clock.now_ms()
                known = work.tentative if finished(head, work.event, now_ms) else None
            if known is not None:
                self._finished.add(work.event.nonce)
                work.finish(known)
                self.queue.remove(work)
        self._release_held()

    def _release_held(self) -> None:
        """Events whose effects are committed are let go once everything they sent has left the outbox.

        Delivered is not enough. An entry that stays, because its process ends there, is delivered again with the lane's
        next event, and that may come when the receiver's tombstone is gone: the message would run twice. Until it is
        trimmed, the offset leads somebody back to it.
        """
        if self.head is None or not self._held:
            return
        waiting = self.head.out.keys()
        self._held = {work: frozenset(waiting) if sent is None else sent for work, sent in self._held.items()}
        for work in [work for work, sent in self._held.items() if sent is not None and not sent & waiting]:
            del self._held[work]
            work.release()

    def _trimmable(self) -> Trim:
        head = self._seen()
        return Trim(
            out=tuple(seq for seq in head.out if seq in self._shipped)[:TRIMMED_MAX],
            fin=tuple(nonce for nonce in head.fin if nonce in self._finished)[:TRIMMED_MAX],
            stray=head.stray[:TRIMMED_MAX],
        )

    def _seen(self) -> Head:
        if self.head is None:
            raise AssertionError("the policy reads the head before anything else")
        return self.head

    def _pause_for(self, pause: int) -> None:
        self._not_before_ms = self._services.clock.now_ms() + pause


def _age_ms(event: Event, now_ms: int) -> int:
    source = event.source
    return max(0, now_ms - source.timestamp_ms) if isinstance(source, KafkaSource) else 0
