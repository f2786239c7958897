"""The protocol with one clause missing: each mutant must be noticed by some law, or be listed as equivalent.

Owns the list of clauses, what is tried against each, and the arguments for the equivalent ones. Does not own the
clauses (`tenuto.lane.transitions`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from tests.simulation import exhaustive
from tests.simulation.runner import Verdict, judge, judge_seed

EQUIVALENT: dict[str, str] = {
    "spec.idle": "`ver` rises with every claim, so a head whose `ver` is as seen has the run that was seen: none",
    "claim.idle": "as spec.idle",
    "spec.watermark": "the watermark only moves together with `ver`, so it is what was seen, and that was checked",
    "claim.watermark": "as spec.watermark",
    "suspend.ans": "a slot is put after a guard, and whoever follows the guard resumes the suspended run",
    "takeover.run": "a run begins and ends only in writes that raise `ver`, which is compared as well",
    "slot.run": "a slot's attribute carries the `ver` of its run's claim, so no other run can take it for its own",
    "clear.idle": "a run begins only in a write that raises `ver`, which is compared as well",
    "takeover.ver": "a second takeover only fences the first; the fenced attempt stops at its next write",
    "inbox.over": "an item that is put back once more is found to be done, since its result is stored by then",
    "cursor.further": "a cursor that moves back only has buckets looked at again that were found empty before",
    "clear.ver": "`pend` is unique per mark: one that is still there was seen before the inbox was found empty",
}
"""Clauses whose removal nobody can notice, each with the argument (after the protocol's model, which found the
same)."""

DEADLY: dict[str, tuple[str, ...]] = {
    "spec.ver": ("events while taken", "send"),
    "claim.ver": ("steps in a batch", "step and sleep"),
    "checkpoint.ver": ("steps", "together and race", "step and sleep"),
    "suspend.ver": ("step and sleep",),
    "commit.ver": ("steps", "step and sleep"),
    "slot.free": ("awakeable",),
    "inbox.absent": ("send", "send from a claimed run", "delayed send"),
}
"""Clauses that must be missed, and the small scenarios most likely to miss them, tried first."""

SEEDS_FIRST = 50_000
PROFILES: tuple[str | None, ...] = ("zombies", "churn", "zombies", "churn", "heavy")


@dataclass(frozen=True, slots=True)
class Kill:
    """How a mutant was noticed, and after how many runs."""

    label: str
    verdict: Verdict | None
    runs: int


def hunt(label: str, seconds: float) -> Kill:
    """Try a mutant until a law notices it that holds with the clause, or the time is up."""
    deadline = time.monotonic() + seconds
    runs = 0
    without = frozenset([label])
    for name in DEADLY.get(label, ()):
        for title, scenario in exhaustive.cases(name):
            if time.monotonic() > deadline:
                return Kill(label, None, runs)
            runs += 1
            verdict = judge(title, "", replace(scenario, without=without))
            if verdict.problem is not None and judge(title, "", scenario).problem is None:
                return Kill(label, verdict, runs)
    seed = SEEDS_FIRST
    while time.monotonic() < deadline:
        runs += 1
        profile = PROFILES[seed % len(PROFILES)]
        verdict = judge_seed(seed, profile, without)
        if verdict.problem is not None and judge_seed(seed, profile).problem is None:
            return Kill(label, verdict, runs)
        seed += 1
    return Kill(label, None, runs)
