"""The dispatcher as a function in the simulation: seeds in that shape, and what they found, as tests of its own.

Owns faults that a seed has shown in how an invocation ends. Does not own the rules of an invocation
(`tests/control/test_serverless.py`).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tenuto.hosts.event_scheduler import SweepTick
from tenuto.lane.transitions import Effects, claim
from tenuto.lane.writes import Applied
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import ClaimedRun, Head
from tenuto.service import Services
from tenuto.store.port import Page, TableUnavailableError
from tenuto_control.limits import SERVERLESS, Limits
from tests.control.test_serverless import Function, adding, function, record
from tests.simulation import scenarios
from tests.simulation.runner import judge_seed
from tests.simulation.world import run
from tests.support.virtual_time import run_virtual

SHAPE = "scaled to zero"
SEEDS = 8


@pytest.mark.parametrize("seed", range(203, 203 + SEEDS))
@pytest.mark.parametrize("profile", [None, "heavy"])
def test_every_law_holds_scaled_to_zero(seed: int, profile: str | None) -> None:
    verdict = judge_seed(seed, profile, shape=SHAPE)
    if verdict.problem is not None:
        pytest.fail(verdict.text(), pytrace=False)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_delivered_again_a_lane_is_carried_on_with_once(seed: int) -> None:
    """The oracle *runaway*, where nearly everything comes twice and steps keep failing."""
    drawn = scenarios.drawn(seed, "heavy", SHAPE)
    rates = replace(drawn.rates, batch_doubled=0.8, event_doubled=0.8, tick_doubled=0.8, step_fails=0.5)
    report = run(replace(drawn, rates=rates, faults_until_s=200.0))
    assert report.passed, report.violations
    assert report.faults["event_doubled"] > 2


def test_a_seed_replays_to_the_same_history_scaled_to_zero() -> None:
    scenario = scenarios.drawn(8, "heavy", SHAPE)
    first, second = run(scenario), run(scenario)
    assert first.trace == second.trace
    assert first.requests == second.requests


def test_a_drawn_shape_is_one_seed_in_four() -> None:
    at_zero = [seed for seed in range(40) if scenarios.drawn(seed).scale_to_zero is not None]
    assert at_zero == list(range(3, 40, 4))
    assert scenarios.drawn(8) == scenarios.drawn(8, shape="always on")


def test_a_sweep_that_the_table_ends_leaves_nothing_under_way() -> None:
    """Seed 191: the tick raised with timers armed and lanes at work, and its process was frozen so."""
    box = adding()

    async def scenario() -> None:
        f = function(box)
        await f.dispatcher.send(f.event_of_call(box.handlers["event"], "k", "c1"), 5_000)
        await f.serverless.answered()
        (errand,) = f.handed_on
        f.handed_on.clear()
        await asyncio.sleep(1)
        _fail_queries_after_its_timer(f, errand.timer.pk if errand.timer else "")
        with pytest.raises(TableUnavailableError):
            await f.serverless.tick(SweepTick(), f.deadline())
        assert f.handed_on == [errand]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(scenario())


def test_a_lane_that_is_told_of_something_halts_all_the_same() -> None:
    """Seed 171: it lost the cancellation, went on while the process halted, and woke other lanes."""

    async def scenario() -> None:
        f = function(adding())
        lane = Lane("box", "k")
        event = f.event_of_call(adding().handlers["event"], "k", "c1")
        held = ClaimedRun(event, 1, 0, 0, 1, "another", f.clock.now_ms() + 60_000)
        assert isinstance(f.table.apply(claim(lane, Head(), Effects(), held, "t", drain=False)), Applied)
        f.dispatcher.look(lane)
        await asyncio.sleep(1)
        began_ms = f.clock.now_ms()
        f.dispatcher.look(lane)
        await f.dispatcher.halt(began_ms)
        assert f.clock.now_ms() == began_ms
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(scenario())


def test_a_dead_letter_that_is_cut_off_is_not_under_way_any_more() -> None:
    """Seed 1658, scaled to zero: a batch without time ended before the tasks that it had cancelled."""

    class Stuck(Function):
        async def produce(self, *_args: object) -> None:
            await asyncio.Event().wait()

    async def scenario() -> None:
        f = Stuck(Services([adding()]), limits=Limits(**SERVERLESS))
        left = await f.serverless.records([record(0, key=None)], f.clock.now_ms())
        assert [r.offset for r in left] == [0]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(scenario())


def _fail_queries_after_its_timer(f: Function, bucket: str) -> None:
    """Have the table answer the sweep up to a bucket, and nothing behind it."""
    answered, query = [False], f.table.query

    async def fails(pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
        if answered[0]:
            raise TableUnavailableError("throttled")
        answered[0] = pk == bucket
        return await query(pk, low, high, limit=limit, after=after)

    f.table.query = fails  # type: ignore[method-assign]  # A table that fails from a moment on that a test chooses.
