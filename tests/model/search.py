"""All states that a model can reach, breadth first, so that the first broken law comes with a shortest history.

Owns the exploration, its bound, and liveness: from every state an end must be within reach without further faults. Does
not own moves or laws.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.model.laws import at_rest, broken
from tests.model.moves import moves
from tests.model.state import Model, World, initial


@dataclass(frozen=True, slots=True)
class Result:
    """What came of an exploration. `exhausted`: every reachable state was seen, so that liveness was judged as well."""

    states: int
    exhausted: bool
    problem: str | None = None
    history: tuple[str, ...] = ()

    def text(self) -> str:
        """For people."""
        if self.problem is None:
            return f"{self.states:,} states{'' if self.exhausted else ', bounded'}"
        return "\n".join([f"{self.problem}, after {self.states:,} states", *(f"    {step}" for step in self.history)])


@dataclass(slots=True)
class _Graph:
    """The states seen, in the order of their distance; who led there, and who can be reached from without a fault."""

    worlds: list[World]
    number: dict[World, int]
    parents: list[tuple[int, str] | None]
    sources: list[list[int]]
    ends: list[int]

    def history(self, number: int) -> tuple[str, ...]:
        """The shortest way to a state."""
        steps: list[str] = []
        while (parent := self.parents[number]) is not None:
            number, label = parent
            steps.append(label)
        return tuple(reversed(steps))


def explore(model: Model, states_max: int) -> Result:
    """Visit the states of a model until a law breaks, all are seen, or there are more than `states_max`."""
    start = initial(model.scenario)
    graph = _Graph([start], {start: 0}, [None], [[]], [])
    at = 0
    while at < len(graph.worlds):
        if len(graph.worlds) > states_max:
            return Result(len(graph.worlds), exhausted=False)
        world = graph.worlds[at]
        if at_rest(model, world):
            graph.ends.append(at)
        for label, after, fault in moves(model, world):
            known = graph.number.get(after)
            if known is None:
                known = len(graph.worlds)
                graph.number[after] = known
                graph.worlds.append(after)
                graph.parents.append((at, label))
                graph.sources.append([])
                new = True
            else:
                new = False
            if (problem := broken(model, world, after)) is not None:
                history = graph.history(known) if new else (*graph.history(at), label)
                return Result(len(graph.worlds), exhausted=False, problem=problem, history=history)
            if not fault:
                graph.sources[known].append(at)
        at += 1
    return _judged(model, graph)


def _judged(model: Model, graph: _Graph) -> Result:
    """Whether an end can be reached from everywhere without a fault."""
    alive = bytearray(len(graph.worlds))
    left = list(graph.ends)
    for end in left:
        alive[end] = 1
    while left:
        for source in graph.sources[left.pop()]:
            if not alive[source]:
                alive[source] = 1
                left.append(source)
    dead = [n for n in range(len(graph.worlds)) if not alive[n]]
    if not dead:
        return Result(len(graph.worlds), exhausted=True)
    # One that really stands still says more than the first from which all ways lead there.
    still = next((n for n in dead if _still(model, graph.worlds[n])), dead[0])
    world = graph.worlds[still]
    history = (*graph.history(still), f"then: {world}")
    return Result(len(graph.worlds), exhausted=True, problem="liveness: no way to an end", history=history)


def _still(model: Model, world: World) -> bool:
    return all(fault or after == world for _, after, fault in moves(model, world))
