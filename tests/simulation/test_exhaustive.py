"""A crash before and after writes of the small scenarios: at each write of a short one, at a share of a longer one's.

`make prove` crashes at every write of each.
"""

from __future__ import annotations

import math

import pytest

from tests.simulation import exhaustive, scenarios

CRASHES = 24
"""About so many crashes of one scenario are tried here, spread evenly over its writes."""


def stride_of(name: str) -> int:
    """Which writes are crashed at: every n-th."""
    return math.ceil(sum(1 for _ in exhaustive.cases(name)) / CRASHES)


@pytest.mark.parametrize("name", sorted(scenarios.SMALL))
def test_no_crash_at_any_write_breaks_a_law(name: str) -> None:
    problems = [v.text() for v in exhaustive.judge_all([name], stride_of(name)) if v.problem is not None]
    if problems:
        pytest.fail("\n".join(problems[:3]), pytrace=False)
