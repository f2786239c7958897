"""What follows from the answer to an activation, and from the table's answer to its commit: two pure judgements.

Owns the meaning of outcomes and of invocations without one: what is committed, tried again, split or given up, and what
of it the next activations go by. Does not own carrying it out (`dispatcher.activations`), nor how a commit is written
(`dispatcher.commits`). Structs for the reason that `flights` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, assert_never

from msgspec import Struct
from msgspec.structs import replace

from tenuto.protocol.backoff import asked_pause_ms
from tenuto.protocol.messages import (
    Committed,
    EventResult,
    Fenced,
    Head,
    Late,
    Manifest,
    Outcome,
    Rejected,
    Speculated,
    Stopped,
    Suspended,
)
from tenuto.protocol.modes import Drain, Resume, Speculate
from tenuto.protocol.records import CallSource, Event, KafkaSource
from tenuto_control.core.flights import Flight, Lessons, standing
from tenuto_control.core.lane_policy import can_wake
from tenuto_control.core.log_fields import said_again, shown
from tenuto_control.limits import Limits

COMMITS_REFUSED_MAX = 3
"""So often the commit of an event alone is tried that the table finds too large: a handler may do less next time."""

FENCED_FREE_MAX = 10
"""So often in a row a lane may be lost to others before its next attempt waits: between busy processes that happens."""

FENCED_DOUBLINGS_MAX = 10

RESTLESS_PAUSE_MS_MAX = 1_000
"""A run that is suspended repeatedly, and never has anything to wait for, is resumed this often at the most. One
that its function has no more time for has used much more of it by then, and does not wait."""

READ_AGAIN_MS = 1
"""So soon a head is read that has what an answer would say."""

SLOW_MS = 50
"""From here on an activation is slow: two processes would rather claim than run the same beside each other."""

SLOW_HANDED_MS = 300
"""The same while others hand over: below `owner_ms`, for which they leave alone a lane that does not change."""

TOO_LARGE = 413


# --- what is judged: an outcome, or why there is none ---------------------------------------------------------------


class Oversized(Struct, frozen=True):
    """The request is beyond what a function can be given: it did not run."""

    reason: str


class Throttled(Struct, frozen=True):
    """Refused for concurrency: it did not run."""


class Unreachable(Struct, frozen=True):
    """No answer: it may or may not have run, and may be running still."""

    reason: str


class Missing(Struct, frozen=True):
    """There is no such function, or it may not be invoked. `told`: the log says so already, for all lanes at once."""

    reason: str
    told: bool = False


class Crashed(Struct, frozen=True):
    """It ran and ended without an outcome that can be used: it runs no more.

    `involved`: so did the activations of other lanes, and any of them may have been the cause.
    """

    reason: str
    involved: bool = False


class EndedUnheard(Struct, frozen=True):
    """What came of it is in the table. It may go on with the events behind that."""


class Unbegun(Struct, frozen=True):
    """It did not run, and is to have an invocation of its own."""


NoOutcome: TypeAlias = Oversized | Throttled | Unreachable | Missing | Crashed | EndedUnheard | Unbegun


class Stored(Struct, frozen=True):
    """The commit took place and left this head."""

    head: Head


class Traceless(Struct, frozen=True):
    """There was nothing to write."""


class Overtaken(Struct, frozen=True):
    """The commit was refused: another write came before it, and the head is this one now."""

    head: Head


class Unstorable(Struct, frozen=True):
    """The table never takes this commit: something in it is too large."""

    reason: str


Written: TypeAlias = Stored | Traceless | Overtaken | Unstorable


# --- verdicts -------------------------------------------------------------------------------------------------------


class Warned(Struct, frozen=True):
    """A line about an event, or about an attempt at it, and how often in a row there was cause for it."""

    text: str
    times: int
    event: Event
    attempt: int | None

    @property
    def due(self) -> bool:
        """Whether it is logged."""
        return said_again(self.times)


class Commit(Struct, frozen=True):
    """Write what speculated events changed. `last_resort`: they were given up since the table takes nothing more."""

    outcome: Speculated
    last_resort: bool = False


class GivenUp(Struct, frozen=True):
    """The event ends as failed, by a commit that says why: no further attempt is allowed, or could do better."""

    event: Event
    reason: str
    status_code: int = 500
    last_resort: bool = False


class TryAgain(Struct, frozen=True):
    """An attempt at `failed` failed. `head` is None when it has to be read again.

    Then there is a pause: of `pause_ms`, or by the handler's policy. A `harmless` failure does not count as an attempt.
    `over`: the function certainly runs no more.
    """

    head: Head | None
    failed: Event
    pause_ms: int | None = None
    harmless: bool = False
    over: bool = False
    warned: Warned | None = None


class WaitTurn(Struct, frozen=True):
    """The function did not run for want of concurrency: the same goes again from the same head, at a random moment.

    The pause is one to four times `unit_ms`.
    """

    failed: Event
    unit_ms: int


class Durable(Struct, frozen=True):
    """The commit of these results took place; `then` is what becomes of the event behind them, if that failed."""

    head: Head
    results: Sequence[EventResult]
    then: TryAgain | None = None


class Discarded(Struct, frozen=True):
    """The commit was refused. What ran is thrown away, and the lane continues from the head that was met."""

    head: Head


class Ended(Struct, frozen=True):
    """The function claimed and ended by itself, with `writes` requests: these results are durable.

    With a `pause_ms`, the run that it left is not resumed before that. `then` is as in `Durable`.
    """

    head: Head
    results: Sequence[EventResult]
    writes: int
    suspended: bool
    warned: Warned | None = None
    pause_ms: int = 0
    then: TryAgain | None = None


class HandedBack(Struct, frozen=True):
    """The run has not begun, so nothing of it ran twice: the next lease is longer, and then it runs anyhow."""

    warned: Warned


class FencedOff(Struct, frozen=True):
    """Another owns the lane. `again` makes for a pause, should that be said for the umpteenth time in a row."""

    again: TryAgain | None = None


Settled: TypeAlias = TryAgain | WaitTurn | Durable | Discarded | Ended | HandedBack | FencedOff
"""The activation is over."""

Verdict: TypeAlias = Commit | GivenUp | Settled


# --- judgements -----------------------------------------------------------------------------------------------------


def judge(
    flight: Flight, answer: Outcome | NoOutcome, lessons: Lessons, limits: Limits, now_ms: int
) -> tuple[Verdict, Lessons]:
    """What follows from the answer to an activation, and what the lane has learned by it."""
    before = lessons
    lessons = replace(lessons, tried=flight.tried, late=False)
    if _got_on(answer, now_ms):
        lessons = replace(lessons, fenced=0, fenced_at=None, restless=0, stood=None)
    match answer:
        case Speculated() if answer.results:
            return Commit(answer), lessons
        case Speculated(stopped=Stopped() as stopped):
            if _overspent(flight):
                text = f"{flight.attempt} attempts failed, the last with: {shown(stopped.failure.message)}"
                return GivenUp(flight.events[0], text), lessons
            return _stopped(flight, flight.head, flight.events[0], stopped, lessons)
        case Speculated():
            raise AssertionError("an outcome that neither ended an event nor says which one failed is no outcome")
        case Committed() | Suspended():
            return _ended(flight, answer, lessons, limits, now_ms)
        case Late():
            text = "a resumed run came too late for its lease, it is taken over anew"
            warned, lessons = _warned(flight, text, replace(lessons, late=True))
            return HandedBack(warned), lessons
        case Fenced():
            return _fenced(flight, lessons, before, limits)
        case Rejected(failure):
            warned, lessons = _warned(flight, shown(failure.message), lessons)
            pause = limits.invoke_retry_max_ms
            return TryAgain(None, flight.events[0], pause, harmless=True, over=True, warned=warned), lessons
        case Oversized() | Throttled() | Unreachable() | Missing() | Crashed() | EndedUnheard() | Unbegun():
            return _unanswered(flight, answer, lessons, limits)
        case Manifest():
            raise AssertionError("a manifest is no outcome of an activation")
        case _:
            assert_never(answer)


def _got_on(answer: Outcome | NoOutcome, now_ms: int) -> bool:
    """Whether something has ended, or waits for what is to come. Pauses that grow start over only then.

    Otherwise answers without progress that alternate would each have the others' pauses start over.
    """
    match answer:
        case Speculated():
            return bool(answer.results)
        case Committed(_, head) | Suspended(_, head):
            return not _restless(head, now_ms)
        case _:
            return False


def _restless(head: Head, now_ms: int) -> bool:
    """Whether a head holds a suspended run that waits for nothing to come, or one whose nap is over."""
    run = head.run
    return run is not None and (run.suspended or run.napping) and can_wake(head, run, now_ms)


def judge_commit(
    flight: Flight, commit: Commit, written: Written, lessons: Lessons, limits: Limits, now_ms: int
) -> tuple[Verdict, Lessons]:
    """What follows from the table's answer to a commit, and what the lane has learned by it."""
    match written:
        case Stored(head):
            if lessons.claim_first:
                lessons = replace(lessons, claim_first=_slow(flight, head, now_ms))
            return _durable(flight, commit, head, lessons)
        case Traceless():
            return _durable(flight, commit, flight.head, lessons)
        case Overtaken(head):
            beside = head.run is None and head.ver != flight.head.ver
            # Events from Kafka that are quick cost less when they are run from a fresh head.
            records = isinstance(flight.events[0].source, KafkaSource)
            claims = beside and not (records and now_ms - flight.began_ms < SLOW_MS)
            return Discarded(head), replace(lessons, claim_first=claims)
        case Unstorable(reason):
            return _unstorable(flight, commit, reason, lessons, limits)
        case _:
            assert_never(written)


def _slow(flight: Flight, left: Head, now_ms: int) -> bool:
    """Whether an activation took so long that another process will run the same beside the next one, too.

    A process that was overtaken shares its lane. While a handler runs without a claim, nothing tells the other one: it
    repeats the work, and one of the two throws it away. A claim costs a write more; an activation that is quick is
    cheaper without. So is what others have handed over: they leave the lane alone, for a while.
    """
    calls = isinstance(flight.events[0].source, CallSource)
    return calls and now_ms - flight.began_ms >= (SLOW_MS if left.pend is None else SLOW_HANDED_MS)


def unserved(service: str, event: Event, lessons: Lessons, limits: Limits) -> tuple[TryAgain, Lessons]:
    """What follows when there is no function to activate."""
    text = f"no function serves {service}, its work waits"
    said = lessons.warned.again(text)
    warned = Warned(text, said.times, event, attempt=None)
    again = TryAgain(None, event, limits.invoke_retry_max_ms, harmless=True, warned=warned)
    return again, replace(lessons, warned=said)


def _durable(flight: Flight, commit: Commit, head: Head, lessons: Lessons) -> tuple[Verdict, Lessons]:
    results, stopped = commit.outcome.results, commit.outcome.stopped
    if stopped is not None:
        then, lessons = _stopped(flight, head, flight.events[len(results)], stopped, lessons)
        return Durable(head, results, then), lessons
    if lessons.one_by_one and not commit.last_resort:
        lessons = replace(lessons, one_by_one=False)
    return Durable(head, results), lessons


def _stopped(flight: Flight, head: Head, failed: Event, stopped: Stopped, lessons: Lessons) -> tuple[TryAgain, Lessons]:
    """The handler of an event failed before it owned anything; the commit of those before it has left `head`.

    A pause of nothing, or of less, leaves it to the policy.
    """
    text = f"attempt at {failed.handler} failed: {shown(stopped.failure.message)}"
    warned, lessons = _warned(flight, text, lessons, failed, flight.tried.attempt_at(failed))
    return TryAgain(head, failed, asked_pause_ms(stopped.retry_after_ms), warned=warned), lessons


def _ended(
    flight: Flight, outcome: Committed | Suspended, lessons: Lessons, limits: Limits, now_ms: int
) -> tuple[Verdict, Lessons]:
    run, warned, pause = outcome.head.run, None, 0
    restless = _restless(outcome.head, now_ms)
    if restless and not outcome.results:
        stood, lessons = lessons.stood, replace(lessons, stood=standing(flight))
        if stood == lessons.stood:
            # What it says to have stored is not in the table, or it has stored nothing.
            return _crashed(flight, "it is suspended once more, waits for nothing, and has got no further", lessons)
    claim_first = lessons.claim_first and _slow(flight, outcome.head, now_ms)
    lessons = replace(lessons, claim_first=claim_first, one_by_one=lessons.one_by_one and restless)
    if run is not None and run.suspended and run.error and run.wake_ms is not None:
        again_s = max(0.0, (run.wake_ms - now_ms) / 1000)
        text = f"attempt at {run.event.handler} failed, next in {again_s:.1f} s: {shown(run.error)}"
        warned, lessons = _warned(flight, text, lessons, run.event, run.attempt)
    if restless:
        if lessons.restless:
            doubled = limits.invoke_retry_initial_ms * 2 ** min(lessons.restless, FENCED_DOUBLINGS_MAX)
            pause = max(0, min(doubled, RESTLESS_PAUSE_MS_MAX) - (now_ms - flight.began_ms))
        lessons = replace(lessons, restless=lessons.restless + 1)
    suspended, then = isinstance(outcome, Suspended), None
    if isinstance(outcome, Committed) and outcome.stopped is not None:
        failed = flight.events[len(outcome.results)]
        then, lessons = _stopped(flight, outcome.head, failed, outcome.stopped, lessons)
    return Ended(outcome.head, outcome.results, outcome.writes, suspended, warned, pause, then), lessons


def _fenced(flight: Flight, lessons: Lessons, before: Lessons, limits: Limits) -> tuple[Verdict, Lessons]:
    """Another owns the lane, says the function. Said again of a head that nobody has changed, it is no answer."""
    head, fenced = flight.head, before.fenced + 1
    lessons = replace(lessons, fenced=fenced, fenced_at=(head.ver, head.pend), claim_first=True)
    if before.fenced_at is not None and (head.ver - isinstance(flight.mode, Resume), head.pend) == before.fenced_at:
        # A run that is resumed was taken over for that, which raised the token by one.
        return _crashed(flight, "it says that it has lost the lane, which nobody has changed meanwhile", lessons)
    if fenced <= FENCED_FREE_MAX:
        return FencedOff(), lessons
    doubled = limits.invoke_retry_initial_ms * 2 ** min(fenced - FENCED_FREE_MAX, FENCED_DOUBLINGS_MAX)
    pause = min(doubled, limits.invoke_retry_max_ms)
    return FencedOff(TryAgain(None, flight.events[0], pause, harmless=True, over=True)), lessons


def _unanswered(flight: Flight, answer: NoOutcome, lessons: Lessons, limits: Limits) -> tuple[Verdict, Lessons]:
    failed = flight.events[0]
    match answer:
        case Oversized(reason):
            if _alone(flight):
                # No later attempt is at a smaller event.
                return GivenUp(failed, f"no function can be given this event: {reason}", TOO_LARGE), lessons
            again = TryAgain(flight.head, failed, limits.invoke_retry_initial_ms, harmless=True, over=True)
            return again, replace(lessons, one_by_one=True)
        case Throttled():
            return WaitTurn(failed, limits.invoke_retry_initial_ms), lessons
        case Unreachable(reason):
            warned, lessons = _warned(flight, reason, lessons)
            return TryAgain(None, failed, limits.invoke_retry_max_ms // 10, harmless=True, warned=warned), lessons
        case Missing(reason, told):
            pause = limits.invoke_retry_max_ms
            if told:
                return TryAgain(None, failed, pause, harmless=True, over=True), lessons
            warned, lessons = _warned(flight, reason, lessons)
            return TryAgain(None, failed, pause, harmless=True, over=True, warned=warned), lessons
        case Crashed(reason, involved=True):
            # None counts an attempt. Those that follow are alone in their invocations, and show whose fault it was.
            text = f"attempt at {failed.handler} failed with those of other keys: {shown(reason)}"
            warned, lessons = _warned(flight, text, replace(lessons, one_by_one=True))
            return TryAgain(None, failed, harmless=True, over=True, warned=warned), lessons
        case Crashed(reason):
            return _crashed(flight, reason, lessons)
        case EndedUnheard():
            # Behind what it has ended it may have gone on, and claim the next event yet.
            return TryAgain(None, failed, READ_AGAIN_MS, harmless=True), lessons
        case Unbegun():
            again = TryAgain(flight.head, failed, READ_AGAIN_MS, harmless=True, over=True)
            return again, replace(lessons, one_by_one=True)
        case _:
            assert_never(answer)


def _crashed(flight: Flight, reason: str, lessons: Lessons) -> tuple[Verdict, Lessons]:
    """One event of a batch may be what kills the function: the next attempts are at one event each.

    Alone in its batch, so that no other is taken for it, it ends when its policy allows no further attempt. Had it
    claimed, the commit of that end would be refused, and the takeover counts.
    """
    failed, limit = flight.events[0], flight.policy.max_attempts
    if _alone(flight) and limit is not None and flight.attempt >= limit:
        text = f"{flight.attempt} attempts failed, the last without an answer: {reason}"
        return GivenUp(failed, text), lessons
    text = f"attempt at {failed.handler} failed: {shown(reason)}"
    warned, lessons = _warned(flight, text, replace(lessons, one_by_one=True))
    return TryAgain(None, failed, over=True, warned=warned), lessons


def _unstorable(flight: Flight, commit: Commit, why: str, lessons: Lessons, limits: Limits) -> tuple[Verdict, Lessons]:
    """A failed attempt, and after a few the end of the event.

    One event of a batch may be the culprit: then the next attempts are at one event each.
    """
    event, done = flight.events[0], len(commit.outcome.results)
    if done > 1:
        text = f"{done} events are tried again one by one: {shown(why)}"
        warned, lessons = _warned(flight, text, replace(lessons, one_by_one=True))
        pause = limits.invoke_retry_initial_ms
        return TryAgain(flight.head, event, pause, harmless=True, warned=warned), lessons
    reason = f"the table does not take what the handler changed: {why}"
    lessons = replace(lessons, refused=lessons.refused.again(event.id))
    if lessons.refused.times < COMMITS_REFUSED_MAX:
        warned, lessons = _warned(flight, f"attempt at {event.handler} failed: {shown(reason)}", lessons)
        return TryAgain(flight.head, event, warned=warned), lessons
    return GivenUp(event, reason, TOO_LARGE, last_resort=True), lessons


def _overspent(flight: Flight) -> bool:
    """Whether an attempt was one more than the policy allows: a function ends the event with the last one itself."""
    limit = flight.policy.max_attempts
    return limit is not None and flight.attempt > limit


def _alone(flight: Flight) -> bool:
    """Whether an activation was about one event, which no run owned when it began."""
    match flight.mode:
        case Speculate((_,)) | Drain((_,)):
            return True
        case _:
            return False


def _warned(
    flight: Flight, text: str, lessons: Lessons, event: Event | None = None, attempt: int | None = None
) -> tuple[Warned, Lessons]:
    """A line to be said about an event, the flight's first one unless another is named."""
    said = lessons.warned.again(text)
    about = flight.events[0] if event is None else event
    warned = Warned(text, said.times, about, flight.attempt if attempt is None else attempt)
    return warned, replace(lessons, warned=said)
