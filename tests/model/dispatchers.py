"""Control planes: what a lane's worker decides from the head it read, and the steps that follow.

Owns invoking, takeover, shipping, spilling and the release of offsets. Does not own the look at inbox and timers
(`sweeping`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from tests.model import sweeping
from tests.model.attempts import resumed, started
from tests.model.programs import offset
from tests.model.state import (
    Dispatcher,
    GuardTimer,
    Head,
    Model,
    Move,
    Run,
    SleepTimer,
    World,
    accepted,
    fresh_number,
    marked,
    slot,
    spend,
    with_dispatcher,
    with_nap,
    with_slots,
)


def moves(model: Model, world: World, n: int, me: Dispatcher) -> Iterator[Move]:
    """What a control plane may do next at this lane."""
    name = f"{'AB'[n]}: "
    match me.at:
        case "idle":
            if me.pos < model.scenario.records or me.dirty or world.timers or me.head is not None:
                yield from _idle(model, world, n, me, name)
        case "standby":
            pass
        case "waits":
            yield from _waits(world, n, me, name)
        case "resume" | "takeover":
            yield from _take_over(model, world, n, me, name)
        case "spill" | "spill guard" | "spill mark":
            yield from _spill(model, world, n, me, name)
        case "ship" | "trim":
            yield from _ship(model, world, n, me, name)
        case _:
            yield from sweeping.moves(model, world, n, me, name)


def idle(me: Dispatcher) -> Dispatcher:
    """It looks at the lane anew."""
    return Dispatcher("idle", me.pos, dirty=True)


def _released(model: Model, world: World, n: int, me: Dispatcher) -> World:
    """The event at its position needs Kafka no more."""
    owns = world.owner == n or "offset.owner" not in model.rules
    committed = max(world.committed, me.pos + 1) if owns else world.committed
    return with_dispatcher(world._replace(committed=committed), n, Dispatcher("idle", me.pos + 1, dirty=True))


def _idle(model: Model, world: World, n: int, me: Dispatcher, name: str) -> Iterator[Move]:
    before_head = "inbox.after_head" not in model.rules
    if before_head and me.inbox is None and (world.head.pend is not None or world.timers):
        yield Move(f"{name}queries the inbox first", with_dispatcher(world, n, me._replace(inbox=world.inbox)))
        return
    head = world.head if me.head is None else me.head
    yield from _decide(model, world, n, me._replace(head=None), head, name)
    if me.head is None:
        yield from sweeping.sleeps(model, world, n, me, name)
    if me.head is not None:
        yield Move(f"{name}drops the head it had", with_dispatcher(world, n, me._replace(head=None)))


def _decide(model: Model, world: World, n: int, me: Dispatcher, head: Head, name: str) -> Iterator[Move]:
    """What the head it sees asks for: the order of `core.lane_policy`."""
    event = f"k{me.pos}" if me.pos < model.scenario.records else None
    entries = shippable(head)
    if head.run is not None and head.run.awaits is None:
        yield from _running(model, world, n, me, head, head.run, name)
    elif entries:
        yield Move(f"{name}ships", with_dispatcher(world, n, me._replace(at="ship", entry=entries[0])))
    elif head.run is not None:
        yield from _asleep(model, world, n, me, head, head.run, name)
    elif event is not None and me.pos < head.watermark:
        yield Move(f"{name}releases {event}", _released(model, world, n, me))
    elif head.pend is not None:
        yield from _look(model, world, n, me, head, name)
    elif event is not None:
        yield from _invoke(model, world, n, me, head, name)
        if model.scenario.pressed:
            yield Move(f"{name}spills {event}, pressed", with_dispatcher(world, n, me._replace(at="spill", head=None)))
            if world.timers:
                yield from _look(model, world, n, me, head, name)
    elif world.timers:
        yield from _look(model, world, n, me, head, name)
    elif me.dirty:
        yield Move(f"{name}has nothing to do", with_dispatcher(world, n, me._replace(dirty=False)))


def shippable(head: Head) -> list[tuple[Literal["o", "R"], str]]:
    """Outbox entries in order."""
    return sorted(head.out)


def _look(model: Model, world: World, n: int, me: Dispatcher, head: Head, name: str) -> Iterator[Move]:
    """Read on from this head: the inbox and the timers."""
    gone = frozenset(t for t in world.timers if isinstance(t, GuardTimer) and not _may_come(model, world, t))
    if "inbox.after_head" not in model.rules:
        if me.inbox is not None:
            yield from sweeping.judge(model, world, n, me._replace(head=head, ended=gone), me.inbox, name)
        return
    looking = me._replace(at="query", head=head, ended=gone)
    yield Move(f"{name}has read ver {head.ver}", with_dispatcher(world, n, looking))


def _may_come(model: Model, world: World, guard: GuardTimer) -> bool:
    """Whether a function lives that may make the write a guard was put for."""
    if guard.ver is None:
        return False
    return any(guard.event in attempt.events for attempt in world.attempts)


def _invoke(model: Model, world: World, n: int, me: Dispatcher, head: Head, name: str) -> Iterator[Move]:
    if len(world.attempts) >= model.scenario.attempts_max:
        return
    last = model.scenario.records - 1
    for end in {me.pos, last} if model.scenario.batches else {me.pos}:
        events = tuple(f"k{at}" for at in range(me.pos, end + 1))
        yield _invoked(model, world, n, me, events, "spec", head, name)


def _invoked(
    model: Model,
    world: World,
    n: int,
    me: Dispatcher,
    events: tuple[str, ...],
    mode: Literal["spec", "drain"],
    head: Head,
    name: str,
    *,
    clears: bool = False,
) -> Move:
    number = fresh_number(world)
    begun = started(model, world, number, mode, events, head, clears=clears)
    drained = events[0] if mode == "drain" and events[0][0] != "k" else None
    waits = Dispatcher("waits", me.pos, dirty=True, holder=number, event=drained)
    return Move(f"{name}invokes f{number} with {events} at ver {head.ver}", with_dispatcher(begun, n, waits))


def _waits(world: World, n: int, me: Dispatcher, name: str) -> Iterator[Move]:
    if not any(attempt.number == me.holder for attempt in world.attempts):
        # What it has drained becomes a tombstone at once, before anything is shipped.
        finished = me.event is not None and me.event in world.head.fin
        step = Dispatcher("tombstone", me.pos, dirty=True, event=me.event) if finished else idle(me)
        left = world.head.run
        naps = left is not None and left.nap == me.holder and left.awaits is None
        heard = with_nap(world, n, left.holder) if left is not None and naps else world
        yield Move(f"{name}invocation returned", with_dispatcher(heard, n, step))
    elif (lost := spend(world, "crash")) is not None:
        yield Move(f"{name}stops waiting for f{me.holder}", with_dispatcher(lost, n, idle(me)), fault=True)
    run = world.head.run
    if run is not None and run.awaits is None and run.holder == me.holder:
        mistaken = spend(world, "zombie")
        if mistaken is not None and any(attempt.number == me.holder for attempt in world.attempts):
            over = Dispatcher("takeover", me.pos, head=world.head)
            yield Move(f"{name}hears that f{me.holder} failed", with_dispatcher(mistaken, n, over), fault=True)


# --- a lane that is taken ------------------------------------------------------------------------------------------


def _running(model: Model, world: World, n: int, me: Dispatcher, head: Head, run: Run, name: str) -> Iterator[Move]:
    rules = model.rules
    if run.nap is not None and (world.naps[n] == run.holder or ("nap.keeper" not in rules and run.own is None)):
        if world.due and len(world.attempts) < model.scenario.attempts_max:
            yield _nap_over(model, world, n, me, head, run, name)
        yield from _queued(model, world, n, me, head, run, name)
        return
    alive = any(attempt.holder == run.holder for attempt in world.attempts)
    if run.nap is not None and "nap.lease" in rules:
        alive = alive or not world.due or run.holder in world.naps
    over = me._replace(at="takeover", head=head)
    if not alive:
        yield Move(f"{name}sees the lease of {run.event} over", with_dispatcher(world, n, over))
    elif (run.nap is None or world.due) and (mistaken := spend(world, "zombie")) is not None:
        # Only clocks that are wrong by far have a lease over before the sleep that it outlasts; those are known.
        yield Move(f"{name}takes f{run.holder} for dead", with_dispatcher(mistaken, n, over), fault=True)
    if "timer.kept" not in model.rules:
        for timer in sorted(world.timers):
            if timer == SleepTimer(run.event) and world.due:
                dropped = me._replace(at="delete", timer=timer)
                yield Move(f"{name}finds nothing to wake", with_dispatcher(world, n, dropped))
    yield from _queued(model, world, n, me, head, run, name)


def _nap_over(model: Model, world: World, n: int, me: Dispatcher, head: Head, run: Run, name: str) -> Move:
    """The attempt after a nap, without a write."""
    problem = world.problem
    if any(attempt.holder == run.holder for attempt in world.attempts):
        problem = problem or f"one-owner: two attempts at {run.event} by one lease"
    taken = world.head.run is None or world.head.run.holder != run.holder
    if taken and not model.scenario.faults.zombie:
        problem = problem or f"one-owner: an attempt at {run.event} begins, and another has the lane"
    woken = with_nap(world, n, None) if "nap.once" in model.rules else world
    begun = resumed(model, woken._replace(problem=problem), run, head.ver, _behind(model, me, head, run))
    waits = Dispatcher("waits", me.pos, dirty=True, holder=run.holder)
    return Move(f"{name}ends the nap of {run.event}: f{run.holder}", with_dispatcher(begun, n, waits))


def _behind(model: Model, me: Dispatcher, head: Head, run: Run) -> tuple[str, ...]:
    """The events that go to the function with the run that it resumes: those that wait here, with none before them."""
    if not model.scenario.joins or head.pend is not None:
        return ()
    first = max(me.pos, head.watermark)
    events = (f"k{at}" for at in range(first, model.scenario.records))
    return tuple(event for event in events if event != run.event)


def _asleep(model: Model, world: World, n: int, me: Dispatcher, head: Head, run: Run, name: str) -> Iterator[Move]:
    awaits = run.awaits or ()
    wakes = any(slot(run.slots, s) is not None for s in awaits)
    if any(s.startswith("sl") for s in awaits):
        wakes = wakes or world.due or "sleep.due" not in model.rules
    if run.more and "wake.ans" in model.rules:
        wakes = wakes or run.ans != run.seen
    if wakes:
        resume = me._replace(at="resume", head=head)
        yield Move(f"{name}sees that {run.event} can go on", with_dispatcher(world, n, resume))
    yield from _queued(model, world, n, me, head, run, name)
    if not wakes and me.pos >= model.scenario.records and me.dirty:
        yield Move(f"{name}sees {run.event} asleep", with_dispatcher(world, n, me._replace(at="idle", dirty=False)))


def _queued(model: Model, world: World, n: int, me: Dispatcher, head: Head, run: Run, name: str) -> Iterator[Move]:
    """What becomes of the event at its position while the lane is taken."""
    if me.pos >= model.scenario.records:
        return
    event = f"k{me.pos}"
    if event == run.event:
        if run.awaits is not None or "offset.run" not in model.rules:
            yield Move(f"{name}releases {event}, asleep", _released(model, world, n, me))
    elif me.pos < head.watermark:
        entries = shippable(head)
        if entries:
            yield Move(f"{name}ships", with_dispatcher(world, n, me._replace(at="ship", entry=entries[0])))
        else:
            yield Move(f"{name}releases {event}", _released(model, world, n, me))
    else:
        yield Move(f"{name}spills {event}", with_dispatcher(world, n, me._replace(at="spill", head=None)))


def _take_over(model: Model, world: World, n: int, me: Dispatcher, name: str) -> Iterator[Move]:
    """Write 6."""
    assert me.head is not None
    seen, head, rules = me.head.run, world.head, model.rules
    assert seen is not None
    if len(world.attempts) >= model.scenario.attempts_max:
        return
    run = head.run
    holds = (
        run is not None
        and ("takeover.ver" not in rules or head.ver == me.head.ver)
        and ("takeover.run" not in rules or run.event == seen.event)
        and ("takeover.awake" not in rules or seen.awaits is not None or run.awaits is None)
    )
    if holds and run is not None:
        number = fresh_number(world)
        slots = run.slots
        if me.at == "resume" and run.awaits is not None and any(s.startswith("sl") for s in run.awaits):
            slots = with_slots(slots, (("sl", 0),)) if world.due or "sleep.due" not in rules else slots
        taken = run._replace(
            attempt=run.attempt + 1,
            awaits=None,
            more=False,
            seen=None,
            holder=number,
            slots=slots,
            own=None,
            nap=None,
        )
        after = world._replace(head=head._replace(ver=head.ver + 1, tok=(number,), run=taken))
        label = f"{name}{me.at} of {run.event}: f{number}"
        yield _started(model, after, n, me, label)
        if (lost := spend(after, "lost")) is not None:
            again = me._replace(lost=True, holder=number)
            yield Move(f"{label}, response lost", with_dispatcher(lost, n, again), fault=True)
    elif me.lost and "tok.own" in rules and run is not None and head.tok == (me.holder,):
        yield _started(model, world, n, me, f"{name}{me.at} again, recognises its own")
    else:
        yield Move(f"{name}{me.at} refused", with_dispatcher(world, n, idle(me)))


def _started(model: Model, world: World, n: int, me: Dispatcher, label: str) -> Move:
    run = world.head.run
    assert run is not None
    given = run
    if "journal.new" not in model.rules and me.head is not None and me.head.run is not None:
        read = me.head.run.slots
        given = run._replace(slots=with_slots(read, [(k, v) for k, v in run.slots if k.startswith("sl")]))
    begun = resumed(model, world, given, world.head.ver, _behind(model, me, world.head, run))
    return Move(label, with_dispatcher(begun, n, Dispatcher("waits", me.pos, dirty=True, holder=run.holder)))


# --- outbox and spill ----------------------------------------------------------------------------------------------


def _ship(model: Model, world: World, n: int, me: Dispatcher, name: str) -> Iterator[Move]:
    """Write 15: the target first, then the outbox."""
    entry = me.entry
    assert entry is not None
    after_put = "out.after_put" in model.rules
    delivers = (me.at == "ship") == after_put
    if delivers:
        kind, event = entry
        shipped = (
            world._replace(results=world.results | {event})
            if kind == "R"
            else world._replace(delivered=world.delivered | {event})
        )
    else:
        shipped = world._replace(head=world.head._replace(out=world.head.out - {entry}))
    next_step = me._replace(at="trim") if me.at == "ship" else idle(me)
    verb = "delivers" if delivers else "trims"
    yield Move(f"{name}{verb} {entry}", with_dispatcher(shipped, n, next_step))
    if me.at == "trim" and me.pos < model.scenario.records:
        yield from _released_early(model, world, n, me, name)


def _released_early(model: Model, world: World, n: int, me: Dispatcher, name: str) -> Iterator[Move]:
    """What mutants do with an offset between delivery and trim."""
    head, event = world.head, f"k{me.pos}"
    done = me.pos < head.watermark and "offset.trimmed" not in model.rules
    asleep = (
        head.run is not None
        and head.run.event == event
        and head.run.awaits is not None
        and "offset.asleep" not in model.rules
    )
    if (done or asleep) and not head.out - ({me.entry} if me.entry else set()):
        yield Move(f"{name}releases {event}, delivered", _released(model, world, n, me))


def _spill(model: Model, world: World, n: int, me: Dispatcher, name: str) -> Iterator[Move]:
    """Writes 9, 10 and 11 for an event that the lane cannot take now."""
    event = f"k{me.pos}"
    match me.at:
        case "spill":
            after = accepted(model, world, ("k", event)) or world
            guarded = "guard.spill" in model.rules
            step = me._replace(at="spill guard" if guarded else "spill mark")
            yield Move(f"{name}puts {event} into the inbox", with_dispatcher(after, n, step))
        case "spill guard":
            timers = world.timers | {GuardTimer(event)}
            after = world._replace(timers=timers)
            yield Move(f"{name}guards {event}", with_dispatcher(after, n, me._replace(at="spill mark")))
        case _:
            after = marked(model, world, event)
            yield Move(f"{name}marks, releases {event}", _released(model, after, n, me))


def drains(
    model: Model, world: World, n: int, me: Dispatcher, event: str, head: Head, name: str, *, clears: bool
) -> Iterator[Move]:
    """Run an inbox item."""
    if len(world.attempts) < model.scenario.attempts_max:
        yield _invoked(model, world, n, me, (event,), "drain", head, name, clears=clears)


def is_passed(head: Head, event: str) -> bool:
    """Whether the watermark is past a Kafka event."""
    return event[0] == "k" and offset(event) < head.watermark
