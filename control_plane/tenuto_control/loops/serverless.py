"""A dispatcher that runs as a function: what it does for one batch of records, one wake-up, one tick or one request.

Owns when such an invocation is over, what it waits for and what is handed over. Between invocations the process is
frozen, so each ends with nothing under way. Work is handed on to another invocation at once; a wait is left to a timer:
a schedule outside, or the lane's own timer item, which brings the sweep (ADR 14). Does not own the shape of events
(`tenuto.hosts`), who may wait for a lane (`continuations`), nor the wiring (`lambda_entry`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

from tenuto.hosts.event_scheduler import Continue, HandedOn, SweepTick, WakeUp
from tenuto.hosts.kafka_event_source import SourceRecord
from tenuto.lane.timers import SWEEP_CURSOR
from tenuto.protocol.ids import Lane
from tenuto_control.core.routing import Quarantine, Subscription, life_of, route
from tenuto_control.dispatcher.outages import WatchedTable
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.limits import Limits
from tenuto_control.loops.continuations import Continuations
from tenuto_control.loops.failures import FailureLog
from tenuto_control.loops.quarantine import DeadLetters
from tenuto_control.loops.sweep import Sweeper
from tenuto_control.ports import Clock, Errand, Interruptible, RecordSink, TopicLives, TopicPartition
from tenuto_control.tasks import all_of

log = logging.getLogger("tenuto.serverless")

HANDED_ON_TOGETHER = 32
"""Lanes that are handed over to the same invocation: their names fit into what an asynchronous one carries (256 KB)."""

HANDED_ON_MAX = 64
"""Invocations that one hands over to; what is more, the sweep finds."""

HOPS_MAX = 8
"""Invocations in a row that hand on to one another. Then a schedule begins anew: Lambda ends such a chain as a loop at
about its 16th link (AWS Lambda developer guide, "recursive loop detection")."""

AHEAD_MS_MIN = 2_000
"""How far ahead a schedule is at least: it has the precision of a second, and must not be past when it is made."""

LEAVE_GRACE_MS = 50
"""How long an invocation stays for what follows its end at once: a result that is stored, a lane that comes to rest."""

KEEP_MARGIN_MS = 5_000
"""How long before its deadline a batch keeps in the table what no topic takes."""

SHIP_PAUSE_MS_MAX = 5_000
"""Longest pause between two tries to produce what an outbox holds (`lane_worker`)."""

ENTRUST_EVERY_MS = 1_000
"""How often it looks for further events whose messages cannot leave, when its patience is over."""

OVER_MARGIN_MS = 5_000
"""How long after an invocation's deadline it is certainly over, clocks that differ included."""

LOOK_S = 0.01
"""How often to look what lanes wait for: their ends are many, and no one event tells of all."""

LOOK_AGAIN_MS_MIN = 250
LOOK_AGAIN_MS_MAX = 800
"""How often to read the head of a lane in which a run of another process is active, at growing pauses."""

TICK_LANES_MAX = 256
"""Lanes that a sweep has at work at a time: as many as there are places for invocations."""

SWEEP_PK = SWEEP_CURSOR.pk
"""Under this name the rest of a sweep that did not come to its end is handed over."""

T = TypeVar("T")

HandOn: TypeAlias = Callable[[Continue | SweepTick], Coroutine[Any, Any, None]]
"""Has another invocation carry on soon. It may fail silently."""


class UnsubscribedError(Exception):
    """Records of a topic that the configuration has no subscription for. The message says what to do."""


class Serverless:
    """Serves one event at a time. Deadlines are times of the clock, in milliseconds."""

    def __init__(
        self,
        dispatcher: Interruptible,
        sweeper: Sweeper,
        table: WatchedTable,
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
        self._writer = Writer(table, limits, dispatcher.metrics)
        failures = FailureLog(clock, limits.failure_log_interval_ms)
        topics = len({one.dead_letter_topic for one in self._subscriptions.values()})
        self._dead_letters = DeadLetters(
            sink, dispatcher.set_aside, failures, clock, limits, dispatcher.metrics, max(1, topics)
        )

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
                        until_ms = self._patient_until(deadline_ms)
                        work = self._quarantine(record, subscription.dead_letter_topic, reason, released, until_ms)
                        quarantining.append(asyncio.create_task(work))
                    case event:
                        self._dispatcher.deliver(event, released)
            await self._finished(batch, deadline_ms)
        finally:
            for task in quarantining:
                task.cancel()
            # What is cut off below releases nothing any more: its record is delivered again.
            left = list(batch.unfinished)
            # A cancelled task ends in its own turn, and without this the process may be frozen before it comes.
            await asyncio.gather(*quarantining, return_exceptions=True)
            await self._leave(deadline_ms)
        return left

    def _patient_until(self, deadline_ms: int) -> int:
        """How long a batch waits for topics that its records or messages are to leave for, but that take none."""
        return min(deadline_ms - KEEP_MARGIN_MS, self._clock.now_ms() + self._limits.topic_patience_ms)

    async def _finished(self, batch: _Batch, deadline_ms: int) -> None:
        """Wait until nothing of a batch needs its offset, or for a deadline.

        An event that is finished, and whose messages cannot leave, holds its batch for a while only: they stay in the
        outbox, and a timer leads back to them. Those for a topic that is not there are set aside before.
        """
        patient_until_ms = min(self._patient_until(deadline_ms) + SHIP_PAUSE_MS_MAX, deadline_ms - KEEP_MARGIN_MS)
        while not batch.empty.is_set() and (now_ms := self._clock.now_ms()) < deadline_ms:
            if now_ms >= patient_until_ms:
                await self._in_time(self._dispatcher.entrust(), deadline_ms)
                patient_until_ms = now_ms + ENTRUST_EVERY_MS
            await self._in_time(batch.empty.wait(), min(deadline_ms, max(patient_until_ms, now_ms + 1)))

    async def _in_time(self, work: Awaitable[object], until_ms: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0, until_ms - self._clock.now_ms()) / 1000):
                await work

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
        await self.carried_on(Continue((HandedOn(wake.lane, wake.pk, wake.sk, wake.owner),), hops=0), deadline_ms)

    async def carried_on(self, payload: Continue, deadline_ms: int) -> None:
        """Carry on with lanes. One that was handed over to this invocation by name is left alone if another has it."""
        mine = self._continuations(deadline_ms)
        try:
            await all_of((self._begin(handed, mine) for handed in payload.lanes), "serverless")
            await self._stay(mine, deadline_ms, for_others=True)
        finally:
            await self._pass_on(mine, payload.hops)

    async def tick(self, tick: SweepTick, deadline_ms: int) -> None:
        """Look at the timers that are due, and at the lanes behind them, for half of the time that there is."""
        mine = self._continuations(deadline_ms)
        if tick.owner is not None and not await mine.follow(SWEEP_PK, tick.owner):
            return
        whole = True
        try:
            whole = await self._sweep((self._clock.now_ms() + deadline_ms) // 2)
            await self._stay(mine, deadline_ms, for_others=False)
        finally:
            # A table that does not answer ends the sweep, when lanes it has looked at are at work and timers are armed.
            await self._pass_on(mine, tick.hops, sweep=not whole)

    async def answered(self) -> None:
        """A request has its answer: its caller waits for nothing more."""
        await self._leave(self._clock.now_ms())

    # --- staying ----------------------------------------------------------------------------------------------------

    def _continuations(self, deadline_ms: int) -> Continuations:
        return Continuations(self._writer, self._clock, self._dispatcher.token, deadline_ms + OVER_MARGIN_MS)

    async def _begin(self, handed: HandedOn, mine: Continuations) -> None:
        if handed.owner is None or await mine.follow(handed.lane, handed.owner):
            await self._dispatcher.woken(Errand(Lane.from_pk(handed.lane), handed.timer))

    async def _sweep(self, until_ms: int) -> bool:
        """Sweep until a time. Whether all timers were looked at."""

        async def going_on() -> bool:
            while True:
                if self._clock.now_ms() >= until_ms:
                    return False
                if len(self._dispatcher.at_work) < TICK_LANES_MAX:
                    return True
                await asyncio.sleep(LOOK_S)

        whole = await self._sweeper.sweep(going_on)
        if whole:
            await self._sweeper.sweep_deep()
        return whole

    async def _stay(self, mine: Continuations, deadline_ms: int, *, for_others: bool) -> None:
        """Until no lane works, and none waits that this invocation is to wait for; or for a deadline.

        It waits for what is over in `linger_ms`; `for_others`: also for runs that are active elsewhere, to their end.
        """
        looks: dict[Lane, _Look] = {}
        while True:
            await self._dispatcher.settle(deadline_ms)
            now_ms = self._clock.now_ms()
            if now_ms >= deadline_ms:
                return
            near_ms = min(deadline_ms, now_ms + self._limits.linger_ms)
            waits = self._dispatcher.fires_before(near_ms)
            for lane, rest in self._dispatcher.resting().items():
                others = rest.held and for_others
                if rest.until_ms > near_ms and not others:
                    continue
                if not await mine.has(lane.pk):
                    await self._dispatcher.drop(lane)
                    continue
                waits = True
                if others and looks.setdefault(lane, _Look(now_ms)).due(now_ms):
                    self._dispatcher.look(lane)
            if not waits and not await self._ended(mine):
                return
            await asyncio.sleep(LOOK_S)

    async def _ended(self, mine: Continuations) -> bool:
        """Release lanes that are at rest, and look at them once more. Whether there were any.

        Somebody who was refused may have left what it came for, before this invocation let go and after its last look.
        """
        at_work = {lane.pk for lane in self._dispatcher.at_work}
        over = [pk for pk in mine.owned if pk not in at_work and pk != SWEEP_PK]
        await all_of((mine.end(pk) for pk in over), "serverless")
        for pk in over:
            self._dispatcher.look(Lane.from_pk(pk))
        return bool(over)

    # --- leaving ----------------------------------------------------------------------------------------------------

    async def _leave(self, deadline_ms: int) -> None:
        """Stop, and hand over what is in the middle of something, or would be soon: nobody waited for it here."""
        await self._dispatcher.settle(self._clock.now_ms() + LEAVE_GRACE_MS)
        soon_ms = self._clock.now_ms() + self._limits.linger_ms
        later = {
            lane: rest.until_ms
            for lane, rest in self._dispatcher.resting().items()
            if rest.until_ms > soon_ms and not rest.held
        }
        errands = await self._dispatcher.halt(soon_ms)
        await self._hand_on_all([_handed(errand) for errand in errands], 1)
        await self._wake_later(later, self._continuations(deadline_ms))

    async def _pass_on(self, mine: Continuations, hops: int, *, sweep: bool = False) -> None:
        """Stop, and hand on what this invocation is in the middle of. A lane that only waits is left to a schedule."""
        resting = self._dispatcher.resting()
        # Whoever runs a lane finishes it as a rule; only who waited for that sees to it that somebody looks afterwards.
        later = {lane: rest.until_ms for lane, rest in resting.items() if not rest.held or lane.pk in mine.owned}
        errands = await self._dispatcher.halt(self._clock.now_ms() + self._limits.linger_ms)
        errands = [errand for errand in errands if errand.timer is not None or errand.lane not in resting]
        if hops < HOPS_MAX:
            handed = await all_of((self._named(errand, mine) for errand in errands), "serverless")
            await self._hand_on_all([one for one in handed if one is not None], hops + 1)
            if sweep and (owner := await mine.hand_on(SWEEP_PK)) is not None:
                await self._hand_on(SweepTick(owner, hops + 1))
        else:
            later |= dict.fromkeys((errand.lane for errand in errands), self._clock.now_ms())
        await self._wake_later(later, mine)
        await all_of((mine.end(pk) for pk in list(mine.owned)), "serverless")

    async def _wake_later(self, lanes: Mapping[Lane, int], mine: Continuations) -> None:
        """Have lanes woken from outside at these times, unless another process looks after them."""

        async def one(lane: Lane, at_ms: int) -> None:
            at_ms = max(at_ms, self._clock.now_ms() + AHEAD_MS_MIN)
            owner = await mine.hand_on(lane.pk, at_ms)
            if owner is not None:
                await self._dispatcher.schedule(Errand(lane), at_ms, owner, owner)

        await all_of((one(lane, at_ms) for lane, at_ms in lanes.items()), "serverless")

    async def _named(self, errand: Errand, mine: Continuations) -> HandedOn | None:
        """An errand with the name under which it is handed over; None when another invocation looks after its lane."""
        if errand.timer is not None:
            # A message is delivered once, however many invocations try.
            return _handed(errand)
        owner = await mine.hand_on(errand.lane.pk)
        return None if owner is None else _handed(errand, owner)

    async def _hand_on_all(self, lanes: Sequence[HandedOn], hops: int) -> None:
        groups = [tuple(lanes[at : at + HANDED_ON_TOGETHER]) for at in range(0, len(lanes), HANDED_ON_TOGETHER)]
        if len(groups) > HANDED_ON_MAX:
            log.warning("%d lanes are left to the sweep", len(lanes) - HANDED_ON_MAX * HANDED_ON_TOGETHER)
        await all_of((self._hand_on(Continue(group, hops)) for group in groups[:HANDED_ON_MAX]), "serverless")

    async def _quarantine(
        self, record: SourceRecord, topic: str, reason: str, released: Callable[[], None], until_ms: int
    ) -> None:
        await self._dead_letters.put(record, topic, reason, until_ms)
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


class _Look:
    """When to look at a lane again, at growing pauses."""

    def __init__(self, now_ms: int) -> None:
        self._pause_ms = LOOK_AGAIN_MS_MIN
        self._next_ms = now_ms + self._pause_ms

    def due(self, now_ms: int) -> bool:
        """Whether it is time; if so, the next time comes later."""
        if now_ms < self._next_ms:
            return False
        self._pause_ms = min(2 * self._pause_ms, LOOK_AGAIN_MS_MAX)
        self._next_ms = now_ms + self._pause_ms
        return True


def _handed(errand: Errand, owner: str | None = None) -> HandedOn:
    timer = errand.timer
    if timer is None:
        return HandedOn(errand.lane.pk, owner=owner)
    return HandedOn(errand.lane.pk, timer.pk, timer.sk, owner)
