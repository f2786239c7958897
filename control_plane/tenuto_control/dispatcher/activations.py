"""Activations of one lane: the call of its function, and carrying out what follows from the answer.

Owns the order: a place, a batch, the invocation, its judgement, its commit. Does not own when a lane activates
(`lane_worker`), what goes into a batch (`batches`), what an answer means (`core.verdicts`), nor how a commit is written
(`commits`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeAlias, TypeVar, assert_never

import msgspec
from msgspec.structs import replace

from tenuto.lane.head import UnreadableHeadError, head_key, parse_head
from tenuto.lane.lives import life_over, newly_former
from tenuto.protocol.ids import Lane
from tenuto.protocol.limits import BESIDE_HOLD_MS_MAX, POOLED_BYTES_MAX
from tenuto.protocol.messages import (
    Activation,
    Committed,
    EventResult,
    Fenced,
    Head,
    NapLeave,
    Outcome,
    Rejected,
    Speculated,
    Stopped,
    Suspended,
    Trim,
    decode_outcome,
    encode,
)
from tenuto.protocol.modes import Drain, Mode, Resume, Shared, Speculate, activation_of
from tenuto.protocol.records import Event, Failed, Failure, KafkaSource, Result, SendOut, Success
from tenuto.serde import problem_of
from tenuto.store.port import TableRefusedError, TableUnavailableError, UnstorableError
from tenuto_control.core import log_fields
from tenuto_control.core.flights import NO_LESSONS, Flight, Lessons, Trace, departing, trace_of
from tenuto_control.core.outcomes import outcome_problem
from tenuto_control.core.traces import Activating
from tenuto_control.core.verdicts import (
    Commit,
    Crashed,
    Discarded,
    Durable,
    Ended,
    FencedOff,
    GivenUp,
    HandedBack,
    NoOutcome,
    Settled,
    TryAgain,
    Unreachable,
    Unstorable,
    WaitTurn,
    Warned,
    Written,
    judge,
    judge_commit,
    unserved,
)
from tenuto_control.dispatcher.batches import behind, choose, with_room
from tenuto_control.dispatcher.capacity import HeldPlace
from tenuto_control.dispatcher.commits import Commits
from tenuto_control.dispatcher.ends import Ends
from tenuto_control.dispatcher.heads import head_bytes
from tenuto_control.dispatcher.invoking import ask, ask_together, no_outcome, request_bytes
from tenuto_control.dispatcher.parts import Parts
from tenuto_control.dispatcher.pools import ALONE, UNSHARED, Alone, Forsaken, Sharing, Told, Unheard, Watch, is_quick
from tenuto_control.dispatcher.work import Attempted, CallWork, Work
from tenuto_control.limits import NAP_TIMEOUT_MS_MAX, REQUEST_COPIES
from tenuto_control.ports import (
    AnswerHolder,
    FunctionFailedError,
    FunctionThrottledError,
    InvokeError,
    Target,
)

log = logging.getLogger("tenuto.lane")

MISSING: Final = 404
"""The status of a function that has no such handler."""

T = TypeVar("T")

Tries: TypeAlias = Callable[[Event], int]
"""Which attempt at an event the next one is, from 1."""


@dataclass(slots=True)
class Activations:
    """Activates one lane, one activation at a time. `busy` is the work that one is about, while it runs.

    `late_answer` hears of a function that has ended after the lane went on without an answer: it may have had the lane.
    """

    lane: Lane
    services: Parts
    late_answer: Callable[[], None] = lambda: None
    lessons: Lessons = NO_LESSONS
    busy: tuple[Work, ...] | None = None
    _ends: Ends = field(init=False)
    _commits: Commits = field(init=False)

    def __post_init__(self) -> None:
        """Nothing has been tried yet."""
        self._ends = Ends(self.lane, self.services)
        self._commits = Commits(self.lane, self.services, self._ends)

    @property
    def late(self) -> bool:
        """Whether the lane's run was handed back unbegun, because its function began too late for its lease."""
        return self.lessons.late

    @property
    def outrun(self) -> int:
        """How often in a row another process was quicker."""
        return self.lessons.fenced

    # --- the ways to activate ---------------------------------------------------------------------------------------

    async def speculate(self, head: Head, queue: Iterable[Work], tries: Tries, trim: Trim) -> Attempted | None:
        """Run queued events. None when stored results have answered all of them."""
        target = self._target()
        if target is None:
            return self._unserved(next(iter(queue)).event)
        event = next(iter(queue)).event
        sharing = UNSHARED if tries(event) > 1 else self._sharing(target, head, event)
        attempted = await self._speculated(target, head, queue, tries, trim, sharing)
        if isinstance(attempted, Alone | Forsaken):
            attempted = await self._speculated(target, head, queue, tries, trim)
        return None if isinstance(attempted, Alone | Forsaken) else attempted

    def _sharing(self, target: Target, head: Head, event: Event) -> Sharing:
        """How an event may share an invocation with those of other lanes; one that may be to blame has its own."""
        lessons = self.lessons
        if lessons.claim_first or lessons.one_by_one or lessons.late:
            return UNSHARED
        sharing = self.services.quick.sharing((self.lane.service, event.handler), target)
        return sharing if sharing.most > 1 and head_bytes(head) <= POOLED_BYTES_MAX // 2 else UNSHARED

    def place_to_resume(self, target: Target, head: Head) -> HeldPlace:
        """A place for the head's own run, whose nap is over: lanes that are worked on side by side may share it."""
        sharing = UNSHARED if head.run is None or head.run.failures else self._sharing(target, head, head.run.event)
        return self.services.capacity.place(target, begun=True, sharing=sharing if sharing.beside else UNSHARED)

    async def _speculated(
        self,
        target: Target,
        head: Head,
        queue: Iterable[Work],
        tries: Tries,
        trim: Trim,
        sharing: Sharing = UNSHARED,
    ) -> Attempted | Alone | Forsaken | None:
        begins = self.lane.service, next(iter(queue)).event.handler
        with self.services.capacity.answer(target) as room:
            async with self.services.capacity.place(target, handler=begins, sharing=sharing) as place:
                # Chosen only now that there is a place: what arrived while waiting for it joins the batch.
                works = await choose(self.services, head, queue, one_by_one=self.lessons.one_by_one)
                if not works:
                    return None
                works = works[: self._served([work.event for work in works])]
                self.busy = works
                try:
                    events = [work.event for work in works]
                    mode = Speculate(tuple(events), tries(events[0]), self.lessons.claim_first)
                    flight = self._flight(target, head, mode, trim)
                    outcome = await self._invoke_in(place, target, flight, room)
                except BaseException:
                    self.busy = None
                    raise
            if isinstance(outcome, Alone):
                self.busy = None
                return outcome
            try:
                # Still busy: until its commit is answered nobody may promise this work to run elsewhere.
                for work in works:
                    if isinstance(work, CallWork):
                        work.attempted = True
                if isinstance(outcome, Forsaken):
                    return outcome
                return await self._judged(flight, outcome, works)
            finally:
                self.busy = None

    async def drain(self, head: Head, events: Sequence[Event], tries: Tries, trim: Trim, *, clears: bool) -> Attempted:
        """Run inbox items. `clears`: they are all there is, so their commit may clear the mark."""
        target = self._target()
        if target is None:
            return self._unserved(events[0])
        batch = tuple(events[: 1 if self.lessons.one_by_one else self._served(events)])
        clears = clears and len(batch) == len(events)
        begins = self.lane.service, batch[0].handler
        with self.services.capacity.answer(target) as room:
            async with self.services.capacity.place(target, handler=begins):
                mode = Drain(batch, tries(batch[0]), self.lessons.claim_first, clears)
                flight = self._flight(target, head, mode, trim)
                outcome = await self._invoke(target, flight, room)
            return await self._judged(flight, outcome)

    async def resume(
        self,
        head: Head,
        queue: Sequence[Work],
        tries: Tries,
        trim: Trim,
        holder: str,
        place: HeldPlace | None,
        *,
        alone: bool,
    ) -> Attempted:
        """Run the head's own run, which this process has just taken over as `holder`, within a `place` or its own.

        Unless it is to run `alone`, the queued events behind it follow, if nothing is known against that.
        """
        target = self._target()
        if target is None or head.run is None:
            raise AssertionError("a takeover needs a target and a run")
        # Its own event waits here too, unless its offset was let go of while it slept.
        own = tuple(queue[:1]) if queue and queue[0].event.id == head.run.event.id else ()
        lessons, following = self.lessons, behind(self.services, head, head.run, queue[len(own) :])
        alone = alone or lessons.one_by_one or lessons.claim_first or any(tries(work.event) > 1 for work in following)
        # What has begun comes before what is new, and would wait for more than one invocation.
        if alone or self.services.capacity.begun_wait(target):
            following = []
        if place is not None and place.shared:
            following = with_room(head, following)
        works = (*own, *following)
        # Perhaps about no work that waits here, but at work all the same.
        self.busy = works
        try:
            mode = Resume(head.run, lessons.late, tuple(work.event for work in following))
            flight = self._flight(target, head, mode, trim, holder)
            with self.services.capacity.answer(target) as room:
                # One that is to be asked for alone is taken over for that: the place is for one invocation at a time.
                told = await self._invoke_in(place, target, flight, room)
                return await self._judged(flight, told, works)
        finally:
            self.busy = None

    async def shared(self, head: Head, event: Event) -> Result:
        """Run a read-only handler. Raises InvokeError."""
        target = self._target()
        if target is None:
            return Failed(Failure(f"no function serves {self.lane.service}", MISSING))
        with self.services.capacity.answer(target) as room:
            async with self.services.capacity.place(target):
                outcome = await self._invoke(target, self._flight(target, head, Shared(event), Trim()), room)
        match outcome:
            case Speculated((EventResult(_, result),)):
                return result
            case Speculated(_, stopped=Stopped(_, failure)):
                return Failed(failure)
            case Rejected(failure):
                return Failed(failure)
            case InvokeError():
                raise outcome
            case _:
                raise FunctionFailedError(f"a shared handler answered {type(outcome).__name__}")

    def spent(self, head: Head, crashes: int | None) -> str | None:
        """Why a run whose function never answers is given up, if its policy says so."""
        if head.run is None or crashes is None:
            return None
        limit = self.services.policy(self.lane.service, head.run.event.handler).max_attempts
        if limit is None or crashes < limit:
            return None
        return f"{crashes} attempts failed, the last without an answer of its function"

    async def bury_run(self, head: Head, reason: str, trim: Trim) -> Attempted:
        """End a run, which this process has just taken over, as failed for good: its function never answers."""
        return Attempted(await self._commits.bury(head, reason, trim))

    def _served(self, events: Sequence[Event]) -> int:
        """How many of these one activation is about: a function refuses all of them when it lacks one's handler.

        Those before the first whose handler is missing, or that one alone: the function may have got it just now.
        """
        problems = (self.services.receivers.problem(self.lane.service, event.handler) for event in events)
        return max(1, next((n for n, problem in enumerate(problems) if problem is not None), len(events)))

    # --- calling ----------------------------------------------------------------------------------------------------

    def _target(self) -> Target | None:
        return self.services.targets.find(self.lane.service)

    def _flight(self, target: Target, head: Head, mode: Mode, trim: Trim, holder: str | None = None) -> Flight:
        name, now_ms = holder or self.services.token(), self.services.clock.now_ms()
        flight = departing(self.lane, head, mode, name, trim, self.lessons, target.manifest, now_ms)
        return replace(flight, nap=self._leave(target, flight))

    def _leave(self, target: Target, flight: Flight) -> NapLeave | None:
        """Leave to nap, unless enough lanes do, or this process might be wrong about the end of the lease.

        What has been sent and could not leave yet comes first: a suspended run waits for that.
        """
        services, limits = self.services, self.services.limits
        unsent = not flight.head.out.keys() <= set(flight.trim.out)
        if isinstance(flight.mode, Shared) or target.timeout_ms > NAP_TIMEOUT_MS_MAX or unsent:
            return None
        if not services.naps.may(flight.events):
            return None
        return NapLeave(limits.nap_sleep_ms, target.timeout_ms + limits.nap_slack_ms, services.token())

    async def _invoke(self, target: Target, flight: Flight, room: AnswerHolder) -> Outcome | InvokeError:
        async with self.services.capacity.room(target, REQUEST_COPIES * request_bytes(flight)):
            return await self._requested(flight, lambda request: self._asked(target, request, flight, room))

    async def _invoke_in(self, place: HeldPlace | None, target: Target, flight: Flight, room: AnswerHolder) -> Told:
        """The same within a place that other lanes may share, and with it the invocation. What it took is noted."""
        shared = place is not None and place.shared
        if place is None or not shared:
            told: Told = await self._invoke(target, flight, room)
        else:
            told = await self._requested(flight, partial(self._asked_shared, place, target, flight))
        self._note_pace(flight, told, shared=shared)
        return told

    async def _asked_shared(self, place: HeldPlace, target: Target, flight: Flight, request: Activation) -> Told:
        """What is told of a flight in a shared invocation. Whoever asks for all of them holds room for the request."""
        beside = place.beside
        if beside:
            request = replace(request, hold_ms=min(request.hold_ms, BESIDE_HOLD_MS_MAX))
        payload = encode(request)
        if len(payload) > POOLED_BYTES_MAX:
            return ALONE
        room = self.services.capacity.answer(target)
        asked = partial(ask_together, self.services, target, room, beside=beside)
        watch = Watch(partial(self._look, flight), self.late_answer) if beside else None
        told = await place.answer(payload, asked, room, watch)
        if isinstance(told, InvokeError | Alone | Forsaken | Unheard):
            return told
        checked = self._checked(target, flight, told)
        return checked if beside or not isinstance(checked, FunctionFailedError) else ALONE

    async def _look(self, flight: Flight) -> Trace:
        """What the table shows of a flight whose invocation has not been answered."""
        try:
            head = parse_head(await self.services.writer.table.get(head_key(self.lane)))
        except (TableUnavailableError, TableRefusedError, UnreadableHeadError):
            return Trace.UNTOLD
        return trace_of(flight, head)

    async def _requested(self, flight: Flight, ask: Callable[[Activation], Awaitable[T]]) -> T:
        request = activation_of(
            flight.mode,
            self.lane.service,
            self.lane.key,
            flight.head,
            flight.holder,
            trim=flight.trim,
            table=self.services.table_name,
            encrypted=self.services.encrypted,
            hold_ms=self.services.limits.hold_sleep_ms,
            nap=flight.nap,
        )
        activating = Activating(self.lane, request.mode, flight.events, request.attempt)
        with self.services.tracer.activation(activating) as traced:
            if traced.parent is not None:
                request = replace(request, trace=traced.parent)
            told = await ask(replace(request, spread=self.services.wide_timers.activating()))
            traced.end(type(told).__name__, failed=isinstance(told, InvokeError | Rejected))
        return told

    async def _asked(
        self, target: Target, request: Activation, flight: Flight, room: AnswerHolder
    ) -> Outcome | InvokeError:
        answer = await ask(self.services, target, encode(request), room)
        if isinstance(answer, InvokeError):
            return answer
        try:
            outcome = decode_outcome(answer)
        except Exception as e:  # noqa: BLE001 - whatever an answer makes of its reader, it is the answer's fault
            problem = problem_of(e) if isinstance(e, msgspec.DecodeError) else type(e).__name__
            return FunctionFailedError(f"{target.function} answered something that is not an outcome: {problem}")
        return self._checked(target, flight, outcome)

    def _checked(self, target: Target, flight: Flight, outcome: Outcome) -> Outcome | FunctionFailedError:
        """An outcome that a flight can have, as far as can be seen from here."""
        try:
            problem = outcome_problem(outcome, flight)
        except Exception as e:  # noqa: BLE001 - whatever an outcome makes of its judge
            problem = type(e).__name__
        if problem is not None:
            return FunctionFailedError(f"{target.function} answered what cannot be: {problem}")
        return self._early(outcome) or outcome

    def _early(self, outcome: Outcome) -> Rejected | None:
        """Why an outcome waits with its sender: it is for a handler that its service does not have, as far as is known.

        Delivered, it would keep the receiver's key from everything behind it until there is such a handler. What a
        function says to have committed by itself is looked up, and delivered only if it is there.
        """
        match outcome:
            case Speculated(out=entries):
                pass
            case Committed(head=head) | Suspended(head=head):
                entries = tuple(head.out.values())
            case _:
                return None
        for entry in entries:
            if isinstance(entry, SendOut) and self.services.receivers.problem(entry.service, entry.handler):
                name = f"{entry.service}/{entry.handler}"
                return Rejected(Failure(f"a message to {name} waits: no function serves that handler", MISSING))
        return None

    # --- what follows -----------------------------------------------------------------------------------------------

    async def _judged(self, flight: Flight, outcome: Told, works: tuple[Work, ...] = ()) -> Attempted:
        """Judge an outcome, and carry out the verdict. `works` are those that wait for the flight's events here."""
        answer = no_outcome(outcome) if isinstance(outcome, InvokeError | Alone | Forsaken | Unheard) else outcome
        if isinstance(answer, Crashed | Unreachable | Fenced):
            await self.services.delivery.guard_leftovers(self.lane)
        limits, now_ms = self.services.limits, self.services.clock.now_ms()
        if marks := newly_former(flight.head, _new_events(flight), now_ms):
            await self.services.writer.write(life_over(self.lane, marks))
        verdict, self.lessons = judge(flight, answer, self.lessons, limits, now_ms)
        verdict = self._unhandled(flight, answer) or verdict
        while True:
            match verdict:
                case Commit():
                    commit = verdict
                case GivenUp(event, reason, status_code, last_resort):
                    outcome = self._ends.given_up(flight.tried, event, reason, status_code)
                    commit = Commit(outcome, last_resort)
                case _:
                    attempted = _with_nap(self._carried_out(flight, verdict, works), flight)
                    self._note_sleep(attempted)
                    return attempted
            done = works[: len(commit.outcome.results)]
            written: Written
            try:
                written = await self._commits.store(flight, done, commit)
            except UnstorableError as e:
                if commit.last_resort:
                    # The head itself is too large: the lane says so, and waits.
                    raise
                written = Unstorable(str(e))
            verdict, self.lessons = judge_commit(
                flight, commit, written, self.lessons, limits, self.services.clock.now_ms()
            )

    def _unhandled(self, flight: Flight, answer: Outcome | NoOutcome) -> GivenUp | None:
        """The end of a message or call whose handler has been missing for long, as the function says, too.

        A run waits on, as what it has done would be left undone; so does a record, whose handler a subscription names.
        """
        refused = isinstance(answer, Rejected) and answer.failure.status_code == MISSING
        event, receivers = flight.events[0], self.services.receivers
        if not refused or not isinstance(flight.mode, Speculate | Drain) or isinstance(event.source, KafkaSource):
            return None
        problem = receivers.problem(self.lane.service, event.handler)
        if problem is None or receivers.waits(self.lane.service, event.handler, problem):
            return None
        return GivenUp(event, problem, MISSING)

    def _carried_out(self, flight: Flight, verdict: Settled, works: tuple[Work, ...]) -> Attempted:
        """What a verdict that asks for no write comes to."""
        metrics = self.services.metrics
        if isinstance(verdict, Durable):
            metrics.count("Committed", len(verdict.results))
            finished = self._finish(works, verdict.results)
            self._tell_recoveries(flight, verdict.results)
            if verdict.then is None:
                return Attempted(verdict.head, finished)
            return replace(self._again(verdict.then, flight.holder), finished=finished)
        ended = frozenset({flight.holder})
        match verdict:
            case Discarded(head):
                metrics.count("SpeculationLost")
                return Attempted(head, overtaken=True)
            case Ended(head, results, writes, suspended, warned, pause_ms, then):
                metrics.count("Writes", writes)
                metrics.count("Suspensions", suspended)
                self._warn(warned)
                self._tell_recoveries(flight, results)
                if head.run is not None and head.run.suspended and head.run.error is not None:
                    self.services.recoveries.failed((self.lane.service, head.run.event.handler), self.lane)
                self._ends.tell(flight.tried, flight.events, results, head.out.values())
                metrics.count("Committed", len(results))
                # Of the events of a flight, the first ones may have no work here: a run, or items of the inbox.
                finished = self._finish(works, results[len(flight.events) - len(works) :])
                if then is not None:
                    # Nothing is owned, so no holder is of interest.
                    return replace(self._again(then, flight.holder), finished=finished)
                if head.run is None or not pause_ms:
                    return Attempted(head, finished, ended=ended)
                return Attempted(head, finished, head.run.event, pause_ms, harmless=True, ended=ended)
            case HandedBack(warned):
                metrics.count("LateResumes")
                self._warn(warned)
                return Attempted(None, ended=ended)
            case FencedOff(again):
                metrics.count("SpeculationLost")
                return Attempted(None, ended=ended) if again is None else self._again(again, flight.holder)
            case TryAgain():
                return self._again(verdict, flight.holder)
            case WaitTurn(failed, unit_ms):
                pause = unit_ms * (1 + round(3 * self.services.rng.random()))
                return Attempted(flight.head, failed=failed, pause_ms=pause, harmless=True, ended=ended)
            case _:
                assert_never(verdict)

    def _note_pace(self, flight: Flight, told: Told, *, shared: bool) -> None:
        if isinstance(told, FunctionThrottledError):
            # That says nothing of the handler, and is when sharing helps most.
            return
        took_ms = self.services.clock.now_ms() - flight.began_ms
        match told:
            case Speculated():
                quick, wrote = is_quick(took_ms, 1, shared=shared), False
            case Committed(results) | Suspended(results):
                quick, wrote = is_quick(took_ms, len(results), shared=shared), True
            case _:
                quick = wrote = False
        for handler in {event.handler for event in flight.events}:
            self.services.quick.told((self.lane.service, handler), quick=quick, wrote=wrote)

    def _note_sleep(self, attempted: Attempted) -> None:
        head, target = attempted.head, self._target()
        if attempted.nap is not None and head is not None and head.run is not None and target is not None:
            self.services.capacity.slept(target, (self.lane.service, head.run.event.handler))

    def _tell_recoveries(self, flight: Flight, results: Sequence[EventResult]) -> None:
        handlers = {event.id: (self.lane.service, event.handler) for event in flight.events}
        for result in results:
            handler = handlers.get(result.event_id)
            if handler is not None and isinstance(result.result, Success):
                self.services.recoveries.succeeded(handler, self.lane)
            elif handler is not None:
                self.services.recoveries.gave_up(handler, self.lane)

    def _again(self, again: TryAgain, holder: str) -> Attempted:
        self._warn(again.warned)
        if not again.harmless:
            self.services.recoveries.failed((self.lane.service, again.failed.handler), self.lane)
        return Attempted(
            again.head,
            failed=again.failed,
            pause_ms=again.pause_ms,
            harmless=again.harmless,
            ended=frozenset({holder}) if again.over else frozenset(),
        )

    def _finish(self, works: Sequence[Work], results: Sequence[EventResult]) -> tuple[Work, ...]:
        """Give callers their results. Returns the work that has ended."""
        finished = tuple(works[: len(results)])
        for work, result in zip(finished, results, strict=False):
            if isinstance(work, CallWork):
                work.finish(result.result)
        return finished

    def _unserved(self, event: Event) -> Attempted:
        again, self.lessons = unserved(self.lane.service, event, self.lessons, self.services.limits)
        return self._again(again, "")

    def _warn(self, warned: Warned | None) -> None:
        if warned is None or not warned.due:
            return
        again = f" ({warned.times} times)" if warned.times > 1 else ""
        fields = log_fields.of_event(self.lane, warned.event, warned.attempt)
        log.warning("%s: %s%s", self.lane.pk, warned.text, again, extra=fields)


def _new_events(flight: Flight) -> Sequence[Event]:
    """Those that have just come from Kafka, or from a caller."""
    match flight.mode:
        case Speculate(events) | Resume(behind=events):
            return events
        case Drain() | Shared():
            return ()
        case _:
            assert_never(flight.mode)


def _with_nap(attempted: Attempted, flight: Flight) -> Attempted:
    """What an activation came to, with the holder of the nap that it has left, or may have left unheard.

    The head says which: no other process has the name that its holder would bear.
    """
    leave, head = flight.nap, attempted.head
    if leave is None:
        return attempted
    naps = head is None or (head.run is not None and head.run.holder == leave.holder)
    return replace(attempted, nap=leave.holder) if naps else attempted
