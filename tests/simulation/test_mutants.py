"""Each clause of the protocol's conditions is missed when it is left out; `make prove` gives the hunts more time."""

from __future__ import annotations

import pytest

from tenuto.lane.writes import Delete
from tests.simulation.directed import DIRECTED
from tests.simulation.mutants import DEADLY, EQUIVALENT, hunt
from tools.draw_protocol import ROWS

QUICK = ("claim.ver", "commit.ver", "spec.ver")
RUNS = 60
"""Of these, one seed in two to five misses the clause."""


def test_every_clause_is_either_deadly_or_argued_to_be_equivalent() -> None:
    samples = [row.sample for row in ROWS]
    labels = {clause.label for write in samples if not isinstance(write, Delete) for clause in write.conditions}
    assert sorted(labels) == sorted([*DEADLY, *EQUIVALENT, *DIRECTED])


@pytest.mark.parametrize("label", QUICK)
def test_a_missing_clause_is_noticed(label: str) -> None:
    kill = hunt(label, RUNS)
    assert kill.verdict is not None, f"nobody missed {label} in {kill.runs} runs"


@pytest.mark.parametrize("label", DIRECTED)
def test_a_schedule_breaks_without_its_clause_and_only_then(label: str) -> None:
    DIRECTED[label](frozenset())
    with pytest.raises(AssertionError):
        DIRECTED[label](frozenset([label]))
