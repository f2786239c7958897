"""A quick share of the model's proof for every test run: the first states of each scenario, and the quick mutants.

`make prove` explores further (`tests.model.proof`).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tenuto.lane.writes import Delete
from tests.model.laws import at_rest
from tests.model.mutants import DEADLY, EQUIVALENT, TOGETHER, hunt
from tests.model.programs import SCENARIOS, Faults
from tests.model.proof import QUICK_STATES_MAX, scenario
from tests.model.rules import CLAUSES, LABELS, Rules
from tests.model.search import explore
from tests.model.state import Model, initial
from tools.draw_protocol import ROWS

NOT_MODELLED = {
    "result.absent": "the place of a delayed call's result",
    "timer.absent": "the timer of a delayed call",
    "inbox.over": "a tombstone that has outlived the result of its call",
    "letter.absent": "a dead letter",
    "redrive.live": "a dead letter that is run again",
    "redrive.first": "a dead letter that is run again",
    "cursor.further": "the cursor of the sweep",
    "continuation.over": "who waits for a lane: a matter of cost, which no law of the lane rests on",
    "continuation.own": "who waits for a lane, as well",
}
"""Clauses of writes that the model leaves to the simulation."""

SLOW = {
    "clear.pend",
    "guard.nonce",
    "guard.spill",
    "inbox.passed",
    "mark.unique",
    "slot.run",
    "spec.clear",
    "suspend.stands",
}
QUICK = sorted(label for label in DEADLY if label not in SLOW)


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_law_breaks_in_the_first_states(name: str) -> None:
    result = scenario(name, QUICK_STATES_MAX)
    assert result.problem is None, result.text()


@pytest.mark.parametrize("name", ["steps", "two events", "call", "event sends"])
def test_without_faults_every_way_leads_to_an_end(name: str) -> None:
    quiet = replace(SCENARIOS[name], faults=Faults(0, 0, 0, 0, 0, total=0))
    result = explore(Model(quiet, Rules()), QUICK_STATES_MAX)
    assert result.exhausted
    assert result.problem is None, result.text()


@pytest.mark.parametrize("label", QUICK)
def test_a_missing_rule_is_missed(label: str) -> None:
    target = DEADLY[label]
    found = hunt((label,), target).problem
    assert found is not None
    assert found.startswith(f"{target.law}:")


@pytest.mark.parametrize("labels", TOGETHER)
def test_rules_that_stand_in_for_each_other_are_missed_together(labels: tuple[str, ...]) -> None:
    target = TOGETHER[labels]
    found = hunt(labels, target).problem
    assert found is not None
    assert found.startswith(f"{target.law}:")


def test_every_rule_is_deadly_or_argued_to_be_equivalent() -> None:
    together = {label for labels in TOGETHER for label in labels}
    assert sorted([*DEADLY, *EQUIVALENT]) == sorted(LABELS)
    assert together <= LABELS.keys()


def test_the_model_knows_the_clauses_of_the_code() -> None:
    samples = [row.sample for row in ROWS]
    labels = {clause.label for write in samples if not isinstance(write, Delete) for clause in write.conditions}
    assert labels == CLAUSES.keys() | NOT_MODELLED.keys()


def test_a_world_with_work_is_not_at_rest() -> None:
    model = Model(SCENARIOS["steps"], Rules())
    result = explore(model, QUICK_STATES_MAX)
    assert result.states > 1
    assert not at_rest(model, initial(model.scenario))


def test_a_rule_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no such rule"):
        Rules(frozenset({"checkpoint.verr"}))
