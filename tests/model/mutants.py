"""The protocol of the model with one rule missing: each mutant must be found, or be equivalent by argument.

Owns the lists. Does not own the rules (`rules`). The simulation has mutants of its own, of the code
(`tests.simulation.mutants`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.model.programs import SCENARIOS, Scenario
from tests.model.rules import Rules
from tests.model.search import Result, explore
from tests.model.state import Model


@dataclass(frozen=True, slots=True)
class Hunt:
    """The scenario in which a mutant is found, the faults that takes, and the law that it breaks."""

    scenario: str
    faults: int
    law: str


STATES_MAX = 250_000
"""More states than any hunt needs; `make test` runs those that need few (QUICK_STATES_MAX)."""

DEADLY: dict[str, Hunt] = {
    "spec.ver": Hunt("call, event", 1, "order"),
    "spec.pend": Hunt("standby with an old head", 1, "order"),
    "spec.clear": Hunt("spilled beside a message", 1, "order"),
    "claim.ver": Hunt("call with a step", 1, "together"),
    "claim.pend": Hunt("standby with an old head, step", 1, "order"),
    "checkpoint.ver": Hunt("steps, zombies", 1, "one-owner"),
    "checkpoint.own": Hunt("steps, twins", 2, "one-owner"),
    "suspend.ver": Hunt("answer, zombies", 1, "one-owner"),
    "suspend.own": Hunt("steps and nap, twins", 2, "one-owner"),
    "join.ver": Hunt("steps, joined, zombies", 1, "one-owner"),
    "join.own": Hunt("nap and step, joined, twins", 1, "one-owner"),
    "nap.ver": Hunt("steps and kept nap, zombies", 2, "one-owner"),
    "nap.own": Hunt("steps and kept nap, twins", 2, "one-owner"),
    "nap.keeper": Hunt("steps and kept nap", 1, "one-owner"),
    "nap.once": Hunt("steps and kept nap", 1, "one-owner"),
    "nap.lease": Hunt("steps and kept nap", 1, "early-sleep"),
    "takeover.ver": Hunt("steps and kept nap, zombies", 1, "early-sleep"),
    "takeover.awake": Hunt("answer, zombies", 2, "driver"),
    "commit.ver": Hunt("steps", 1, "one-owner"),
    "commit.own": Hunt("step, twins", 2, "one-owner"),
    "slot.run": Hunt("answer or nap, answer", 1, "one-owner"),
    "slot.ans": Hunt("answers that fill the head", 1, "bound"),
    "inbox.absent": Hunt("message", 1, "order"),
    "result.stored": Hunt("call", 1, "order"),
    "fin.kept": Hunt("message", 1, "order"),
    "inbox.tombstone": Hunt("message", 1, "order"),
    "inbox.order": Hunt("two messages", 1, "order"),
    "inbox.passed": Hunt("nap, event", 1, "liveness"),
    "inbox.after_head": Hunt("message", 1, "order"),
    "result.after_head": Hunt("call", 1, "order"),
    "mark.again": Hunt("message", 1, "liveness"),
    "guard.message": Hunt("message", 1, "liveness"),
    "guard.call": Hunt("call with a step", 1, "driver"),
    "guard.send": Hunt("call sends", 1, "driver"),
    "guard.answer": Hunt("answer", 1, "driver"),
    "guard.spill": Hunt("nap, event", 1, "liveness"),
    "guard.nonce": Hunt("call with a step", 1, "driver"),
    "guard.ver": Hunt("call with a step", 1, "driver"),
    "timer.first": Hunt("steps and nap", 1, "driver"),
    "timer.kept": Hunt("steps and nap", 1, "driver"),
    "clear.pend": Hunt("spilled beside a message", 1, "order"),
    "mark.unique": Hunt("spilled beside a message", 1, "order"),
    "sweep.again": Hunt("message sends", 1, "driver"),
    "sweep.out": Hunt("nap, then send", 1, "driver"),
    "offset.trimmed": Hunt("event sends", 1, "driver"),
    "offset.run": Hunt("steps", 1, "driver"),
    "out.after_put": Hunt("event sends", 1, "together"),
    "sleep.due": Hunt("steps and nap", 1, "early-sleep"),
    "base.kept": Hunt("steps and nap", 1, "replay"),
    "base.value": Hunt("nap, then answer", 1, "replay"),
    "slots.apart": Hunt("steps, then answer", 1, "immutable-journal"),
    "journal.new": Hunt("steps, zombies", 1, "immutable-journal"),
    "wake.ans": Hunt("answer beyond the list", 1, "liveness"),
    "slot.took": Hunt("answer that rolls", 1, "immutable-journal"),
    "offset.asleep": Hunt("send, then answer", 1, "driver"),
    "suspend.awake": Hunt("send, then answer", 2, "driver"),
    "suspend.heard": Hunt("results that roll, answer", 1, "liveness"),
    "suspend.stands": Hunt("bulky result, answer", 2, "liveness"),
}
"""Rules that the model misses."""

TOGETHER: dict[tuple[str, ...], Hunt] = {
    ("suspend.stands", "segment.unique", "segment.truth"): Hunt("bulky result, answer", 1, "immutable-journal"),
    ("slot.free", "slot.ans"): Hunt("two answers", 1, "immutable-journal"),
}
"""Rules that stand in for each other: the model misses them together."""

EQUIVALENT: dict[str, str] = {
    "spec.idle": "`ver` rises with every claim, so a head whose `ver` is as seen has the run that was seen: none",
    "spec.watermark": "the watermark only moves together with `ver`, so it is what was seen, and that was checked",
    "claim.idle": "as spec.idle",
    "claim.watermark": "as spec.watermark",
    "suspend.ans": "an answer is put after a guard, and who follows the guard finds it, or a mark that the list lacks",
    "join.pend": "no event in the inbox comes before the next one of a batch, whose watermark says so",
    "nap.awake": "an attempt that has suspended makes no write but that one again",
    "slot.free": "an answer that fills a slot leaves a mark, which the head that was read with the slot free lacks",
    "takeover.run": "a run begins and ends only in writes that raise `ver`, which is compared as well",
    "clear.ver": "`pend` is unique per mark: one that is still there was seen before the inbox was found empty",
    "clear.idle": "a run begins only in a write that raises `ver`, which is compared as well",
    "tok.own": "a writer that does not recognise its own write looks at the head again, which says what is finished",
    "tok.versioned": "as tok.own: whose `tok` is overwritten only looks again",
    "offset.owner": "an offset is released when something durable carries its event, whoever commits it",
    "segment.unique": "an item is put under a name again only when the write that was to list it was refused",
    "segment.truth": "a suspension that was applied stands, so a writer knows of every change of the list: its own",
}
"""Rules whose removal nobody can notice, each with the argument."""


def hunt(without: tuple[str, ...], target: Hunt, states_max: int = STATES_MAX) -> Result:
    """Explore a mutant where it is found."""
    return explore(Model(_bounded(target), Rules(frozenset(without))), states_max)


def _bounded(target: Hunt) -> Scenario:
    scenario = SCENARIOS[target.scenario]
    return replace(scenario, faults=replace(scenario.faults, total=target.faults))
