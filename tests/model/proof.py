"""The proof on the model, for `make prove` and, in small, for `make test`.

Owns the budgets: how many states each scenario is explored to. Does not own scenarios, laws or mutants.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.model.mutants import DEADLY, EQUIVALENT, TOGETHER, Hunt, hunt
from tests.model.programs import SCENARIOS
from tests.model.rules import Rules
from tests.model.search import Result, explore
from tests.model.state import Model

STATES_MAX = 40_000
"""Of each scenario in `make prove`: most are exhausted before, the others are searched breadth first as far as that."""

QUICK_STATES_MAX = 2_500
"""Of each scenario and mutant in `make test`."""


@dataclass(frozen=True, slots=True)
class Proof:
    """One part of the proof: what was explored, what is wrong with it (None: nothing), and a line about it."""

    name: str
    problem: str | None
    line: str


def scenario(name: str, states_max: int) -> Result:
    """Explore a scenario."""
    return explore(Model(SCENARIOS[name], Rules()), states_max)


def prove(states_max: int = STATES_MAX) -> Iterator[Proof]:
    """All scenarios, then all mutants."""
    for name in SCENARIOS:
        began = time.monotonic()
        result = scenario(name, states_max)
        line = f"{name}: {result.text()}, {time.monotonic() - began:.0f} s"
        yield Proof(f"model, {name}", None if result.problem is None else result.text(), line)
    for label, target in DEADLY.items():
        yield _missed(label, target, hunt((label,), target))
    for labels, target in TOGETHER.items():
        yield _missed(" and ".join(labels), target, hunt(labels, target))
    for label, argument in EQUIVALENT.items():
        yield Proof(f"model without {label}", None, f"without {label}: equivalent, {argument}")


def _missed(label: str, target: Hunt, result: Result) -> Proof:
    """A mutant has to break the law that is on record for it."""
    name, found = f"model without {label}", result.problem or "no law"
    line = f"without {label}: missed by {found.partition(':')[0]} in {target.scenario!r}, {result.states:,} states"
    return Proof(name, None if found.startswith(f"{target.law}:") else f"expected {target.law}, broke {found}", line)
