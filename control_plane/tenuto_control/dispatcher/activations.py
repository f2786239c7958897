"""Activations of one lane: which events go into one, what its outcome means, and the commit of speculation.

Owns batching, the call of the function, writes 1 and 7 from this side, and the reading of outcomes and invoke errors.
Does not own when a lane activates (`lane_worker`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec
from msgspec.structs import replace

from tenuto.lane.head import parse_head
from tenuto.lane.transitions import Effects, effects_of, final_commit, result_key, spec_commit
from tenuto.lane.tries import with_tries
from tenuto.lane.writes import Applied
from tenuto.protocol.dead_letters import dead_letter
from tenuto.protocol.ids import Lane
from tenuto.protocol.limits import OWN_POSITIONS, PAYLOAD_BYTES_MAX
from tenuto.protocol.messages import (
    Activation,
    Committed,
    EventResult,
    Fenced,
    Head,
    Late,
    Manifest,
    Mode,
    Outcome,
    Rejected,
    Speculated,
    Stopped,
    Suspended,
    Trim,
    decode_outcome,
    encode,
)
from tenuto.protocol.records import (
    CallSource,
    Event,
    Failed,
    Failure,
    KafkaSource,
    Out,
    Result,
    ResultOut,
    event_bytes,
    unpack_result,
)
from tenuto.serde import problem_of
from tenuto.store.port import UnstorableError
from tenuto_control.core import log_fields
from tenuto_control.core.lane_policy import finished, passed
from tenuto_control.core.log_fields import shown
from tenuto_control.core.outcomes import outcome_problem
from tenuto_control.core.traces import Activating
from tenuto_control.dispatcher.ends import Ends
from tenuto_control.dispatcher.services import Services
from tenuto_control.dispatcher.work import Attempted, CallWork, Drained, Elsewhere, Work
from tenuto_control.ports import (
    FunctionFailedError,
    FunctionMissingError,
    FunctionThrottledError,
    FunctionUnreachableError,
    InvokeError,
    PayloadTooLargeError,
    Target,
)

log = logging.getLogger("tenuto.lane")

COMMITS_REFUSED_MAX = 3
"""So often the commit of an event alone is tried that the table finds too large: a handler may do less next time."""

FENCED_DOUBLINGS_MAX = 10

TOO_LARGE = 413


Tries: TypeAlias = Callable[[Event], int]
"""Which attempt at an event the next one is, from 1."""


@dataclass(slots=True)
class Activations:
    """Activates one lane, one activation at a time. `busy` is the work that one is about, while it runs.

    `late`: its run was handed back unbegun, because it came too late for its lease.
    """

    lane: Lane
    services: Services
    busy: tuple[Work, ...] | None = None
    late: bool = False
    _claim_first: bool = False
    _batch_max: int | None = None
    _holder: str = ""
    _attempt: int = 1
    _log_key: tuple[str, int] = field(default=("", 0))
    _refused: tuple[str, int] = field(default=("", 0))
    _fenced: int = 0
    _ends: Ends = field(init=False)

    def __post_init__(self) -> None:
        """Nothing has been tried yet."""
        self._ends = Ends(self.lane, self.services)

    # --- the four ways to activate ----------------------------------------------------------------------------------

    async def speculate(self, head: Head, queue: Iterable[Work], tries: Tries, trim: Trim) -> Attempted | None:
        """Run queued events. None when stored results have answered all of them."""
        target = self._target()
        if target is None:
            return self._unserved(next(iter(queue)).event)
        async with self.services.capacity.place(target):
            # Chosen only now that there is a place: what arrived while waiting for it joins the batch.
            batch = await self._batch(head, queue)
            if not batch:
                return None
            trim = with_tries(head, batch[0].event, trim)
            self.busy = tuple(batch)
            events = [work.event for work in batch]
            try:
                outcome = await self._invoke(target, head, events, "speculate", tries(events[0]), trim)
            except BaseException:
                self.busy = None
                raise
        try:
            # Still busy: until its commit is answered nobody may promise this work to run elsewhere.
            return await self._judge(outcome, head, batch, trim, drain=False, clears=False)
        finally:
            self.busy = None

    async def drain(self, head: Head, events: Sequence[Event], tries: Tries, trim: Trim, *, clears: bool) -> Attempted:
        """Run inbox items. `clears`: they are all there is, so their commit may clear the mark."""
        target = self._target()
        if target is None:
            return self._unserved(events[0])
        batch = list(events[: 1 if self._batch_max else len(events)])
        trim = with_tries(head, batch[0], trim)
        async with self.services.capacity.place(target):
            outcome = await self._invoke(target, head, batch, "drain", tries(batch[0]), trim)
        works = [Drained(event) for event in batch]
        clears = clears and len(batch) == len(events)
        return await self._judge(outcome, head, works, trim, drain=True, clears=clears)

    async def resume(self, head: Head, holder: str, trim: Trim) -> Attempted:
        """Run the head's own run, which this process has just taken over as `holder`, within a place of its own."""
        target = self._target()
        if target is None or head.run is None:
            raise AssertionError("a takeover needs a target and a run")
        outcome = await self._invoke(target, head, [], "resume", 1, trim, holder)
        return await self._judge(outcome, head, [], trim, drain=False, clears=False)

    async def shared(self, head: Head, event: Event) -> Result:
        """Run a read-only handler. Raises InvokeError."""
        target = self._target()
        if target is None:
            return Failed(Failure(f"no function serves {self.lane.service}", 404))
        async with self.services.capacity.place(target):
            outcome = await self._invoke(target, head, [event], "shared", 1, Trim())
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

    async def bury_run(self, head: Head, reason: str, trim: Trim) -> Attempted:
        """End a run, which this process has just taken over, as failed for good: its function never answers."""
        if head.run is None:
            raise AssertionError("there is no run to end")
        event, item = head.run.event, head.run.input_item
        failure = Failure(reason)
        letter = dead_letter(
            event,
            reason,
            item,
            at_ms=self.services.clock.now_ms(),
            first_ms=head.run.start_ms,
            attempts=head.run.attempt,
        )
        out: dict[int, Out] = {} if letter is None else {OWN_POSITIONS: letter}
        if isinstance(event.source, CallSource):
            out[OWN_POSITIONS + 1] = ResultOut(event.id, Failed(failure))
        effects = self._effects([event], {}, out)
        tok = f"{self.services.token()}.bury"
        if letter is None:
            fields = log_fields.of_event(self.lane, event, head.run.attempt)
            log.error("%s: %s ends as failed: %s", self.lane.pk, event.handler, shown(reason), extra=fields)
        write = final_commit(self.lane, head, effects, tok, head.run.holder, trim=trim)
        written = await self.services.writer.write(write, tok)
        return Attempted(parse_head(written.answer.item))

    # --- choosing ---------------------------------------------------------------------------------------------------

    async def _batch(self, head: Head, queue: Iterable[Work]) -> list[Work]:
        limits = self.services.limits
        batch: list[Work] = []
        last: dict[str, int] = {}
        size = 0
        for work in list(queue):
            if isinstance(work, CallWork) and work.keep:
                continue
            if isinstance(work, CallWork) and work.checked is not head and await self._answered(work, head):
                continue
            source = work.event.source
            if passed(head, work.event):
                # Delivered again behind an event of another partition: it is let go of when its turn comes. In a
                # batch it would take effect twice, so storage would refuse the commit, for ever.
                continue
            if isinstance(source, KafkaSource):
                # What was delivered again waits for the next head, whose watermark tells what of it is finished.
                if source.offset <= last.get(source.watermark, -1):
                    continue
                last[source.watermark] = source.offset
            size += event_bytes(work.event)
            if batch and (size > limits.batch_bytes_max or len(batch) >= (self._batch_max or limits.batch_events_max)):
                break
            batch.append(work)
            if isinstance(work, CallWork):
                # Were it committed by the claim of an event behind it, its result would be lost with the function.
                break
        return [w for w in batch if not (isinstance(w, CallWork) and (w.keep or w.answer.done()))]

    async def _answered(self, work: CallWork, head: Head) -> bool:
        """Whether a stored result answers a call, or a delayed message will. The head was read first, as it must be."""
        if work.stores or work.attempted:
            key = result_key(work.event.id)
            item = await self.services.writer.patiently(lambda: self.services.writer.table.get(key))
            packed = item.get("res") if item else None
            if isinstance(packed, bytes):
                work.finish(unpack_result(packed))
                return True
            if item is not None:
                due_ms = item.get("begins")
                work.finish(Elsewhere(due_ms if isinstance(due_ms, int) else None))
                return True
        if finished(head, work.event, self.services.clock.now_ms()):
            lost = Failed(Failure("the call took effect, and its result was lost with the process that ran it", 500))
            work.finish(work.tentative or lost)
            return True
        work.checked = head
        work.unkept = False
        return work.answer.cancelled()

    # --- calling ----------------------------------------------------------------------------------------------------

    def _target(self) -> Target | None:
        return self.services.targets.find(self.lane.service)

    async def _invoke(
        self,
        target: Target,
        head: Head,
        events: Sequence[Event],
        mode: Mode,
        attempt: int,
        trim: Trim,
        holder: str | None = None,
    ) -> Outcome | InvokeError:
        request = Activation(
            service=self.lane.service,
            key=self.lane.key,
            mode=mode,
            # The function needs neither outbox nor finished ids; what of them may go, the trim names.
            head=replace(head, out={}, fin={}, watermarks={}, tried=None, run=head.run if mode == "resume" else None),
            holder=holder or self.services.token(),
            events=tuple(events),
            attempt=attempt,
            claim_first=self._claim_first,
            trim=trim,
            table=self.services.table_name,
            encrypted=self.services.encrypted,
            hold_ms=self.services.limits.hold_sleep_ms,
            late=self.late and mode == "resume",
        )
        self._holder = request.holder
        self._attempt = attempt
        if events:
            self._ends.tries(events[0], attempt)
        about = [head.run.event] if mode == "resume" and head.run is not None else events
        with self.services.tracer.activation(Activating(self.lane, mode, about, attempt)) as traced:
            if traced.parent is not None:
                request = replace(request, trace=traced.parent)
            outcome = await self._asked(target, request)
            traced.end(type(outcome).__name__, failed=isinstance(outcome, InvokeError | Rejected))
        return outcome

    async def _asked(self, target: Target, request: Activation) -> Outcome | InvokeError:
        payload = encode(request)
        if len(payload) > PAYLOAD_BYTES_MAX:
            text = f"the request would take {len(payload):,} bytes; a function is given at most {PAYLOAD_BYTES_MAX:,}"
            return PayloadTooLargeError(text)
        try:
            answer = await self.services.invoker.invoke(target.function, payload)
        except InvokeError as e:
            return e
        try:
            outcome = decode_outcome(answer)
        except Exception as e:  # noqa: BLE001 - whatever an answer makes of its decoder, it is the answer's fault
            problem = problem_of(e) if isinstance(e, msgspec.DecodeError) else type(e).__name__
            return FunctionFailedError(f"{target.function} answered something that is no outcome: {problem}")
        if isinstance(outcome, Speculated) and request.mode != "shared":
            problem_found = outcome_problem(outcome, request.events)
            if problem_found is not None:
                return FunctionFailedError(f"{target.function} answered what cannot be committed: {problem_found}")
        return outcome

    # --- judging ----------------------------------------------------------------------------------------------------

    async def _judge(
        self,
        outcome: Outcome | InvokeError,
        head: Head,
        batch: Sequence[Work | Drained],
        trim: Trim,
        *,
        drain: bool,
        clears: bool,
    ) -> Attempted:
        for work in batch:
            if isinstance(work, CallWork):
                work.attempted = True
        self.late = False
        self._fenced = self._fenced + 1 if isinstance(outcome, Fenced) else 0
        match outcome:
            case Speculated():
                return await self._commit(outcome, head, batch, trim, drain=drain, clears=clears)
            case Committed(results, left, writes) | Suspended(results, left, writes):
                self.services.metrics.count("Writes", writes)
                self.services.metrics.count("Suspensions", isinstance(outcome, Suspended))
                self._claim_first = False
                self._batch_max = None
                if left.run is not None and left.run.suspended and left.run.error and left.run.wake_ms is not None:
                    again_s = max(0.0, (left.run.wake_ms - self.services.clock.now_ms()) / 1000)
                    handler, error = left.run.event.handler, shown(left.run.error)
                    text = f"attempt at {handler} failed, next in {again_s:.1f} s: {error}"
                    self._warn(text, log_fields.of_event(self.lane, left.run.event, left.run.attempt))
                about = [work.event for work in batch] or ([] if head.run is None else [head.run.event])
                self._ends.tell(about, results, left.out.values())
                return Attempted(left, self._finish(batch, results), ended=frozenset({self._holder}))
            case Late() | Fenced():
                return self._handed_back(head, batch) if isinstance(outcome, Late) else self._lost(head, batch)
            case InvokeError():
                given_up = self._given_up(outcome, batch)
                if given_up is not None:
                    return await self._commit(given_up, head, batch, trim, drain=drain, clears=clears)
                if isinstance(outcome, PayloadTooLargeError):
                    return self._split(head, batch)
                return self._unanswered(outcome, head, batch)
            case Rejected(failure):
                failed = self._first_of(head, batch)
                self._warn(shown(failure.message), self._fields(head, failed))
                pause = self.services.limits.invoke_retry_max_ms
                return Attempted(None, failed=failed, pause_ms=pause, harmless=True, ended=frozenset({self._holder}))
            case Manifest():
                raise AssertionError("an activation is not answered with a manifest")

    def _handed_back(self, head: Head, batch: Sequence[Work | Drained]) -> Attempted:
        """The run has not begun, so nothing of it ran twice: the next lease is longer, and then it runs anyhow."""
        self.late = True
        self.services.metrics.count("LateResumes")
        fields = self._fields(head, self._first_of(head, batch))
        self._warn("a resumed run came too late for its lease, it is taken over anew", fields)
        return Attempted(None, ended=frozenset({self._holder}))

    async def _commit(
        self,
        outcome: Speculated,
        head: Head,
        batch: Sequence[Work | Drained],
        trim: Trim,
        *,
        drain: bool,
        clears: bool,
    ) -> Attempted:
        done = list(batch[: len(outcome.results)])
        stopped = outcome.stopped
        finished: tuple[Work, ...] = ()
        if done:
            clears = clears and len(done) == len(batch)
            try:
                head, applied = await self._commit_done(outcome, head, done, trim, drain=drain, clears=clears)
            except UnstorableError as e:
                return await self._unstorable(e, head, done, trim, drain=drain)
            if not applied:
                return Attempted(head)
            finished = self._finish(done, outcome.results)
        if stopped is None:
            self._batch_max = None
            return Attempted(head, finished)
        failed = batch[len(done)].event
        # Behind others of its batch, it was at its first attempt.
        fields = log_fields.of_event(self.lane, failed, 1 if done else self._attempt)
        self._warn(f"attempt at {failed.handler} failed: {shown(stopped.failure.message)}", fields)
        return Attempted(head, finished, failed=failed, pause_ms=stopped.retry_after_ms)

    async def _commit_done(
        self,
        outcome: Speculated,
        head: Head,
        done: Sequence[Work | Drained],
        trim: Trim,
        *,
        drain: bool,
        clears: bool,
    ) -> tuple[Head, bool]:
        """Write 1. Returns the head afterwards, and whether the write took place."""
        events = [work.event for work in done]
        out: dict[int, Out] = dict(enumerate(outcome.out))
        for work, result in zip(done, outcome.results, strict=False):
            if isinstance(work, CallWork):
                work.tentative = result.result
            if isinstance(work, CallWork) and not work.stores:
                work.unkept = not work.keep
                if work.keep:
                    out[len(out)] = ResultOut(work.event.id, result.result)
        out = self._ends.with_letters(out, events, outcome.results)
        every = tuple(out.values())
        if not drain and self._leaves_nothing(outcome, events, out):
            self._ends.tell(events, outcome.results, every)
            return head, True
        patience_ms = None
        if self._needs_guard(events, out):
            # The guard may be swept once it is due, so the commit it protects is given up well before.
            patience_ms = self.services.limits.commit_guard_ms // 2
            delay_ms = self.services.limits.commit_guard_ms
            await self.services.delivery.guard(self.lane, events[0].nonce, delay_ms, head.ver)
        out = await self._ends.past_the_outbox(out)
        effects = self._effects(events, outcome.state, out)
        tok = f"{self.services.token()}.spec"
        write = spec_commit(self.lane, head, effects, tok, drain=drain, clears=clears, trim=trim)
        written = await self.services.writer.write(write, tok, patience_ms)
        left = parse_head(written.answer.item)
        if not isinstance(written.answer, Applied):
            if (left.ver, left.pend) == (head.ver, head.pend) and left.run is None:
                # Tried again from the same head it would be refused again: the lane pauses and says so.
                raise AssertionError(f"a commit is refused on a head that has not changed: ver {head.ver}")
            self.services.metrics.count("SpeculationLost")
            self._claim_first = left.run is None and left.ver != head.ver
            for work in done:
                if isinstance(work, CallWork):
                    work.unkept = False
            return left, False
        self._claim_first = False
        self._ends.tell(events, outcome.results, every)
        return left, True

    def _leaves_nothing(self, outcome: Speculated, events: Sequence[Event], out: dict[int, Out]) -> bool:
        """An unkeyed invocation that took no durable action and sent nothing leaves no record."""
        return not out and not outcome.state and not self.services.keyed(self.lane.service) and bool(events)

    def _effects(self, events: Sequence[Event], state: dict[str, bytes | None], out: dict[int, Out]) -> Effects:
        expires = not self.services.keyed(self.lane.service)
        return effects_of(events, state, out, self.services.clock.now_ms(), expires=expires)

    @staticmethod
    def _needs_guard(events: Sequence[Event], out: dict[int, Out]) -> bool:
        """Calls alone that send messages: no Kafka offset or inbox item would bring anyone back to ship them."""
        only_calls = all(isinstance(event.source, CallSource) for event in events)
        return only_calls and any(not isinstance(entry, ResultOut) for entry in out.values())

    def _finish(self, batch: Sequence[Work | Drained], results: Sequence[EventResult]) -> tuple[Work, ...]:
        finished: list[Work] = []
        self.services.metrics.count("Committed", len(results))
        for work, result in zip(batch, results, strict=False):
            if isinstance(work, Drained):
                continue
            if isinstance(work, CallWork):
                work.finish(result.result)
            finished.append(work)
        return tuple(finished)

    def _given_up(self, error: InvokeError, batch: Sequence[Work | Drained]) -> Speculated | None:
        """The end of an event that its function never answered for, once its policy allows no further attempt.

        Alone in its batch, so that no other event is taken for the one that ends the function. Had it claimed, the
        commit of this would be refused, and the takeover counts.
        """
        if len(batch) != 1 or not isinstance(error, PayloadTooLargeError | FunctionFailedError):
            return None
        event = batch[0].event
        if isinstance(error, PayloadTooLargeError):
            # No later attempt is at a smaller event.
            return self._ends.given_up(event, f"no function can be given this event: {error}", TOO_LARGE)
        limit = self.services.policy(self.lane.service, event.handler).max_attempts
        if limit is None or self._attempt < limit:
            return None
        return self._ends.given_up(event, f"{self._attempt} attempts failed, the last without an answer: {error}")

    async def _unstorable(
        self, error: UnstorableError, head: Head, done: Sequence[Work | Drained], trim: Trim, *, drain: bool
    ) -> Attempted:
        """The table never takes what these events changed: a failed attempt, and after a few the end of the event.

        One event of a batch may be the culprit: then the next attempts are at one event each.
        """
        event, reason = done[0].event, f"the table does not take what the handler changed: {error}"
        fields = self._fields(head, event)
        if len(done) > 1:
            self._batch_max = 1
            self._warn(f"{len(done)} events are tried again one by one: {shown(str(error))}", fields)
            return Attempted(head, failed=event, pause_ms=self.services.limits.invoke_retry_initial_ms, harmless=True)
        seen, times = self._refused
        self._refused = (event.id, times + 1 if seen == event.id else 1)
        if self._refused[1] < COMMITS_REFUSED_MAX:
            self._warn(f"attempt at {event.handler} failed: {shown(reason)}", fields)
            return Attempted(head, failed=event)
        given_up = self._ends.given_up(event, reason, TOO_LARGE)
        # Should even this be refused, the head itself is too large: the lane says so, and waits.
        head, applied = await self._commit_done(given_up, head, done, trim, drain=drain, clears=False)
        return Attempted(head, self._finish(done, given_up.results) if applied else ())

    def _lost(self, head: Head, batch: Sequence[Work | Drained]) -> Attempted:
        """The function was fenced off. Should it say so again when it is asked again at once, there is a pause."""
        self.services.metrics.count("SpeculationLost")
        self._claim_first = True
        ended = frozenset({self._holder})
        if self._fenced == 1:
            return Attempted(None, ended=ended)
        limits = self.services.limits
        doubled = limits.invoke_retry_initial_ms * 2 ** min(self._fenced, FENCED_DOUBLINGS_MAX)
        pause, failed = min(doubled, limits.invoke_retry_max_ms), self._first_of(head, batch)
        return Attempted(None, failed=failed, pause_ms=pause, harmless=True, ended=ended)

    def _split(self, head: Head, batch: Sequence[Work | Drained]) -> Attempted:
        """The events of a batch are too large together: the next attempts are at one each, at once."""
        self._batch_max = 1
        failed = self._first_of(head, batch)
        pause = self.services.limits.invoke_retry_initial_ms
        return Attempted(head, failed=failed, pause_ms=pause, harmless=True, ended=frozenset({self._holder}))

    def _unanswered(self, error: InvokeError, head: Head, batch: Sequence[Work | Drained]) -> Attempted:
        limits = self.services.limits
        failed, ended = self._first_of(head, batch), frozenset({self._holder})
        fields = self._fields(head, failed)
        match error:
            case FunctionThrottledError():
                # It did not run: the same batch goes again, from the same head.
                pause = limits.invoke_retry_initial_ms * (1 + round(3 * self.services.rng.random()))
                return Attempted(head, failed=failed, pause_ms=pause, harmless=True, ended=ended)
            case FunctionUnreachableError():
                self._warn(str(error), fields)
                return Attempted(None, failed=failed, pause_ms=limits.invoke_retry_max_ms // 10, harmless=True)
            case FunctionMissingError():
                self._warn(str(error), fields)
                pause = limits.invoke_retry_max_ms
                return Attempted(None, failed=failed, pause_ms=pause, harmless=True, ended=ended)
            case FunctionFailedError() | _:
                # One event of a batch may be what kills the function: the next attempts are at one event each.
                self._batch_max = 1
                self._warn(f"attempt at {failed.handler} failed: {shown(str(error))}", fields)
                return Attempted(None, failed=failed, ended=ended)

    def _unserved(self, event: Event) -> Attempted:
        text = f"no function serves {self.lane.service}, its work waits"
        self._warn(text, log_fields.of_event(self.lane, event))
        return Attempted(None, failed=event, pause_ms=self.services.limits.invoke_retry_max_ms, harmless=True)

    @staticmethod
    def _first_of(head: Head, batch: Sequence[Work | Drained]) -> Event:
        """The event an activation is about: the first of its batch, or the run's."""
        if batch:
            return batch[0].event
        if head.run is None:
            raise AssertionError("an activation is about events or a run")
        return head.run.event

    def _fields(self, head: Head, event: Event) -> log_fields.Fields:
        """What a line about the last activation is told: its first event, and which attempt at it that was."""
        run = head.run
        attempt = run.attempt if run is not None and run.event.id == event.id else self._attempt
        return log_fields.of_event(self.lane, event, attempt)

    def _warn(self, text: str, fields: log_fields.Fields) -> None:
        """Log a failure at its first, second, fourth, eighth ... time in a row."""
        last, times = self._log_key
        times = times + 1 if last == text else 1
        self._log_key = (text, times)
        if times & (times - 1) == 0:
            again = f" ({times} times)" if times > 1 else ""
            log.warning("%s: %s%s", self.lane.pk, text, again, extra=fields)
