"""Each clause of the protocol's conditions is missed when it is left out; `make prove` gives the hunts more time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tenuto.lane.transitions
from tests.simulation.directed import DIRECTED
from tests.simulation.mutants import DEADLY, EQUIVALENT, hunt

QUICK = ("commit.ver", "inbox.absent", "spec.ver")
SECONDS = 20.0


def test_every_clause_is_either_deadly_or_argued_to_be_equivalent() -> None:
    source = Path(tenuto.lane.transitions.__file__).read_text("utf-8")
    labels = set(re.findall(r'"((?:spec|checkpoint|suspend|takeover|commit|slot|inbox|clear)\.[a-z]+)"', source))
    for way in ("spec", "claim"):
        labels |= {f"{way}.{name}" for name in re.findall(r'f"\{name\}\.([a-z]+)"', source)}
    assert sorted(labels) == sorted([*DEADLY, *EQUIVALENT, *DIRECTED])


@pytest.mark.parametrize("label", QUICK)
def test_a_missing_clause_is_noticed(label: str) -> None:
    kill = hunt(label, SECONDS)
    assert kill.verdict is not None, f"nobody missed {label} in {kill.runs} runs"


@pytest.mark.parametrize("label", DIRECTED)
def test_a_schedule_breaks_without_its_clause_and_only_then(label: str) -> None:
    DIRECTED[label](frozenset())
    with pytest.raises(AssertionError):
        DIRECTED[label](frozenset([label]))
