"""Functions: the handler between two writes, and writes 1 to 5 and 7.

Owns what an attempt does on its own. Does not own who starts it (`dispatchers`, `outside`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.model.programs import Change, Program, Send, Step, Wait, offset
from tests.model.state import (
    Attempt,
    Entry,
    GuardTimer,
    Head,
    Mark,
    Mode,
    Model,
    Move,
    Name,
    Run,
    SleepTimer,
    Slots,
    World,
    fresh_number,
    readable,
    slot,
    spend,
    with_attempts,
    with_slots,
)

Rest = tuple[Attempt, ...]
SENT = "m"
"""The slot that says that a message has left."""


# --- the handler ---------------------------------------------------------------------------------------------------


def advance(model: Model, attempt: Attempt) -> Attempt:
    """Run the handler up to its next write."""
    while True:
        ops = model.programs[attempt.event]
        if attempt.op < len(ops):
            moved = _operate(model, attempt, ops)
            if moved.at:
                return moved
            attempt = moved
        elif attempt.ver is None and attempt.place + 1 < len(attempt.events):
            attempt = attempt._replace(
                place=attempt.place + 1, op=0, first=attempt.state, before=(*attempt.before, attempt.event)
            )
        else:
            guarded = attempt.ver is None and attempt.mode == "call" and attempt.post
            return attempt._replace(at="guard" if guarded and "guard.send" in model.rules else "commit")


def _operate(model: Model, attempt: Attempt, ops: Program) -> Attempt:
    """One operation; `at` is empty when the handler goes on behind it."""
    known = dict(attempt.known + attempt.fresh)
    after = attempt._replace(op=attempt.op + 1, at="")
    match ops[attempt.op]:
        case Change(mark):
            return after._replace(state=(*attempt.state, attempt.event + mark))
        case Send():
            return after if SENT in known else after._replace(post=(*attempt.post, attempt.event))
        case Step(name):
            if name in known:
                return after
            if attempt.ver is None:
                return attempt._replace(at=_before_claim(model, attempt))
            if attempt.fresh:
                return attempt._replace(at="checkpoint")
            return after._replace(fresh=((name, -attempt.attempt if attempt.twin else attempt.attempt),))
        case Wait(names):
            if any(name in known for name in names):
                return after
            if attempt.ver is None:
                return attempt._replace(at=_before_claim(model, attempt))
            if model.scenario.naps and attempt.mode != "call" and all(name.startswith("sl") for name in names):
                return attempt._replace(at="nap")
            timed = any(name.startswith("sl") for name in names)
            return attempt._replace(at="timer" if timed and "timer.first" in model.rules else "suspend")


def _before_claim(model: Model, attempt: Attempt) -> str:
    guarded = attempt.mode == "call" and attempt.event[0] == "r" and "guard.call" in model.rules
    return "guard" if guarded else "claim"


def started(
    model: Model,
    world: World,
    number: int,
    mode: Mode,
    events: tuple[str, ...],
    head: Head,
    *,
    clears: bool = False,
) -> World:
    """The world with a function that speculates on a head."""
    state = head.state
    attempt = Attempt(number, number, "", mode, events, head.ver, head.pend, state=state, first=state, clears=clears)
    return with_attempts(world, world.attempts, advance(model, attempt))


def resumed(model: Model, world: World, run: Run, ver: int, behind: tuple[str, ...] = ()) -> World:
    """The world with the function that a takeover has started for `run`, and for events behind it."""
    first = world.head.state if run.base is None else run.base
    problem = world.problem
    if run.nap is not None and not world.due:
        problem = problem or f"early-sleep: {run.event} is woken from a nap before its time"
    if first != run.first:
        problem = problem or f"replay: {run.event} sees the state {first}, its first attempt saw {run.first}"
    known = readable(world, run)
    attempt = Attempt(
        run.holder,
        run.holder,
        "",
        "resume",
        (run.event, *behind),
        ver,
        ver=ver,
        attempt=run.attempt,
        state=first,
        first=first,
        known=known,
        held=run.slots if _rolling(model) else (),
        segments=run.segments,
        ans=run.ans,
    )
    begun = attempt._replace(at="load") if world.budget.late or world.budget.twin else advance(model, attempt)
    return with_attempts(world._replace(problem=problem), world.attempts, begun)


def _rolling(model: Model) -> bool:
    return model.scenario.roll_at is not None


# --- what may befall it --------------------------------------------------------------------------------------------


def moves(model: Model, world: World, attempt: Attempt) -> Iterator[Move]:
    """What a function may do or suffer next."""
    rest = tuple(a for a in world.attempts if a is not attempt)
    name = f"f{attempt.number} ({attempt.event}): "
    if (killed := spend(world, "kill")) is not None:
        yield Move(f"{name}killed", with_attempts(killed, rest), fault=True)
    match attempt.at:
        case "load":
            yield from _twin(model, world, attempt, name)
            yield Move(f"{name}begins", with_attempts(world, rest, advance(model, attempt)))
            if (late := spend(world, "late")) is not None:
                yield Move(f"{name}begins after its lease, hands back", ended(late, rest, attempt, "late"), fault=True)
        case "guard":
            yield _guard(model, world, attempt, rest, name)
        case "claim":
            yield from _claim(model, world, attempt, rest, name)
        case "commit" if attempt.ver is None:
            yield from _spec_commit(model, world, attempt, rest, name)
        case "commit":
            yield from _final_commit(model, world, attempt, rest, name)
            yield from _dawdles(model, world, attempt, rest, name)
        case "timer" | "timer after":
            yield _timer(world, attempt, rest, name)
        case "checkpoint":
            yield from _segments(model, world, attempt, rest, name, _checkpoint)
        case "suspend":
            yield from _segments(model, world, attempt, rest, name, _suspend)
            yield from _dawdles(model, world, attempt, rest, name)
        case "nap":
            yield from _segments(model, world, attempt, rest, name, _nap)
            yield from _dawdles(model, world, attempt, rest, name)
        case _:
            raise AssertionError(attempt.at)


def _dawdles(model: Model, world: World, attempt: Attempt, rest: Rest, name: str) -> Iterator[Move]:
    """What is finished becomes durable within 20 ms, whether the handler gets on or not, but for a write under way."""
    if attempt.fresh and not attempt.put and not attempt.lost:
        flush = attempt._replace(at="checkpoint")
        deaf = attempt.at == "suspend" and "suspend.heard" not in model.rules
        yield from _segments(model, world, flush, rest, name, _unheard if deaf else _checkpoint)


def _timer(world: World, attempt: Attempt, rest: Rest, name: str) -> Move:
    """Write 4; a mutant makes it after the suspension."""
    put = world._replace(timers=world.timers | {SleepTimer(attempt.event)})
    if attempt.at == "timer":
        after = with_attempts(put, rest, attempt._replace(at="suspend"))
    else:
        after = ended(put, rest, attempt, "suspended")
    return Move(f"{name}puts the sleep's timer", after)


def _twin(model: Model, world: World, attempt: Attempt, name: str) -> Iterator[Move]:
    doubled = spend(world, "twin")
    if doubled is None or attempt.twin or len(world.attempts) >= model.scenario.attempts_max:
        return
    number = fresh_number(world)
    twin = attempt._replace(number=number, twin=True)
    yield Move(
        f"{name}delivered twice, the twin is f{number}", with_attempts(doubled, world.attempts, twin), fault=True
    )


def ended(world: World, rest: Rest, attempt: Attempt, how: str) -> World:
    """The world without a function, and with its answer to a caller that waits for it."""
    left = with_attempts(world, rest)
    if attempt.number != attempt.holder:
        return left
    callers = tuple(
        c._replace(at="told", holder=None, said=how)
        if c is not None and c.at == "waits" and c.holder == attempt.holder
        else c
        for c in left.callers
    )
    return left._replace(callers=callers)


def _written(
    world: World, attempt: Attempt, rest: Rest, label: str, head: Head, then: Callable[[World], World]
) -> Iterator[Move]:
    """A write is applied; its response may be lost, and then it is repeated."""
    applied = world._replace(head=head)
    yield Move(label, then(applied))
    if (lost := spend(applied, "lost")) is not None:
        yield Move(f"{label}, response lost", with_attempts(lost, rest, attempt._replace(lost=True)), fault=True)


def _guard(model: Model, world: World, attempt: Attempt, rest: Rest, name: str) -> Move:
    holder = attempt.holder if "guard.nonce" in model.rules else None
    guard = GuardTimer(attempt.event, holder, attempt.seen_ver)
    claims = attempt.op < len(model.programs[attempt.event])
    put = world._replace(timers=world.timers | {guard})
    after = attempt._replace(at="claim" if claims else "commit")
    return Move(f"{name}puts a guard", with_attempts(put, rest, after))


# --- writes 1 and 2 ------------------------------------------------------------------------------------------------


def finished(model: Model, events: tuple[str, ...]) -> tuple[frozenset[Entry], frozenset[str]]:
    """What the end of events adds to the outbox besides messages, and to the finished ids."""
    stored = "result.stored" in model.rules
    results: set[Entry] = {("R", e) for e in events if e[0] == "r" and stored}
    return frozenset(results), frozenset(e for e in events if e[0] in "mr" and "fin.kept" in model.rules)


def _messages(events: tuple[str, ...]) -> frozenset[Entry]:
    return frozenset(("o", event) for event in events)


def _from_idle(model: Model, write: str, world: World, attempt: Attempt, events: tuple[str, ...]) -> bool:
    """Whether the condition of write 1 or 2 holds."""
    head, rules = world.head, model.rules
    first = next((offset(e) for e in events if e[0] == "k"), None)
    return (
        (f"{write}.ver" not in rules or head.ver == attempt.seen_ver)
        and (f"{write}.idle" not in rules or head.run is None)
        and (f"{write}.pend" not in rules or attempt.mode == "drain" or head.pend is None)
        and (f"{write}.watermark" not in rules or first is None or head.watermark <= first)
    )


def _past(head: Head, events: tuple[str, ...]) -> int:
    """The watermark behind events."""
    return max((offset(e) + 1 for e in events if e[0] == "k"), default=head.watermark)


def _claim(model: Model, world: World, attempt: Attempt, rest: Rest, name: str) -> Iterator[Move]:
    head, event = world.head, attempt.event
    owning = attempt._replace(
        ver=attempt.seen_ver + 1, attempt=1, lost=False, state=attempt.first, op=0, post=(), known=(), before=()
    )

    def own(after: World) -> World:
        return with_attempts(after._replace(accepted=after.accepted | {event}), rest, advance(model, owning))

    if _from_idle(model, "claim", world, attempt, attempt.events[: attempt.place + 1]):
        results, ids = finished(model, attempt.before)
        messages = _messages(tuple(e for e in attempt.post if e in attempt.before))
        changed = head._replace(
            ver=head.ver + 1,
            tok=(attempt.number,),
            state=attempt.first,
            watermark=_past(head, attempt.before),
            out=head.out | results | messages,
            fin=head.fin | ids,
            run=Run(event, 1, attempt.holder, first=attempt.first),
        )
        yield from _written(world, attempt, rest, f"{name}claims", changed, own)
    elif _mine(model, head, attempt):
        yield Move(f"{name}claims again, recognises its own", own(world))
    else:
        yield Move(f"{name}claim refused", ended(world, rest, attempt, "refused"))


def _spec_commit(model: Model, world: World, attempt: Attempt, rest: Rest, name: str) -> Iterator[Move]:
    head, events = world.head, attempt.events[: attempt.place + 1]
    clears = attempt.clears and attempt.seen_pend is not None
    holds = _from_idle(model, "spec", world, attempt, events)
    if clears and "spec.clear" in model.rules:
        holds = holds and head.pend == attempt.seen_pend
    if holds:
        results, ids = finished(model, events)
        pend: Mark = None if clears else head.pend
        changed = head._replace(
            ver=head.ver + 1,
            tok=(attempt.number,),
            state=attempt.state,
            watermark=_past(head, events),
            pend=pend,
            out=head.out | results | _messages(attempt.post),
            fin=head.fin | ids,
        )

        def done(after: World) -> World:
            return ended(after._replace(accepted=after.accepted | set(events)), rest, attempt, "done")

        yield from _written(world, attempt, rest, f"{name}commits {events}", changed, done)
    else:
        how = "done" if _mine(model, head, attempt) else "refused"
        yield Move(f"{name}commit of {events} refused: {how}", ended(world, rest, attempt, how))


def _mine(model: Model, head: Head, attempt: Attempt) -> bool:
    return attempt.lost and "tok.own" in model.rules and head.tok == (attempt.number,)


# --- writes 3, 5 and 7 ---------------------------------------------------------------------------------------------


def _owned(model: Model, write: str, world: World, attempt: Attempt) -> bool:
    run = world.head.run
    if run is None:
        # The attributes of a run are gone with it; a write that would bring some back is a final commit's mutant only.
        return write == "commit" and "commit.ver" not in model.rules
    rules = model.rules
    return (f"{write}.ver" not in rules or world.head.ver == attempt.ver) and (
        f"{write}.own" not in rules or run.own is None or run.own == attempt.number
    )


def _parts(model: Model, attempt: Attempt) -> list[Slots]:
    """What goes to segment items before the write at hand: slots that roll, and large fresh ones, each alone."""
    scenario = model.scenario
    rolls = attempt.held if scenario.roll_at is not None and len(attempt.held) >= scenario.roll_at else ()
    return [part for part in (rolls, *(((k, v),) for k, v in attempt.fresh if _bulky(model, attempt, k))) if part]


def _bulky(model: Model, attempt: Attempt, name: str) -> bool:
    return any(isinstance(op, Step) and op.bulky and op.slot == name for op in model.programs[attempt.event])


Write = Callable[[Model, World, Attempt, Rest, str], Iterator[Move]]


def _segments(model: Model, world: World, attempt: Attempt, rest: Rest, name: str, write: Write) -> Iterator[Move]:
    """Put the next segment item, or when all are put, write."""
    parts = _parts(model, attempt)
    if len(attempt.put) == len(parts):
        yield from write(model, world, attempt, rest, name)
        return
    ver = attempt.ver or 0
    unique = "segment.unique" in model.rules
    count = attempt.puts if unique else len(attempt.segments) + len(attempt.put)
    item: tuple[Name, Slots] = ((ver, attempt.number, count), parts[len(attempt.put)])
    items = tuple(sorted({**dict(world.items), item[0]: item[1]}.items()))
    after = attempt._replace(put=(*attempt.put, item), puts=attempt.puts + unique)
    yield Move(f"{name}puts segment {item}", with_attempts(world._replace(items=items), rest, after))


def _journaled(model: Model, run: Run, attempt: Attempt, more: Slots = ()) -> Run:
    """The run with what an attempt writes of its journal."""
    moved = dict(slots for _, part in attempt.put for slots in part)
    small = tuple((k, v) for k, v in attempt.fresh + more if k not in moved)
    if "slots.apart" in model.rules:
        kept = tuple((k, v) for k, v in run.slots if k not in moved)
        slots = with_slots(kept, small)
    else:
        slots = with_slots(attempt.known, small)
    segments = (*attempt.segments, *(name for name, _ in attempt.put)) if attempt.put else run.segments
    took = run.took
    if "slot.took" in model.rules:
        took = tuple(sorted({*took, *(k for k in moved if k.startswith("aw"))}))
    return run._replace(slots=slots, segments=segments, took=took, own=attempt.number)


def _learned(model: Model, world: World, attempt: Attempt, *, applied: bool) -> Attempt:
    """The attempt with what the head says now. `applied`: it is what its own write has left."""
    run, truth = world.head.run, "segment.truth" in model.rules
    assert run is not None
    known = with_slots(readable(world, run) if truth else run.slots, attempt.known)
    segments = (*attempt.segments, *(name for name, _ in attempt.put)) if applied else attempt.segments
    return attempt._replace(
        known=known,
        post=() if slot(known, SENT) is not None else attempt.post,
        fresh=tuple((k, v) for k, v in attempt.fresh if slot(known, k) is None),
        held=run.slots if _rolling(model) else (),
        segments=run.segments if truth else segments,
        ans=run.ans,
        put=(),
        lost=False,
    )


def _checkpoint(model: Model, world: World, attempt: Attempt, rest: Rest, name: str) -> Iterator[Move]:
    head = world.head
    if not _owned(model, "checkpoint", world, attempt) or head.run is None:
        yield Move(f"{name}checkpoint refused", ended(world, rest, attempt, "refused"))
        return
    changed = head._replace(run=_journaled(model, head.run, attempt))
    if "tok.versioned" not in model.rules:
        changed = changed._replace(tok=(attempt.number,))
    problem = _trespass(world, attempt)

    def goes_on(after: World) -> World:
        written = attempt._replace(fresh=(), known=with_slots(attempt.known, attempt.fresh))
        learned = _learned(model, after, written, applied=True)
        return with_attempts(after, rest, advance(model, learned))

    yield from _written(world._replace(problem=problem), attempt, rest, f"{name}checkpoint", changed, goes_on)


def _unheard(model: Model, world: World, attempt: Attempt, rest: Rest, name: str) -> Iterator[Move]:
    """A mutant's flush before a suspension: what it meets is known to whoever writes, and not to the handler."""
    for move in _checkpoint(model, world, attempt, rest, name):
        run = move.world.head.run
        if run is None or move.fault or not any(a.number == attempt.number for a in move.world.attempts):
            yield move
            continue
        deaf = attempt._replace(
            at="suspend",
            known=with_slots(attempt.known, attempt.fresh),
            fresh=(),
            held=run.slots if _rolling(model) else (),
            segments=run.segments,
            ans=run.ans,
            put=(),
        )
        yield Move(f"{move.label}, unheard", with_attempts(move.world, rest, deaf))


def _suspend(model: Model, world: World, attempt: Attempt, rest: Rest, name: str) -> Iterator[Move]:
    head, rules = world.head, model.rules
    wait = model.programs[attempt.event][attempt.op]
    assert isinstance(wait, Wait)
    run = head.run
    if not _owned(model, "suspend", world, attempt) or run is None:
        yield Move(f"{name}suspension refused", ended(world, rest, attempt, "refused"))
        return
    free = "suspend.ans" not in rules or run.ans == attempt.ans
    asleep = run.awaits is not None
    if asleep and "suspend.stands" in rules and ("suspend.awake" in rules or not free):
        # It is its own: nobody else suspends under this ver, and the dispatcher sees regardless of later answers.
        yield Move(f"{name}suspends again, recognises its own", ended(world, rest, attempt, "suspended"))
        return
    if not free or (asleep and "suspend.awake" in rules):
        learned = advance(model, _learned(model, world, attempt, applied=False))
        yield Move(f"{name}suspension refused, something came", with_attempts(world, rest, learned))
        return
    sent: Slots = ((SENT, 0),) if attempt.post else ()
    base = run.base
    if attempt.state != attempt.first and "base.kept" in rules:
        base = attempt.first if "base.value" in rules else head.state
    listed = wait.slots[: wait.listed]
    changed = head._replace(
        state=attempt.state,
        out=head.out | _messages(attempt.post),
        run=_journaled(model, run, attempt, sent)._replace(
            awaits=listed,
            more=len(listed) < len(wait.slots),
            seen=attempt.ans if len(listed) < len(wait.slots) else None,
            base=base,
        ),
    )
    if "tok.versioned" not in rules:
        changed = changed._replace(tok=(attempt.number,))
    timed = any(s.startswith("sl") for s in wait.slots) and "timer.first" not in rules

    def sleeps(after: World) -> World:
        if timed:
            return with_attempts(after, rest, attempt._replace(at="timer after"))
        return ended(after, rest, attempt, "suspended")

    asked = world._replace(problem=_trespass(world, attempt))
    yield from _written(asked, attempt, rest, f"{name}suspends", changed, sleeps)


def _nap(model: Model, world: World, attempt: Attempt, rest: Rest, name: str) -> Iterator[Move]:
    """Writes 5 and 6 in one: the next attempt is its caller's, and the sleep is over when that begins."""
    head, run = world.head, world.head.run
    wait = model.programs[attempt.event][attempt.op]
    assert isinstance(wait, Wait)
    holds = _owned(model, "nap", world, attempt) and run is not None
    if run is None or not holds or (run.awaits is not None and "nap.awake" in model.rules):
        how = "suspended" if _mine(model, head, attempt) else "refused"
        yield Move(f"{name}nap refused: {how}", ended(world, rest, attempt, how))
        return
    sent: Slots = ((SENT, 0),) if attempt.post else ()
    base = attempt.first if attempt.state != attempt.first and run.base is None else run.base
    slept = tuple((s, 0) for s in wait.slots)
    napping = _journaled(model, run, attempt, sent + slept)._replace(
        attempt=run.attempt + 1, holder=fresh_number(world), awaits=None, base=base, own=None, nap=attempt.holder
    )
    changed = head._replace(
        ver=head.ver + 1,
        tok=(attempt.number,),
        state=attempt.state,
        out=head.out | _messages(attempt.post),
        run=napping,
    )
    asked = world._replace(problem=_trespass(world, attempt))
    yield from _written(
        asked, attempt, rest, f"{name}naps", changed, lambda after: ended(after, rest, attempt, "suspended")
    )


def _trespass(world: World, attempt: Attempt) -> str | None:
    """The problem with an owner's write that storage takes."""
    run, ver = world.head.run, world.head.ver
    if world.problem is not None:
        return world.problem
    if ver != attempt.ver or run is None:
        return f"one-owner: f{attempt.number} writes by ver {attempt.ver}, the lane is at {ver}"
    if run.own not in (None, attempt.number):
        return f"one-owner: f{attempt.number} writes into what its twin has written"
    return None


def _joins(model: Model, attempt: Attempt) -> bool:
    """Whether the next event of its batch is claimed with the commit of this one."""
    more = attempt.mode in ("spec", "resume") and attempt.place + 1 < len(attempt.events)
    return (
        more and not attempt.post and model.programs[attempt.event] == model.programs[attempt.events[attempt.place + 1]]
    )


def _join(model: Model, world: World, attempt: Attempt, rest: Rest, name: str) -> Iterator[Move]:
    """Writes 7 and 2 in one; refused for a mark, it ends the run by itself."""
    head, rules, following = world.head, model.rules, attempt.events[attempt.place + 1]
    owned = _owned(model, "join", world, attempt)
    owning = attempt._replace(
        place=attempt.place + 1,
        ver=(attempt.ver or 0) + 1,
        attempt=1,
        op=0,
        first=attempt.state,
        known=(),
        fresh=(),
        held=(),
        segments=(),
        put=(),
        ans=None,
        lost=False,
    )

    def own(after: World) -> World:
        return with_attempts(after._replace(accepted=after.accepted | {following}), rest, advance(model, owning))

    if owned and (head.pend is None or "join.pend" not in rules):
        changed = head._replace(
            ver=head.ver + 1,
            tok=(attempt.number, head.ver),
            state=attempt.state,
            watermark=_past(head, (attempt.event,)),
            run=Run(following, 1, attempt.holder, first=attempt.state),
        )
        asked = world._replace(problem=_trespass(world, attempt))
        yield from _written(asked, attempt, rest, f"{name}commits and claims {following}", changed, own)
    elif attempt.lost and head.tok == (attempt.number, attempt.ver or 0):
        yield Move(f"{name}commits and claims again, recognises its own", own(world))
    else:
        yield from _final_commit(model, world, attempt, rest, name, joins=False)


def _final_commit(
    model: Model, world: World, attempt: Attempt, rest: Rest, name: str, *, joins: bool = True
) -> Iterator[Move]:
    if joins and model.scenario.joins and _joins(model, attempt):
        yield from _join(model, world, attempt, rest, name)
        return
    head, events = world.head, (attempt.event,)
    if not _owned(model, "commit", world, attempt):
        how = "done" if _mine(model, head, attempt) else "refused"
        yield Move(f"{name}final commit refused: {how}", ended(world, rest, attempt, how))
        return
    results, ids = finished(model, events)
    changed = head._replace(
        ver=head.ver + 1,
        tok=(attempt.number,),
        state=attempt.state,
        watermark=_past(head, events),
        run=None,
        out=head.out | results | _messages(attempt.post),
        fin=head.fin | ids,
    )
    asked = world._replace(problem=_trespass(world, attempt))
    done = f"{name}final commit"
    yield from _written(asked, attempt, rest, done, changed, lambda after: ended(after, rest, attempt, "done"))
