"""One lane in this process: the loop that carries out what the policy decides, one action at a time.

Owns the actions of one lane and their errors. Does not own what is remembered and decided (`core.lane_memory`,
`core.lane_policy`), the work that waits (`lane_queue`), how functions are called and batches committed (`activations`),
or the set of lanes (`dispatcher`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from functools import partial
from typing import assert_never

from tenuto.lane.head import UnreadableHeadError, head_key, parse_head
from tenuto.lane.timers import SleepTimer
from tenuto.lane.transitions import clear_pend, result_key, takeover, trim_head
from tenuto.lane.writes import Applied, Item
from tenuto.protocol.ids import Lane
from tenuto.protocol.limits import INBOX_ITEM_EVENTS_MAX
from tenuto.protocol.messages import Head
from tenuto.protocol.records import CallSource, Event, SleptSlot, pack
from tenuto.store.port import TableRefusedError, TableUnavailableError
from tenuto_control import cancellation
from tenuto_control.core import log_fields
from tenuto_control.core.clocks import differs, lease_from_ms
from tenuto_control.core.flights import NO_LESSONS
from tenuto_control.core.lane_bounds import Bounds
from tenuto_control.core.lane_facts import (
    EMPTY,
    ActivationEnded,
    Buried,
    Delivered,
    Fact,
    HeadDropped,
    HeadSeen,
    Hurried,
    InboxSeen,
    LookBegun,
    LookWanted,
    NapOver,
    Nudged,
    Pressed,
    ProducedInVain,
    ReadBegun,
    SpillBegun,
    Succeeded,
    TableAway,
    TakeoverBegun,
    Troubled,
    Unserved,
)
from tenuto_control.core.lane_memory import LaneMemory, named_by
from tenuto_control.core.lane_policy import (
    Action,
    DrainInbox,
    EndNap,
    HandOver,
    Idle,
    Invoke,
    ReadHead,
    Release,
    ResumeRun,
    Ship,
    Spill,
    TakeOver,
    TrimHead,
    Wait,
    decide,
    finished,
    passed,
)
from tenuto_control.core.log_fields import said_again, shown
from tenuto_control.core.paces import UNKNOWN
from tenuto_control.dispatcher.activations import Activations
from tenuto_control.dispatcher.capacity import HeldPlace
from tenuto_control.dispatcher.inbox import Inbox, InboxView
from tenuto_control.dispatcher.lane_queue import NO_WORK, LaneQueue
from tenuto_control.dispatcher.lane_task import CONTINUE, Continue, GiveWay, LaneTask, Onward, Owner, Rest, Sleeps
from tenuto_control.dispatcher.parts import Parts
from tenuto_control.dispatcher.tries import counted, failure_of
from tenuto_control.dispatcher.work import Attempted, CallWork, KafkaWork, Work
from tenuto_control.ports import (
    HandlerMissingError,
    LogUnavailableError,
    Resting,
    Target,
    TopicPartition,
    TopicUnusableError,
)

log = logging.getLogger("tenuto.lane")

LATE_LEASES = 3
"""Time-outs of its function that a lease lasts, after the last one was over before the function began."""

SPILLED_AT_ONCE = 4 * INBOX_ITEM_EVENTS_MAX
"""Events that move to the inbox before their offsets are released. Each time costs a guard and a mark."""

LET_GO_AT_ONCE = 100
"""Events whose offsets are released before other work gets its turn: about a millisecond."""


class LaneWorker(LaneTask):
    """Works on one lane until it is idle. What only a lane at work needs is made when it begins."""

    __slots__ = ("_activated", "_bounds", "_doing", "_lessons", "_looked", "_memory", "_services", "queue")

    def __init__(self, lane: Lane, services: Parts, memory: LaneMemory, bounds: Bounds, owner: Owner) -> None:
        LaneTask.__init__(self, lane, services.clock, owner)
        self.queue: LaneQueue = NO_WORK
        self._memory = memory
        self._services = services
        self._doing: type[Action] = Idle
        self._activated: Activations | None = None
        self._lessons = NO_LESSONS
        self._looked: Inbox | None = None
        self._bounds = bounds

    # --- what others ask of it --------------------------------------------------------------------------------------

    def add(self, work: Work) -> None:
        """Queue work, unless it is an event that is here already: then that one gets its release."""
        if self.queue is NO_WORK:
            self.queue = LaneQueue()
        self.queue.add(work, self._busy)
        self._nudge()

    def nudge(self, *, look: bool = False) -> None:
        """Something may have changed; `look` also asks for a fresh head and an inbox query."""
        self._on(Nudged(look))
        self._hinted = True
        self._nudge()

    def retry(self) -> None:
        """What the last attempt failed for seems to be over: the next one need not wait out its pause."""
        self._on(Hurried())
        self._hinted = True
        self._nudge()

    def forget_head(self) -> None:
        """The head takes too much room while the lane rests: it is read again afterwards."""
        self._on(HeadDropped())

    @property
    def head(self) -> Head | None:
        """The lane's head, as far as it is known."""
        return self._memory.head

    @property
    def waiting(self) -> int:
        """How many events and calls wait for the lane here, those included that were handed over."""
        return self.queue.waiting

    def let_go(self, work: CallWork) -> bool:
        """The caller of a call stops waiting. True when the call was handed over, and is durable."""
        return self.queue.let_go(work)

    @property
    def running(self) -> bool:
        """Whether an activation, a nap or an unfinished release is in progress."""
        return self.naps or self.queue.holds or (self._activated is not None and self._activated.busy is not None)

    @property
    def naps(self) -> bool:
        """Whether this process is to begin the next attempt at a run that naps."""
        return self._memory.nap is not None

    @property
    def resting(self) -> Resting | None:
        """What the lane waits for; None while it works."""
        if self._resting_until_ms is None:
            return None
        run = None if self.head is None else self.head.run
        return Resting(self._resting_until_ms, held=run is not None and not run.suspended)

    async def entrust(self) -> None:
        """Release the events that are finished but for what they sent: from now on a timer leads back to it."""
        held = self.queue.held
        if held:
            delay_ms = self._services.limits.guard_delay_ms
            await self._services.delivery.guard(self.lane, held[0].event.nonce, delay_ms)
            self.queue.entrust(held)

    def is_running(self, work: Work) -> bool:
        """Whether this work is part of the activation that runs right now."""
        return work in self._busy

    @property
    def memory(self) -> LaneMemory:
        """All that is remembered of the lane."""
        return self._memory

    def call_in_queue(self, event_id: str) -> CallWork | None:
        """A queued or running call with this id."""
        return self.queue.call(event_id, self._busy)

    def withdraw(self, partitions: set[TopicPartition]) -> bool:
        """Forget the events of partitions. True when some of them are being worked on right now."""
        busy = self.queue.withdraw(partitions, self._busy)
        if self._begun_ms is None and not self._hinted and not len(self.queue):
            self._nudged = False  # It was to begin for these events alone.
        return busy

    def cut(self, partitions: set[TopicPartition]) -> None:
        """Whatever still runs of these partitions releases nothing any more."""
        self.queue.cut(partitions, self._busy)

    def relieve(self, partitions: set[TopicPartition]) -> None:
        """Make room in these partitions, if events of theirs have waited for long in this lane's queue.

        While the lane has not begun, it is not what they wait for, and to move them would not make them begin sooner.
        """
        since_ms = self._services.clock.now_ms() - self._bounds.spill_after_ms
        if self._begun_ms is None or self._begun_ms > since_ms or self._memory.pressed:
            return
        if self.queue.waits_since(since_ms, partitions, self._busy):
            self._on(Pressed())
            self._nudge()

    @property
    def _busy(self) -> Collection[Work]:
        """The queued work that an activation is about right now."""
        return () if self._activated is None else self._activated.busy or ()

    @property
    def _activations(self) -> Activations:
        if self._activated is None:
            self._activated = Activations(self.lane, self._services, partial(self.nudge, look=True), self._lessons)
        return self._activated

    @property
    def _inbox(self) -> Inbox:
        if self._looked is None:
            self._looked = Inbox(self.lane, self._services.writer)
        return self._looked

    def _on(self, fact: Fact) -> None:
        napped, self._memory = self.naps, self._memory.on(fact)
        if self.naps != napped:
            self._services.naps.note(self.lane, self.head if self.naps else None, self._services.clock.now_ms())

    def unburden(self) -> None:
        """See `LaneTask.unburden`. What earlier activations have shown stays."""
        if self._activated is not None:
            self._lessons, self._activated = self._activated.lessons, None
        if self._looked is not None and not self._looked.holds:
            self._looked = None
        if self.queue.forgettable:
            self.queue = NO_WORK
        self._memory = self._memory.frugal()

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def turn(self) -> Onward:
        """Carry out one action. Whatever goes wrong, the lane continues."""
        try:
            action = self._decided()
        except Exception as e:  # noqa: BLE001 - a mistake of this project's own
            # Decided again at once, it would go wrong again, and nothing else in this process would get its turn.
            self._troubled("the next action cannot be decided", e)
            return Rest(self._memory.paused_until_ms)
        # What is tried again has begun long ago, and its pause says when it is due.
        if isinstance(action, Invoke) and self._memory.failing is None and not self._owner.may_begin(self):
            return GiveWay()
        try:
            onward = await self._carry_out(action)
            if self._memory.trouble is not None:
                self._on(Succeeded(self._doing))
            return onward
        except TableRefusedError as e:
            return self._troubled(f"the table refuses a write: {shown(str(e))}")
        except UnreadableHeadError as e:
            # Nothing is lost by leaving it alone, and it is looked at again: a newer version may have written it.
            self._services.unreadable.met(f"the record of the key {self.lane.pk}", e)
            self._on(LookBegun())
            return self._set_back()
        except (LogUnavailableError, HandlerMissingError) as e:
            return self._produced_in_vain(e)
        except TableUnavailableError:
            # It is said elsewhere, once for the whole process. The lane starts over from its head.
            self._on(TableAway(self._services.clock.now_ms() + self._services.limits.table_retry_max_ms))
            return Rest(self._memory.paused_until_ms)
        except (Exception, asyncio.CancelledError) as e:
            # A lane must never die silently: whatever went wrong, its truth is in the table.
            if isinstance(e, asyncio.CancelledError) and cancellation.is_meant():
                raise
            return self._troubled("unforeseen, the lane starts over from its head", e)

    def _troubled(self, text: str, error: BaseException | None = None) -> Continue:
        """Let time pass after an error that what is due next may only meet again: more each time, and say so less."""
        onward = self._set_back()
        times = self._memory.troubles
        if said_again(times):
            again = f" ({times} times)" if times > 1 else ""
            fields = log_fields.of_lane(self.lane)
            log.error("%s: %s%s", self.lane.pk, text, again, exc_info=error, extra=fields)
        return onward

    def _set_back(self) -> Continue:
        """Start over from the head, after a pause that grows. Meanwhile nothing is decided but to move events away."""
        limits, now_ms = self._services.limits, self._services.clock.now_ms()
        self._on(Troubled(self._doing, now_ms, limits.table_retry_max_ms, limits.table_refused_retry_max_ms))
        return CONTINUE

    def _produced_in_vain(self, error: LogUnavailableError | HandlerMissingError) -> Continue:
        """A record could not be produced, or a message not delivered: the lane waits, and what is behind it."""
        self._on(ProducedInVain(self._services.clock.now_ms()))
        if self._memory.vain_ships == 1 and not isinstance(error, TopicUnusableError | HandlerMissingError):
            fields = log_fields.of_lane(self.lane)
            log.warning(
                "%s: records cannot be produced, still trying: %s", self.lane.pk, shown(str(error)), extra=fields
            )
        return CONTINUE

    def _decided(self) -> Action:
        off = differs(self._services.table_clock.check, self._bounds.lease_margin_ms)
        head, now_ms = self._memory.head, self._services.clock.now_ms()
        run = None if head is None else head.run
        pace = UNKNOWN if run is None else self._services.paces.of((self.lane.service, run.event.handler))
        turn = self.queue.turn(now_ms, head, clock_differs=off, pace=pace)
        self._on(turn)
        action = decide(self._memory, turn, self._bounds)
        self._doing = type(action)
        return action

    async def _carry_out(self, action: Action) -> Onward:  # noqa: C901 - one case for each action
        match action:
            case ReadHead():
                await self._read_head()
            case ResumeRun(over):
                await self._take_over(over, failed=False)
            case EndNap():
                await self._end_nap()
            case TakeOver():
                await self._take_over((), failed=True)
            case Ship():
                await self._ship()
            case Release():
                self._release_first()
            case Spill():
                await self._spill()
            case HandOver():
                return await self._hand_over()
            case DrainInbox():
                await self._drain()
            case Invoke():
                await self._invoke()
            case TrimHead():
                await self._trim()
            case Wait(until_ms):
                return Rest(until_ms)
            case Idle(wake_ms):
                return Sleeps(wake_ms)
            case _:
                assert_never(action)
        return CONTINUE

    # --- actions ----------------------------------------------------------------------------------------------------

    async def _read_head(self) -> None:
        table = self._services.writer.table
        self._on(ReadBegun())
        head = parse_head(await self._services.writer.patiently(lambda: table.get(head_key(self.lane))))
        await self._learn_and_look(head)

    async def _learn_and_look(self, head: Head) -> None:
        self._learn(head)
        # Each that was looked for has its result, or is not looked for again beside this head.
        while calls := self.queue.to_look_for(head, self._services.clock.now_ms()):
            items = await self._services.writer.read_all([result_key(call.event.id) for call in calls])
            results = [self._services.unreadable.result(self.lane, item) for item in items]
            self.queue.looked_for(calls, results, head, self._services.clock.now_ms())

    async def _end_nap(self) -> None:
        """Begin, without a write, the attempt that the lane was taken over for, if its lease surely lasts."""
        head, target = self._seen(), self._services.targets.find(self.lane.service)
        if (run := head.run) is None or target is None:
            await self._take_over((), failed=False)
            return
        async with self._activations.place_to_resume(target, head) as place:
            now_ms = self._services.clock.now_ms()
            lasts = self._services.naps.left_ms(self.lane, head, now_ms) >= target.timeout_ms
            self._on(NapOver(run.holder, missed=not lasts))
            if lasts:
                self._services.metrics.sample("WakeLatenessMs", max(0, now_ms - (run.wake_ms or 0)))
                await self._resume(head, run.holder, place)

    async def _take_over(self, over: Sequence[str], *, failed: bool) -> None:
        head = self._seen()
        run = head.run
        target = self._services.targets.find(self.lane.service)
        if run is None or target is None:
            fields = log_fields.of_lane(self.lane) if run is None else log_fields.of_event(self.lane, run.event)
            log.warning("%s: no function serves %s, its work waits", self.lane.pk, self.lane.service, extra=fields)
            self._on(Unserved(self._services.clock.now_ms() + self._services.limits.invoke_retry_max_ms))
            return
        async with self._services.capacity.place(target, begun=True):
            # Only now: the lease runs from the takeover, and must not be spent on waiting for a place.
            await self._take_over_now(head, target, over, failed=failed)

    async def _take_over_now(self, head: Head, target: Target, over: Sequence[str], *, failed: bool) -> None:
        crashes = None if head.run is None or not failed else self._memory.crashes(head.run)
        self._on(TakeoverBegun())
        spent = self._activations.spent(head, crashes)
        holder, now_ms = self._services.token(), self._services.clock.now_ms()
        from_ms = lease_from_ms(self._services.table_clock.check, now_ms, self._bounds.lease_margin_ms)
        lease_ms = from_ms + target.timeout_ms * (LATE_LEASES if self._activations.late else 1)
        start_ms = now_ms if head.run is None else head.run.start_ms
        slept = {slot: pack(SleptSlot(max(0, now_ms - start_ms))) for slot in over}
        tok = f"{holder}.take"
        written = await self._services.writer.write(
            takeover(self.lane, head, holder, lease_ms, slept, tok, crashes), tok
        )
        left = written.left(head)
        self._learn(left)
        if not isinstance(written.answer, Applied):
            return
        if head.run is not None and not head.run.suspended:
            # Whose attempt has not said that it has ended.
            await self._services.delivery.guard_leftovers(self.lane)
        if over and head.run is not None and head.run.wake_ms is not None:
            self._services.metrics.sample("WakeLatenessMs", max(0, now_ms - head.run.wake_ms))
        if head.run is not None and head.run.wake_ms is not None and not failed:
            self._services.wheel.forget(SleepTimer(self.lane, head.run.event.nonce, head.run.wake_ms, "over"))
        if spent is not None:
            self._attempted(await self._activations.bury_run(left, spent, self._memory.trim(left)), left)
            return
        await self._resume(left, holder)

    async def _resume(self, head: Head, holder: str, place: HeldPlace | None = None) -> None:
        memory, queue = self._memory, tuple(self.queue)
        tries, trim = partial(memory.tries, head), memory.trim(head)
        # Events that are to be moved away are moved between two runs.
        attempted = await self._activations.resume(head, queue, tries, trim, holder, place, alone=memory.pressed)
        await self._end(attempted, head)

    async def _ship(self) -> None:
        shipped, whole = set(self._memory.shipped), False
        entries = {seq: out for seq, out in self._seen().out.items() if seq not in shipped}
        try:
            await self._services.delivery.ship(self.lane, entries, shipped)
            whole = True
        finally:
            # Some of it leaves whatever the rest meets.
            self._on(Delivered(frozenset(shipped), whole))

    def _release_first(self) -> None:
        work = self.queue.pop()
        if isinstance(work, KafkaWork):
            work.release()

    async def _spill(self) -> None:
        """Move Kafka events to the inbox. Calls are made durable by their callers, when these stop waiting."""
        self._on(SpillBegun())
        works = self.queue.of_kafka()
        for first in range(0, len(works), SPILLED_AT_ONCE):
            # Offsets go as their events are durable: the partition has room for other keys while the rest follows.
            some = works[first : first + SPILLED_AT_ONCE]
            await self._services.delivery.accept(self.lane, [w.event for w in some])
            for at in range(0, len(some), LET_GO_AT_ONCE):
                self.queue.let_go_of(some[at : at + LET_GO_AT_ONCE])
                await asyncio.sleep(0)
        if self._memory.trouble is not None:
            # Whether what they sent has left cannot be seen from here, perhaps for long.
            await self.entrust()
        self._on(HeadDropped())

    async def _hand_over(self) -> Onward:
        """Another process uses the lane: what is queued here goes to its inbox, which that process looks into next."""
        works = self.queue.movable()
        if not works:
            # Calls that are too large for the inbox wait for the lane, and for no longer than their callers.
            self._on(HeadDropped())
            return Rest(self._services.clock.now_ms() + self._bounds.call_look_ms)
        self._on(LookBegun())
        self._on(ReadBegun())
        item, over = await self._services.acceptance.take_in(self.lane, [work.to_keep() for work in works])
        head = None if item is None else parse_head(item)
        self.queue.hand_over(works, self._services.clock.now_ms(), head, over, after=self._memory.sighting.marked)
        # Whoever uses the lane sees the mark. Had it finished just before, the lane is taken up from here.
        if head is not None:
            await self._learn_and_look(head)
        return CONTINUE

    async def _drain(self) -> None:
        head, asked = self._seen(), self._memory.look
        self._on(LookBegun())
        waiting = await self._inbox.waiting(head, self._services.clock.now_ms(), self._memory.drain_max, asked=asked)
        await self._set_aside(waiting.unreadable)
        await self._inbox.bury(waiting.done, self._services.clock.now_ms())
        await self._inbox.forget(waiting.passed, later=bool(waiting.events))
        if not (waiting.more or waiting.kept):
            live = frozenset(event.nonce for event in waiting.events)
            self._on(InboxSeen(head, live, self._services.clock.now_ms()))
        if waiting.events:
            await self._run_items(head, waiting)
        elif waiting.more:
            self._on(LookWanted())
            self._on(HeadDropped())
        elif head.pend is not None:
            written = await self._services.writer.write(clear_pend(self.lane, head, self._memory.trim(head)))
            self._learn(written.left(head))

    async def _set_aside(self, unreadable: Sequence[tuple[Item, Exception]]) -> None:
        """Move inbox items out of the way that cannot be read: the key continues without them."""
        await self._inbox.set_aside([item for item, _ in unreadable], self._services.clock.now_ms())
        for item, error in unreadable:
            self._services.unreadable.met(f"the inbox item {item['pk']!s} {item['sk']!s}", error)

    async def _run_items(self, head: Head, waiting: InboxView) -> None:
        """Run inbox items, and bury those that are finished then."""
        tries, began_ms = partial(self._memory.tries, head), self._services.clock.now_ms()
        attempted = await self._activations.drain(
            head, waiting.events, tries, self._memory.trim(head), clears=not waiting.more
        )
        took_ms = self._services.clock.now_ms() - began_ms
        self._services.paces.told_of_all(waiting.events, head, attempted.head, took_ms)
        await self._end(attempted, head)
        left, now_ms = attempted.head, self._services.clock.now_ms()
        buried: Sequence[Event] = ()
        ran = 0
        if left is not None:
            over = [event for event in waiting.events if finished(left, event, now_ms)]
            ran = len(over) + sum(passed(left, event) for event in waiting.events)
            ours = ran > 0 and left.run is None and named_by(self._bounds.process, left.tok)
            buried = await self._inbox.ran(over, left if ours else None, now_ms)
            await self._inbox.forget([one for one in waiting.records if one.passed(left)], later=left.pend is not None)
        calls_ms = took_ms if isinstance(waiting.events[0].source, CallSource) else 0
        self._on(Buried(frozenset(event.nonce for event in buried), ran, len(waiting.events), calls_ms))
        if ran < len(waiting.events) or (waiting.more and (left is None or left.pend is None)):
            self._on(LookWanted())

    async def _invoke(self) -> None:
        head, first = self._seen(), next(iter(self.queue), None)
        tries, began_ms = partial(self._memory.tries, head), self._services.clock.now_ms()
        attempted = await self._activations.speculate(head, self.queue, tries, self._memory.trim(head))
        if any(work.keep for work in self.queue.without_callers()):
            # A call that was handed over while it ran has an item in the inbox: to be run again, or to be buried.
            self._on(LookWanted())
        if attempted is not None:
            took_ms = self._services.clock.now_ms() - began_ms
            ended = [work.event for work in attempted.finished]
            self._services.paces.told_of_all(ended, head, attempted.head, took_ms)
            await self._end(attempted, head)
            if isinstance(first, CallWork):
                self._on(Buried(EMPTY, 1, 1, took_ms))

    async def _trim(self) -> None:
        head = self._seen()
        trim = self._memory.trim(head)
        over = head.run is None and not head.out.keys() - set(trim.out) and not self._services.keyed(self.lane.service)
        over_ms = self._services.clock.now_ms() if over else None
        written = await self._services.writer.write(trim_head(self.lane, trim, over_ms))
        self._learn(parse_head(written.answer.item))

    # --- afterwards -------------------------------------------------------------------------------------------------

    async def _end(self, attempted: Attempted, head: Head) -> None:
        """Take in what came of an activation that began from this head, once a failure of it is written down."""
        tries, shipped = partial(self._memory.tries, head), self._memory.trim(head).out
        self._attempted(await counted(self._services, self.lane, attempted, tries, shipped, head.run), head)

    def _attempted(self, attempted: Attempted, from_head: Head) -> None:
        """Take in what came of an activation that began from this head."""
        metrics, now_ms, head = self._services.metrics, self._services.clock.now_ms(), attempted.head
        for work in attempted.finished:
            self.queue.finish(work)
            if isinstance(work, KafkaWork):
                metrics.sample("AgeMs", work.age_ms(now_ms))
        nonces = frozenset(work.event.nonce for work in attempted.finished)
        failed = failure_of(self._services, self.lane, attempted, partial(self._memory.tries, from_head))
        answered = EMPTY if head is None else self.queue.answer(head, now_ms)
        outrun, overtaken = self._activations.outrun, attempted.overtaken
        ended = ActivationEnded(
            head, now_ms, nonces, attempted.ended, failed, answered, outrun, attempted.nap, overtaken
        )
        self._on(ended)
        if head is not None:
            self.queue.release(head)

    def _learn(self, head: Head) -> None:
        """Take in a head that was read, or that a write has left."""
        now_ms = self._services.clock.now_ms()
        if (over := self._memory.sighting.over(head, now_ms)) is not None:
            self._services.paces.told((self.lane.service, over[0]), over[1])
        self._on(HeadSeen(head, now_ms, self.queue.answer(head, now_ms)))
        self.queue.release(head)

    def _seen(self) -> Head:
        head = self._memory.head
        assert head is not None, "the policy reads the head before anything else"
        return head
