"""A control plane's look at inbox and timers: drain, tombstones, the mark, and which timers are needed no more.

Owns writes 12, 13, 14 and 18. Does not own when it looks (`dispatchers`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

from tests.model import dispatchers
from tests.model.state import Dispatcher, GuardTimer, Head, Model, Move, SleepTimer, Timer, World, with_dispatcher

Inbox = tuple[tuple[tuple[str, str], str], ...]


def moves(model: Model, world: World, n: int, me: Dispatcher, name: str) -> Iterator[Move]:
    """The steps of a look that has begun."""
    head = world.head
    back = dispatchers.idle(me)
    match me.at:
        case "query":
            yield from judge(model, world, n, me, world.inbox, name)
        case "tombstone":
            assert me.event is not None
            inbox = dict(world.inbox)
            if "inbox.tombstone" in model.rules:
                inbox["m", me.event] = "done"
            else:
                inbox.pop(("m", me.event), None)
            after = world._replace(inbox=tuple(sorted(inbox.items())))
            yield Move(f"{name}tombstone of {me.event}", with_dispatcher(after, n, me._replace(at="forget")))
        case "forget":
            after = world._replace(head=head._replace(fin=head.fin - {me.event or ""}))
            yield Move(f"{name}forgets that {me.event} is finished", with_dispatcher(after, n, back))
        case "delete item":
            inbox = dict(world.inbox)
            inbox.pop(("k", me.event or ""), None)
            after = world._replace(inbox=tuple(sorted(inbox.items())))
            yield Move(f"{name}deletes the item of {me.event}", with_dispatcher(after, n, back))
        case "clear":
            yield _clear(model, world, n, me, name)
        case "again":
            assert me.head is not None
            same = head.ver == me.head.ver and not head.out
            step = me._replace(at="delete", head=None) if same else back
            yield Move(f"{name}reads again: {'the same' if same else 'changed'}", with_dispatcher(world, n, step))
        case "delete":
            after = world._replace(timers=world.timers - {me.timer} if me.timer else world.timers)
            yield Move(f"{name}deletes {me.timer}", with_dispatcher(after, n, back))
        case _:
            raise AssertionError(me.at)


def _clear(model: Model, world: World, n: int, me: Dispatcher, name: str) -> Move:
    """Write 12."""
    seen, head, rules = me.head, world.head, model.rules
    assert seen is not None
    holds = (
        ("clear.ver" not in rules or head.ver == seen.ver)
        and ("clear.pend" not in rules or head.pend == seen.pend)
        and ("clear.idle" not in rules or head.run is None)
    )
    back = dispatchers.idle(me)
    if holds:
        return Move(f"{name}clears the mark", with_dispatcher(world._replace(head=head._replace(pend=None)), n, back))
    return Move(f"{name}clearing refused", with_dispatcher(world, n, back))


def judge(model: Model, world: World, n: int, me: Dispatcher, inbox: Inbox, name: str) -> Iterator[Move]:
    """What an inbox holds, beside the head that was read before."""
    head = me.head
    assert head is not None
    me = Dispatcher("idle", me.pos, dirty=True, ended=me.ended)
    live = [position for position, how in inbox if how == "live"]
    firsts = live if "inbox.order" not in model.rules else [p for p in live if p[0] not in _kinds_before(live, p)]
    for kind, event in firsts:
        if kind == "k" and "inbox.passed" in model.rules and dispatchers.is_passed(head, event):
            gone = me._replace(at="delete item", event=event, ended=frozenset())
            yield Move(f"{name}finds {event} below the watermark", with_dispatcher(world, n, gone))
        elif kind == "m" and (event in head.fin or (event[0] == "r" and event in world.results)):
            over = me._replace(at="tombstone", event=event, ended=frozenset())
            yield Move(f"{name}finds {event} finished", with_dispatcher(world, n, over))
        else:
            clears = head.pend is not None and len(live) == 1
            yield from dispatchers.drains(model, world, n, me, event, head, name, clears=clears)
    if live:
        return
    if head.pend is not None:
        seen = Head(ver=head.ver, pend=head.pend)
        step = me._replace(at="clear", head=seen, ended=frozenset())
        yield Move(f"{name}finds the inbox empty", with_dispatcher(world, n, step))
        return
    yield from _timers(model, world, n, me, head, inbox, name)


def _kinds_before(live: list[tuple[str, str]], position: tuple[str, str]) -> set[str]:
    return {kind for kind, _ in live[: live.index(position)]}


def sleeps(model: Model, world: World, n: int, me: Dispatcher, name: str) -> Iterator[Move]:
    """A sleep's timer is put after its invocation's claim, so the head alone says when it is over."""
    for timer in sorted(world.timers):
        if isinstance(timer, SleepTimer) and _unneeded(model, world.head, timer, frozenset()):
            over = me._replace(at="delete", timer=timer)
            yield Move(f"{name}finds the sleep of {timer.event} over", with_dispatcher(world, n, over))


def _timers(model: Model, world: World, n: int, me: Dispatcher, head: Head, inbox: Inbox, name: str) -> Iterator[Move]:
    """Timers that nothing needs any more, and finished ids whose tombstone or result is there."""
    guards = sorted(timer for timer in world.timers if isinstance(timer, GuardTimer))
    done = [timer for timer in guards if _unneeded(model, head, timer, me.ended)]
    again = "sweep.again" in model.rules
    for timer in done:
        apart = me._replace(timer=timer, ended=frozenset())
        step = apart._replace(at="again", head=Head(ver=head.ver)) if again else apart._replace(at="delete")
        yield Move(f"{name}finds {timer} over at ver {head.ver}", with_dispatcher(world, n, step))
    states = dict(inbox)
    for event in sorted(head.fin):
        if states.get(("m", event)) == "done" or event in world.results:
            forgets = me._replace(at="forget", event=event, ended=frozenset())
            yield Move(f"{name}finds {event} kept for nothing", with_dispatcher(world, n, forgets))
    if not done and not head.fin:
        rests = me._replace(dirty=False, ended=frozenset())
        yield Move(f"{name}sweeps and finds nothing", with_dispatcher(world, n, rests))


def _unneeded(model: Model, head: Head, timer: Timer, ended: frozenset[Timer]) -> bool:
    """Whether a timer has nothing left to drive, by the head that was read; no live item waits."""
    if head.run is not None and head.run.event == timer.event:
        return False
    if head.out and "sweep.out" in model.rules:
        return False
    # By no clock: the guarded write may come while the head is at the ver that it expects.
    match timer:
        case SleepTimer():
            return True
        case GuardTimer(ver=ver):
            return not (ver == head.ver and timer not in ended and "guard.ver" in model.rules)
        case _:
            assert_never(timer)
