"""What to do next for a lane: one pure decision over what is known of it.

Owns the order of precedence between taking over, shipping, releasing, draining and invoking. Does not own doing any of
it (`tenuto_control.dispatcher`).

The order is the protocol's: a lane that is taken is left alone but for waking it and taking it over; what it has in its
outbox leaves before offsets are released or new work starts; the inbox goes before the queue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tenuto.lane.transitions import ANY_ANSWER
from tenuto.protocol.limits import FINISHED_CALL_MS
from tenuto.protocol.messages import Head, Run
from tenuto.protocol.records import CallSource, DueSlot, Event, KafkaSource, ResultOut, unpack_slot


@dataclass(frozen=True, slots=True)
class View:
    """What is known of a lane in this process, at `now_ms`.

    `head` is None when it has to be read. `first` is the first queued event, `queued` how many there are. `shipped` are
    outbox entries that have been delivered and not cleared yet. `look` asks for an inbox query although no mark was
    seen. `ended` are holders whose invocation has certainly ended. `not_before_ms` is the end of a pause between
    attempts, `failing` whether it is the handler's failure that caused it. `blocked_ms` is how long the lane has been
    taken, or failing, while events waited. `trimmable` counts entries a write could remove. `pressed`: events have
    waited here for long, while their partition can take no more.

    `foreign`: the head's run is held by another process; `foreign_tok`: the head was last written by another one.
    `read_ms` is when the head was read or written here last, and `changed_ms` when it was first seen as it is.
    `first_ms` is when the first queued event came. `handed` counts calls that were handed over and whose callers wait
    here; `calls` says that one is queued. `outrun`: other processes were quicker, several times in a row.
    """

    head: Head | None
    now_ms: int
    first: Event | None = None
    queued: int = 0
    shipped: frozenset[str] = frozenset()
    look: bool = False
    ended: frozenset[str] = frozenset()
    not_before_ms: int = 0
    ship_again_ms: int = 0
    failing: bool = False
    blocked_ms: int = 0
    trimmable: int = 0
    pressed: bool = False
    foreign: bool = False
    read_ms: int = 0
    changed_ms: int = 0
    first_ms: int = 0
    handed: int = 0
    outrun: bool = False
    foreign_tok: bool = False
    calls: bool = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits that decide about lanes. `tenuto_control.limits` says what each is for."""

    spill_after_ms: int
    spill_records_max: int
    lease_margin_ms: int
    call_look_ms: int
    event_look_ms: int
    owner_ms: int


@dataclass(frozen=True, slots=True)
class ReadHead:
    """Nothing is known: read."""


@dataclass(frozen=True, slots=True)
class Resume:
    """The suspended run can go on; `over` are the slots of sleeps that have ended."""

    over: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TakeOver:
    """The run's function has ended without finishing it."""


@dataclass(frozen=True, slots=True)
class Ship:
    """Deliver the outbox."""


@dataclass(frozen=True, slots=True)
class Release:
    """The first queued event is finished, or durable where it waits: let go of its offset."""


@dataclass(frozen=True, slots=True)
class Spill:
    """Move queued Kafka events to the inbox."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Move all queued work to the inbox of a lane that another process uses, and look there for results."""


@dataclass(frozen=True, slots=True)
class Drain:
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
    """Nothing is left to do here; `wake_ms` is when a suspended run wants to go on."""

    wake_ms: int | None = None


Action: TypeAlias = (
    ReadHead | Resume | TakeOver | Ship | Release | Spill | HandOver | Drain | Invoke | TrimHead | Wait | Idle
)


def decide(view: View, bounds: Bounds) -> Action:
    """The next action for a lane."""
    head = view.head
    if head is None:
        return _pause(view, bounds) or ReadHead()
    if head.run is not None and not head.run.suspended:
        return _running(view, head, head.run, bounds)
    if view.handed and not view.look and _used_lately(view, bounds):
        # Somebody else has just used it, and goes on with what was handed over.
        return HandOver() if view.first is not None else _watch(view, bounds, view.changed_ms + bounds.owner_ms)
    if _unshipped(view, head, bounds):
        return _ship(view, bounds)
    if head.run is not None:
        return _suspended(view, head, head.run, bounds)
    if view.first is not None and passed(head, view.first):
        # What has been delivered leaves the outbox first: without the offset, nothing would lead back to it.
        return TrimHead() if view.trimmable else Release()
    return _pause(view, bounds) or _free(view, head, bounds)


def _free(view: View, head: Head, bounds: Bounds) -> Action:
    """The next action for a lane that no run has, and whose outbox is delivered."""
    if view.pressed and view.first is not None and isinstance(view.first.source, KafkaSource):
        # The lane is slow, not stuck. Its backlog goes on from the inbox, and other keys get their turn.
        return Spill()
    if view.outrun and view.foreign_tok and view.first is not None and _used_lately(view, bounds):
        return HandOver()
    if head.pend is not None or view.look:
        return Drain()
    if view.first is not None:
        return Invoke()
    if view.handed:
        return _watch(view, bounds, view.now_ms + bounds.call_look_ms)
    return TrimHead() if view.trimmable else Idle()


def _used_lately(view: View, bounds: Bounds) -> bool:
    """Whether the head has changed so lately that whoever changed it is taken to be at work on the lane."""
    return view.now_ms - view.changed_ms < bounds.owner_ms


def _watch(view: View, bounds: Bounds, until_ms: int) -> Action:
    """Wait. While somebody waits here for what other processes may change, the head is believed for so long only."""
    if view.first is None and not view.handed:
        return Wait(until_ms)
    look_ms = view.read_ms + (bounds.call_look_ms if view.calls or view.handed else bounds.event_look_ms)
    return ReadHead() if look_ms <= view.now_ms else Wait(min(until_ms, look_ms))


def _unshipped(view: View, head: Head, bounds: Bounds) -> bool:
    """Whether the outbox holds what is to be delivered from here.

    Another process delivers the results of what it has just committed. Nothing is ordered behind a result; behind a
    message or a record everything is.
    """
    left = head.out.keys() - view.shipped
    if not left or not view.foreign_tok or not _used_lately(view, bounds):
        return bool(left)
    return any(not isinstance(head.out[sequence], ResultOut) for sequence in left)


def _ship(view: View, bounds: Bounds) -> Action:
    """Ship, or wait for a topic that took no records; what queues meanwhile may not fill its partition's window."""
    if view.ship_again_ms <= view.now_ms:
        return Ship()
    if view.first is not None and isinstance(view.first.source, KafkaSource) and _overdue(view, bounds):
        return Spill()
    return Wait(view.ship_again_ms)


def _pause(view: View, bounds: Bounds) -> Action | None:
    """What to do in a pause between attempts; None when there is none.

    What queues behind a failing event is moved to the inbox: it would fill its partition's window, and so hold up keys
    that do not fail. That asks for no head, as nothing in it forbids an inbox item.
    """
    if view.not_before_ms <= view.now_ms:
        return None
    if not view.failing or view.first is None or not isinstance(view.first.source, KafkaSource):
        return _watch(view, bounds, view.not_before_ms) if view.handed else Wait(view.not_before_ms)
    if _overdue(view, bounds):
        return Spill()
    return Wait(min(view.not_before_ms, view.now_ms + max(1, bounds.spill_after_ms - view.blocked_ms)))


def _overdue(view: View, bounds: Bounds) -> bool:
    """Whether events have waited in this process long enough, or are enough, to move them to the inbox."""
    return view.blocked_ms >= bounds.spill_after_ms or view.queued >= bounds.spill_records_max


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


def can_wake(head: Head, run: Run, now_ms: int) -> bool:
    """Whether a suspended run has something to go on with."""
    answered = any(_there(head, slot) for slot in run.awaits or ())
    return answered or (run.wake_ms is not None and run.wake_ms <= now_ms)


def _there(head: Head, slot: str) -> bool:
    """Whether what a run waits for is in its head."""
    return slot in head.slots or (slot.startswith(ANY_ANSWER) and slot != ANY_ANSWER + (head.ans or ""))


def _running(view: View, head: Head, run: Run, bounds: Bounds) -> Action:
    if run.holder in view.ended:
        over = view.not_before_ms
    else:
        over = max(run.lease_ms + bounds.lease_margin_ms, view.not_before_ms)
    if over <= view.now_ms:
        return TakeOver()
    first = view.first
    if view.foreign and first is not None and first.id != run.event.id and not passed(head, first):
        return ReadHead() if view.read_ms <= view.first_ms else HandOver()
    return _blocked(view, head, bounds) or (_watch(view, bounds, over) if view.foreign else Wait(over))


def _suspended(view: View, head: Head, run: Run, bounds: Bounds) -> Action:
    if can_wake(head, run, view.now_ms):
        if view.not_before_ms > view.now_ms:
            return Wait(view.not_before_ms)
        return Resume(ended_sleeps(head, run, view.now_ms))
    first = view.first
    if first is not None and first.id == run.event.id and isinstance(first.source, KafkaSource):
        # As for a finished event: without the offset, nothing would lead back to what has been delivered.
        return TrimHead() if view.trimmable else Release()
    blocked = _blocked(view, head, bounds)
    if blocked is not None:
        return blocked
    if view.trimmable:
        return TrimHead()
    if first is None:
        return (
            _watch(view, bounds, run.wake_ms or view.now_ms + bounds.event_look_ms)
            if view.handed
            else Idle(run.wake_ms)
        )
    spill_ms = view.now_ms + max(1, bounds.spill_after_ms - view.blocked_ms)
    until_ms = min(spill_ms, run.wake_ms) if run.wake_ms is not None else spill_ms
    # A sleep ends in every process at the same time; an answer, in the one that was asked to give it.
    return _watch(view, bounds, until_ms) if _awaits_answers(head, run) else Wait(until_ms)


def _awaits_answers(head: Head, run: Run) -> bool:
    """Whether a suspended run waits for more than sleeps."""
    return any(f"{slot}d" not in head.slots for slot in run.awaits or ())


def _blocked(view: View, head: Head, bounds: Bounds) -> Action | None:
    if view.first is None:
        return None
    if passed(head, view.first):
        return _ship(view, bounds) if _unshipped(view, head, bounds) else Release()
    return Spill() if _overdue(view, bounds) else None


def ended_sleeps(head: Head, run: Run, now_ms: int) -> tuple[str, ...]:
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
