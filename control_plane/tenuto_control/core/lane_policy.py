"""What to do next for a lane: one pure decision over what is remembered of it.

Owns the order of precedence between taking over, shipping, releasing, draining and invoking. Does not own what is
remembered (`lane_memory`), nor doing any of it (`tenuto_control.dispatcher`).

A run that another process has is taken over once its lease is over, which is a comparison of two machines' clocks: so a
process whose clock is known to differ leaves that to the others, and looks again whether it is still needed.

The order is the protocol's: a lane that is taken is left alone but for waking it and taking it over; what it has in its
outbox leaves before offsets are released or new work starts; the inbox goes before the queue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, assert_never

from tenuto.lane.transitions import ANY_ANSWER
from tenuto.protocol.limits import FINISHED_CALL_MS
from tenuto.protocol.messages import ClaimedRun, Head
from tenuto.protocol.records import CallSource, DueSlot, Event, KafkaSource, ResultOut, unpack_slot
from tenuto_control.core.lane_bounds import Bounds
from tenuto_control.core.lane_facts import Turn
from tenuto_control.core.lane_memory import Holder, LaneMemory, is_speculation, named_by
from tenuto_control.core.looks import HELD_BACK_MS, kept_until_ms, lasts_on, look_ms


@dataclass(frozen=True, slots=True)
class ReadHead:
    """Nothing is known: read."""


@dataclass(frozen=True, slots=True)
class ResumeRun:
    """The suspended run can continue; `over` are the slots of sleeps that have ended."""

    over: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EndNap:
    """The run's nap is over: its next attempt can begin."""


@dataclass(frozen=True, slots=True)
class TakeOver:
    """The run's function has ended without finishing it."""


@dataclass(frozen=True, slots=True)
class Ship:
    """Deliver the outbox."""


@dataclass(frozen=True, slots=True)
class Release:
    """The first queued event is finished, or durable where it waits: release its offset."""


@dataclass(frozen=True, slots=True)
class Spill:
    """Move queued Kafka events to the inbox."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Move all queued work to the inbox of a lane that another process uses, and look there for results."""


@dataclass(frozen=True, slots=True)
class DrainInbox:
    """Look into the inbox and run what waits there."""


@dataclass(frozen=True, slots=True)
class Invoke:
    """Speculate on the queued events."""


@dataclass(frozen=True, slots=True)
class TrimHead:
    """Clear delivered entries, as no other write is at hand."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done until this time, or until something arrives."""

    until_ms: int


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing is left to do here; `wake_ms` is when a suspended run wants to continue."""

    wake_ms: int | None = None


Action: TypeAlias = (
    ReadHead
    | ResumeRun
    | EndNap
    | TakeOver
    | Ship
    | Release
    | Spill
    | HandOver
    | DrainInbox
    | Invoke
    | TrimHead
    | Wait
    | Idle
)

OWNER_UNCLAIMED = 2
"""So much longer a lane is left to who has changed it last without a claim."""

OWNER_UNAWAITED = 4
"""The same where no caller waits."""

SHARED_MS = 1_000
"""So long after a commit that came too late, a lane is taken to be used by another process as well."""

GATHER_MS = 100
"""So long events gather that are for such a lane."""

FRESH_MS = 20
"""A head that was read within so long is as it was, most probably."""

HANDED_GROWS = 4
"""So many times what was handed over, and has not begun, is handed over at once."""

OUTRUN_MAX = 3
"""So often in a row another process is quicker until work goes to where that process finds it."""

DIFFERING_LOOK_MS = 5_000
"""How long a head is believed whose run would be taken over, were this machine's clock not known to differ."""


def decide(memory: LaneMemory, turn: Turn, bounds: Bounds) -> Action:
    """The next action for a lane."""
    head = memory.head
    if head is None:
        paused = memory.paused_until_ms > turn.now_ms
        if left_alone(memory) and paused and turn.first is None and not (turn.handed or turn.holds or memory.look):
            # Its guards lead back to it: those of what is in its inbox, and those of what it was about before.
            return Idle()
        return _pause(memory, turn, bounds) or ReadHead()
    if head.run is not None and not head.run.suspended:
        return _running(memory, turn, bounds, head, head.run)
    theirs = not named_by(bounds.process, head.tok)
    if turn.handed and theirs and not memory.look and not memory.read_since(_owner_until_ms(memory, turn, bounds)):
        # Another process has used it when it was seen last, and continues with what was handed over.
        return _left_to_owner(memory, turn, bounds)
    if to_ship(memory, turn, bounds, head):
        return _ship(memory, turn, bounds, head)
    if head.run is not None:
        return _suspended(memory, turn, bounds, head, head.run)
    first = turn.first
    if first is not None and passed(head, first):
        # What has been delivered leaves the outbox first: without the offset, nothing would lead back to it.
        return TrimHead() if trimmable(memory, head) else Release()
    return _pause(memory, turn, bounds) or _free(memory, turn, bounds, head)


def _left_to_owner(memory: LaneMemory, turn: Turn, bounds: Bounds) -> Action:
    """Leave a lane to who has changed it, until it has been seen not to change for a while."""
    owner_until_ms = _owner_until_ms(memory, turn, bounds)
    if owner_until_ms <= turn.now_ms:
        return ReadHead()
    return HandOver() if _enough(turn) else _watch(memory, turn, bounds, owner_until_ms)


def _free(memory: LaneMemory, turn: Turn, bounds: Bounds, head: Head) -> Action:
    """The next action for a lane that no run has, and whose outbox is delivered."""
    first = turn.first
    if memory.pressed and first is not None and isinstance(first.source, KafkaSource):
        # The lane is slow, not stuck. Its backlog continues from the inbox, and other keys get their turn.
        return Spill()
    ours, owner_until_ms = named_by(bounds.process, head.tok), _owner_until_ms(memory, turn, bounds)
    # Another process drains the inbox, or is quicker again and again.
    theirs = not ours and (head.pend is not None or memory.outrun >= OUTRUN_MAX)
    if theirs and first is not None and owner_until_ms > turn.now_ms:
        return HandOver() if _enough(turn) else _watch(memory, turn, bounds, owner_until_ms)
    if head.pend is not None or memory.look:
        # What nobody waits for here is another process's to run, should that still be at work.
        left = first is None and not (ours or memory.look or memory.read_since(owner_until_ms))
        return _left_to_owner(memory, turn, bounds) if left else DrainInbox()
    if first is not None:
        return _sharing(memory, turn, first) or Invoke()
    if turn.handed:
        return _watch(memory, turn, bounds, turn.now_ms + bounds.call_look_ms)
    if trimmable(memory, head):
        return TrimHead()
    # Whoever has committed results may have ended before it delivered them, and no other process need come by.
    return Wait(owner_until_ms) if unshipped(memory, head) else Idle()


def _sharing(memory: LaneMemory, turn: Turn, first: Event) -> Action | None:
    """What to do before events from Kafka run on a lane that another process uses as well; None: nothing.

    Each would be refused the commit of what the other has not seen. So some are gathered, and run from a fresh head.
    """
    shared = memory.overtaken_ms is not None and memory.overtaken_ms > turn.now_ms - SHARED_MS
    if not (shared and isinstance(first.source, KafkaSource)):
        return None
    if memory.read_since(max(turn.first_ms, turn.now_ms - FRESH_MS)):
        return None
    gathered_ms = turn.first_ms + GATHER_MS
    if gathered_ms > turn.now_ms:
        return Wait(gathered_ms)
    # A read for one event would cost what the commit does that may be refused.
    return ReadHead() if turn.queued > 1 else None


def _used_lately(memory: LaneMemory, turn: Turn, bounds: Bounds) -> bool:
    """Whether the head has changed so lately that whoever changed it is taken to be at work on the lane."""
    return _owner_until_ms(memory, turn, bounds) > turn.now_ms


def _owner_until_ms(memory: LaneMemory, turn: Turn, bounds: Bounds) -> int:
    """Until when whoever has changed the head is taken to be at work. Nothing tells of a run that does not claim."""
    claims = memory.head is None or not is_speculation(memory.head.tok)
    times = 1 if claims else OWNER_UNCLAIMED if turn.calls or turn.handed else OWNER_UNAWAITED
    return memory.sighting.changed_ms + times * bounds.owner_ms


def _watch(memory: LaneMemory, turn: Turn, bounds: Bounds, until_ms: int) -> Action:
    """Wait. While somebody waits here for what other processes may change, the head is believed for so long only."""
    if turn.first is None and not turn.handed:
        return Wait(until_ms)
    at_ms = look_ms(memory.sighting, turn, bounds)
    return ReadHead() if at_ms <= turn.now_ms else Wait(min(until_ms, at_ms))


def _enough(turn: Turn) -> bool:
    """Whether what waits here is to be handed over: nothing is left of what was before, or much has come since.

    Each time costs a guard and a mark, and what was handed over before keeps the lane busy meanwhile.
    """
    return turn.first is not None and turn.queued >= HANDED_GROWS * turn.behind


def unshipped(memory: LaneMemory, head: Head) -> bool:
    """Whether the outbox holds anything that has not been delivered."""
    return not head.out.keys() <= memory.shipped


def to_ship(memory: LaneMemory, turn: Turn, bounds: Bounds, head: Head) -> bool:
    """Whether the outbox holds what is to be delivered from here.

    Another process delivers the results of what it has just committed. Nothing is ordered behind a result; behind a
    message or a record everything is.
    """
    return unshipped(memory, head) and not (
        _results_of_others(memory, bounds, head) and _used_lately(memory, turn, bounds)
    )


def _results_of_others(memory: LaneMemory, bounds: Bounds, head: Head) -> bool:
    """Whether nothing waits for delivery but results, and another process has written the head last."""
    waiting = (head.out[sequence] for sequence in head.out.keys() - memory.shipped)
    return not named_by(bounds.process, head.tok) and all(isinstance(entry, ResultOut) for entry in waiting)


def trimmable(memory: LaneMemory, head: Head) -> bool:
    """Whether the outbox holds anything that has been delivered."""
    return not memory.shipped.isdisjoint(head.out)


def _ship(memory: LaneMemory, turn: Turn, bounds: Bounds, head: Head) -> Action:
    """Ship, or wait for a topic that took no records; what queues meanwhile may not fill its partition's window."""
    if _results_of_others(memory, bounds, head) and not memory.read_since(_owner_until_ms(memory, turn, bounds)):
        return ReadHead()  # They may have left already.
    if memory.ship_again_ms <= turn.now_ms:
        return Ship()
    if turn.first is not None and isinstance(turn.first.source, KafkaSource) and _overdue(memory, turn, bounds):
        return Spill()
    return Wait(memory.ship_again_ms)


def left_alone(memory: LaneMemory) -> bool:
    """Whether the lane's head cannot be read."""
    return memory.trouble is not None and memory.trouble.during is ReadHead


def _pause(memory: LaneMemory, turn: Turn, bounds: Bounds) -> Action | None:
    """What to do in a pause between attempts; None when there is none.

    What queues behind a failing event is moved to the inbox: it would fill its partition's window, and so delay keys
    that do not fail. That asks for no head, as nothing in it forbids an inbox item. The same is done in a pause after
    trouble, unless moving events is what met it.
    """
    until_ms = memory.paused_until_ms
    if until_ms <= turn.now_ms:
        return None
    records = turn.first is not None and isinstance(turn.first.source, KafkaSource)
    if memory.trouble is None:
        to_move = records and memory.failing is not None
    else:
        to_move = memory.trouble.during is not Spill and (records or turn.holds)
    if not to_move:
        if memory.trouble is not None:
            # What met it would only meet it again.
            return Wait(until_ms)
        return _watch(memory, turn, bounds, until_ms) if turn.handed else Wait(until_ms)
    if _overdue(memory, turn, bounds):
        return Spill()
    return Wait(min(until_ms, _spill_ms(memory, turn, bounds)))


def _overdue(memory: LaneMemory, turn: Turn, bounds: Bounds) -> bool:
    """Whether events have waited in this process long enough, or are enough, to move them to the inbox."""
    return memory.blocked_ms(turn.now_ms) >= bounds.spill_after_ms or turn.queued >= bounds.spill_records_max


def _spill_ms(memory: LaneMemory, turn: Turn, bounds: Bounds) -> int:
    """When events that wait in this process will have waited long enough."""
    return turn.now_ms + max(1, bounds.spill_after_ms - memory.blocked_ms(turn.now_ms))


def passed(head: Head, event: Event) -> bool:
    """Whether the lane's watermark says that a Kafka event is finished."""
    source = event.source
    return isinstance(source, KafkaSource) and source.offset < head.watermarks.get(source.watermark, 0)


def finished(head: Head, event: Event, now_ms: int) -> bool:
    """Whether the head says that a message or call has taken effect, and that still counts.

    For a call whose result is kept, no result was found: so an old entry is one that outlived its result.
    """
    at_ms = head.fin.get(event.nonce)
    if at_ms is None:
        return False
    kept = isinstance(event.source, CallSource) and event.source.keep_result
    return not kept or now_ms - at_ms < FINISHED_CALL_MS


def can_wake(head: Head, run: ClaimedRun, now_ms: int) -> bool:
    """Whether a suspended run has something to continue with."""
    answered = any(_there(head, slot) for slot in run.awaits or ())
    return answered or (run.wake_ms is not None and run.wake_ms <= now_ms)


def _there(head: Head, slot: str) -> bool:
    """Whether what a run waits for is in its head."""
    return slot in head.slots or (slot.startswith(ANY_ANSWER) and slot != ANY_ANSWER + (head.ans or ""))


def _running(memory: LaneMemory, turn: Turn, bounds: Bounds, head: Head, run: ClaimedRun) -> Action:
    if run.wake_ms is not None and run.holder == memory.nap:
        return _napping(memory, turn, bounds, head, max(run.wake_ms, memory.paused_until_ms))
    holder = memory.holder(run, bounds.process)
    match holder:
        case Holder.ENDED:
            over_ms = memory.paused_until_ms
        case Holder.OWN | Holder.FOREIGN:
            over_ms = max(run.lease_ms + bounds.lease_margin_ms, memory.paused_until_ms)
        case unforeseen:
            assert_never(unforeseen)
    first, foreign = turn.first, holder is Holder.FOREIGN
    if over_ms <= turn.now_ms:
        needed = first is not None or turn.handed or turn.holds or memory.look or memory.read_since(over_ms)
        if foreign and not needed:
            # It was another process's when it was seen last. Should it be that still, a guard leads back to the lane.
            return Idle()
        if not (foreign and turn.clock_differs):
            return TakeOver()
        # Whether the lease is over is not known here. It is once the run continues, or the clock has been corrected.
        over_ms = memory.sighting.read_ms + DIFFERING_LOOK_MS
        if over_ms <= turn.now_ms:
            return ReadHead()
    ours = first is None or first.id == run.event.id or passed(head, first)
    if foreign and first is not None and not ours:
        if turn.records and _overdue(memory, turn, bounds):
            return HandOver()
        if turn.behind and not turn.calls and turn.now_ms >= turn.first_ms + HELD_BACK_MS:
            held = memory.read_since(turn.first_ms + HELD_BACK_MS) or lasts_on(memory.sighting, turn, bounds)
            return HandOver() if held else ReadHead()
        if _enough(turn) and kept_until_ms(memory.sighting, turn, bounds) is None:
            fresh = memory.read_since(turn.first_ms - bounds.call_look_ms) and lasts_on(memory.sighting, turn, bounds)
            return HandOver() if fresh else ReadHead()
    waits = _watch(memory, turn, bounds, over_ms) if foreign else Wait(over_ms)
    return _blocked(memory, turn, bounds, head) or waits


def _napping(memory: LaneMemory, turn: Turn, bounds: Bounds, head: Head, until_ms: int) -> Action:
    """What it has sent leaves meanwhile. Its own event stays queued: its offset leads here should this process end."""
    if until_ms <= turn.now_ms:
        return EndNap()
    if to_ship(memory, turn, bounds, head):
        if memory.ship_again_ms <= turn.now_ms:
            return Ship()
        until_ms = min(until_ms, memory.ship_again_ms)
    if turn.records:
        until_ms = min(until_ms, _spill_ms(memory, turn, bounds))
    return _blocked(memory, turn, bounds, head) or Wait(until_ms)


def _suspended(memory: LaneMemory, turn: Turn, bounds: Bounds, head: Head, run: ClaimedRun) -> Action:
    if can_wake(head, run, turn.now_ms) or (memory.hurried and _pauses(run)):
        if memory.paused_until_ms > turn.now_ms:
            return Wait(memory.paused_until_ms)
        return ResumeRun(ended_sleeps(head, run, turn.now_ms))
    first = turn.first
    if first is not None and first.id == run.event.id and isinstance(first.source, KafkaSource):
        # As for a finished event: without the offset, nothing would lead back to what has been delivered.
        return TrimHead() if trimmable(memory, head) else Release()
    blocked = _blocked(memory, turn, bounds, head)
    if blocked is not None:
        return blocked
    if trimmable(memory, head):
        return TrimHead()
    if first is None:
        until_ms = turn.now_ms + bounds.event_look_ms
        if not turn.handed:
            return Idle(run.wake_ms)
        if run.wake_ms is not None and run.awaits and not _awaits_answers(head, run):
            return Wait(run.wake_ms)
        return _watch(memory, turn, bounds, run.wake_ms or until_ms)
    until_ms = _spill_ms(memory, turn, bounds) if turn.records else turn.now_ms + bounds.spill_after_ms
    until_ms = until_ms if run.wake_ms is None else min(until_ms, run.wake_ms)
    # A sleep ends in every process at the same time; an answer, in the one that was asked to give it.
    return _watch(memory, turn, bounds, until_ms) if _awaits_answers(head, run) else Wait(until_ms)


def _pauses(run: ClaimedRun) -> bool:
    """Whether a suspended run waits for nothing but its next attempt, after one that failed."""
    return run.error is not None and not run.awaits


def _awaits_answers(head: Head, run: ClaimedRun) -> bool:
    """Whether a suspended run waits for more than sleeps."""
    return any(f"{slot}d" not in head.slots for slot in run.awaits or ())


def _blocked(memory: LaneMemory, turn: Turn, bounds: Bounds, head: Head) -> Action | None:
    """What can be done for queued events while the lane is taken; None when they have to wait."""
    if turn.first is None:
        return None
    if passed(head, turn.first):
        return _ship(memory, turn, bounds, head) if to_ship(memory, turn, bounds, head) else Release()
    return Spill() if turn.records and _overdue(memory, turn, bounds) else None


def ended_sleeps(head: Head, run: ClaimedRun, now_ms: int) -> tuple[str, ...]:
    """Awaited sleeps whose time has come."""
    due = (slot for slot in run.awaits or () if slot not in head.slots)
    return tuple(slot for slot in due if (at := due_ms(head, slot)) is not None and at <= now_ms)


def due_ms(head: Head, slot: str) -> int | None:
    """When an awaited sleep ends; None when the slot is no sleep."""
    data = head.slots.get(f"{slot}d")
    if data is None:
        return None
    found = unpack_slot(data)
    return found.wake_ms if isinstance(found, DueSlot) else None
