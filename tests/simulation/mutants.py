"""The protocol with one clause missing: each mutant must be noticed by some law, or be listed as equivalent.

Owns the list of clauses, what is tried against each, and the arguments for the equivalent ones. Does not own the
clauses (`tenuto.lane.transitions`).
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.simulation.runner import Verdict, judge_seed

EQUIVALENT: dict[str, str] = {
    "spec.idle": "`ver` rises with every claim, so a head whose `ver` is as seen has the run that was seen: none",
    "claim.idle": "as spec.idle",
    "spec.watermark": "the watermark only moves together with `ver`, so it is what was seen, and that was checked",
    "claim.watermark": "as spec.watermark",
    "suspend.ans": "a slot is put after a guard, and who follows the guard finds it, or a mark that the list lacks",
    "takeover.run": "a run begins and ends only in writes that raise `ver`, which is compared as well",
    "slot.free": "an answer that fills a slot leaves a mark, which the head that was read with the slot free lacks",
    "slot.run": "a slot's attribute carries the `ver` of its run's claim, so no other run can take it for its own",
    "clear.idle": "a run begins only in a write that raises `ver`, which is compared as well",
    "join.pend": "no event in the inbox comes before the next one of a batch, whose watermark says so",
    "nap.awake": "a nap over a suspension leaves it one, with its timer",
    "inbox.over": "an item that is put back once more is found to be done, since its result is stored by then",
    "cursor.further": "a cursor that moves back only has buckets looked at again that were found empty before",
    "redrive.live": "a letter that was dealt with in between is a tombstone, which the time of a redrive leaves one",
    "clear.ver": "`pend` is unique per mark: one that is still there was seen before the inbox was found empty",
}
"""Clauses whose removal nobody can notice, each with the argument (after the protocol's model, which found the
same)."""

DEADLY: dict[str, str] = {
    "spec.ver": "churn",
    "claim.ver": "churn",
    "checkpoint.ver": "bulk",
    "suspend.ver": "zombies",
    "commit.ver": "zombies",
}
"""Clauses that random schedules miss, and the profile whose seeds miss them soonest."""

SEEDS_FIRST = 50_000
RUNS_MAX = 400
"""Several times what any hunt needs. Counted in runs, so that a busy machine finds what an idle one does."""


@dataclass(frozen=True, slots=True)
class Kill:
    """How a mutant was noticed, and after how many runs."""

    label: str
    verdict: Verdict | None
    runs: int


def hunt(label: str, runs_max: int = RUNS_MAX) -> Kill:
    """Try a mutant until a law notices it that holds with the clause, or `runs_max` seeds have not."""
    profile = DEADLY[label]
    for n in range(runs_max):
        seed = SEEDS_FIRST + n
        verdict = judge_seed(seed, profile, frozenset([label]))
        if verdict.problem is not None and judge_seed(seed, profile).problem is None:
            return Kill(label, verdict, n + 1)
    return Kill(label, None, runs_max)
