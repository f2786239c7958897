"""Large journals, values that fit nowhere or cannot be read, and messages that fail: the quick share of the proof.

Owns seeds of the profile "bulk", and the law about messages that failed for good. Does not own their scenarios
(`scenarios`).
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from tenuto.lane.head import HEAD_SK, parse_head
from tests.simulation import scenarios
from tests.simulation.oracles import Table
from tests.simulation.programs import Repeat
from tests.simulation.runner import judge_seed, quiet
from tests.simulation.world import Scenario, run

SEEDS = 16
DOOMED = "a message that fails for good"


@pytest.mark.parametrize("seed", range(300, 300 + SEEDS))
def test_every_law_holds_with_bulk(seed: int) -> None:
    verdict = judge_seed(seed, "bulk")
    if verdict.problem is not None:
        pytest.fail(verdict.text(), pytrace=False)


def test_what_is_drawn_has_each_of_them() -> None:
    ops = {type(op).__name__ for seed in range(20) for play in scenarios.drawn(seed, "bulk").programs for op in play}
    assert {"AskBefore", "Overfill", "Doom"} <= ops
    assert any(d.program is None for seed in range(20) for d in scenarios.drawn(seed, "bulk").deliveries)
    assert scenarios.drawn(0, "bulk").large_answers


def test_seeds_beside_and_with_bulk_are_drawn() -> None:
    bulky = [
        seed for seed in range(40) if any(type(o).__name__ == "Doom" for p in scenarios.drawn(seed).programs for o in p)
    ]
    assert bulky == [5, 15, 25, 35]
    assert [seed for seed in range(9) if scenarios.drawn(seed).hops] == [1, 4, 7]
    assert [seed for seed in range(14) if scenarios.drawn(seed).large_answers] == [1, 5, 6, 11]
    assert [seed for seed in range(14) if crowded(scenarios.drawn(seed))] == [4, 13]


def crowded(scenario: Scenario) -> bool:
    """Whether some handler sends more messages at once than one write of the head takes."""
    return any(isinstance(op, Repeat) and op.times == scenarios.CROWD for play in scenario.programs for op in play)


def sent(table: Table) -> set[str]:
    """The messages that had to fail: what is to be kept, and nothing else."""
    states = (parse_head(item).state for (pk, sk), item in table.items() if sk == HEAD_SK and not pk.startswith("R#"))
    return {i for state in states for i in msgspec.json.decode(state.get("doomed", b"[]"), type=list[str])}


def test_a_message_that_failed_for_good_has_to_be_kept() -> None:
    quiet()
    scenario = scenarios.SMALL[DOOMED]
    assert run(scenario).passed
    lost = run(replace(scenario, kept=lambda _table: ()))
    assert [violation.law for violation in lost.violations] == ["liveness"]
    assert "is not kept" in lost.violations[0].text


def test_a_sound_message_may_not_be_kept() -> None:
    quiet()
    wrong = run(replace(scenarios.SMALL[DOOMED], kept=lambda table: {*sent(table), "sound"}))
    assert [violation.law for violation in wrong.violations] == ["nothing-lost"]
