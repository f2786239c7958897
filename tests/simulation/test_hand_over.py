"""One key, reached from several control planes: nobody waits in vain, and it costs about what one plane costs.

Owns the time bounds, without faults and on virtual time: work waits for what is in front of it on its lane, and a
little longer. Does not own what holds under faults (`test_simulation`), nor the rule itself (`lane_policy`).
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Literal

import pytest

from tests.simulation import faults
from tests.simulation.instances import ScaleToZero
from tests.simulation.programs import Ask, Program, Remember, Step
from tests.simulation.world import Delivery, Report, Request, Scenario, run

Kind = Literal["calls", "events", "mixed"]

GAP_MS = 300
"""What a lane may stand still while work for it waits, or a caller wait for a committed result, for one that claims."""

GAP_NEXT_MS = 200
"""The same for the call that is next behind a step of half a second: its caller has the result within 0.8 s."""

GAP_OUTRUN_MS = 1_000
"""The same for handlers without durable steps, where nothing but a lost commit tells of another process."""

LATENCY_MS = 1.0
"""Of a message. One in fifty takes twenty times as long, and would hide a wait that is too long."""

TOPICS = ("events", "further", "more", "others")
"""Of one partition each, so that four planes have one each, and two have every second one."""

JOINED_S = 0.5
"""When the first event comes: the planes have their partitions by then."""

UNLIKE: tuple[Program, ...] = (*((Step("s", takes_ms=ms),) for ms in (0, 50, 300, 1_000, 3_000)), (Remember("x"),))
"""Steps of 0 to 3 s, and none."""

SWEEP_INTERVAL_MS = 60_000
"""Rare enough that no sweep comes to the rescue within the work of a run."""

CALL_WAIT_MS = 25_000

CALL_WAIT_MS_UNLIKE = 120_000
"""Longer than all the work of one load: a caller that asks again may ask just before its result is there."""

AT_ZERO = ScaleToZero(batch_records_max=3, instances_max=100, cold_start_s=0.05)
"""Each concurrent batch, call and wake-up has a process of its own. How long one takes to begin, and how long a caller
waits that is refused for want of concurrency, is not what is looked at here."""

LEARNED_ANEW = 3
"""Requests by which a plane learns that another one has used a lane since it did: a refused claim, a head, a guard."""

COST = 2.0
"""What several planes cost at most, in requests of one."""

COST_OF_A_FEW = 2.4
"""The same for four planes, and a few calls that take 2 s and longer: three planes look once a second, and the one
whose call is next three times a second, until they know how long the runs last."""

KNOWN_FROM_S = 200.0
"""When a load begins whose handler every plane has run before, on other keys, and whose guards are gone by then."""

KNOWN_RUNS = 8
"""So many calls were made of it for each plane. They go to any of them, and four tell how long the next one lasts."""

SLOW_CALLS_COST_OF_FOUR = {50: 2.3, 100: 2.6, 200: 2.4, 1_000: 2.3}
"""The same for four planes, and calls of handlers without steps that take so many milliseconds each, where more come
than a key can run. In one plane such a call is a read, a commit and a stored result. `docs/internals` says what one
takes that is handed over."""

SLOW_EVENTS_REQUESTS = {2: 2.5, 4: 4.0}
"""Requests for an event from Kafka of a handler without steps that takes 50 ms or longer, where so many planes have
some events for the same key. In one plane they go in batches, and take as little as one request for nine."""


def reached(
    kind: Kind,
    planes: int,
    count: int,
    apart_s: float,
    takes_ms: int | None,
    gap_ms: int,
    at_zero: ScaleToZero | None = None,
    seed: int = 1,
    play: Program | None = None,
) -> Report:
    """`count` events and calls for one key, `apart_s` from each other, over several topics and planes.

    Each plays `play`: if None, one step of `takes_ms`, or only a change of state (None). The events come to all planes.
    """
    if play is None:
        play = (Remember("x"),) if takes_ms is None else (Step("s", takes_ms=takes_ms),)
    called = [n for n in range(count) if kind == "calls" or (kind == "mixed" and n % 3 == 0)]
    sent = [n for n in called if kind == "mixed" and n % 2 == 0]
    produced = [n for n in range(count) if n not in called]
    report = run(
        Scenario(
            seed=seed,
            rates=replace(faults.NONE, latency_ms=LATENCY_MS),
            programs=((Remember("told"),), play),
            topics=dict.fromkeys(TOPICS, 1),
            deliveries=tuple(
                Delivery(JOINED_S + n * apart_s, TOPICS[at % len(TOPICS)], "a", 1) for at, n in enumerate(produced)
            ),
            requests=tuple(Request(JOINED_S + n * apart_s, "a", f"i{n}", 1, 0 if n in sent else None) for n in called),
            control_planes=planes,
            faults_until_s=1.0,
            sweep_interval_ms=SWEEP_INTERVAL_MS,
            gap_ms=gap_ms,
            call_wait_ms=CALL_WAIT_MS,
            scale_to_zero=at_zero,
        )
    )
    if at_zero is None:
        assert len(report.delivered) == min(planes, len(produced)), f"the events came to {dict(report.delivered)}"
    return report


def passed(report: Report) -> None:
    assert report.passed, "\n".join([*report.trace[-60:], *map(str, report.violations)])


@pytest.mark.parametrize("planes", [2, 4])
@pytest.mark.parametrize("kind", ["calls", "events", "mixed"])
@pytest.mark.parametrize(
    ("count", "apart_s", "takes_ms"), [(2, 0.01, 500), (10, 0.1, 500), (4, 0.5, 3_000), (3, 0.1, 6_500)]
)
def test_work_behind_a_step_waits_for_that_step_alone(
    kind: Kind, planes: int, count: int, apart_s: float, takes_ms: int
) -> None:
    passed(reached(kind, planes, count, apart_s, takes_ms, GAP_MS))


@pytest.mark.parametrize("planes", [2, 4])
@pytest.mark.parametrize("kind", ["calls", "events", "mixed"])
@pytest.mark.parametrize(("count", "apart_s", "takes_ms"), [(100, 0.02, None), (60, 0.02, 0)])
def test_a_key_under_load_never_stands_still(
    kind: Kind, planes: int, count: int, apart_s: float, takes_ms: int | None
) -> None:
    passed(reached(kind, planes, count, apart_s, takes_ms, GAP_OUTRUN_MS))


def unlike(seed: int, planes: int, count: int, ways: str, at_zero: ScaleToZero | None = None) -> Report:
    """`count` works for one key, unlike each other, that come in `ways`: as calls, sends, or events in some topic."""
    draw = random.Random(f"{seed} {count} {ways}")
    at_s, requests, deliveries = JOINED_S, [], []
    for number in range(count):
        at_s += draw.choice([0.01, 0.1, 0.5, 1.0])
        program, way = draw.randint(1, len(UNLIKE)), draw.choice(ways)
        if way == "e":
            deliveries.append(Delivery(at_s, draw.choice(TOPICS), "a", program))
        else:
            requests.append(Request(at_s, "a", f"i{number}", program, 0 if way == "s" else None))
    return run(
        Scenario(
            seed=seed,
            rates=replace(faults.NONE, latency_ms=LATENCY_MS),
            programs=((Remember("told"),), *UNLIKE),
            topics=dict.fromkeys(TOPICS, 1),
            deliveries=tuple(deliveries),
            requests=tuple(requests),
            control_planes=planes,
            faults_until_s=1.0,
            sweep_interval_ms=SWEEP_INTERVAL_MS,
            gap_ms=GAP_OUTRUN_MS,
            call_wait_ms=CALL_WAIT_MS_UNLIKE,
            scale_to_zero=at_zero,
        )
    )


@pytest.mark.parametrize("seed", range(1, 7))
@pytest.mark.parametrize(("planes", "at_zero"), [(2, None), (3, None), (4, None), (1, AT_ZERO)])
@pytest.mark.parametrize(("count", "ways"), [(20, "cs"), (20, "ces"), (6, "ces"), (20, "e"), (6, "e")])
def test_nobody_waits_for_long_where_runs_are_not_alike(
    count: int, ways: str, planes: int, at_zero: ScaleToZero | None, seed: int
) -> None:
    """Nothing tells how long the next one takes: a look that goes by the last one may come too late, by a second.

    Few events, of which some were handed over and some held back, stood still for up to 1.9 s: the owner had run what
    it knew of, and the next look was to come after as many runs.
    """
    passed(unlike(seed, planes, count, ways, at_zero))


@pytest.mark.parametrize("seed", range(1, 7))
@pytest.mark.parametrize("planes", [2, 4])
def test_a_call_behind_a_step_of_half_a_second_is_answered_soon_after_it(planes: int, seed: int) -> None:
    """Whatever ran before tells nothing of it: the call itself takes no time, so the next look may be far too late."""
    report = run(
        Scenario(
            seed=seed,
            rates=replace(faults.NONE, latency_ms=LATENCY_MS),
            programs=((Remember("told"),), (Step("s", takes_ms=500),), (Step("s", takes_ms=0),)),
            topics=dict.fromkeys(TOPICS, 1),
            deliveries=(),
            requests=(Request(JOINED_S, "a", "i0", 1), Request(JOINED_S + 0.05, "a", "i1", 2)),
            control_planes=planes,
            faults_until_s=1.0,
            sweep_interval_ms=SWEEP_INTERVAL_MS,
            gap_ms=GAP_NEXT_MS,
            call_wait_ms=CALL_WAIT_MS,
        )
    )
    passed(report)


def pair(planes: int, seed: int, takes_ms: int, apart_s: float, *, known: bool) -> Report:
    """A call behind another's step, at any plane. `known`: each plane has run such steps on other keys before."""
    others = range(KNOWN_RUNS * planes if known else 0)
    begins_s = KNOWN_FROM_S if known else JOINED_S
    return run(
        Scenario(
            seed=seed,
            rates=replace(faults.NONE, latency_ms=LATENCY_MS),
            programs=((Remember("told"),), (Step("s", takes_ms=takes_ms),), (Step("s", takes_ms=0),)),
            topics=dict.fromkeys(TOPICS, 1),
            deliveries=(),
            requests=(
                *(Request(JOINED_S + n, f"b{n}", f"b{n}", 1) for n in others),
                Request(begins_s, "a", "i0", 1),
                Request(begins_s + apart_s, "a", "i1", 2),
            ),
            control_planes=planes,
            faults_until_s=1.0,
            sweep_interval_ms=SWEEP_INTERVAL_MS,
            gap_ms=GAP_MS,
            call_wait_ms=CALL_WAIT_MS,
        )
    )


@pytest.mark.parametrize("seed", range(1, 7))
@pytest.mark.parametrize("planes", [2, 4])
def test_a_call_that_is_next_is_answered_in_time_however_long_the_step_before_it_takes(planes: int, seed: int) -> None:
    """Looked for after pauses as long as the run had lasted so far, it was answered up to 0.9 s late."""
    for takes_ms, apart_s in ((800, 0.05), (1_000, 0.3), (1_500, 0.05), (2_000, 0.7), (2_400, 0.1), (3_000, 0.5)):
        passed(pair(planes, seed, takes_ms, apart_s, known=False))


@pytest.mark.parametrize("planes", [2, 4])
@pytest.mark.parametrize(("takes_ms", "apart_s", "seed"), [(1_500, 0.05, 1), (2_400, 0.1, 2), (3_000, 0.5, 3)])
def test_a_call_behind_a_step_of_a_handler_that_is_known_is_answered_in_time(
    takes_ms: int, apart_s: float, seed: int, planes: int
) -> None:
    passed(pair(planes, seed, takes_ms, apart_s, known=True))


@pytest.mark.parametrize("planes", [2, 4])
@pytest.mark.parametrize(
    ("count", "apart_s", "takes_ms", "seed"), [(2, 0.5, 3_000, 1), (4, 0.5, 3_000, 2), (10, 0.1, 500, 3)]
)
def test_calls_of_a_handler_that_is_known_cost_at_most_twice_what_they_cost_in_one_plane(
    count: int, apart_s: float, takes_ms: int, seed: int, planes: int
) -> None:
    """A plane that has seen a few of its runs, on whatever keys, looks when the one in front should be over."""
    assert known_cost(planes, count, apart_s, takes_ms, seed) <= COST * known_cost(1, count, apart_s, takes_ms, seed)


def known_cost(planes: int, count: int, apart_s: float, takes_ms: int, seed: int) -> int:
    """Requests for so many calls for one key, at any plane, once all planes know how long they take."""
    before = tuple(Request(JOINED_S + n, f"b{n}", f"b{n}", 1) for n in range(KNOWN_RUNS * planes))
    load = tuple(Request(KNOWN_FROM_S + n * apart_s, "a", f"i{n}", 1) for n in range(count))
    costs = []
    for requests in ((*before, *load), before):
        report = run(
            Scenario(
                seed=seed,
                rates=replace(faults.NONE, latency_ms=LATENCY_MS),
                programs=((Remember("told"),), (Step("s", takes_ms=takes_ms),)),
                topics=dict.fromkeys(TOPICS, 1),
                deliveries=(),
                requests=requests,
                control_planes=planes,
                faults_until_s=KNOWN_FROM_S,
                sweep_interval_ms=SWEEP_INTERVAL_MS,
                gap_ms=GAP_MS,
                call_wait_ms=CALL_WAIT_MS,
            )
        )
        passed(report)
        costs.append(report.work_requests)
    return costs[0] - costs[1]


@pytest.mark.parametrize("planes", [2, 4])
@pytest.mark.parametrize("kind", ["calls", "mixed"])
@pytest.mark.parametrize(
    ("count", "apart_s", "takes_ms"),
    [
        (10, 0.1, 500),
        (30, 0.1, 500),
        (20, 0.1, 1_000),
        (8, 0.5, 2_000),
        (4, 0.5, 3_000),
        (60, 0.02, 0),
        (40, 0.3, 100),
        (100, 0.02, None),
        (200, 0.005, None),
        (60, 0.1, None),
    ],
)
def test_several_planes_cost_at_most_twice_what_one_costs(
    kind: Kind, planes: int, count: int, apart_s: float, takes_ms: int | None
) -> None:
    few = planes == 4 and takes_ms is not None and takes_ms >= 2_000
    assert cost_of(planes, kind, count, apart_s, takes_ms) <= (COST_OF_A_FEW if few else COST)


@pytest.mark.parametrize(
    ("count", "apart_s", "takes_ms", "of_two", "of_four"),
    [
        (2, 0.1, 500, COST, COST),
        (30, 0.1, 500, COST, 2.4),
        (20, 0.1, 1_000, COST, 2.6),
        (10, 0.1, 500, 2.6, 3.4),
        (8, 0.5, 2_000, 3.0, 3.7),
        (4, 0.5, 3_000, 3.2, 3.8),
        (10, 0.05, 50, COST, COST),
        (30, 0.05, 50, COST, 2.6),
        (60, 0.02, 0, COST, 2.2),
        (40, 0.3, 100, COST, COST),
        (100, 0.02, None, COST, COST),
        (200, 0.005, None, COST, COST),
        (60, 0.1, None, COST, COST),
    ],
)
def test_events_that_come_to_several_planes_cost_more_where_one_needs_hardly_a_request_each(
    count: int, apart_s: float, takes_ms: int | None, of_two: float, of_four: float
) -> None:
    """In one plane they go in batches, for which all others have to hand them over: `docs/internals` does the sums."""
    assert cost_of(2, "events", count, apart_s, takes_ms) <= of_two
    assert cost_of(4, "events", count, apart_s, takes_ms) <= of_four


def cost_of(planes: int, kind: Kind, count: int, apart_s: float, takes_ms: int | None) -> float:
    """What so many planes cost, in requests of one."""
    alone = reached(kind, 1, count, apart_s, takes_ms, GAP_OUTRUN_MS).work_requests
    return reached(kind, planes, count, apart_s, takes_ms, GAP_OUTRUN_MS).work_requests / alone


@pytest.mark.parametrize(
    ("count", "apart_s", "takes_ms"), [(60, 0.05, 50), (60, 0.1, 100), (60, 0.1, 200), (20, 0.1, 1_000)]
)
def test_a_handler_that_takes_long_without_a_step_is_not_run_beside_itself(
    count: int, apart_s: float, takes_ms: int
) -> None:
    """More calls than one key can run: most of them go through the inbox.

    Run without a claim, each ran in every plane, and the results of all that waited were looked for: up to 8.5 times
    the requests of one plane. Counted over several seeds, as it depends on which plane is quicker.
    """
    slow = (Remember("x", takes_ms),)
    requests, invocations = Counter[int](), Counter[int]()
    for planes in (1, 2, 4):
        for seed in (1, 2, 3):
            report = reached("calls", planes, count, apart_s, None, GAP_OUTRUN_MS, seed=seed, play=slow)
            passed(report)
            requests[planes] += report.work_requests
            invocations[planes] += report.invocations
    assert requests[2] <= COST * requests[1]
    assert requests[4] <= SLOW_CALLS_COST_OF_FOUR[takes_ms] * requests[1]
    assert max(invocations.values()) <= 1.5 * invocations[1]


@pytest.mark.parametrize("planes", [2, 4])
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("count", "apart_s", "takes_ms"), [(60, 0.05, 50), (60, 0.1, 100), (60, 0.1, 200)])
def test_events_of_a_slow_handler_do_not_go_one_by_one_through_the_inbox(
    count: int, apart_s: float, takes_ms: int, seed: int, planes: int
) -> None:
    report = reached("events", planes, count, apart_s, None, 60_000, seed=seed, play=(Remember("x", takes_ms),))
    passed(report)
    assert report.work_requests <= SLOW_EVENTS_REQUESTS[planes] * count


def test_an_unused_lane_costs_no_more_in_several_planes() -> None:
    """Handing over begins with a lane that is taken: one call after the other costs what it costs in one plane."""
    alone = reached("calls", 1, 10, 2.0, 0, GAP_MS).work_requests
    assert reached("calls", 2, 10, 2.0, 0, GAP_MS).work_requests <= alone + 10 * LEARNED_ANEW


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("planes", "at_zero"), [(2, None), (4, None), (1, AT_ZERO)])
def test_calls_behind_a_run_that_waits_for_an_answer_go_on_when_it_has_come(
    planes: int, at_zero: ScaleToZero | None, seed: int
) -> None:
    """The answer comes to any process, after up to 20 s: longer than what waits is kept in this one."""
    passed(reached("calls", planes, 2, 0.5, None, GAP_OUTRUN_MS, at_zero, seed, (Ask(),)))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", ["calls", "events", "mixed"])
@pytest.mark.parametrize(
    ("count", "apart_s", "takes_ms"),
    [(2, 0.01, 500), (10, 0.1, 500), (4, 0.5, 3_000), (60, 0.02, 0), (100, 0.02, None)],
)
def test_scaled_to_zero_a_lane_goes_on_whatever_invocation_ends(
    kind: Kind, count: int, apart_s: float, takes_ms: int | None, seed: int
) -> None:
    """A batch ends as soon as its records are finished, in the middle of what other invocations have handed over.

    Then an invocation that is given the lane looks at it now and then until the run of the one before has ended.
    """
    passed(reached(kind, 1, count, apart_s, takes_ms, GAP_OUTRUN_MS, AT_ZERO, seed))
