"""What goes wrong, how often and until when.

Owns the draw: every fault of a run comes from one seeded generator, so a seed replays. Does not own what a fault does
to whom (`gate`, `twins`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Probability of each fault at each opportunity, from 0 to 1; the rest in milliseconds.

    refused, lost           a request that did nothing; one that did, while its answer never came
    suspend_lost            a suspension that was applied, whose response is lost only after answers had time to come
    *_crash                 at every call that a process makes
    invoke_*, answer_*      of an invocation: refused, never arrived, run twice; its answer lost or late
    zombie                  the caller hears that an attempt has failed while that attempt goes on
    function_slow           an attempt that hangs until its deadline kills it
    wake_*                  a wake-up of the outside scheduler
    rebalance, expelled     at every poll: another member joins or leaves; this one is left behind without knowing
    batch_*                 of a batch of a mapping: comes twice; its answer is lost, and another poller begins
    event_*, tick_*         of an asynchronous invocation (an errand, a wake-up under way) and of the rule's tick
    deadline_short          an invocation of the dispatcher's function that has little time
    instance_*              of a process of it: thrown away between two invocations, or not used again at once
    step_fails, step_slow   an external effect that raises, after or before having happened; one that takes seconds
    """

    refused: float = 0.0
    lost: float = 0.0
    suspend_lost: float = 0.0
    function_crash: float = 0.0
    control_crash: float = 0.0
    invoke_throttled: float = 0.0
    invoke_unreachable: float = 0.0
    invoke_doubled: float = 0.0
    answer_lost: float = 0.0
    answer_late: float = 0.0
    function_slow: float = 0.0
    wake_late: float = 0.0
    wake_doubled: float = 0.0
    wake_lost: float = 0.0
    rebalance: float = 0.0
    expelled: float = 0.0
    step_fails: float = 0.0
    step_slow: float = 0.0
    zombie: float = 0.0
    latency_ms: float = 3.0
    skew_ms: int = 0
    batch_doubled: float = 0.0
    batch_answer_lost: float = 0.0
    event_late: float = 0.0
    event_doubled: float = 0.0
    event_lost: float = 0.0
    tick_late: float = 0.0
    tick_doubled: float = 0.0
    tick_lost: float = 0.0
    deadline_short: float = 0.0
    instance_lost: float = 0.0
    instance_new: float = 0.0


AT_ZERO = (
    "batch_doubled",
    "batch_answer_lost",
    "event_late",
    "event_doubled",
    "event_lost",
    "tick_late",
    "tick_doubled",
    "tick_lost",
    "deadline_short",
    "instance_lost",
    "instance_new",
)
"""What can go wrong only where the dispatcher is a function. Drawn by a generator of its own (`thinned`), so that the
other shape's seeds stay what they are."""

NONE = Rates()
LIGHT = Rates(
    refused=0.01,
    lost=0.01,
    function_crash=0.01,
    control_crash=0.0005,
    invoke_throttled=0.02,
    invoke_unreachable=0.01,
    invoke_doubled=0.01,
    answer_lost=0.02,
    answer_late=0.02,
    function_slow=0.01,
    wake_late=0.2,
    wake_doubled=0.1,
    wake_lost=0.1,
    rebalance=0.002,
    expelled=0.001,
    step_fails=0.03,
    step_slow=0.02,
    zombie=0.01,
    latency_ms=5.0,
    skew_ms=200,
    batch_doubled=0.02,
    batch_answer_lost=0.02,
    event_late=0.05,
    event_doubled=0.05,
    event_lost=0.02,
    tick_late=0.1,
    tick_doubled=0.1,
    tick_lost=0.1,
    deadline_short=0.05,
    instance_lost=0.05,
    instance_new=0.1,
)
HEAVY = Rates(
    refused=0.05,
    lost=0.05,
    function_crash=0.04,
    control_crash=0.003,
    invoke_throttled=0.08,
    invoke_unreachable=0.04,
    invoke_doubled=0.04,
    answer_lost=0.08,
    answer_late=0.08,
    function_slow=0.04,
    wake_late=0.3,
    wake_doubled=0.3,
    wake_lost=0.3,
    rebalance=0.01,
    expelled=0.004,
    step_fails=0.1,
    step_slow=0.05,
    zombie=0.05,
    latency_ms=20.0,
    skew_ms=2_000,
    batch_doubled=0.1,
    batch_answer_lost=0.1,
    event_late=0.2,
    event_doubled=0.2,
    event_lost=0.1,
    tick_late=0.3,
    tick_doubled=0.3,
    tick_lost=0.3,
    deadline_short=0.2,
    instance_lost=0.2,
    instance_new=0.3,
)
CHURN = Rates(
    lost=0.03,
    function_crash=0.01,
    control_crash=0.001,
    answer_lost=0.05,
    answer_late=0.05,
    rebalance=0.06,
    expelled=0.03,
    step_slow=0.1,
    zombie=0.1,
    latency_ms=30.0,
    batch_doubled=0.2,
    batch_answer_lost=0.2,
    event_late=0.2,
    event_doubled=0.3,
    deadline_short=0.1,
    instance_new=0.5,
)
"""Partitions that keep moving while messages are slow: where two control planes meet on one key."""

ZOMBIES = Rates(
    lost=0.03,
    zombie=0.5,
    invoke_doubled=0.1,
    step_slow=0.3,
    answer_lost=0.1,
    control_crash=0.0005,
    latency_ms=10.0,
    event_doubled=0.2,
    deadline_short=0.1,
    instance_new=0.3,
)
"""Attempts that live on after everybody takes them for dead: what fencing is for."""

BULK = Rates(
    lost=0.02,
    suspend_lost=0.4,
    function_crash=0.02,
    zombie=0.1,
    answer_lost=0.03,
    step_slow=0.05,
    latency_ms=5.0,
)
"""Large journals whose suspensions are written twice, while the answers they wait for arrive."""

PROFILES: dict[str, Rates] = {
    "none": NONE,
    "light": LIGHT,
    "heavy": HEAVY,
    "churn": CHURN,
    "zombies": ZOMBIES,
    "bulk": BULK,
}


def drawn(rng: random.Random) -> Rates:
    """A profile for a random run: some seeds with few faults of every kind, some with many of a few kinds."""
    base = rng.choice([NONE, LIGHT, LIGHT, HEAVY, HEAVY])
    if base is NONE or rng.random() < 0.5:
        return base
    numbers = {f.name: getattr(base, f.name) for f in fields(base)}
    for name in numbers:
        if name not in ("latency_ms", "skew_ms", "suspend_lost", *AT_ZERO) and rng.random() < 0.5:
            numbers[name] = 0.0
    numbers["skew_ms"] = rng.choice([0, numbers["skew_ms"]])
    numbers["latency_ms"] = rng.choice([1.0, 5.0, 30.0])
    return Rates(**numbers)


def thinned(rates: Rates, rng: random.Random) -> Rates:
    """The same for a dispatcher that is a function, with some of the faults left out that only such a one meets."""
    # Its processes live for a few calls at a time, so that each call has to be the last one more often.
    rates = replace(rates, control_crash=rates.control_crash * rng.choice([1, 4, 10]))
    if rng.random() < 0.5:
        return rates
    without: dict[str, Any] = {name: 0.0 for name in AT_ZERO if rng.random() < 0.5}
    return replace(rates, **without)


@dataclass(slots=True)
class FaultPlan:
    """Draws faults until `quiet` is called; afterwards everything works."""

    rng: random.Random
    rates: Rates
    quiet: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    on_fault: Callable[[str], None] = lambda _name: None

    def happens(self, name: str) -> bool:
        """Whether this fault strikes now."""
        probability: float = getattr(self.rates, name)
        if self.quiet or probability == 0.0 or self.rng.random() >= probability:
            return False
        self.counts[name] += 1
        self.on_fault(name)
        return True

    def latency_s(self) -> float:
        """How long a message is under way; now and then much longer than usual."""
        usual = self.rng.expovariate(1 / self.rates.latency_ms)
        return (usual * 20 if self.rng.random() < 0.02 else usual) / 1_000

    def skew_ms(self) -> int:
        """How far the clock of a new process is off."""
        return self.rng.randint(-self.rates.skew_ms, self.rates.skew_ms)

    def crash_pause_s(self) -> float:
        """How long it takes until a crashed control plane is replaced."""
        return self.rng.uniform(0.2, 8.0)
