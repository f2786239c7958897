"""Scenarios: drawn from a seed, and small fixed ones for exhaustive runs.

Owns what happens in a run before any fault: which events, calls and programs. Does not own running it (`world`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from tenuto.protocol.limits import OUT_PER_WRITE_MAX
from tests.simulation import faults, programs
from tests.simulation.instances import ScaleToZero
from tests.simulation.programs import (
    BULK,
    HEAVY,
    Announce,
    Ask,
    AskBefore,
    AskWithin,
    Doom,
    GiveUp,
    Nap,
    Op,
    Overfill,
    Program,
    Race,
    Remember,
    Repeat,
    Step,
    Tell,
    Together,
    durable,
    lasting_ms,
)
from tests.simulation.world import Delivery, Request, Scenario

SLEEPS_MS_MAX = 3_600_000
"""What the events of a random scenario may sleep altogether: one key sleeps it all in sequence, and a run ends."""


SCALED_TO_ZERO_OF = 4
"""One in so many seeds has the dispatcher as a function."""

LOOSE_OF = 3
"""One in so many seeds also has events without a key."""

HOPS_OF = 3
"""One in so many seeds has functions that write beside their handlers, as in a thread of its own."""

BULK_OF = 10
"""One in so many seeds has large journals, values that fit nowhere and messages that fail (the profile "bulk")."""

LARGE_ANSWERS_OF = 5
"""One in so many seeds has answers that are too large for the head; all of the profile "bulk" have."""

CROWD_OF = 9
"""One in so many seeds has a handler that sends more messages at once than one write of the head takes."""

WRONG_CLOCK_OF = 8
"""One in so many seeds has control planes whose clocks are off by far."""

WRONG_CLOCK_MS = 90_000
"""Several times what a function may take, so that every lease looks over, or has ended before it began."""

SUSPENDS_OF = 3
"""In one of so many seeds short sleeps suspend, as where functions may run for long or too many nap."""

POOLS_OF = 6
"""One in so many seeds has many keys with little to do, few invocations at a time, and lanes that share them."""

CROWD = OUT_PER_WRITE_MAX + 5
CROWD_NAP_MS_MAX = 20_000
"""The longest sleep of a message that is one of a crowd."""

SHAPES = ("always on", "scaled to zero")


def drawn(seed: int, profile: str | None = None, shape: str | None = None) -> Scenario:
    """The random scenario of a seed. `profile` is one of `faults.PROFILES`, `shape` one of `SHAPES`, if not drawn."""
    if profile is None and seed % BULK_OF == BULK_OF // 2:
        profile = "bulk"
    scenario = _drawn(seed, profile)
    if seed % LOOSE_OF == 0:
        scenario = _with_loose(scenario)
    if seed % CROWD_OF == CROWD_OF // 2:
        scenario = _with_crowd(scenario)
    if profile == "bulk" or seed % LARGE_ANSWERS_OF == 1:
        scenario = replace(scenario, large_answers=0.5)
    if seed % HOPS_OF == 1:
        scenario = replace(scenario, hops=True)
    if seed % WRONG_CLOCK_OF == WRONG_CLOCK_OF // 2:
        scenario = replace(scenario, wrong_clock_ms=WRONG_CLOCK_MS)
    if seed % SUSPENDS_OF == SUSPENDS_OF // 2:
        scenario = replace(scenario, suspends=True)
    if seed % POOLS_OF == 2 and profile is None:
        scenario = _with_pools(scenario)
    to_zero = seed % SCALED_TO_ZERO_OF == SCALED_TO_ZERO_OF - 1 if shape is None else shape == "scaled to zero"
    return _scaled_to_zero(scenario) if to_zero else scenario


def _with_loose(scenario: Scenario) -> Scenario:
    """The same with events that have no key, and a bound of attempts."""
    rng = random.Random(f"loose {scenario.seed}")
    span_s = max(1.0, *(delivery.at_s for delivery in scenario.deliveries))
    loose = tuple(
        Delivery(rng.uniform(0, span_s), programs.LOOSE, None, rng.randrange(len(programs.LOOSE_PLAYS)))
        for _ in range(rng.choice([2, 6, 12]))
    )
    return replace(
        scenario,
        topics={**scenario.topics, programs.LOOSE: rng.choice([1, 2])},
        deliveries=(*scenario.deliveries, *loose),
        loose_ordering=rng.choice(["none", "none", "partition"]),
    )


def _with_pools(scenario: Scenario) -> Scenario:
    """Events and calls of many keys, most of them quick, for a function that serves one or two at a time."""
    rng = random.Random(f"pools {scenario.seed}")
    keys = [f"k{n}" for n in range(rng.choice([6, 12]))]
    plays: tuple[Program, ...] = (
        (Remember("told"),),
        (Remember("x"),),
        (Remember("y"), Tell(rng.choice(keys))),
        (Remember("x"), Step("a")),
        (GiveUp(),),
        (Step("a"), Nap(400), Step("b"), Remember("x")),
    )
    # Mostly quick ones without a step share invocations of one kind, mostly quick ones with steps those of the other.
    steps = rng.choice([(0, 0), (1, 0), (8, 0), (8, 4), (1, 8)])
    weights = [0, rng.choice([1, 8]), rng.choice([0, 2]), steps[0], rng.choice([0, 1]), steps[1]]
    span_s = rng.choice([0.0, 0.0, 0.2])

    def play() -> int:
        return rng.choices(range(len(plays)), weights)[0]

    topics = sorted(scenario.topics)
    count = rng.choice([20, 40])
    deliveries = [Delivery(rng.uniform(0, span_s), rng.choice(topics), rng.choice(keys), play()) for _ in range(count)]
    requests = [
        Request(rng.uniform(0, span_s), rng.choice(keys), f"i{n}", play(), rng.choice([None, None, 700]))
        for n in range(rng.choice([0, 5, 15]))
    ]
    return replace(
        scenario,
        programs=plays,
        deliveries=tuple(deliveries),
        requests=tuple(requests),
        pools=(rng.choice([1, 1, 2]), rng.choice([1, 1, 3])),
    )


def _with_crowd(scenario: Scenario) -> Scenario:
    """The same with an event that sends many messages in one go, some of which may fail for good."""
    rng = random.Random(f"crowd {scenario.seed}")
    key = rng.choice(["k0", "crowd"])
    kinds: list[Op] = [Tell(key), Tell(key), Doom(key)]
    send = rng.choice(kinds)
    before: tuple[Op, ...] = rng.choice([(), (Step("a"),), (Nap(400),)])
    after: tuple[Op, ...] = rng.choice([(), (Step("b"),), (Nap(400),), (GiveUp(),)])
    delivery = Delivery(rng.uniform(0, 2), "events", "k1", len(scenario.programs))
    return replace(
        scenario,
        programs=(
            _without_long_sleeps(scenario.programs[0]),
            *scenario.programs[1:],
            (*before, Repeat(CROWD, (send,)), *after),
        ),
        deliveries=(*scenario.deliveries, delivery),
    )


def _without_long_sleeps(program: programs.Program) -> programs.Program:
    """The same for each message of a crowd: they run one after the other, and would sleep for hours together."""

    def shorter(op: Op) -> Op:
        match op:
            case Nap(ms):
                return Nap(min(ms, CROWD_NAP_MS_MAX))
            case Repeat(times, body):
                return Repeat(times, tuple(shorter(one) for one in body))
            case _:
                return op

    return tuple(shorter(op) for op in program)


def _scaled_to_zero(scenario: Scenario) -> Scenario:
    """The same events, calls and programs for a dispatcher that is a function."""
    rng = random.Random(f"scaled to zero {scenario.seed}")
    setup = ScaleToZero(
        partial_batches=rng.random() < 0.5,
        partitions_apart=rng.random() < 0.5,
        batch_records_max=rng.choice([1, 3, 100]),
        instances_max=rng.choice([3, 8, 32]),
    )
    return replace(scenario, rates=faults.thinned(scenario.rates, rng), scale_to_zero=setup)


def _drawn(seed: int, profile: str | None) -> Scenario:
    rng = random.Random(f"scenario {seed}")
    if profile == "churn":
        return _contended(seed, rng)
    if profile == "zombies":
        return _outlived(seed, rng)
    if profile == "bulk":
        return _bulky(seed, rng)
    rates = faults.drawn(rng) if profile is None else faults.PROFILES[profile]
    keys = [f"k{i}" for i in range(rng.choice([1, 2, 4, 8]))]
    topics = {"events": rng.choice([1, 2, 4])} | ({"more": 1} if rng.random() < 0.4 else {})
    plays = programs.drawn(rng, keys, rng.choice([1, 3, 6]))
    span_s = rng.choice([0.0, 2.0, 20.0, 40.0])
    deliveries = _bounded(
        plays,
        tuple(
            Delivery(rng.uniform(0, span_s), rng.choice(sorted(topics)), *_cargo(rng, keys, plays))
            for _ in range(rng.choice([1, 5, 15, 40]))
        ),
    )
    requests = tuple(
        Request(
            rng.uniform(0, span_s),
            rng.choice(keys),
            f"i{n}",
            rng.randrange(len(plays)),
            rng.choice([None, None, 0, 700, 8_000]),
        )
        for n in range(rng.choice([0, 0, 2, 6]))
    )
    return Scenario(
        seed=seed,
        rates=rates,
        programs=tuple(plays),
        topics=topics,
        deliveries=deliveries,
        requests=requests,
        control_planes=rng.choice([1, 2, 3]),
        faults_until_s=rng.choice([5.0, 30.0, 60.0]),
        shuffle=rng.random() < 0.25,
    )


def _bounded(plays: Sequence[Program], deliveries: tuple[Delivery, ...]) -> tuple[Delivery, ...]:
    """The first deliveries, as many as sleep no longer than SLEEPS_MS_MAX between them; at least one."""
    told_ms = lasting_ms(plays[0])
    total_ms = 0
    for n, delivery in enumerate(deliveries):
        total_ms += 0 if delivery.program is None else lasting_ms(plays[delivery.program], told_ms)
        if total_ms > SLEEPS_MS_MAX:
            return deliveries[: max(1, n)]
    return deliveries


def _contended(seed: int, rng: random.Random) -> Scenario:
    """Few keys, many short events on several partitions, three control planes: everybody meets everybody."""
    keys = ["k0", "k1"][: rng.choice([1, 1, 2])]
    quick: Program = (Remember("x"),)
    plays = (
        quick,
        quick,
        (Nap(rng.choice([301, 500, 900])),),
        (Step("a"),),
        (Tell(rng.choice(keys)), Remember("y")),
        (Ask(),) if rng.random() < 0.3 else (Step("a"), Nap(400)),
    )
    topics = {"events": 1, "more": 1, "most": 1}
    weights = [0, 6, rng.choice([0, 2]), rng.choice([0, 1, 2]), rng.choice([0, 1, 3]), rng.choice([0, 1])]
    span_s = rng.choice([0.5, 3.0, 8.0])
    deliveries = tuple(
        Delivery(
            rng.uniform(0, span_s),
            rng.choice(sorted(topics)),
            rng.choice(keys),
            rng.choices(range(len(plays)), weights)[0],
        )
        for _ in range(rng.choice([10, 30, 60]))
    )
    requests = tuple(
        Request(rng.uniform(0, span_s), rng.choice(keys), f"i{n}", 1, rng.choice([None, None, 0]))
        for n in range(rng.choice([0, 4]))
    )
    return Scenario(
        seed=seed,
        rates=replace(faults.CHURN, latency_ms=rng.choice([3.0, 30.0, 80.0])),
        programs=plays,
        topics=topics,
        deliveries=deliveries,
        requests=requests,
        control_planes=3,
        faults_until_s=span_s + 4,
        spill_after_ms=rng.choice([1, 30, 200]),
    )


def _outlived(seed: int, rng: random.Random) -> Scenario:
    """A few events of several steps each, whose attempts are given up too early."""
    ops: list[Op] = [Step("a"), Step("b"), Nap(400), Remember("x"), Together(("p", "q"), 350), Ask(), AskWithin(500)]
    plays = [(Remember("told"),), *(tuple(rng.choices(ops, k=rng.randint(1, 4))) for _ in range(3))]
    return Scenario(
        seed=seed,
        rates=faults.ZOMBIES,
        programs=tuple(plays),
        topics={"events": 1},
        deliveries=tuple(Delivery(rng.uniform(0, 4), "events", "k", rng.randint(1, 3)) for _ in range(4)),
        control_planes=rng.choice([1, 2]),
        faults_until_s=12.0,
    )


def _bulky(seed: int, rng: random.Random) -> Scenario:
    """Large journals with small slots beside them, values that fit nowhere or cannot be read, messages that fail."""
    steps = [Step("a", rolling=True), Step("b", rolling=True), Step("c", bulky=True), Step("d")]
    keys = ["k0", "k1"]
    plays: list[Program] = [(Remember("told"),)]
    for _ in range(3):
        before = tuple(rng.choices(steps, k=rng.randint(1, 5)))
        others: list[Op] = [*steps, Nap(400), Ask(), Doom(rng.choice(keys)), Tell("k0")]
        after = tuple(rng.choices(others, k=rng.randint(0, 3)))
        plays.append((AskBefore(before), *after))
    plays += [(Overfill(),), (Step("a"), Overfill()), (Doom("k1"), Remember("x"))]
    deliveries = tuple(
        Delivery(
            rng.uniform(0, 6), "events", rng.choice(keys), None if rng.random() < 0.1 else rng.randrange(1, len(plays))
        )
        for _ in range(rng.choice([2, 5, 10]))
    )
    return Scenario(
        seed=seed,
        rates=faults.BULK,
        programs=tuple(plays),
        topics={"events": 1},
        deliveries=deliveries,
        control_planes=rng.choice([1, 2]),
        faults_until_s=20.0,
    )


def _cargo(rng: random.Random, keys: list[str], plays: Sequence[Program]) -> tuple[str | None, int | None, str]:
    dice = rng.random()
    program = rng.randrange(1, len(plays))
    if dice < 0.02:
        return None, program, ""
    if dice < 0.04:
        return rng.choice(keys), None, ""
    if dice < 0.1:
        return rng.choice(keys), program, BULK
    if dice < 0.12 and not durable(plays[program]):
        return rng.choice(keys), program, HEAVY
    return rng.choice(keys), program, ""


def _fixed(*ops: Op, events: int = 1, apart_s: float = 0.0, call: bool = False) -> Scenario:
    """One program on one key; program 1 is the scenario's, program 0 what its messages play."""
    deliveries = tuple(Delivery(n * apart_s, "events", "a", 1) for n in range(events))
    return Scenario(
        seed=1,
        rates=faults.NONE,
        programs=((Remember("told"),), tuple(ops)),
        topics={"events": 1},
        deliveries=() if call else deliveries,
        requests=(Request(0.0, "a", "once", 1),) if call else (),
        control_planes=1,
        faults_until_s=1.0,
    )


_SMALL: dict[str, Scenario] = {
    "state only, a batch": _fixed(Remember("x"), events=3),
    "steps": _fixed(Step("a"), Step("b"), Remember("x")),
    "steps in a batch": _fixed(Remember("x"), Step("a"), events=3),
    "step and sleep": _fixed(Step("a"), Nap(1_500), Step("b"), events=2),
    "step and long sleep": _fixed(Step("a"), Nap(6_500), Step("b"), events=2),
    "naps and sleeps": _fixed(Nap(900), Step("a"), Nap(6_500), Nap(600), AskWithin(700)),
    "send": _fixed(Remember("x"), Tell("b"), Tell("b")),
    "send from a claimed run": _fixed(Tell("b"), Step("a"), Tell("b"), Nap(900), Tell("b")),
    "send from a suspended run": replace(_fixed(Tell("b"), Step("a"), Tell("b"), Nap(900), Tell("b")), suspends=True),
    "delayed send": _fixed(Tell("b", 1_200), Remember("x")),
    "awakeable": _fixed(Ask()),
    "awakeable by a handler": _fixed(Ask(helper=True)),
    "awakeable or time": _fixed(AskWithin(700)),
    "together and race": _fixed(Together(("p", "q"), 600), Race("r", 5)),
    "call": _fixed(Remember("x"), call=True),
    "call whose caller gives up as it commits": replace(
        _fixed(Remember("x"), call=True), seed=2, rates=replace(faults.NONE, latency_ms=30.0), call_wait_ms=185
    ),
    "call with a step and a send": _fixed(Step("a"), Tell("b"), call=True),
    "publish": _fixed(Remember("x"), Announce()),
    "terminal error": _fixed(Step("a"), GiveUp(), events=2),
    "events while taken": _fixed(Nap(4_000), Tell("a"), events=4, apart_s=0.6),
    "bulky results": _fixed(Step("a", bulky=True), Step("b", bulky=True), Nap(900), Step("c")),
    "a record in parts": replace(
        _fixed(Nap(8_000)),
        programs=((Remember("told"),), (Nap(8_000),), (Remember("x"),)),
        deliveries=(Delivery(0.0, "events", "a", 1), Delivery(0.5, "events", "a", 2, HEAVY)),
        spill_after_ms=500,
    ),
    "an answer beside bulky results": _fixed(
        AskBefore((Step("a", rolling=True), Step("b", rolling=True), Step("c", bulky=True))), Step("d")
    ),
    "more state than fits": _fixed(Step("a"), Overfill(), events=2),
    "a message that fails for good": _fixed(Remember("x"), Doom("b")),
    "a message that gives up": replace(
        _fixed(Tell("b"), Step("a"), Tell("b")),
        programs=((Remember("told"), GiveUp()), (Tell("b"), Step("a"), Tell("b"))),
    ),
    "a large answer": replace(_fixed(Ask(), Step("a")), large_answers=1.0),
    "long journal": _fixed(Repeat(40, (Step("a"),)), Nap(800), Step("b")),
    "poison in a batch": replace(
        _fixed(Tell("b"), Tell("b")),
        deliveries=(
            Delivery(0.0, "events", "a", 1),
            Delivery(0.0, "events", "a", None),
            Delivery(0.0, "events", "a", 1),
        ),
    ),
}

SMALL: dict[str, Scenario] = _SMALL | {
    f"{name}, scaled to zero": replace(scenario, scale_to_zero=ScaleToZero(partial_batches=False))
    for name, scenario in _SMALL.items()
}
"""Small enough to be run again with a crash before and after every one of its writes."""
