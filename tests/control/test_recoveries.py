"""After an outage: the first success of a handler brings its waiting retries forward, and poisoned events stay put.

Owns the rule and its pace, on virtual time. Does not own pauses between attempts (`test_schedules`).
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tenuto import InvocationRetryPolicy, ObjectContext, VirtualObject
from tenuto.protocol.ids import Lane
from tenuto.service import Services
from tenuto_control.dispatcher.background import Background
from tenuto_control.dispatcher.recoveries import EARLY_RETRY_EVERY_S, LANES_MAX, Recoveries
from tests.costs.meter import Meter
from tests.support.virtual_time import VirtualClock, run_virtual

KEYS = 200
OUTAGE_S = 20.0
HANDLER = ("shop", "buy")
POLICY = InvocationRetryPolicy(initial_interval=timedelta(seconds=1), max_interval=timedelta(seconds=60))


def lanes(count: int) -> list[Lane]:
    return [Lane("shop", f"k{n}") for n in range(count)]


# --- the rule ---------------------------------------------------------------------------------------------------------


async def told(recoveries: Recoveries, hurried: list[Lane]) -> list[Lane]:
    """Which lanes are told to retry, once all have been."""
    await recoveries.background.ended(60)
    return hurried


def recoveries_of() -> tuple[Recoveries, list[Lane]]:
    hurried: list[Lane] = []
    return Recoveries(Background(), hurried.append), hurried


def test_a_success_brings_forward_all_that_failed_before_it_one_after_the_other() -> None:
    async def scenario() -> None:
        recoveries, hurried = recoveries_of()
        one, two, three = lanes(3)
        for lane in (one, two, three):
            recoveries.failed(HANDLER, lane)
        recoveries.failed(("shop", "sell"), one)
        began = asyncio.get_running_loop().time()
        recoveries.succeeded(HANDLER, two)
        assert await told(recoveries, hurried) == [one, three]
        assert asyncio.get_running_loop().time() - began >= EARLY_RETRY_EVERY_S

    run_virtual(scenario())


def test_one_lane_that_fails_among_others_that_succeed_is_no_outage() -> None:
    async def scenario() -> None:
        recoveries, hurried = recoveries_of()
        poisoned, *sound = lanes(5)
        for lane in sound:
            recoveries.failed(HANDLER, poisoned)
            recoveries.succeeded(HANDLER, lane)
        assert await told(recoveries, hurried) == []

    run_virtual(scenario())


def test_a_lane_whose_early_retry_fails_waits_out_its_pauses_until_it_succeeds() -> None:
    async def scenario() -> None:
        recoveries, hurried = recoveries_of()
        poisoned, two, three = lanes(3)
        for _ in range(3):
            recoveries.failed(HANDLER, poisoned)
            recoveries.failed(HANDLER, two)
            recoveries.succeeded(HANDLER, three)
        assert await told(recoveries, hurried) == [poisoned, two]
        recoveries.succeeded(HANDLER, two)
        recoveries.failed(HANDLER, two)
        recoveries.failed(HANDLER, three)
        recoveries.succeeded(HANDLER, poisoned)
        assert await told(recoveries, hurried) == [poisoned, two, two, three]

    run_virtual(scenario())


def test_a_lane_whose_event_was_given_up_is_as_good_as_any_other_in_the_next_outage() -> None:
    async def scenario() -> None:
        recoveries, hurried = recoveries_of()
        one, two, three = lanes(3)
        for lane in (one, two):
            recoveries.failed(HANDLER, lane)
        recoveries.succeeded(HANDLER, three)
        assert await told(recoveries, hurried) == [one, two]
        recoveries.gave_up(HANDLER, one)
        recoveries.gave_up(HANDLER, two)
        for lane in (one, two):
            recoveries.failed(HANDLER, lane)
        recoveries.succeeded(HANDLER, three)
        assert await told(recoveries, hurried) == [one, two, one, two]

    run_virtual(scenario())


def test_what_was_given_up_makes_no_outage() -> None:
    async def scenario() -> None:
        recoveries, hurried = recoveries_of()
        one, two, three = lanes(3)
        for lane in (one, two):
            recoveries.failed(HANDLER, lane)
        recoveries.gave_up(HANDLER, one)
        recoveries.succeeded(HANDLER, three)
        assert await told(recoveries, hurried) == []

    run_virtual(scenario())


def test_a_bounded_number_of_lanes_is_remembered() -> None:
    async def scenario() -> None:
        recoveries, hurried = recoveries_of()
        many = lanes(LANES_MAX + 5)
        for lane in many:
            recoveries.failed(HANDLER, lane)
        recoveries.succeeded(HANDLER, many[-1])
        assert await told(recoveries, hurried) == many[5:-1]

    run_virtual(scenario())


# --- what comes of it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_a_step", [False, True], ids=["before any step", "in a step"])
def test_keys_that_failed_together_recover_together(in_a_step: bool) -> None:
    """With pauses of up to 60 s, they would come back one by one for longer than the outage was."""
    shop = VirtualObject("shop")
    working = asyncio.Event()

    @shop.handler(retry_policy=POLICY)
    async def buy(ctx: ObjectContext, _n: int) -> None:
        if in_a_step:
            await ctx.run("before", int)
        if not working.is_set():
            raise ConnectionError("out of order")
        ctx.set("done", True)

    async def scenario() -> float:
        clock = VirtualClock()
        meter = Meter(Services([shop]), clock=clock)
        for n in range(KEYS):
            meter.deliver(buy, f"k{n}")
        await asyncio.sleep(OUTAGE_S)
        working.set()
        began_ms = clock.now_ms()
        while any("done" not in meter.head("shop", f"k{n}").state for n in range(KEYS)):
            assert clock.now_ms() < began_ms + 120_000, "they do not come back at all"
            await asyncio.sleep(0.1)
        took_s = (clock.now_ms() - began_ms) / 1_000
        await meter.dispatcher.stop()
        return took_s

    # The first attempt after the outage comes when its own pause is over; the others follow at their pace.
    assert run_virtual(scenario()) < KEYS * EARLY_RETRY_EVERY_S + 8
