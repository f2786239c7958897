"""A quick share of the proof for every test run: some random seeds, each named so that it replays."""

from __future__ import annotations

import pytest

from tests.simulation import scenarios
from tests.simulation.runner import judge_seed
from tests.simulation.world import run

SEEDS = 16


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_law_holds_for_this_seed(seed: int) -> None:
    verdict = judge_seed(seed)
    if verdict.problem is not None:
        pytest.fail(verdict.text(), pytrace=False)


@pytest.mark.parametrize("seed", range(100, 100 + SEEDS))
def test_every_law_holds_under_heavy_faults(seed: int) -> None:
    verdict = judge_seed(seed, "heavy")
    if verdict.problem is not None:
        pytest.fail(verdict.text(), pytrace=False)


def test_a_seed_replays_to_the_same_history() -> None:
    scenario = scenarios.drawn(7, "heavy")
    first, second = run(scenario), run(scenario)
    assert first.trace == second.trace
    assert first.requests == second.requests
