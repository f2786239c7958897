"""What a lane does next: the order of precedence as a table, and laws over every memory.

Owns the decision. Does not own carrying it out (`tests/simulation`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as with_fields

from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.messages import ClaimedRun, Head
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
from tenuto_control.core.lane_bounds import Bounds
from tenuto_control.core.lane_facts import Delivered, HeadDropped, HeadSeen, LookBegun, ReadBegun, SpillBegun, Turn
from tenuto_control.core.lane_memory import (
    STALE,
    UNREAD,
    Failing,
    HandlerPause,
    Holder,
    Known,
    LaneMemory,
    OutboxPause,
    Seen,
    TablePause,
    Trouble,
)
from tenuto_control.core.lane_policy import (
    GATHER_MS,
    OUTRUN_MAX,
    OWNER_UNAWAITED,
    SHARED_MS,
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
    can_wake,
    decide,
    passed,
    unshipped,
)
from tenuto_control.core.looks import (
    AWAITED_LOOK_MS_MAX,
    CALL_LOOK_MS_MAX,
    FORESEEN_LOOK_MS_MAX,
    HELD_BACK_MS,
    KEPT_MS,
    NEXT_LOOKS,
    RUNS_DIFFER_MS,
    SHORT_RUN_MS,
)
from tenuto_control.core.paces import RECENT, UNKNOWN, Pace
from tenuto_control.core.sightings import Sighting

NOW = 100_000
BOUNDS = Bounds(
    spill_after_ms=5_000,
    spill_records_max=200,
    lease_margin_ms=500,
    call_look_ms=100,
    event_look_ms=1_000,
    owner_ms=200,
    keep_events_ms=850,
    process="here",
)
LANE = Lane("s", "k")
SECONDS, TENS, MINUTES = (Pace((ms,) * RECENT) for ms in (1_000, 10_000, 60_000))
UNLIKE = Pace((10, 3_000))


def event(nonce: str, source: Source) -> Event:
    return Event(str(InvocationId(LANE, nonce)), "h", source)


def record(offset: int) -> Event:
    return event(f"k{offset}", KafkaSource("0", "t", 0, offset, 0))


@dataclass(frozen=True, slots=True)
class Case:
    """What a decision is about."""

    memory: LaneMemory
    turn: Turn

    def decided(self) -> Action:
        """The decision."""
        return decide(self.memory, self.turn, BOUNDS)


def kinds(first: Event | None) -> tuple[bool, bool]:
    """Whether there are calls, and records, in a queue of which all is like the first."""
    return isinstance(first, Event) and first is CALL, isinstance(first, Event) and first is not CALL


def case(head: Head | None, first: Event | None = None, queued: int = 0, *, blocked_ms: int = 0, **memory: Any) -> Case:
    """A lane at NOW that has been held up for `blocked_ms`, and whose head has just been read."""
    seen = UNREAD if head is None else Known(head)
    remembered = LaneMemory(seen, blocked_since_ms=NOW - blocked_ms, sighting=Sighting(NOW))
    calls, records = kinds(first)
    return Case(with_fields(remembered, **memory), Turn(NOW, first, queued, calls=calls, records=records))


def away(
    first: Event | None,
    head: Head,
    *,
    handed: int = 0,
    behind: int = 0,
    read_ms: int = NOW,
    changed_ms: int = 0,
    **memory: Any,
) -> Case:
    """A lane that other processes use; the first event has come a moment ago."""
    remembered = LaneMemory(Known(head), sighting=Sighting(read_ms, changed_ms))
    queued, (calls, records) = int(first is not None), kinds(first)
    turn = Turn(NOW, first, queued, NOW - 1, calls, records, handed, behind=behind)
    return Case(with_fields(remembered, **memory), turn)


def gathered(count: int) -> Case:
    """A lane that another process uses, and for which so many events have come within a while."""
    memory = LaneMemory(Known(Head()), sighting=Sighting(NOW - GATHER_MS), overtaken_ms=NOW - GATHER_MS)
    return Case(memory, Turn(NOW, record(7), count, NOW - GATHER_MS, records=True))


def watching(
    head: Head, sighting: Sighting, *, begun: bool = False, waited_ms: int | None = None, pace: Pace = UNKNOWN
) -> Case:
    """A lane for which a call was handed over, as this process has seen it so far; next in line if it says how long."""
    next_ms = None if waited_ms is None else NOW - waited_ms
    return Case(
        LaneMemory(Known(head), sighting=sighting), Turn(NOW, handed=1, begun=begun, next_ms=next_ms, pace=pace)
    )


def behind_run(
    began_ms: int,
    pace: Pace = UNKNOWN,
    *,
    lasts_ms: int | None = None,
    came_ms: int = NOW,
    read_ms: int = NOW,
    behind: int = 0,
) -> Case:
    """A lane that another process has a run of, and an event that came at a time."""
    sighting = Sighting(read_ms, read_ms, began_ms=began_ms, lasts_ms=lasts_ms or 0, lasted_ms=lasts_ms)
    turn = Turn(NOW, record(7), 1, came_ms, records=True, behind=behind, pace=pace)
    return Case(LaneMemory(Known(TAKEN), sighting=sighting), turn)


def held_back(for_ms: int) -> Case:
    """A lane that another process has a run of, and an event that waits for so long behind what was handed over."""
    memory = LaneMemory(Known(TAKEN), sighting=Sighting(NOW, NOW - 1_000, began_ms=NOW - 1_000))
    return Case(memory, Turn(NOW, record(7), 1, NOW - for_ms, records=True, behind=1))


CALL = event("c1", CallSource())
MARK = KafkaSource("0", "t", 0, 0, 0).watermark
OUT: dict[str, Out] = {"1.0": PublishOut("t", None)}
RUNNING = ClaimedRun(event=record(5), ver=1, start_ms=0, first_out=0, attempt=1, holder="here.1", lease_ms=NOW + 1_000)
EXPIRED = with_fields(RUNNING, lease_ms=NOW - BOUNDS.lease_margin_ms)
MARGIN = with_fields(RUNNING, lease_ms=NOW - BOUNDS.lease_margin_ms + 1)
ASLEEP = with_fields(RUNNING, awaits=("0",), wake_ms=NOW + 9_000)
NAPPING = with_fields(RUNNING, wake_ms=NOW + 900)
RESTED = with_fields(RUNNING, wake_ms=NOW)
DUE = with_fields(RUNNING, awaits=("0", "1a"), wake_ms=NOW)
WAITING = with_fields(RUNNING, awaits=("0a",))
SLEPT = {"0d": pack(DueSlot(NOW))}
ANSWERED = {"0a": pack(AwakeableSlot(Success()))}
UNSLEPT = {"0d": pack(DueSlot(NOW + 9_000))}
TAKEN = Head(run=with_fields(RUNNING, holder="there.1"))
LOST = Head(run=with_fields(EXPIRED, holder="there.1"))
TAKEN_FOR_LONG = Head(run=with_fields(RUNNING, holder="there.1", lease_ms=NOW + 60_000))
TAKEN_UNTIL = RUNNING.lease_ms + BOUNDS.lease_margin_ms
RESULT: dict[str, Out] = {"1.0": ResultOut("i", Success())}
LATELY = NOW - 1
PAUSED = NOW + 70
PAUSE = HandlerPause(PAUSED)
STUCK = OutboxPause(PAUSED)
FAILING = Failing(record(7).id, 1)
BLOCKED = BOUNDS.spill_after_ms
MANY = BOUNDS.spill_records_max

TABLE: list[tuple[str, Case, Action]] = [
    ("nothing is known", case(None), ReadHead()),
    ("nothing is known, in a pause", case(None, pause=PAUSE), Wait(PAUSED)),
    ("an empty lane", case(Head()), Idle()),
    ("one event", case(Head(), record(7), 1), Invoke()),
    ("one event, in a pause", case(Head(), record(7), 1, pause=PAUSE), Wait(PAUSED)),
    ("an event that is finished", case(Head(watermarks={MARK: 8}), record(7), 1), Release()),
    (
        "an event that is finished, in a pause",
        case(Head(watermarks={MARK: 8}), record(7), 1, pause=PAUSE),
        Release(),
    ),
    ("the watermark is the next offset", case(Head(watermarks={MARK: 7}), record(7), 1), Invoke()),
    ("a mark goes before the queue", case(Head(pend="p"), record(7), 1), DrainInbox()),
    ("a look goes before the queue", case(Head(), record(7), 1, look=True), DrainInbox()),
    ("an outbox goes first", case(Head(out=OUT, pend="p"), record(7), 1, look=True), Ship()),
    ("an outbox, in a pause", case(Head(out=OUT), pause=PAUSE), Ship()),
    (
        "an outbox before a finished event's offset",
        case(Head(out=OUT, watermarks={MARK: 8}), record(7), 1),
        Ship(),
    ),
    ("delivered entries wait for a write", case(Head(out=OUT), record(7), 1, shipped=frozenset(OUT)), Invoke()),
    ("delivered entries alone", case(Head(out=OUT), shipped=frozenset(OUT)), TrimHead()),
    ("a foreign run", case(Head(run=RUNNING)), Wait(RUNNING.lease_ms + BOUNDS.lease_margin_ms)),
    ("a run whose lease is over", case(Head(run=EXPIRED)), TakeOver()),
    ("a run whose lease may be over by another clock", case(Head(run=MARGIN)), Wait(NOW + 1)),
    ("a run whose function has ended", case(Head(run=RUNNING), ended=frozenset({"here.1"})), TakeOver()),
    (
        "a run whose function has ended, in a pause",
        case(Head(run=RUNNING), ended=frozenset({"here.1"}), pause=PAUSE),
        Wait(PAUSED),
    ),
    ("a run's outbox can wait", case(Head(run=EXPIRED, out=OUT)), TakeOver()),
    ("a run's own event is held", case(Head(run=RUNNING), RUNNING.event, 1), Wait(NOW + 1_500)),
    ("a finished event beside a run", case(Head(run=RUNNING, watermarks={MARK: 5}), record(4), 1), Release()),
    (
        "a finished event beside a run, with an outbox",
        case(Head(run=RUNNING, watermarks={MARK: 5}, out=OUT), record(4), 1),
        Ship(),
    ),
    ("an event too long beside a run", case(Head(run=RUNNING), record(7), 1, blocked_ms=BLOCKED), Spill()),
    ("too many events beside a run", case(Head(run=RUNNING), record(7), MANY), Spill()),
    ("a suspended run's outbox", case(Head(run=ASLEEP, out=OUT), ASLEEP.event, 1), Ship()),
    ("a suspended run's own event", case(Head(run=ASLEEP), ASLEEP.event, 1), Release()),
    ("a sleep", case(Head(run=ASLEEP)), Idle(NOW + 9_000)),
    ("a wait for an answer", case(Head(run=WAITING)), Idle()),
    (
        "a wait, with an event behind it",
        case(Head(run=WAITING), record(7), 1, blocked_ms=1_000),
        Wait(NOW + BOUNDS.event_look_ms),
    ),
    ("a wait, with a call behind it", away(CALL, Head(run=WAITING)), Wait(NOW + CALL_LOOK_MS_MAX)),
    (
        "a wait for an answer that another process may have got",
        away(record(7), Head(run=WAITING), read_ms=NOW - BOUNDS.event_look_ms),
        ReadHead(),
    ),
    (
        "a short sleep, with an event behind it",
        case(Head(run=with_fields(ASLEEP, wake_ms=NOW + 50), slots=UNSLEPT), record(7), 1),
        Wait(NOW + 50),
    ),
    ("an event too long behind a sleep", case(Head(run=ASLEEP), record(7), 1, blocked_ms=BLOCKED), Spill()),
    ("a sleep that is over", case(Head(run=DUE, slots=SLEPT)), ResumeRun(("0",))),
    ("a pause between attempts that is over", case(Head(run=with_fields(DUE, awaits=()))), ResumeRun(())),
    ("an answer", case(Head(run=WAITING, slots=ANSWERED)), ResumeRun(())),
    ("an answer, in a pause", case(Head(run=WAITING, slots=ANSWERED), pause=PAUSE), Wait(PAUSED)),
    ("an answer, with an outbox", case(Head(run=WAITING, slots=ANSWERED, out=OUT)), Ship()),
    (
        "delivered entries of a suspended run",
        case(Head(run=ASLEEP, out=OUT), shipped=frozenset(OUT)),
        TrimHead(),
    ),
    ("a mark behind a suspended run", case(Head(run=ASLEEP, pend="p")), Idle(NOW + 9_000)),
    ("a head that was overtaken", case(None, record(7), 1, seen=STALE), ReadHead()),
    ("the pause of an outbox", case(Head(out=OUT), record(7), 1, pause=STUCK), Wait(PAUSED)),
    ("an event too long behind an outbox", case(Head(out=OUT), record(7), 1, pause=STUCK, blocked_ms=BLOCKED), Spill()),
    ("a call too long behind an outbox", case(Head(out=OUT), CALL, 1, pause=STUCK, blocked_ms=BLOCKED), Wait(PAUSED)),
    ("the pause of an outbox that is over", case(Head(out=OUT), record(7), 1, pause=OutboxPause(NOW)), Ship()),
    ("what is behind an outbox, which is empty", case(Head(), record(7), 1, pause=STUCK), Wait(PAUSED)),
    (
        "an event too long in an outage",
        case(None, record(7), 1, pause=TablePause(PAUSED), blocked_ms=BLOCKED),
        Wait(PAUSED),
    ),
    (
        "an event too long in a harmless pause",
        case(Head(), record(7), 1, pause=PAUSE, blocked_ms=BLOCKED),
        Wait(PAUSED),
    ),
    (
        "an event too long behind a failing one",
        case(Head(), record(7), 1, pause=PAUSE, failing=FAILING, blocked_ms=BLOCKED),
        Spill(),
    ),
    ("too many events behind a failing one", case(None, record(7), MANY, pause=PAUSE, failing=FAILING), Spill()),
    (
        "an event that will have waited too long before a failing one is tried",
        case(Head(), record(7), 1, pause=PAUSE, failing=FAILING, blocked_ms=BLOCKED - 30),
        Wait(NOW + 30),
    ),
    (
        "too many events behind a failing one, and the table takes no inbox item",
        case(None, record(7), MANY, pause=PAUSE, failing=FAILING, trouble=Trouble(1, Spill)),
        Wait(PAUSED),
    ),
    ("a call that fails", case(Head(), CALL, MANY, pause=PAUSE, failing=FAILING), Wait(PAUSED)),
    ("a slow lane whose partition is full", case(Head(pend="p"), record(7), 1, pressed=True), Spill()),
    ("a call of a slow lane", case(Head(), CALL, 1, pressed=True), Invoke()),
    (
        "a run held elsewhere, seen long before the event came",
        away(record(7), TAKEN, read_ms=NOW - 2 - BOUNDS.call_look_ms),
        ReadHead(),
    ),
    (
        "a run held elsewhere, with little more to hand over",
        away(CALL, TAKEN, handed=1, behind=1, changed_ms=LATELY),
        Wait(NOW + BOUNDS.call_look_ms),
    ),
    (
        "a run held elsewhere, with events behind it that were handed over before",
        away(record(7), TAKEN_FOR_LONG, behind=3, sighting=Sighting(NOW, NOW, began_ms=NOW, lasts_ms=200)),
        Wait(NOW + 3 * 200 + RUNS_DIFFER_MS),
    ),
    (
        "a run held elsewhere, with a call behind it that was handed over before",
        away(CALL, TAKEN_FOR_LONG, behind=3, sighting=Sighting(NOW, NOW, began_ms=NOW, lasts_ms=500)),
        Wait(NOW + 500 + RUNS_DIFFER_MS),
    ),
    (
        "a run held elsewhere, with an event too long behind others that were handed over before",
        away(record(7), TAKEN_FOR_LONG, behind=3, blocked_since_ms=NOW - BLOCKED),
        HandOver(),
    ),
    ("a run held elsewhere", away(record(7), TAKEN), HandOver()),
    ("a run held elsewhere, seen as the event came", away(record(7), TAKEN, read_ms=NOW - 1), HandOver()),
    ("a run held elsewhere, of this very event", away(RUNNING.event, TAKEN), Wait(NOW + BOUNDS.event_look_ms)),
    ("a run held elsewhere, with nothing to hand over", away(None, TAKEN), Wait(TAKEN_UNTIL)),
    ("a run held elsewhere, a call handed over", away(None, TAKEN, handed=1), Wait(NOW + CALL_LOOK_MS_MAX)),
    (
        "a run that was seen to begin elsewhere, a call handed over",
        away(None, TAKEN, handed=1, changed_ms=LATELY),
        Wait(NOW + BOUNDS.call_look_ms),
    ),
    (
        "a run held elsewhere that will last as long as the one before, a call handed over",
        watching(TAKEN, Sighting(NOW, NOW, began_ms=NOW, lasts_ms=500)),
        Wait(NOW + 500 + RUNS_DIFFER_MS),
    ),
    (
        "a run held elsewhere that may last for long, a call handed over",
        watching(TAKEN_FOR_LONG, Sighting(NOW, NOW, began_ms=NOW, lasts_ms=30_000)),
        Wait(NOW + AWAITED_LOOK_MS_MAX),
    ),
    (
        "a run held elsewhere that may last for long, events handed over",
        away(record(7), TAKEN_FOR_LONG, behind=1, sighting=Sighting(NOW, NOW, began_ms=NOW, lasts_ms=30_000)),
        Wait(NOW + HELD_BACK_MS),
    ),
    ("a run held elsewhere, an event that was held back for long", held_back(HELD_BACK_MS), HandOver()),
    ("a run held elsewhere, an event that is held back", held_back(HELD_BACK_MS - 1), Wait(NOW + HELD_BACK_MS)),
    (
        "a run held elsewhere that has not lasted for long, the next call handed over",
        watching(TAKEN, Sighting(NOW, NOW, began_ms=NOW - SHORT_RUN_MS + 1), waited_ms=500),
        Wait(NOW + BOUNDS.call_look_ms),
    ),
    (
        "a run held elsewhere that has not lasted for long, a call handed over behind others",
        watching(TAKEN, Sighting(NOW, NOW, began_ms=NOW - SHORT_RUN_MS + 1)),
        Wait(NOW + NEXT_LOOKS * BOUNDS.call_look_ms),
    ),
    (
        "a run held elsewhere that has lasted for a while, the next call handed over",
        watching(TAKEN, Sighting(NOW, NOW, began_ms=NOW - 700), waited_ms=700),
        Wait(NOW + NEXT_LOOKS * BOUNDS.call_look_ms),
    ),
    (
        "a run held elsewhere that has lasted for long, the next call handed over",
        watching(TAKEN, Sighting(NOW, NOW, began_ms=NOW - 7_000), waited_ms=7_000),
        Wait(NOW + 700),
    ),
    (
        "a run held elsewhere of a handler whose runs are alike, the next call handed over",
        watching(TAKEN, Sighting(NOW, NOW, began_ms=NOW - 700), waited_ms=700, pace=SECONDS),
        Wait(NOW + 300 + RUNS_DIFFER_MS),
    ),
    (
        "a run held elsewhere of a handler whose runs are alike and last for long, the next call handed over",
        watching(TAKEN_FOR_LONG, Sighting(NOW, NOW, began_ms=NOW), waited_ms=700, pace=MINUTES),
        Wait(NOW + FORESEEN_LOOK_MS_MAX),
    ),
    (
        "a run held elsewhere of a handler whose runs are alike, which lasts for longer",
        watching(TAKEN, Sighting(NOW, NOW, began_ms=NOW - 1_500), waited_ms=700, pace=SECONDS),
        Wait(NOW + 125),
    ),
    (
        "a run held elsewhere of a handler whose runs are alike, a call handed over behind others",
        watching(TAKEN, Sighting(NOW, NOW, began_ms=NOW - 700), pace=SECONDS),
        Wait(NOW + 300 + NEXT_LOOKS * BOUNDS.call_look_ms + RUNS_DIFFER_MS),
    ),
    (
        "a run held elsewhere that is the call that was handed over, of a handler whose runs are alike",
        watching(TAKEN, Sighting(NOW, NOW, began_ms=NOW, lasts_ms=500), begun=True, waited_ms=500, pace=SECONDS),
        Wait(NOW + 1_000 + RUNS_DIFFER_MS),
    ),
    (
        "a run held elsewhere that is the call that was handed over, of a handler whose runs are unlike",
        watching(TAKEN, Sighting(NOW, NOW, began_ms=NOW - 700, lasts_ms=5_000), begun=True, pace=UNLIKE),
        Wait(NOW + NEXT_LOOKS * BOUNDS.call_look_ms),
    ),
    (
        "a run held elsewhere of a handler whose runs are unlike, a call handed over behind others",
        watching(TAKEN, Sighting(NOW, NOW, began_ms=NOW - 700, lasts_ms=5_000), pace=UNLIKE),
        Wait(NOW + NEXT_LOOKS * BOUNDS.call_look_ms),
    ),
    (
        "a run held elsewhere that will be over soon by the pace of its handler, with an event behind it",
        behind_run(NOW - 500, SECONDS),
        Wait(NOW + 500 + RUNS_DIFFER_MS),
    ),
    (
        "a run held elsewhere that will be over soon by the run before it, with an event behind it",
        behind_run(NOW - 500, lasts_ms=1_000),
        Wait(NOW + 500 + RUNS_DIFFER_MS),
    ),
    ("a run held elsewhere that will last for long, with an event behind it", behind_run(NOW, SECONDS), HandOver()),
    (
        "a run held elsewhere that should be over, with an event behind it",
        behind_run(NOW - 1_200, SECONDS),
        Wait(NOW + BOUNDS.call_look_ms),
    ),
    (
        "a run held elsewhere that should have been over for long, with an event behind it",
        behind_run(NOW - 1_900, SECONDS, came_ms=NOW - BOUNDS.keep_events_ms),
        HandOver(),
    ),
    (
        "a run held elsewhere that has just begun, with an event behind it",
        behind_run(NOW - 10),
        Wait(NOW + NEXT_LOOKS * BOUNDS.call_look_ms),
    ),
    (
        "a run held elsewhere that had just begun when an event came",
        behind_run(NOW - 10 - KEPT_MS, came_ms=NOW - KEPT_MS),
        HandOver(),
    ),
    (
        "a run held elsewhere that had just begun when an event came, not seen since",
        behind_run(NOW - 10 - KEPT_MS, came_ms=NOW - KEPT_MS, read_ms=NOW - BOUNDS.call_look_ms - 1),
        ReadHead(),
    ),
    ("a run held elsewhere that began a while ago, with an event behind it", behind_run(NOW - KEPT_MS), HandOver()),
    ("a run that has just begun, of a handler whose runs are unlike", behind_run(NOW - 10, UNLIKE), HandOver()),
    (
        "an event that was held back for long, behind a run that should last on",
        behind_run(NOW - 500, TENS, came_ms=NOW - HELD_BACK_MS, read_ms=NOW - 2 * HELD_BACK_MS, behind=1),
        HandOver(),
    ),
    (
        "an event that was held back for long, behind a run that has lasted for as long again since it was seen",
        behind_run(NOW - 2_000, came_ms=NOW - HELD_BACK_MS, read_ms=NOW - 1_000, behind=1),
        HandOver(),
    ),
    (
        "an event that was held back for long, behind a run that was seen long ago",
        behind_run(NOW - 2_001, came_ms=NOW - HELD_BACK_MS, read_ms=NOW - 1_001, behind=1),
        ReadHead(),
    ),
    (
        "a run held elsewhere that is the call that was handed over, after one other",
        watching(TAKEN, Sighting(NOW, NOW, began_ms=NOW, lasts_ms=500), begun=True, waited_ms=500),
        Wait(NOW + BOUNDS.call_look_ms),
    ),
    (
        "a run held elsewhere that is the call that was handed over, after others that were alike",
        watching(TAKEN, Sighting(NOW, NOW, began_ms=NOW, lasts_ms=500, alike=True), begun=True, waited_ms=500),
        Wait(NOW + 500 + RUNS_DIFFER_MS),
    ),
    (
        "a run held elsewhere that has lasted for a while, a call handed over",
        watching(TAKEN, Sighting(NOW, NOW, began_ms=NOW - 700, lasts_ms=500)),
        Wait(NOW + 700),
    ),
    (
        "a run held elsewhere that is the call that was handed over, and may last for long",
        watching(TAKEN, Sighting(NOW, NOW, began_ms=NOW, lasts_ms=30_000), begun=True),
        Wait(NOW + AWAITED_LOOK_MS_MAX),
    ),
    (
        "a run held elsewhere that is the call that was handed over, and lasts for longer",
        watching(TAKEN, Sighting(NOW, NOW, began_ms=NOW - 700, lasts_ms=500), begun=True),
        Wait(NOW + BOUNDS.call_look_ms),
    ),
    ("a run that sleeps, a call handed over", away(None, Head(run=ASLEEP, slots=UNSLEPT), handed=1), Wait(NOW + 9_000)),
    (
        "a run that waits for an answer, a call handed over",
        away(None, Head(run=WAITING), handed=1),
        Wait(NOW + CALL_LOOK_MS_MAX),
    ),
    (
        "a run held elsewhere, a call handed over, time to look",
        away(None, TAKEN, handed=1, read_ms=NOW - CALL_LOOK_MS_MAX),
        ReadHead(),
    ),
    (
        "a call too long beside a run held elsewhere that is its own",
        away(CALL, Head(run=with_fields(RUNNING, event=CALL, holder="there.1")), blocked_since_ms=NOW - BLOCKED),
        Wait(NOW + CALL_LOOK_MS_MAX),
    ),
    (
        "a call too long behind a run that waits for an answer",
        away(CALL, Head(run=WAITING), blocked_since_ms=NOW - BLOCKED),
        Wait(NOW + CALL_LOOK_MS_MAX),
    ),
    (
        "a call too long behind a sleep",
        away(CALL, Head(run=ASLEEP, slots=UNSLEPT), blocked_since_ms=NOW - BLOCKED),
        Wait(NOW + BOUNDS.spill_after_ms),
    ),
    ("a run held elsewhere whose lease is over", away(record(7), Head(run=EXPIRED)), TakeOver()),
    ("a run held elsewhere whose lease is over, with nothing that waits here", away(None, LOST), TakeOver()),
    (
        "a run held elsewhere when it was seen last, with nothing that waits here",
        away(None, LOST, read_ms=EXPIRED.lease_ms),
        Idle(),
    ),
    (
        "a run held elsewhere when it was seen last, to be looked after",
        away(None, LOST, read_ms=EXPIRED.lease_ms, look=True),
        TakeOver(),
    ),
    ("a pause, a call handed over", away(None, Head(), handed=1, pause=PAUSE), Wait(PAUSED)),
    (
        "a pause, a call handed over, time to look",
        away(None, Head(), handed=1, pause=PAUSE, read_ms=NOW - CALL_LOOK_MS_MAX),
        ReadHead(),
    ),
    (
        "a lane that its user has just left, a call handed over",
        away(None, Head(pend="p"), handed=1, changed_ms=LATELY),
        Wait(NOW + BOUNDS.call_look_ms),
    ),
    (
        "a lane that its user has just left, with more to hand over",
        away(record(7), Head(pend="p"), handed=1, changed_ms=LATELY),
        HandOver(),
    ),
    (
        "a lane that its user has just left, with little more to hand over",
        away(record(7), Head(pend="p"), handed=1, behind=1, changed_ms=LATELY),
        Wait(NOW + BOUNDS.call_look_ms),
    ),
    (
        "a lane that its user may have left for long, a call handed over",
        away(None, Head(pend="p"), handed=1, read_ms=LATELY, changed_ms=NOW - BOUNDS.owner_ms),
        ReadHead(),
    ),
    (
        "a lane that its user has left without a claim, a call handed over",
        away(None, Head(pend="p", tok="there.7.spec"), handed=1, changed_ms=NOW - BOUNDS.owner_ms),
        Wait(NOW + BOUNDS.call_look_ms),
    ),
    (
        "an inbox that another process works off",
        away(record(7), Head(pend="p"), changed_ms=LATELY),
        HandOver(),
    ),
    (
        "an inbox that another process works off, with little more to hand over",
        away(record(7), Head(pend="p"), behind=1, changed_ms=LATELY),
        Wait(LATELY + BOUNDS.owner_ms),
    ),
    (
        "an inbox that another process works off, with one more call to hand over",
        away(CALL, Head(pend="p"), behind=1, changed_ms=LATELY),
        Wait(NOW + BOUNDS.call_look_ms),
    ),
    (
        "an inbox that another process works off without a claim, with little more to hand over",
        away(record(7), Head(pend="p", tok="there.1.spec"), behind=1, changed_ms=LATELY),
        Wait(LATELY + OWNER_UNAWAITED * BOUNDS.owner_ms),
    ),
    (
        "an inbox that another process works off, with nothing that waits here",
        away(None, Head(pend="p"), changed_ms=LATELY),
        Wait(LATELY + BOUNDS.owner_ms),
    ),
    (
        "an inbox that another process may have worked off since, with nothing that waits here",
        away(None, Head(pend="p"), read_ms=NOW - 1, changed_ms=NOW - BOUNDS.owner_ms),
        ReadHead(),
    ),
    (
        "an inbox that nobody works off, with nothing that waits here",
        away(None, Head(pend="p"), changed_ms=NOW - BOUNDS.owner_ms),
        DrainInbox(),
    ),
    (
        "an inbox that another process works off, to be looked into",
        away(None, Head(pend="p"), look=True, changed_ms=LATELY),
        DrainInbox(),
    ),
    (
        "an inbox that this process works off, a call handed over before",
        away(None, Head(pend="p", tok="here.7.spec"), handed=1, changed_ms=LATELY),
        DrainInbox(),
    ),
    (
        "an event beside another process",
        away(record(7), Head(), overtaken_ms=NOW, read_ms=NOW - 2),
        Wait(NOW - 1 + GATHER_MS),
    ),
    ("events beside another process that have gathered", gathered(2), ReadHead()),
    ("an event beside another process with which no other has gathered", gathered(1), Invoke()),
    (
        "a call beside another process",
        away(CALL, Head(), overtaken_ms=NOW, read_ms=NOW - 2),
        Invoke(),
    ),
    (
        "an event beside another process, seen as it is now",
        away(record(7), Head(), overtaken_ms=NOW),
        Invoke(),
    ),
    (
        "an event long after another process was there",
        away(record(7), Head(), overtaken_ms=NOW - SHARED_MS, read_ms=NOW - 2),
        Invoke(),
    ),
    (
        "a lane that its user has left for long, a call handed over",
        away(None, Head(pend="p"), handed=1, changed_ms=NOW - BOUNDS.owner_ms),
        DrainInbox(),
    ),
    ("a call handed over that may have its result", away(None, Head(), handed=1), Wait(NOW + BOUNDS.call_look_ms)),
    ("outrun again and again", away(record(7), Head(), outrun=OUTRUN_MAX, changed_ms=LATELY), HandOver()),
    ("outrun now and then", away(record(7), Head(), outrun=OUTRUN_MAX - 1, changed_ms=LATELY), Invoke()),
    ("outrun by one that is gone", away(record(7), Head(), outrun=OUTRUN_MAX), Invoke()),
    (
        "outrun, and then not",
        away(record(7), Head(tok="here.7.spec"), outrun=OUTRUN_MAX, changed_ms=LATELY),
        Invoke(),
    ),
    ("a result that another process delivers", away(record(7), Head(out=RESULT), changed_ms=LATELY), Invoke()),
    ("a result that nobody delivers", away(record(7), Head(out=RESULT)), Ship()),
    (
        "a result that another process may have delivered since",
        away(None, Head(out=RESULT), read_ms=NOW - 1, changed_ms=NOW - BOUNDS.owner_ms),
        ReadHead(),
    ),
    (
        "nothing to do, while another process delivers a result or has ended",
        away(None, Head(out=RESULT), changed_ms=LATELY),
        Wait(LATELY + BOUNDS.owner_ms),
    ),
    ("a result of this process", away(record(7), Head(out=RESULT, tok="here.7.spec"), changed_ms=LATELY), Ship()),
    ("a message of another process", away(record(7), Head(out=OUT), changed_ms=LATELY), Ship()),
    ("a nap", case(Head(run=NAPPING), NAPPING.event, 1, nap="here.1"), Wait(NOW + 900)),
    ("a nap that is over", case(Head(run=RESTED), RESTED.event, 1, nap="here.1"), EndNap()),
    ("a nap that is over, in a pause", case(Head(run=RESTED), nap="here.1", pause=PAUSE), Wait(PAUSED)),
    ("a nap that was left to another", case(Head(run=RESTED), nap="here.2"), Wait(TAKEN_UNTIL)),
    ("a nap that has been ended", case(Head(run=RESTED)), Wait(TAKEN_UNTIL)),
    ("a nap that has been ended in vain", case(Head(run=RESTED), ended=frozenset({"here.1"})), TakeOver()),
    ("a nap that nobody has ended", case(Head(run=with_fields(EXPIRED, wake_ms=NOW - 9_000))), TakeOver()),
    ("what was sent before a nap", case(Head(run=NAPPING, out=OUT), nap="here.1"), Ship()),
    (
        "what was sent before a nap, and was delivered",
        case(Head(run=NAPPING, out=OUT), nap="here.1", shipped=frozenset(OUT)),
        Wait(NOW + 900),
    ),
    ("a nap, while a topic takes nothing", case(Head(run=NAPPING, out=OUT), nap="here.1", pause=STUCK), Wait(PAUSED)),
    ("a nap that is over, with an outbox", case(Head(run=RESTED, out=OUT), nap="here.1"), EndNap()),
    (
        "an event too long behind a nap",
        case(Head(run=NAPPING), record(7), 1, nap="here.1", blocked_ms=BLOCKED),
        Spill(),
    ),
    (
        "an event that will have waited too long behind a nap",
        case(Head(run=NAPPING), record(7), 1, nap="here.1", blocked_ms=BLOCKED - 30),
        Wait(NOW + 30),
    ),
    ("a slow lane in a pause", case(Head(), record(7), 1, pressed=True, pause=PAUSE), Wait(PAUSED)),
]


@pytest.mark.parametrize(("row", "action"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_precedence(row: Case, action: Action) -> None:
    assert row.decided() == action


# --- laws ------------------------------------------------------------------------------------------------------------

times = st.integers(NOW - 20_000, NOW + 20_000)
past = st.integers(NOW - 20_000, NOW)
slots = st.dictionaries(
    st.sampled_from(["0", "0a", "1a"]), st.just(pack(AwakeableSlot(Success()))), max_size=2
).flatmap(lambda filled: st.builds(lambda due: {**filled, "0d": pack(DueSlot(due))}, times))
runs = st.builds(
    ClaimedRun,
    event=st.builds(record, st.integers(0, 9)),
    ver=st.just(1),
    start_ms=st.just(0),
    first_out=st.just(0),
    attempt=st.integers(1, 9),
    holder=st.sampled_from(["here.1", "there.1"]),
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


unknown: st.SearchStrategy[Seen] = st.sampled_from([UNREAD, STALE])
pauses = st.none() | st.builds(HandlerPause, times) | st.builds(OutboxPause, times) | st.builds(TablePause, times)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any lane. Of its outbox's entries only such are remembered as shipped that are in it, as `LaneMemory` sees to."""
    head = draw(st.none() | heads)
    first = draw(st.none() | firsts)
    memory = LaneMemory(
        draw(unknown) if head is None else Known(head),
        shipped=draw(st.frozensets(st.sampled_from(["1.0", "2.0", "2.1"]))) & (head or Head()).out.keys(),
        look=draw(st.booleans()),
        pause=draw(pauses),
        failing=None if first is None else draw(st.none() | st.just(Failing(first.id, 1))),
        ended=draw(st.frozensets(st.sampled_from(["here.1", "there.1"]))),
        blocked_since_ms=NOW - draw(st.integers(0, 2 * BLOCKED)),
        pressed=draw(st.booleans()),
        sighting=Sighting(draw(past), draw(past), draw(st.sampled_from([None, (3, 1)]))),
        outrun=draw(st.integers(0, 2 * OUTRUN_MAX)),
        nap=draw(st.sampled_from([None, "here.1", "here.2"])),
    )
    queued = 0 if first is None else draw(st.integers(1, 2 * MANY))
    records = isinstance(first, Event) and (isinstance(first.source, KafkaSource) or draw(st.booleans()))
    calls = first is not None and (not records or draw(st.booleans()))
    return Case(memory, Turn(NOW, first, queued, draw(past), calls, records, draw(st.sampled_from([0, 0, 2]))))


@given(cases())
def test_nothing_starts_while_a_run_is_active(case: Case) -> None:
    head = case.memory.head
    if head is not None and head.run is not None:
        assert not isinstance(case.decided(), Invoke | DrainInbox)


@given(cases())
def test_nothing_is_decided_on_a_head_that_is_not_known(case: Case) -> None:
    if case.memory.head is None:
        assert isinstance(case.decided(), ReadHead | Wait | Spill)


@given(cases())
def test_only_a_run_is_resumed_or_taken_over(case: Case) -> None:
    action, head = case.decided(), case.memory.head
    run = head.run if head else None
    if isinstance(action, ResumeRun):
        assert head is not None
        assert run is not None
        assert run.suspended
        assert can_wake(head, run, NOW)
    if isinstance(action, EndNap):
        assert run is not None
        assert run.napping
        assert (run.wake_ms or 0) <= NOW
        assert run.holder == case.memory.nap
    if isinstance(action, TakeOver):
        assert run is not None
        assert not run.suspended
        assert run.holder in case.memory.ended or run.lease_ms + BOUNDS.lease_margin_ms <= NOW


@given(cases())
def test_a_clock_that_differs_changes_nothing_but_taking_over_from_others(case: Case) -> None:
    wrong = Case(case.memory, with_fields(case.turn, clock_differs=True)).decided()
    assert wrong == case.decided() or isinstance(case.decided(), TakeOver)


@given(cases(), st.integers(0, 10_000), st.booleans())
def test_who_has_a_clock_that_differs_takes_over_nothing_of_others_and_does_not_spin(
    case: Case, over_for_ms: int, ended: bool
) -> None:
    run = with_fields(EXPIRED, holder="there.1", lease_ms=EXPIRED.lease_ms - over_for_ms)
    head = with_fields(case.memory.head or Head(), run=run)
    memory = with_fields(case.memory, seen=Known(head), pause=None, ended=frozenset({"there.1"} if ended else ()))
    wrong, just_read = with_fields(case.turn, clock_differs=True), with_fields(memory, sighting=Sighting(NOW, NOW))
    assert Case(just_read, case.turn).decided() == TakeOver()
    if ended:
        # An invocation of one's own: no clock is asked.
        assert Case(memory, wrong).decided() == TakeOver()
        return
    match Case(memory, wrong).decided(), Case(just_read, wrong).decided():
        case Wait(until_ms), _:
            assert until_ms > NOW
        case ReadHead(), action:
            # What was read a moment ago is not read again: that would be repeated at once.
            assert not isinstance(action, ReadHead | TakeOver)
        case action, _:
            assert isinstance(action, HandOver | Release | Ship | Spill | Idle)


@given(cases())
def test_no_attempt_begins_in_a_pause(case: Case) -> None:
    if case.memory.paused_until_ms > NOW:
        assert not isinstance(case.decided(), Invoke | DrainInbox | ResumeRun | EndNap | TakeOver)
        assert case.turn.handed or case.memory.head is not None or not isinstance(case.decided(), ReadHead)


@given(cases())
def test_an_offset_is_released_only_below_the_watermark_or_for_a_suspended_run(case: Case) -> None:
    if isinstance(case.decided(), Release):
        head, first = case.memory.head, case.turn.first
        assert head is not None
        assert first is not None
        assert isinstance(first.source, KafkaSource)
        own = head.run is not None and head.run.suspended and head.run.event.id == first.id
        assert own or passed(head, first)


@given(cases())
def test_an_outbox_leaves_before_offsets_go_or_work_starts(case: Case) -> None:
    head = case.memory.head
    if head is None or not unshipped(case.memory, head):
        return
    action = case.decided()
    if (head.run is None or head.run.suspended) and not case.turn.handed:
        assert isinstance(action, Ship if case.memory.ship_again_ms <= NOW else Wait | Spill)
    assert not isinstance(action, Release | Invoke | DrainInbox | ResumeRun | TrimHead)
    # While a run is at work, what is there to leave is for whoever has it (`test_a_lane_with_work_is_never_idle`).
    assert not isinstance(action, Idle) or (head.run is not None and not head.run.suspended)


@given(cases())
def test_a_wait_is_for_a_time_to_come(case: Case) -> None:
    action = case.decided()
    if isinstance(action, Wait):
        assert action.until_ms > NOW


@given(cases())
def test_a_lane_with_work_is_never_idle(case: Case) -> None:
    if not isinstance(case.decided(), Idle):
        return
    head = case.memory.head
    assert head is not None
    assert case.turn.first is None
    if head.run is not None and not head.run.suspended:
        # Another process's, when it was seen last. Whoever knows that a function has ended, or is asked, stays.
        assert case.memory.holder(head.run, BOUNDS.process) is Holder.FOREIGN
        over_ms = max(head.run.lease_ms + BOUNDS.lease_margin_ms, case.memory.paused_until_ms)
        assert not case.memory.read_since(over_ms)
        assert not any((case.turn.handed, case.turn.holds, case.memory.look))
        return
    assert head.out == {}
    if head.run is None:
        assert head.pend is None
        assert not case.memory.look
    else:
        assert head.run.suspended
        assert not can_wake(head, head.run, NOW)


CALLERS_GO_AFTER_MS = 25_000


@given(cases(), heads)
def test_every_lane_comes_to_rest(case: Case, head: Head) -> None:
    """Each action removes what it was chosen for, so a lane cannot turn in circles. `head` is what a read gives."""
    head = case.memory.head or head
    for _ in range(CALLERS_GO_AFTER_MS // BOUNDS.call_look_ms * 3):
        memory = case.memory.on(case.turn)
        action = decide(memory, case.turn, BOUNDS)
        if isinstance(action, Idle):
            return
        case, head = carried_out(action, memory, case.turn, head)
    raise AssertionError(f"no end: {case.decided()} for {case}")


def carried_out(action: Action, memory: LaneMemory, turn: Turn, head: Head) -> tuple[Case, Head]:
    """The lane and its head after an action that succeeded and after which nothing new arrived.

    A queue of hundreds is worked off in bulk, as a spill does.
    """
    kept = {seq: out for seq, out in head.out.items() if seq not in memory.trim(head).out}
    now_ms, left, handed = turn.now_ms, min(turn.queued, 3), turn.handed
    match action:
        case Ship():
            return Case(memory.on(Delivered(frozenset(head.out), whole=True)), turn), head
        case Release() | Spill():
            left -= 1
        case TrimHead():
            head = with_fields(head, out=kept)
        case HandOver():
            head = with_fields(head, pend="p")
            memory, left, handed = memory.on(LookBegun()), 0, 1
        case DrainInbox():
            head = with_fields(head, out=kept, pend=None)
            memory = memory.on(LookBegun())
        case Invoke():
            head = with_fields(head, out=kept)
            left = 0
        case ResumeRun() | EndNap() | TakeOver():
            head = with_fields(head, out=kept, run=None, slots={})
        case Wait(until_ms):
            now_ms = until_ms
        case ReadHead():
            memory = memory.on(ReadBegun())
        case Idle():
            raise AssertionError("nothing is left to do")
    memory = memory.on(HeadSeen(head, now_ms)) if isinstance(action, ReadHead) or memory.head else memory
    memory = memory.on(SpillBegun()).on(HeadDropped()) if isinstance(action, Spill) else memory
    # Results are found once nothing is under way, and callers do not wait for ever.
    over = (head.run is None and head.pend is None) or now_ms > NOW + CALLERS_GO_AFTER_MS
    left = left if turn.records or now_ms <= NOW + CALLERS_GO_AFTER_MS else 0
    kept_turn = Turn(now_ms, turn.first, left, calls=turn.calls, records=turn.records) if left else Turn(now_ms)
    return Case(memory, with_fields(kept_turn, handed=0 if over else handed)), head
