"""A crash before and after every write of the small scenarios; the two that write most are left to `make prove`."""

from __future__ import annotations

import pytest

from tests.simulation import exhaustive, scenarios

LARGE = {"long journal", "events while taken"}


@pytest.mark.parametrize("name", sorted(scenarios.SMALL))
def test_no_crash_at_any_write_breaks_a_law(name: str) -> None:
    stride = 7 if name in LARGE else 1
    problems = [v.text() for v in exhaustive.judge_all([name], stride) if v.problem is not None]
    if problems:
        pytest.fail("\n".join(problems[:3]), pytrace=False)
