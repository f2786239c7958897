"""What follows from an answer to an activation, and from the table's to its commit: one row for each kind of answer.

Owns the two judgements. Does not own carrying them out (`tests/simulation`, `tests/costs`, `tests/hostile`).
"""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as with_fields

from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.messages import (
    ClaimedRun,
    Committed,
    EventResult,
    Fenced,
    HandlerManifest,
    Head,
    Late,
    Manifest,
    Outcome,
    Rejected,
    RetryPolicy,
    ServiceManifest,
    Speculated,
    Stopped,
    Suspended,
    Trim,
)
from tenuto.protocol.modes import Drain, Mode, Resume, Speculate
from tenuto.protocol.records import CallSource, Event, Failure, KafkaSource, Success
from tenuto_control.core.flights import Flight, Lessons, Repeated, Tried, departing
from tenuto_control.core.verdicts import (
    COMMITS_REFUSED_MAX,
    FENCED_FREE_MAX,
    SLOW_HANDED_MS,
    SLOW_MS,
    TOO_LARGE,
    Commit,
    Crashed,
    Discarded,
    Durable,
    Ended,
    FencedOff,
    GivenUp,
    HandedBack,
    Missing,
    NoOutcome,
    Oversized,
    Overtaken,
    Settled,
    Stored,
    Throttled,
    Traceless,
    TryAgain,
    Unreachable,
    Unstorable,
    Verdict,
    WaitTurn,
    judge,
    judge_commit,
    unserved,
)
from tenuto_control.limits import Limits

NOW: Final = 100_000
LANE: Final = Lane("box", "k")
LIMITS: Final = Limits(invoke_retry_initial_ms=50, invoke_retry_max_ms=10_000)
MANIFEST: Final = ServiceManifest(
    "box",
    keyed=True,
    handlers=(
        HandlerManifest("work", "exclusive"),
        HandlerManifest("few", "exclusive", RetryPolicy(max_attempts=3)),
    ),
)
HEAD: Final = Head(ver=4)
AFTER: Final = Head(ver=5)


def event(offset: int, handler: str = "work") -> Event:
    return Event(str(InvocationId(LANE, f"n{offset}")), handler, KafkaSource("0", "t", 0, offset, 5))


ONE, TWO, FEW = event(1), event(2), event(3, "few")
RUN: Final = ClaimedRun(ONE, 4, 10, 0, 6, "h0", 900)
ASLEEP: Final = with_fields(RUN, awaits=(), wake_ms=NOW + 1_500, error="no luck", attempt=7)


def flight_of(mode: Mode, lessons: Lessons | None = None, head: Head = HEAD) -> Flight:
    return departing(LANE, head, mode, "h1", Trim(), lessons or Lessons(), MANIFEST, NOW)


def ended(*events: Event) -> tuple[EventResult, ...]:
    return tuple(EventResult(e.id, Success()) for e in events)


def judged(mode: Mode, answer: Outcome | NoOutcome, lessons: Lessons | None = None) -> tuple[Verdict, Lessons]:
    lessons = lessons or Lessons()
    head = Head(ver=4, run=mode.run) if isinstance(mode, Resume) else HEAD
    return judge(flight_of(mode, lessons, head), answer, lessons, LIMITS, NOW)


def again_of(verdict: Verdict) -> TryAgain:
    assert isinstance(verdict, TryAgain)
    return verdict


BOTH: Final = Speculate((ONE, TWO))
ALONE: Final = Speculate((ONE,))
MODES: Final[dict[str, Mode]] = {
    "a batch": BOTH,
    "one event": ALONE,
    "inbox items": Drain((ONE, TWO)),
    "a run": Resume(RUN),
}

# --- flights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "events", "attempt"),
    [
        (Speculate((ONE, TWO), 3), (ONE, TWO), 3),
        (Drain((TWO,), 2), (TWO,), 2),
        (Resume(RUN), (ONE,), 6),
    ],
)
def test_a_flight_knows_its_events_and_its_attempt_at_the_first(
    mode: Mode, events: tuple[Event, ...], attempt: int
) -> None:
    flight = flight_of(mode)
    assert (flight.events, flight.attempt) == (events, attempt)


def test_the_first_event_of_a_batch_keeps_the_time_of_its_first_attempt() -> None:
    lessons = Lessons(tried=Tried(ONE.id, 7, 1))
    assert flight_of(Speculate((ONE, TWO), 2), lessons).tried == Tried(ONE.id, 7, 2)
    assert flight_of(Speculate((TWO,)), lessons).tried == Tried(TWO.id, NOW, 1)
    assert flight_of(Resume(RUN), lessons).tried == lessons.tried


def test_behind_others_an_event_is_at_its_first_attempt() -> None:
    tried = Tried(ONE.id, 7, 4)
    assert (tried.attempt_at(ONE), tried.first_ms_of(ONE)) == (4, 7)
    assert (tried.attempt_at(TWO), tried.first_ms_of(TWO)) == (1, 0)


def test_a_handler_that_discovery_does_not_know_has_the_policy_of_all() -> None:
    assert flight_of(Speculate((FEW,))).policy == RetryPolicy(max_attempts=3)
    assert flight_of(Speculate((event(4, "unknown"),))).policy == RetryPolicy()


# --- answers ----------------------------------------------------------------------------------------------------------


def test_what_was_speculated_is_committed() -> None:
    outcome = Speculated(ended(ONE, TWO))
    assert judged(BOTH, outcome)[0] == Commit(outcome)


def test_a_handler_that_failed_at_once_leaves_nothing_to_commit() -> None:
    stopped = Stopped(ONE.id, Failure("bad\nluck"), 30)
    verdict, lessons = judged(Speculate((ONE, TWO), 3), Speculated((), stopped=stopped))
    again = again_of(verdict)
    assert (again.head, again.failed, again.pause_ms, again.harmless, again.over) == (HEAD, ONE, 30, False, False)
    assert again.warned is not None
    assert (again.warned.text, again.warned.event, again.warned.attempt) == (
        "attempt at work failed: bad\\nluck",
        ONE,
        3,
    )
    assert lessons.warned.times == 1


@pytest.mark.parametrize("kind", [Committed, Suspended])
@pytest.mark.parametrize("mode", MODES)
def test_what_the_function_ended_itself_is_durable(mode: str, kind: Any) -> None:
    lessons = Lessons(claim_first=True, one_by_one=True)
    verdict, after = judged(MODES[mode], kind(ended(ONE), AFTER, 3), lessons)
    assert verdict == Ended(AFTER, ended(ONE), 3, suspended=kind is Suspended)
    assert (after.claim_first, after.one_by_one) == (False, False)


def test_a_failed_run_that_is_tried_again_later_is_told_with_its_own_attempt() -> None:
    verdict, _ = judged(ALONE, Suspended((), Head(ver=5, run=ASLEEP), 2))
    assert isinstance(verdict, Ended)
    assert verdict.warned is not None
    assert verdict.warned.text == "attempt at work failed, next in 1.5 s: no luck"
    assert verdict.warned.attempt == 7


@pytest.mark.parametrize(
    "run",
    [
        with_fields(ASLEEP, error=None),
        with_fields(ASLEEP, wake_ms=None),
        with_fields(ASLEEP, awaits=None),
    ],
    ids=["it only sleeps", "it waits for an answer", "it is awake"],
)
def test_a_suspension_alone_is_no_failure(run: ClaimedRun) -> None:
    verdict, _ = judged(ALONE, Suspended((), Head(ver=5, run=run), 2))
    assert isinstance(verdict, Ended)
    assert verdict.warned is None


def test_a_run_that_came_too_late_is_taken_over_with_a_longer_lease() -> None:
    verdict, lessons = judged(Resume(RUN), Late(NOW))
    assert isinstance(verdict, HandedBack)
    assert (verdict.warned.event, verdict.warned.attempt) == (ONE, 6)
    assert lessons.late
    assert not judged(Resume(RUN), Committed((), AFTER), lessons)[1].late


def test_a_lane_that_is_lost_to_others_costs_no_pause_but_in_the_long_run() -> None:
    lessons, pauses = Lessons(), []
    for ver in range(20):
        verdict, lessons = judge(flight_of(ALONE, lessons, Head(ver=ver)), Fenced("taken"), lessons, LIMITS, NOW)
        assert isinstance(verdict, FencedOff)
        assert lessons.claim_first
        if verdict.again is not None:
            assert (verdict.again.head, verdict.again.harmless, verdict.again.over) == (None, True, True)
        pauses.append(verdict.again and verdict.again.pause_ms)
    assert pauses == [*[None] * FENCED_FREE_MAX, 100, 200, 400, 800, 1_600, 3_200, 6_400, *[10_000] * 3]
    # What gets nowhere in another way does not have the pauses begin anew; what gets on does.
    assert judged(ALONE, Throttled(), lessons)[1].fenced == 20
    assert judged(ALONE, Speculated(ended(ALONE.events[0])), lessons)[1].fenced == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_lane_that_nobody_has_taken_is_not_lost(mode: str) -> None:
    first = Head(ver=4, run=RUN if mode == "a run" else None)
    # A run is resumed by a takeover, which raises the token.
    second = with_fields(first, ver=5) if mode == "a run" else first
    verdict, lessons = judge(flight_of(MODES[mode], None, first), Fenced("taken"), Lessons(), LIMITS, NOW)
    assert verdict == FencedOff()
    for changed in (with_fields(second, ver=6), with_fields(second, pend="p")):
        again, _ = judge(flight_of(MODES[mode], lessons, changed), Fenced("taken"), lessons, LIMITS, NOW)
        assert again == FencedOff()
    verdict, lessons = judge(flight_of(MODES[mode], lessons, second), Fenced("taken"), lessons, LIMITS, NOW)
    again = again_of(verdict)
    assert (again.head, again.pause_ms, again.harmless, again.over) == (None, None, False, True)
    assert again.warned is not None
    assert "which nobody has changed" in again.warned.text


def test_a_run_that_never_waits_for_anything_is_resumed_at_intervals() -> None:
    awake = Head(ver=5, run=with_fields(RUN, awaits=(), wake_ms=NOW))
    lessons, pauses = Lessons(), []
    for n in range(8):
        begun = Head(ver=5, run=RUN, slots={str(slot): b"" for slot in range(n)})
        flight = flight_of(Resume(RUN), lessons, begun)
        verdict, lessons = judge(flight, Suspended((), awake, 1), lessons, LIMITS, NOW + 90)
        assert isinstance(verdict, Ended)
        pauses.append(verdict.pause_ms)
    assert pauses == [0, 10, 110, 310, 710, 910, 910, 910]
    # One that has used up its function's time has waited for long enough.
    late, _ = judge(flight_of(Resume(RUN), lessons), Suspended((), awake, 1), lessons, LIMITS, NOW + 2_500)
    assert isinstance(late, Ended)
    assert late.pause_ms == 0
    asleep = Head(ver=5, run=with_fields(RUN, awaits=(), wake_ms=NOW + 500))
    assert judge(flight_of(Resume(RUN)), Suspended((), asleep, 1), lessons, LIMITS, NOW)[1].restless == 0


def test_answers_that_get_nowhere_by_turns_do_not_have_each_others_pauses_begin_anew() -> None:
    awake = Head(ver=5, run=with_fields(RUN, awaits=(), wake_ms=NOW))
    lessons, pauses = Lessons(), []
    for n in range(16):
        answer = Fenced("taken") if n % 2 else Suspended((), awake, 1)
        begun = Head(ver=n, run=RUN, segments=("J#",) * n)
        verdict, lessons = judge(flight_of(Resume(RUN), lessons, begun), answer, lessons, LIMITS, NOW)
        if isinstance(verdict, Ended):
            pauses.append(verdict.pause_ms)
    assert pauses == sorted(pauses)
    assert pauses[-1] >= 900


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "between", [Crashed("no"), Fenced("taken"), Unreachable("gone")], ids=lambda one: type(one).__name__
)
def test_a_suspension_that_waits_for_nothing_and_has_stored_nothing_is_a_failed_attempt(
    mode: str, between: Crashed | Fenced | Unreachable
) -> None:
    """Whatever was answered between this one and the last of its kind."""
    suspended = Suspended((), Head(ver=5, run=with_fields(RUN, awaits=(), wake_ms=NOW)), 1)
    head = Head(ver=4, run=RUN if mode == "a run" else None)
    first, lessons = judge(flight_of(MODES[mode], None, head), suspended, Lessons(), LIMITS, NOW)
    assert isinstance(first, Ended)
    _, lessons = judge(flight_of(MODES[mode], lessons, head), between, lessons, LIMITS, NOW)
    again, _ = judge(flight_of(MODES[mode], lessons, with_fields(head, ver=7)), suspended, lessons, LIMITS, NOW)
    assert (again_of(again).harmless, again_of(again).over) == (False, True)
    further = with_fields(head, ver=7, segments=("J#1",))
    assert isinstance(judge(flight_of(MODES[mode], lessons, further), suspended, lessons, LIMITS, NOW)[0], Ended)


@pytest.mark.parametrize(("asked", "pause"), [(None, None), (0, None), (-5, None), (3, 10), (10**18, 31_536_000_000)])
def test_a_pause_that_is_none_is_left_to_the_policy(asked: int | None, pause: int | None) -> None:
    verdict, _ = judged(ALONE, Speculated((), stopped=Stopped(ONE.id, Failure("no"), asked)))
    assert again_of(verdict).pause_ms == pause


def test_a_handler_that_always_asks_for_another_attempt_has_no_more_than_its_policy_and_one() -> None:
    stopped = Speculated((), stopped=Stopped(FEW.id, Failure("bad luck")))
    for attempt in range(1, 4):
        assert isinstance(judged(Speculate((FEW,), attempt), stopped)[0], TryAgain)
    assert judged(Speculate((FEW,), 4), stopped)[0] == GivenUp(FEW, "4 attempts failed, the last with: bad luck")


REFUSED: Final[dict[str, tuple[Outcome | NoOutcome, int | None, bool, bool]]] = {
    # answer → pause, harmless, over
    "no such handler": (Rejected(Failure("no handler", 404)), 10_000, True, True),
    "no answer": (Unreachable("cut off"), 1_000, True, False),
    "no function": (Missing("gone"), 10_000, True, True),
    "it crashed": (Crashed("killed"), None, False, True),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("mode", MODES)
def test_without_an_outcome_the_head_is_read_again_after_a_pause(mode: str, case: str) -> None:
    answer, *expected = REFUSED[case]
    verdict, _ = judged(MODES[mode], answer)
    again = again_of(verdict)
    assert again.head is None
    assert again.failed == ONE
    assert [again.pause_ms, again.harmless, again.over] == expected
    assert again.warned is not None


@pytest.mark.parametrize("mode", MODES)
def test_what_the_log_says_already_is_not_said_for_each_lane(mode: str) -> None:
    again = again_of(judged(MODES[mode], Missing("gone", told=True))[0])
    assert (again.pause_ms, again.harmless, again.over, again.warned) == (10_000, True, True, None)


@pytest.mark.parametrize("mode", MODES)
def test_a_throttled_activation_waits_for_its_turn_in_silence(mode: str) -> None:
    assert judged(MODES[mode], Throttled())[0] == WaitTurn(ONE, 50)


def test_a_batch_that_is_too_large_is_split_at_once() -> None:
    verdict, lessons = judged(BOTH, Oversized("so many bytes"))
    assert verdict == TryAgain(HEAD, ONE, 50, harmless=True, over=True)
    assert lessons.one_by_one


@pytest.mark.parametrize("mode", [Speculate((ONE,)), Drain((ONE,))])
def test_an_event_that_is_too_large_for_any_function_ends(mode: Mode) -> None:
    verdict, _ = judged(mode, Oversized("so many bytes"))
    assert verdict == GivenUp(ONE, "no function can be given this event: so many bytes", TOO_LARGE)


def test_a_run_is_never_given_up_for_its_size() -> None:
    assert isinstance(judged(Resume(RUN), Oversized("so many bytes"))[0], TryAgain)


@pytest.mark.parametrize("attempt", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", [Speculate, Drain])
def test_an_event_ends_with_the_last_attempt_of_its_policy(kind: type[Speculate | Drain], attempt: int) -> None:
    verdict, lessons = judged(kind((FEW,), attempt), Crashed("killed"))
    if attempt < 3:
        assert isinstance(verdict, TryAgain)
        assert lessons.one_by_one
    else:
        text = f"{attempt} attempts failed, the last without an answer: killed"
        assert verdict == GivenUp(FEW, text)


@pytest.mark.parametrize("mode", [Speculate((FEW, TWO), 9), Resume(with_fields(RUN, event=FEW, attempt=9))])
def test_only_an_event_alone_and_unowned_ends_with_its_function(mode: Mode) -> None:
    assert isinstance(judged(mode, Crashed("killed"))[0], TryAgain)


def test_an_activation_is_not_answered_with_a_manifest() -> None:
    with pytest.raises(AssertionError, match="manifest"):
        judged(ALONE, Manifest(()))


def test_work_without_a_function_waits() -> None:
    again, lessons = unserved("box", ONE, Lessons(), LIMITS)
    assert (again.head, again.pause_ms, again.harmless, again.over) == (None, 10_000, True, False)
    assert again.warned is not None
    assert (again.warned.text, again.warned.attempt) == ("no function serves box, its work waits", None)
    assert unserved("box", ONE, lessons, LIMITS)[1].warned.times == 2


# --- the table's answer to a commit -----------------------------------------------------------------------------------

WHOLE: Final = Commit(Speculated(ended(ONE, TWO)))
HALF: Final = Commit(Speculated(ended(ONE), stopped=Stopped(TWO.id, Failure("bad luck"))))
TRIED: Final = Lessons(claim_first=True, one_by_one=True)


def test_a_commit_that_was_stored_ends_what_it_holds() -> None:
    verdict, lessons = judge_commit(flight_of(BOTH), WHOLE, Stored(AFTER), TRIED, LIMITS, NOW)
    assert verdict == Durable(AFTER, ended(ONE, TWO))
    assert (lessons.claim_first, lessons.one_by_one) == (False, False)


def test_a_commit_of_nothing_leaves_the_head_as_it_is() -> None:
    verdict, lessons = judge_commit(flight_of(BOTH), WHOLE, Traceless(), TRIED, LIMITS, NOW)
    assert verdict == Durable(HEAD, ended(ONE, TWO))
    assert (lessons.claim_first, lessons.one_by_one) == (True, False)


def test_the_event_behind_a_commit_failed_at_its_first_attempt() -> None:
    flight = flight_of(Speculate((ONE, TWO), 5))
    verdict, lessons = judge_commit(flight, HALF, Stored(AFTER), TRIED, LIMITS, NOW)
    assert isinstance(verdict, Durable)
    assert verdict.then is not None
    assert (verdict.then.head, verdict.then.failed, verdict.then.over) == (AFTER, TWO, False)
    assert verdict.then.warned is not None
    assert (verdict.then.warned.event, verdict.then.warned.attempt) == (TWO, 1)
    assert lessons.one_by_one


@pytest.mark.parametrize(
    ("head", "claim_first"),
    [(AFTER, True), (Head(ver=4, pend="p"), False), (Head(ver=5, run=RUN), False)],
    ids=["another wrote", "the inbox was marked", "another claimed"],
)
def test_a_commit_that_was_overtaken_is_thrown_away(head: Head, claim_first: bool) -> None:
    later = NOW + SLOW_MS
    verdict, lessons = judge_commit(flight_of(BOTH), WHOLE, Overtaken(head), Lessons(), LIMITS, later)
    assert verdict == Discarded(head)
    assert lessons.claim_first == claim_first


def test_quick_events_from_kafka_do_not_claim_since_another_process_was_quicker() -> None:
    _, lessons = judge_commit(flight_of(BOTH), WHOLE, Overtaken(AFTER), Lessons(), LIMITS, NOW + SLOW_MS - 1)
    assert not lessons.claim_first


@pytest.mark.parametrize(
    ("pend", "took_ms", "claim_first"),
    [(None, SLOW_MS, True), (None, SLOW_MS - 1, False), ("p", SLOW_MS, False), ("p", SLOW_HANDED_MS, True)],
)
def test_a_slow_call_claims_unless_others_hand_their_calls_over(
    pend: str | None, took_ms: int, claim_first: bool
) -> None:
    call = Event(str(InvocationId(LANE, "c1")), "h", CallSource())
    commit = Commit(Speculated(ended(call)))
    left, before = with_fields(AFTER, pend=pend), Lessons(claim_first=True)
    _, lessons = judge_commit(flight_of(Drain((call,))), commit, Stored(left), before, LIMITS, NOW + took_ms)
    assert lessons.claim_first == claim_first


def test_a_commit_that_is_too_large_is_tried_again_event_by_event() -> None:
    verdict, lessons = judge_commit(flight_of(BOTH), WHOLE, Unstorable("400 KB"), Lessons(), LIMITS, NOW)
    again = again_of(verdict)
    assert (again.head, again.failed, again.pause_ms, again.harmless) == (HEAD, ONE, 50, True)
    assert lessons.one_by_one
    assert lessons.refused == Repeated()


def test_an_event_that_the_table_does_not_take_is_given_up_after_a_few_attempts() -> None:
    flight, commit, lessons = flight_of(ALONE), Commit(Speculated(ended(ONE))), Lessons(one_by_one=True)
    for _ in range(COMMITS_REFUSED_MAX - 1):
        verdict, lessons = judge_commit(flight, commit, Unstorable("400 KB"), lessons, LIMITS, NOW)
        again = again_of(verdict)
        assert (again.head, again.pause_ms, again.harmless) == (HEAD, None, False)
    verdict, lessons = judge_commit(flight, commit, Unstorable("400 KB"), lessons, LIMITS, NOW)
    reason = "the table does not take what the handler changed: 400 KB"
    assert verdict == GivenUp(ONE, reason, TOO_LARGE, last_resort=True)
    last = Commit(commit.outcome, last_resort=True)
    # What else is in its batch goes on one by one: it may be too large as well.
    assert judge_commit(flight, last, Stored(AFTER), lessons, LIMITS, NOW)[1].one_by_one


def test_refusals_count_for_one_event_at_a_time() -> None:
    lessons = Lessons()
    for mode in (ALONE, Speculate((TWO,)), ALONE, Speculate((TWO,))):
        commit = Commit(Speculated(ended(*mode.events)))
        verdict, lessons = judge_commit(flight_of(mode), commit, Unstorable("400 KB"), lessons, LIMITS, NOW)
        assert isinstance(verdict, TryAgain)


# --- laws -------------------------------------------------------------------------------------------------------------

ANSWERS: Final[list[Outcome | NoOutcome]] = [
    Speculated(ended(ONE)),
    Speculated((), stopped=Stopped(ONE.id, Failure("bad luck"))),
    Committed(ended(ONE), AFTER, 2),
    Suspended((), Head(ver=5, run=ASLEEP), 2),
    Late(NOW),
    Fenced("taken"),
    Rejected(Failure("no handler")),
    Oversized("so many bytes"),
    Throttled(),
    Unreachable("cut off"),
    Missing("gone"),
    Crashed("killed"),
]
WRITTEN: Final = [Stored(AFTER), Traceless(), Overtaken(AFTER), Unstorable("400 KB")]


@given(
    st.lists(
        st.tuples(st.sampled_from(list(MODES.values())), st.sampled_from(ANSWERS), st.lists(st.sampled_from(WRITTEN))),
        max_size=8,
    )
)
def test_every_activation_settles_and_its_lessons_say_what_was_last_answered(
    story: list[tuple[Mode, Outcome | NoOutcome, list[Any]]],
) -> None:
    lessons, fences = Lessons(), 0
    for mode, answer, written in story:
        flight = flight_of(mode, lessons)
        verdict, lessons = judge(flight, answer, lessons, LIMITS, NOW)
        got_on = isinstance(answer, Committed | Suspended) or (isinstance(answer, Speculated) and bool(answer.results))
        fences = 0 if got_on else fences + isinstance(answer, Fenced)
        assert (lessons.late, lessons.fenced) == (isinstance(answer, Late), fences)
        assert lessons.tried == flight.tried
        for found in [*written, Stored(AFTER)]:
            if isinstance(verdict, GivenUp):
                verdict = Commit(Speculated(ended(verdict.event)), verdict.last_resort)
            if not isinstance(verdict, Commit):
                break
            verdict, lessons = judge_commit(flight, verdict, found, lessons, LIMITS, NOW)
        assert isinstance(verdict, Settled)


@given(st.lists(st.sampled_from("ab"), max_size=40))
def test_a_line_is_logged_at_the_first_second_fourth_and_eighth_time_in_a_row(texts: str) -> None:
    lessons, row, last = Lessons(), 0, ""
    for text in texts:
        row, last = row + 1 if text == last else 1, text
        again, lessons = unserved(text, ONE, lessons, LIMITS)
        assert again.warned is not None
        assert again.warned.due == (row in {1, 2, 4, 8, 16, 32})
