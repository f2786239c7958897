"""Every small scenario with a crash before and after every single write, of the function and of the control plane.

Owns the enumeration. Does not own the scenarios (`scenarios.SMALL`) nor the crash itself (`gate`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.simulation import scenarios
from tests.simulation.gate import CrashPoint
from tests.simulation.runner import Verdict, judge, quiet
from tests.simulation.world import Scenario, run

WRITES_MAX = 400
"""More writes than any small scenario makes; beyond it, one is not small."""


def cases(name: str, stride: int = 1) -> Iterator[tuple[str, Scenario]]:
    """The scenario with each crash; `stride` takes every n-th write only."""
    quiet()
    scenario = scenarios.SMALL[name]
    writes = run(scenario).writes
    for role in ("function", "control"):
        count = writes[role]
        assert count <= WRITES_MAX, f"{name} makes {count} {role} writes"
        for number in range(1, count + 1, stride):
            for when in ("before", "after"):
                point = CrashPoint(role, number, when)
                yield f"{name}, {role} crashes {when} write {number}", replace(scenario, crash=point)


def judge_all(names: list[str], stride: int = 1) -> Iterator[Verdict]:
    """Run them."""
    for name in names:
        yield judge(name, f'python -m tests.simulation --small "{name}" --trace', scenarios.SMALL[name])
        for title, scenario in cases(name, stride):
            point = scenario.crash
            assert point is not None
            replay = f'--small "{name}" --crash {point.role}:{point.number}:{point.when} --trace'
            yield judge(title, f"python -m tests.simulation {replay}", scenario)
