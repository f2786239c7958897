"""Who meets a lane from outside: callers of the ingress, resolvers of awakeables, and a lane that sends messages.

Owns write 8, write 16 and the delivery of messages (9, 10, 11). Does not own what the lane does with them.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.attempts import started
from tests.model.programs import Answer
from tests.model.state import (
    Caller,
    GuardTimer,
    Head,
    Model,
    Move,
    Resolver,
    Shipper,
    World,
    accepted,
    fresh_number,
    marked,
    readable,
    slot,
    spend,
    told,
    with_slots,
)

POINTER = 200
"""Added to an answer's value when the slot holds a pointer to an item of its own."""


# --- callers -------------------------------------------------------------------------------------------------------


def calls(model: Model, world: World, n: int, me: Caller) -> Iterator[Move]:
    """What a caller's process does next."""
    name, call = f"caller {n}: ", model.scenario.call
    assert call is not None

    def now(after: World, caller: Caller | None) -> World:
        return after._replace(callers=(*after.callers[:n], caller, *after.callers[n + 1 :]))

    if me.at != "start" and (crashed := spend(world, "crash")) is not None:
        yield Move(f"{name}crashes", now(crashed, None), fault=True)
    match me.at:
        case "start":
            if "result.after_head" in model.rules:
                read = Caller("result", head=world.head)
            else:
                read = Caller("head", stored=call in world.results)
            yield Move(f"{name}reads", now(world, read))
        case "result":
            assert me.head is not None
            yield from _decides(model, world, n, me.head, name, stored=call in world.results)
        case "head":
            yield from _decides(model, world, n, world.head, name, stored=me.stored)
        case "told":
            yield _told(model, world, n, me, name)
        case "waits":
            if not any(a.number == me.holder for a in world.attempts):
                yield Move(f"{name}invocation failed, looks again", now(world, Caller()))
        case _:
            yield _keeps(model, world, n, me, name)


def _told(model: Model, world: World, n: int, me: Caller, name: str) -> Move:
    """The function has answered."""

    def now(caller: Caller | None) -> World:
        return world._replace(callers=(*world.callers[:n], caller, *world.callers[n + 1 :]))

    if me.said == "suspended":
        return Move(f"{name}answers 202", told(now(None)))
    if me.said == "done" and "result.stored" not in model.rules:
        return Move(f"{name}answers", now(None))
    return Move(f"{name}hears {me.said!r}, looks again", now(Caller()))


def _keeps(model: Model, world: World, n: int, me: Caller, name: str) -> Move:
    """Writes that make the call durable, or its result."""
    call, head = model.scenario.call, world.head
    assert call is not None

    def now(after: World, caller: Caller | None) -> World:
        return after._replace(callers=(*after.callers[:n], caller, *after.callers[n + 1 :]))

    match me.at:
        case "store":
            return Move(f"{name}puts the result", now(world._replace(results=world.results | {call}), Caller("trim")))
        case "trim":
            trimmed = head._replace(out=head.out - {("R", call)}, fin=head.fin - {call})
            return Move(f"{name}trims the result", now(world._replace(head=trimmed), None))
        case "item":
            return Move(f"{name}puts the item", now(accepted(model, world, ("m", call)) or world, Caller("guard")))
        case "guard":
            guards = {GuardTimer(call)} if "guard.message" in model.rules else set()
            return Move(f"{name}guards", now(world._replace(timers=world.timers | guards), Caller("mark")))
        case _:
            after = marked(model, world, call)
            done = after._replace(accepted=after.accepted | {call})
            return Move(f"{name}marks, answers 202", told(now(done, None)))


def _decides(model: Model, world: World, n: int, head: Head, name: str, *, stored: bool) -> Iterator[Move]:
    call = model.scenario.call
    assert call is not None

    def now(after: World, caller: Caller | None) -> World:
        return after._replace(callers=(*after.callers[:n], caller, *after.callers[n + 1 :]))

    if ("R", call) in head.out:
        yield Move(f"{name}answers from the outbox", now(world, Caller("store")))
    elif stored:
        yield Move(f"{name}answers what is stored", now(world, None))
    elif head.run is not None and head.run.event == call:
        yield Move(f"{name}attaches", told(now(world, None)))
    elif head.run is not None or head.pend is not None or head.out:
        yield Move(f"{name}finds the lane busy", now(world, Caller("item")))
    elif len(world.attempts) < model.scenario.attempts_max:
        number = fresh_number(world)
        begun = started(model, world, number, "call", (call,), head)
        yield Move(f"{name}invokes f{number} at ver {head.ver}", now(begun, Caller("waits", holder=number)))


# --- a sending lane ------------------------------------------------------------------------------------------------


def ships(model: Model, world: World, n: int, me: Shipper) -> Iterator[Move]:
    """What a shipper of the sending lane does next."""
    name = f"shipper {n}: "

    def now(after: World, shipper: Shipper | None) -> World:
        return after._replace(shippers=(*after.shippers[:n], shipper, *after.shippers[n + 1 :]))

    if (crashed := spend(world, "crash")) is not None:
        yield Move(f"{name}crashes", now(crashed, None), fault=True)
    if me.done >= len(me.todo):
        yield Move(f"{name}is done", now(world, None))
        return
    event = me.todo[me.done]
    match me.at:
        case "item":
            after = accepted(model, world, ("m", event))
            if after is not None:
                yield Move(f"{name}puts {event}", now(after, me._replace(at="guard")))
            elif dict(world.inbox)["m", event] == "done" or "mark.again" not in model.rules:
                yield Move(f"{name}finds {event} taken", now(world, me._replace(at="clear")))
            else:
                yield Move(f"{name}finds {event} there", now(world, me._replace(at="guard")))
        case "guard":
            guards = {GuardTimer(event)} if "guard.message" in model.rules else set()
            after = world._replace(timers=world.timers | guards)
            yield Move(f"{name}guards {event}", now(after, me._replace(at="mark")))
        case "mark":
            after = marked(model, world, event)
            yield Move(f"{name}marks for {event}", told(now(after, me._replace(at="clear"))))
        case _:
            left = tuple(e for e in world.outbox if e != event)
            after = now(world._replace(outbox=left), Shipper("item", me.todo, me.done + 1))
            yield Move(f"{name}clears {event} from the sender's outbox", after)


def ship_starts(world: World) -> Iterator[Move]:
    """The sender's outbox is shipped by one process, or by two at once."""
    free = [n for n, shipper in enumerate(world.shippers) if shipper is None]
    alone = len(free) == len(world.shippers)
    after = world if alone else spend(world, "shippers")
    if not world.outbox or not free or after is None:
        return
    n = free[0]
    begun = (*after.shippers[:n], Shipper("item", world.outbox), *after.shippers[n + 1 :])
    yield Move(f"shipper {n} begins", after._replace(shippers=begun), fault=not alone)


# --- resolvers -----------------------------------------------------------------------------------------------------


def answers(model: Model, world: World, n: int, me: Resolver) -> Iterator[Move]:
    """What somebody with an answer does next."""
    answer = model.scenario.answers[n]
    name = f"answer {answer.name}: "

    def now(after: World, resolver: Resolver) -> World:
        return after._replace(resolvers=(*after.resolvers[:n], resolver, *after.resolvers[n + 1 :]))

    head = world.head
    there = head.run is not None and head.run.event == answer.event
    match me.at:
        case "start":
            if there and head.run is not None:
                run = head.run
                if slot(run.slots, answer.slot) is not None or answer.slot in run.took:
                    yield Move(f"{name}finds it given", now(world, Resolver("done")))
                    return
                inline = sum(k.startswith("aw") and v < POINTER for k, v in run.slots)
                most = model.scenario.inline_max
                at = "guard" if "guard.answer" in model.rules else "put"
                yield Move(f"{name}reads the head", now(world, Resolver(at, most is None or inline < most, run.ans)))
            elif _over(model, world, answer):
                yield Move(f"{name}nobody waits", now(world, Resolver("done")))
        case "guard":
            guarded = world._replace(timers=world.timers | {GuardTimer(answer.event, note=answer.slot)})
            yield Move(f"{name}guards", now(guarded, me._replace(at="put")))
        case "put":
            yield from _answer(model, world, n, me, answer, name)
        case _:
            return


def _over(model: Model, world: World, answer: Answer) -> bool:
    """Whether the event has ended: before it has begun, nobody knows the awakeable's id."""
    last = model.programs[answer.event]
    return bool(last) and any(mark.startswith(answer.event) for mark in world.head.state)


def _answer(model: Model, world: World, n: int, me: Resolver, answer: Answer, name: str) -> Iterator[Move]:
    """Write 8."""
    rules, head = model.rules, world.head
    run = head.run

    def now(after: World, resolver: Resolver) -> World:
        return after._replace(resolvers=(*after.resolvers[:n], resolver, *after.resolvers[n + 1 :]))

    if run is None or (run.event != answer.event and "slot.run" in rules):
        yield Move(f"{name}refused, the run is over", now(world, Resolver("done")))
        return
    if slot(run.slots, answer.slot) is not None and "slot.free" in rules:
        yield Move(f"{name}refused, answered already", now(world, Resolver("done")))
        return
    if "slot.ans" in rules and run.ans != me.ans:
        yield Move(f"{name}refused, another came: reads again", now(world, Resolver()))
        return
    value = 100 + n + (0 if me.room else POINTER)
    filled = run._replace(slots=with_slots(run.slots, ((answer.slot, value),)), ans=answer.name)
    changed = head._replace(run=filled)
    if "tok.versioned" not in rules:
        changed = changed._replace(tok=(-1,))
    problem = world.problem
    if run.event != answer.event:
        problem = problem or f"one-owner: the answer for {answer.event} is in the run of {run.event}"
    elif slot(readable(world, run), answer.slot) is not None:
        problem = problem or f"immutable-journal: {answer.slot} of {answer.event} is answered a second time"
    put = now(world._replace(head=changed, problem=problem), Resolver("done"))
    yield Move(f"{name}puts {answer.slot}", told(put))
    if (unheard := spend(put, "crash")) is not None:
        yield Move(f"{name}puts {answer.slot}, hint lost", unheard, fault=True)
