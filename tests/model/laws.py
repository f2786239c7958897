"""What must hold in every state, in every move, and which states are ends.

Owns the laws, by the names that the simulation uses for them (docs/internals/invariants.md). Does not own liveness:
that from every state without further faults an end can be reached is for `search` to see.
"""

from __future__ import annotations

from tests.model.outside import POINTER
from tests.model.programs import marks, offset, sends
from tests.model.state import Model, World, readable, slot


def broken(model: Model, before: World, after: World) -> str | None:
    """The law that a move broke, and how; None when all hold."""
    if after.problem is not None:
        return after.problem
    if before.head == after.head and before.items == after.items and before.timers == after.timers:
        return _driver(model, after) if before.committed != after.committed else None
    return (
        _order(model, after)
        or _together(model, after)
        or _journal(before, after)
        or _room(model, after)
        or _driver(model, after)
    )


def _order(model: Model, world: World) -> str | None:
    """Each once, and in the order of each source."""
    state = world.head.state
    if len(set(state)) != len(state):
        return f"order: an effect twice in {state}"
    for kind in "km":
        numbers = [offset(mark[:2]) for mark in state if mark[0] == kind]
        if numbers != sorted(numbers):
            return f"order: {state}"
    done = sorted(offset(e) for e in _done(model, world) if e[0] == "k")
    if done != list(range(world.head.watermark)):
        return f"order: the watermark is {world.head.watermark}, finished are {done}"
    return None


def _done(model: Model, world: World) -> set[str]:
    """Events that took effect."""
    head = world.head
    owner = head.run.event if head.run else None
    return {e for e, program in model.programs.items() if e != owner and set(marks(program, e)) & set(head.state)}


def _together(model: Model, world: World) -> str | None:
    """State, watermark and messages change together, for each event as a whole."""
    head, done = world.head, _done(model, world)
    owner = head.run.event if head.run else None
    for event, program in model.programs.items():
        all_marks = marks(program, event)
        if event != owner and 0 < len([m for m in all_marks if m in head.state]) < len(all_marks):
            return f"together: half of {event} in {head.state}"
        if sends(program):
            out = ("o", event) in head.out or event in world.delivered
            left = event == owner and head.run is not None and slot(readable(world, head.run), "m") is not None
            if out != (event in done or left):
                return f"together: the message of {event} is {'' if out else 'not '}there"
        if event[0] == "r" and "result.stored" in model.rules:
            stored = ("R", event) in head.out or event in world.results
            if stored != (event in done):
                return f"together: the result of {event} is {'' if stored else 'not '}there"
    return None


def _journal(before: World, after: World) -> str | None:
    """What could be read of a run's journal can be read as long as it lasts, and stays what it was."""
    was, now = before.head.run, after.head.run
    if was is None or now is None or was.event != now.event:
        return None
    if slot(now.slots, "sl") is not None and not after.due and now.nap is None:
        return f"early-sleep: {now.event} was woken before its time"
    found = dict(readable(after, now))
    for name, value in readable(before, was):
        if found.get(name) != value:
            return f"immutable-journal: slot {name} of {was.event} was {value}, is {found.get(name)}"
    return None


def _room(model: Model, world: World) -> str | None:
    """No more answers sit in the head than it has room for."""
    head = world.head
    most = model.scenario.inline_max
    if most is not None and head.run is not None:
        inline = [k for k, v in head.run.slots if k.startswith("aw") and v < POINTER]
        if len(inline) > most:
            return f"bound: {inline} fill the head"
    return None


def _driver(model: Model, world: World) -> str | None:
    """Unfinished work has an uncommitted offset, or a timer item; or it waits for an answer only."""
    head = world.head
    if world.timers:
        return None
    run = head.run
    if run is not None and _let_go(world, run.event) and run.event not in world.outbox:
        waits = run.awaits is not None and not any(s.startswith("sl") for s in run.awaits)
        answered = any(slot(run.slots, s) is not None for s in run.awaits or ()) or (run.more and run.ans != run.seen)
        if (not waits or answered) and not _promised(world, run.event):
            return f"driver: {run.event} is unfinished, and nothing points at it"
    for kind, event in sorted(head.out):
        # A caller that is not answered yet asks again.
        if kind == "o" and _let_go(world, event) and not _promised(world, event):
            return f"driver: the message of {event} is in the outbox, and nothing points at it"
    return None


def _let_go(world: World, event: str) -> bool:
    return event[0] != "k" or world.committed > offset(event)


def _promised(world: World, event: str) -> bool:
    """Whether a sender or the inbox still has an event that is not marked yet."""
    return event in world.outbox


def at_rest(model: Model, world: World) -> bool:
    """Whether everything that was accepted is finished, and nothing is left over."""
    head = world.head
    if head.run or any(kind == "o" for kind, _ in head.out) or world.outbox or world.timers:
        return False
    if world.committed != model.scenario.records:
        return False
    if any(how == "live" and not _passed(world, p) for p, how in world.inbox):
        return False
    asked = (e for e in model.programs if e[0] != "r" or e in world.accepted)
    return all(set(marks(model.programs[e], e)) <= set(head.state) for e in asked)


def _passed(world: World, position: tuple[str, str]) -> bool:
    return position[0] == "k" and offset(position[1]) < world.head.watermark
