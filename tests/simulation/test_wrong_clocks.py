"""Control planes whose clocks are off by far, among others, until somebody puts them right.

Owns a few seeds of such worlds, and that their law misses the rule. Does not own the rule (`lane_policy`), nor
schedules of two planes (`tests/attack/test_clocks.py`).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tenuto_control.dispatcher import lane_worker
from tests.simulation import scenarios
from tests.simulation.runner import Verdict, judge

SEEDS_WITHOUT = 25
"""Without the rule, somebody takes over what it must not in every fourth or fifth seed: in which, each change of the
product shifts."""

LIKELY_SEED = 12
"""Where it happened last, in both shapes: looked at first, so that the others need not be."""


def verdict(seed: int, shape: str) -> Verdict:
    drawn = scenarios.drawn(seed, shape=shape)
    return judge(f"seed {seed}", "", replace(drawn, wrong_clock_ms=scenarios.WRONG_CLOCK_MS))


@pytest.mark.parametrize(("seed", "shape"), [(12, "always on"), (22, "always on"), (10, "scaled to zero")])
def test_every_law_holds_with_wrong_clocks(seed: int, shape: str) -> None:
    found = verdict(seed, shape)
    if found.problem is not None:
        pytest.fail(found.text(), pytrace=False)


@pytest.mark.parametrize("shape", ["always on", "scaled to zero"])
def test_without_the_rule_a_run_is_taken_over_by_a_wrong_clock(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_worker, "differs", lambda _check, _margin_ms: False)
    seeds = sorted(range(1, SEEDS_WITHOUT + 1), key=lambda seed: seed != LIKELY_SEED)
    found = (verdict(seed, shape).problem for seed in seeds)
    assert any(problem is not None and problem.startswith("clock at ") for problem in found)


def test_seeds_with_wrong_clocks_are_drawn() -> None:
    assert [seed for seed in range(30) if scenarios.drawn(seed).wrong_clock_ms] == [4, 12, 20, 28]
