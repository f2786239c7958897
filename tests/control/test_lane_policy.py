"""What a lane does next: the order of precedence as a table, and laws over every view.

Owns the decision. Does not own carrying it out (`tests/simulation`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as with_fields

from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.messages import Head, Run
from tenuto.protocol.records import (
    AwakeableSlot,
    CallSource,
    DueSlot,
    Event,
    KafkaSource,
    MessageSource,
    Out,
    PublishOut,
    ResultOut,
    Source,
    Success,
    pack,
)
from tenuto_control.core.lane_policy import (
    Action,
    Bounds,
    Drain,
    HandOver,
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
    can_wake,
    decide,
    passed,
)

NOW = 100_000
BOUNDS = Bounds(
    spill_after_ms=5_000,
    spill_records_max=200,
    lease_margin_ms=500,
    call_look_ms=100,
    event_look_ms=1_000,
    owner_ms=200,
)
LANE = Lane("s", "k")


def event(nonce: str, source: Source) -> Event:
    return Event(str(InvocationId(LANE, nonce)), "h", source)


def record(offset: int) -> Event:
    return event(f"k{offset}", KafkaSource("0", "t", 0, offset, 0))


MARK = KafkaSource("0", "t", 0, 0, 0).watermark
OUT: dict[str, Out] = {"1.0": PublishOut("t", None)}
RUNNING = Run(event=record(5), ver=1, start_ms=0, first_out=0, attempt=1, holder="me", lease_ms=NOW + 1_000)
EXPIRED = with_fields(RUNNING, lease_ms=NOW - BOUNDS.lease_margin_ms)
MARGIN = with_fields(RUNNING, lease_ms=NOW - BOUNDS.lease_margin_ms + 1)
ASLEEP = with_fields(RUNNING, awaits=("0",), wake_ms=NOW + 9_000)
DUE = with_fields(RUNNING, awaits=("0", "1a"), wake_ms=NOW)
WAITING = with_fields(RUNNING, awaits=("0a",))
SLEPT = {"0d": pack(DueSlot(NOW))}
UNSLEPT = {"0d": pack(DueSlot(NOW + 9_000))}
ANSWERED = {"0a": pack(AwakeableSlot(Success()))}
PAUSED = NOW + 70
BLOCKED = BOUNDS.spill_after_ms
MANY = BOUNDS.spill_records_max

RESULT: dict[str, Out] = {"1.0": ResultOut("i", Success())}


TAKEN = Head(run=RUNNING)


def away(first: Event | None, head: Head = TAKEN, **more: Any) -> View:
    """A lane that another process uses, as it was read just now."""
    seen: dict[str, Any] = {"foreign": head.run is not None, "read_ms": NOW, "first_ms": NOW - 1} | more
    return View(head, NOW, first, int(first is not None), **seen)


TABLE: list[tuple[str, View, Action]] = [
    ("nothing is known", View(None, NOW), ReadHead()),
    ("nothing is known, in a pause", View(None, NOW, not_before_ms=PAUSED), Wait(PAUSED)),
    ("an empty lane", View(Head(), NOW), Idle()),
    ("one event", View(Head(), NOW, record(7), 1), Invoke()),
    ("one event, in a pause", View(Head(), NOW, record(7), 1, not_before_ms=PAUSED), Wait(PAUSED)),
    ("an event that is finished", View(Head(watermarks={MARK: 8}), NOW, record(7), 1), Release()),
    (
        "an event that is finished, in a pause",
        View(Head(watermarks={MARK: 8}), NOW, record(7), 1, not_before_ms=PAUSED),
        Release(),
    ),
    ("the watermark is the next offset", View(Head(watermarks={MARK: 7}), NOW, record(7), 1), Invoke()),
    ("a mark goes before the queue", View(Head(pend="p"), NOW, record(7), 1), Drain()),
    ("a look goes before the queue", View(Head(), NOW, record(7), 1, look=True), Drain()),
    ("an outbox goes first", View(Head(out=OUT, pend="p"), NOW, record(7), 1, look=True), Ship()),
    ("an outbox, in a pause", View(Head(out=OUT), NOW, not_before_ms=PAUSED), Ship()),
    (
        "an outbox before a finished event's offset",
        View(Head(out=OUT, watermarks={MARK: 8}), NOW, record(7), 1),
        Ship(),
    ),
    ("delivered entries wait for a write", View(Head(out=OUT), NOW, record(7), 1, shipped=frozenset(OUT)), Invoke()),
    ("delivered entries alone", View(Head(out=OUT), NOW, shipped=frozenset(OUT), trimmable=1), TrimHead()),
    ("a foreign run", View(Head(run=RUNNING), NOW), Wait(RUNNING.lease_ms + BOUNDS.lease_margin_ms)),
    ("a run whose lease is over", View(Head(run=EXPIRED), NOW), TakeOver()),
    ("a run whose lease may be over by another clock", View(Head(run=MARGIN), NOW), Wait(NOW + 1)),
    ("a run whose function has ended", View(Head(run=RUNNING), NOW, ended=frozenset({"me"})), TakeOver()),
    (
        "a run whose function has ended, in a pause",
        View(Head(run=RUNNING), NOW, ended=frozenset({"me"}), not_before_ms=PAUSED),
        Wait(PAUSED),
    ),
    ("a run's outbox can wait", View(Head(run=EXPIRED, out=OUT), NOW), TakeOver()),
    ("a run's own event is held", View(Head(run=RUNNING), NOW, RUNNING.event, 1), Wait(NOW + 1_500)),
    ("a finished event beside a run", View(Head(run=RUNNING, watermarks={MARK: 5}), NOW, record(4), 1), Release()),
    (
        "a finished event beside a run, with an outbox",
        View(Head(run=RUNNING, watermarks={MARK: 5}, out=OUT), NOW, record(4), 1),
        Ship(),
    ),
    ("an event too long beside a run", View(Head(run=RUNNING), NOW, record(7), 1, blocked_ms=BLOCKED), Spill()),
    ("too many events beside a run", View(Head(run=RUNNING), NOW, record(7), MANY), Spill()),
    ("a suspended run's outbox", View(Head(run=ASLEEP, out=OUT), NOW, ASLEEP.event, 1), Ship()),
    ("a suspended run's own event", View(Head(run=ASLEEP), NOW, ASLEEP.event, 1), Release()),
    ("a sleep", View(Head(run=ASLEEP), NOW), Idle(NOW + 9_000)),
    ("a wait for an answer", View(Head(run=WAITING), NOW), Idle()),
    (
        "a wait, with an event behind it",
        View(Head(run=WAITING), NOW, record(7), 1, blocked_ms=1_000, read_ms=NOW),
        Wait(NOW + BOUNDS.event_look_ms),
    ),
    (
        "a wait, with a call behind it",
        View(Head(run=WAITING), NOW, record(7), 2, calls=True, read_ms=NOW),
        Wait(NOW + BOUNDS.call_look_ms),
    ),
    (
        "a wait for an answer that another process may have got",
        View(Head(run=WAITING), NOW, record(7), 1, read_ms=NOW - BOUNDS.event_look_ms),
        ReadHead(),
    ),
    (
        "a short sleep, with an event behind it",
        View(Head(run=with_fields(ASLEEP, wake_ms=NOW + 50), slots=UNSLEPT), NOW, record(7), 1),
        Wait(NOW + 50),
    ),
    ("an event too long behind a sleep", View(Head(run=ASLEEP), NOW, record(7), 1, blocked_ms=BLOCKED), Spill()),
    ("a sleep that is over", View(Head(run=DUE, slots=SLEPT), NOW), Resume(("0",))),
    ("a pause between attempts that is over", View(Head(run=with_fields(DUE, awaits=())), NOW), Resume(())),
    ("an answer", View(Head(run=WAITING, slots=ANSWERED), NOW), Resume(())),
    ("an answer, in a pause", View(Head(run=WAITING, slots=ANSWERED), NOW, not_before_ms=PAUSED), Wait(PAUSED)),
    ("an answer, with an outbox", View(Head(run=WAITING, slots=ANSWERED, out=OUT), NOW), Ship()),
    (
        "delivered entries of a suspended run",
        View(Head(run=ASLEEP, out=OUT), NOW, shipped=frozenset(OUT), trimmable=1),
        TrimHead(),
    ),
    (
        "a run held elsewhere, seen before the event came",
        away(record(7), read_ms=NOW - 2, first_ms=NOW - 1),
        ReadHead(),
    ),
    ("a run held elsewhere", away(record(7)), HandOver()),
    ("a run held elsewhere, of this very event", away(RUNNING.event), Wait(NOW + BOUNDS.event_look_ms)),
    ("a run held elsewhere, with nothing to hand over", away(None), Wait(RUNNING.lease_ms + BOUNDS.lease_margin_ms)),
    ("a run held elsewhere, a call handed over", away(None, handed=1), Wait(NOW + BOUNDS.call_look_ms)),
    (
        "a run held elsewhere, a call handed over, time to look",
        away(None, handed=1, read_ms=NOW - BOUNDS.call_look_ms),
        ReadHead(),
    ),
    ("a run held elsewhere whose lease is over", away(record(7), head=Head(run=EXPIRED)), TakeOver()),
    (
        "a lane that its user has just left, a call handed over",
        away(None, head=Head(pend="p"), handed=1, changed_ms=NOW - 1),
        Wait(NOW + BOUNDS.call_look_ms),
    ),
    (
        "a lane that its user has just left, with more to hand over",
        away(record(7), head=Head(pend="p"), handed=1, changed_ms=NOW - 1),
        HandOver(),
    ),
    (
        "a lane that its user has left for long, a call handed over",
        away(None, head=Head(pend="p"), handed=1, changed_ms=NOW - BOUNDS.owner_ms),
        Drain(),
    ),
    ("a call handed over that may have its result", away(None, head=Head(), handed=1), Wait(NOW + BOUNDS.call_look_ms)),
    ("outrun again and again", away(record(7), head=Head(), outrun=True, foreign_tok=True, changed_ms=NOW), HandOver()),
    ("outrun by one that is gone", away(record(7), head=Head(), outrun=True, foreign_tok=True), Invoke()),
    (
        "a result that another process delivers",
        away(record(7), head=Head(out=RESULT), foreign_tok=True, changed_ms=NOW - 1),
        Invoke(),
    ),
    ("a result that nobody delivers", away(record(7), head=Head(out=RESULT), foreign_tok=True), Ship()),
    (
        "a message of another process",
        away(record(7), head=Head(out=OUT), foreign_tok=True, changed_ms=NOW - 1),
        Ship(),
    ),
    ("a mark behind a suspended run", View(Head(run=ASLEEP, pend="p"), NOW), Idle(NOW + 9_000)),
]


@pytest.mark.parametrize(("view", "action"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_precedence(view: View, action: Action) -> None:
    assert decide(view, BOUNDS) == action


# --- laws ------------------------------------------------------------------------------------------------------------

times = st.integers(NOW - 20_000, NOW + 20_000)
slots = st.dictionaries(
    st.sampled_from(["0", "0a", "1a"]), st.just(pack(AwakeableSlot(Success()))), max_size=2
).flatmap(lambda filled: st.builds(lambda due: {**filled, "0d": pack(DueSlot(due))}, times))
runs = st.builds(
    Run,
    event=st.builds(record, st.integers(0, 9)),
    ver=st.just(1),
    start_ms=st.just(0),
    first_out=st.just(0),
    attempt=st.integers(1, 9),
    holder=st.sampled_from(["me", "other"]),
    lease_ms=times,
    awaits=st.none() | st.lists(st.sampled_from(["0", "0a", "1a"]), unique=True).map(tuple),
    wake_ms=st.none() | times,
)
entries = st.dictionaries(st.sampled_from(["1.0", "2.0", "2.1"]), st.just(PublishOut("t", None)))
heads = st.builds(
    Head,
    ver=st.just(3),
    pend=st.none() | st.just("p"),
    watermarks=st.dictionaries(st.just(MARK), st.integers(0, 9)),
    out=entries,
    run=st.none() | runs,
    slots=slots,
)
firsts = st.one_of(
    st.builds(record, st.integers(0, 9)),
    st.just(event("c1", CallSource())),
    st.just(event("m1", MessageSource("s/a", "1.0"))),
)


@st.composite
def views(draw: st.DrawFn) -> View:
    head = draw(st.none() | heads)
    first = draw(st.none() | firsts)
    shipped = draw(st.frozensets(st.sampled_from(["1.0", "2.0", "2.1"])))
    return View(
        head=head,
        now_ms=NOW,
        first=first,
        queued=0 if first is None else draw(st.integers(1, 2 * MANY)),
        shipped=shipped,
        look=draw(st.booleans()),
        ended=draw(st.frozensets(st.sampled_from(["me", "other"]))),
        not_before_ms=draw(times),
        blocked_ms=draw(st.integers(0, 2 * BLOCKED)),
        trimmable=0 if head is None else len(head.out.keys() & shipped),
        foreign=head is not None and head.run is not None and draw(st.booleans()),
        read_ms=draw(times.map(lambda ms: min(ms, NOW))),
        changed_ms=draw(times.map(lambda ms: min(ms, NOW))),
        first_ms=draw(times.map(lambda ms: min(ms, NOW))),
        handed=draw(st.sampled_from([0, 0, 2])),
        outrun=draw(st.booleans()),
        foreign_tok=draw(st.booleans()),
        calls=draw(st.booleans()),
    )


@given(views())
def test_nothing_starts_while_a_run_is_active(view: View) -> None:
    if view.head is not None and view.head.run is not None:
        assert not isinstance(decide(view, BOUNDS), Invoke | Drain)


@given(views())
def test_only_a_run_is_resumed_or_taken_over(view: View) -> None:
    action = decide(view, BOUNDS)
    run = view.head.run if view.head else None
    if isinstance(action, Resume):
        assert view.head is not None
        assert run is not None
        assert run.suspended
        assert can_wake(view.head, run, NOW)
    if isinstance(action, TakeOver):
        assert run is not None
        assert not run.suspended
        assert run.holder in view.ended or run.lease_ms + BOUNDS.lease_margin_ms <= NOW


@given(views())
def test_an_offset_is_released_only_below_the_watermark_or_for_a_suspended_run(view: View) -> None:
    if isinstance(decide(view, BOUNDS), Release):
        assert view.head is not None
        assert view.first is not None
        assert isinstance(view.first.source, KafkaSource)
        run = view.head.run
        own = run is not None and run.suspended and run.event.id == view.first.id
        assert own or passed(view.head, view.first)


@given(views())
def test_an_outbox_leaves_before_offsets_go_or_work_starts(view: View) -> None:
    if view.head is None or not view.head.out.keys() - view.shipped:
        return
    action = decide(view, BOUNDS)
    if (view.head.run is None or view.head.run.suspended) and not view.handed:
        assert isinstance(action, Ship)
    assert not isinstance(action, Release | Invoke | Drain | Resume | TrimHead | Idle)


@given(views())
def test_a_wait_is_for_a_time_to_come(view: View) -> None:
    action = decide(view, BOUNDS)
    if isinstance(action, Wait):
        assert action.until_ms > NOW


@given(views())
def test_a_lane_with_work_is_never_idle(view: View) -> None:
    if not isinstance(decide(view, BOUNDS), Idle):
        return
    head = view.head
    assert head is not None
    assert view.first is None
    assert not view.trimmable
    if head.run is None:
        assert head.pend is None
        assert not view.look
    else:
        assert head.run.suspended
        assert not can_wake(head, head.run, NOW)


@given(views())
def test_every_lane_comes_to_rest(view: View) -> None:
    """Each action removes what it was chosen for, so a lane cannot turn in circles."""
    for _ in range(500):
        action = decide(view, BOUNDS)
        if isinstance(action, Idle):
            return
        view = carry_out(action, view)
    raise AssertionError(f"no end: {decide(view, BOUNDS)} for {view}")


def carry_out(action: Action, view: View) -> View:
    """The view after an action that succeeded and after which nothing new arrived."""
    head = view.head or Head()
    kept = {n: out for n, out in head.out.items() if n not in view.shipped}
    match action:
        case Ship():
            return seen(view, head, shipped=view.shipped | head.out.keys())
        case TrimHead():
            return seen(view, with_fields(head, out=kept))
        case Release() | Spill():
            return seen(view, head, queued=view.queued - 1)
        case HandOver():
            return seen(view, with_fields(head, pend="p"), queued=0, look=False, handed=1)
        case Drain():
            return seen(view, with_fields(head, out=kept, pend=None), look=False)
        case Invoke():
            return seen(view, with_fields(head, out=kept), queued=0)
        case Resume() | TakeOver():
            return seen(view, with_fields(head, out=kept, run=None, slots={}))
        case Wait(until_ms):
            return seen(view, head, now_ms=until_ms, blocked_ms=view.blocked_ms + until_ms - view.now_ms)
        case _:
            return seen(view, head)


def seen(
    view: View,
    head: Head,
    *,
    shipped: frozenset[str] | None = None,
    queued: int | None = None,
    look: bool | None = None,
    now_ms: int | None = None,
    blocked_ms: int | None = None,
    handed: int = 0,
) -> View:
    """The view, with a head and what else has changed. A queue of hundreds is worked off in bulk, as a spill does."""
    left = min(view.queued, 3) if queued is None else min(queued, 3)
    shown = view.shipped if shipped is None else shipped
    now = view.now_ms if now_ms is None else now_ms
    return replace(
        view,
        head=head,
        now_ms=now,
        first=view.first if left else None,
        queued=left,
        shipped=shown,
        look=view.look if look is None else look,
        blocked_ms=view.blocked_ms if blocked_ms is None else blocked_ms,
        trimmable=len(head.out.keys() & shown),
        foreign=view.foreign and head.run is not None,
        read_ms=now if now_ms is None else view.read_ms,
        handed=0 if head.run is None and head.pend is None else handed or view.handed,
    )
