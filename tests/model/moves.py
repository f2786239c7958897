"""Everything that may happen next in a world.

Owns the environment: crashes, rebalances, time. Collects the moves of all processes. Does not own theirs.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model import attempts, dispatchers, outside
from tests.model.state import Dispatcher, Model, Move, SleepTimer, World, spend, with_dispatcher, with_nap


def moves(model: Model, world: World) -> Iterator[Move]:
    """Every move, to worlds in their simplest form."""
    for move in _moves(model, world):
        simplest = _simplest(model, move.world)
        yield move if simplest is move.world else move._replace(world=simplest)


def _moves(model: Model, world: World) -> Iterator[Move]:
    yield from _environment(model, world)
    for attempt in world.attempts:
        yield from attempts.moves(model, world, attempt)
    for n, dispatcher in enumerate(world.dispatchers):
        if dispatcher is not None:
            yield from dispatchers.moves(model, world, n, dispatcher)
    for n, caller in enumerate(world.callers):
        if caller is not None:
            yield from outside.calls(model, world, n, caller)
    for n, shipper in enumerate(world.shippers):
        if shipper is not None:
            yield from outside.ships(model, world, n, shipper)
    yield from outside.ship_starts(world)
    for n, resolver in enumerate(world.resolvers):
        yield from outside.answers(model, world, n, resolver)


def _environment(model: Model, world: World) -> Iterator[Move]:
    first, second = world.dispatchers
    restarted = Dispatcher("idle", world.committed)
    if model.scenario.cached and second is None and first is not None and world.head.ver and world.budget.rebalance:
        standby = Dispatcher("standby", 0, head=world.head)
        yield Move(f"standby B keeps the head of ver {world.head.ver}", with_dispatcher(world, 1, standby))
    if second is None or second.at == "standby":
        begins = restarted._replace(head=second.head) if second is not None else restarted
        moved = spend(world, "rebalance")
        if first is None:
            yield Move("B begins at the committed offset", with_dispatcher(world._replace(owner=1), 1, begins))
        elif moved is not None:
            after = with_dispatcher(moved._replace(owner=1), 1, begins)
            yield Move("rebalance: B owns the partition, A goes on", after, fault=True)
    crashed = spend(world, "crash")
    if crashed is not None and first is not None:
        yield Move("A crashes", with_nap(with_dispatcher(crashed, 0, None), 0, None), fault=True)
    if crashed is not None and first is None and second not in (None, restarted):
        yield Move("B crashes and restarts", with_nap(with_dispatcher(crashed, 1, restarted), 1, None), fault=True)
    naps = world.head.run is not None and world.head.run.nap is not None
    if not world.due and (naps or any(isinstance(timer, SleepTimer) for timer in world.timers)):
        yield Move("the sleep is due", world._replace(due=True))


def _simplest(model: Model, world: World) -> World:
    """Drop what makes no difference any more, so that equal futures are one state."""
    head = world.head
    unsure = any(a.lost for a in world.attempts) or any(d is not None and d.lost for d in world.dispatchers)
    if head.tok is not None and not unsure and not world.budget.lost:
        world = world._replace(head=head._replace(tok=None))
    if world.items:
        listed = set(head.run.segments if head.run else ())
        listed |= {name for attempt in world.attempts for name, _ in attempt.put}
        world = world._replace(items=tuple(item for item in world.items if item[0] in listed))
    if model.scenario.call is None and world.accepted:
        world = world._replace(accepted=frozenset())
    return world
