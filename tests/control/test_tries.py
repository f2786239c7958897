"""`max_attempts` holds whatever process makes the attempts: what has failed is counted where the next one is made.

Owns the count before anything is claimed. Does not own what becomes of an event that is given up.
"""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta

import pytest

from tenuto import InvocationRetryPolicy, ObjectContext, VirtualObject
from tenuto.hosts.event_scheduler import SweepTick, WakeUp
from tenuto.service import Services
from tenuto_control.limits import SERVERLESS, Limits
from tests.control.test_serverless import Function, record
from tests.costs.meter import CountingTable, Meter, meter_of
from tests.support.virtual_time import VirtualClock, run_virtual

ATTEMPTS = 7


def frail(tries: list[int], limit: int | None = ATTEMPTS, well_after: int = 1_000_000) -> VirtualObject:
    box = VirtualObject("box")
    policy = InvocationRetryPolicy(initial_interval=timedelta(seconds=1), max_attempts=limit)

    @box.handler(retry_policy=policy)
    async def event(ctx: ObjectContext, n: int) -> None:
        tries.append(n)
        if len(tries) <= well_after:
            raise ValueError("never works")
        ctx.set("n", n)

    return box


def test_attempts_in_ever_new_environments_are_as_many_as_the_policy_allows() -> None:
    """Found from outside: with a limit of 12, 43 tries in 5 minutes and no dead letter."""
    tries: list[int] = []

    async def scenario() -> None:
        table, clock, services = CountingTable(), VirtualClock(), Services([frail(tries)])
        records: list[str] = []
        for number in range(14):
            # One that lives for one invocation, and remembers nothing of those before it.
            f = Function(services, Limits(**SERVERLESS), table, clock, process=f"env-{number}")
            if number == 0:
                assert await f.serverless.records([record(0), record(1, b"2")], f.deadline()) == []
            else:
                await f.serverless.tick(SweepTick(), f.clock.now_ms() + 4_500)
            records += [topic for topic, _ in f.records]
            # Longer than the sweep puts off a timer whose lane goes on failing.
            await asyncio.sleep(600)
        assert tries == [1] * ATTEMPTS + [2] * ATTEMPTS
        assert records == ["t.dead-letter"] * 2

    run_virtual(scenario())


def test_the_pause_goes_on_growing_in_the_next_environment() -> None:
    times: list[float] = []
    box = VirtualObject("box")

    @box.handler(retry_policy=InvocationRetryPolicy(initial_interval=timedelta(seconds=1), max_attempts=20))
    async def event(_ctx: ObjectContext, _n: int) -> None:
        times.append(asyncio.get_running_loop().time())
        raise ValueError("never works")

    async def scenario() -> None:
        table, clock, services = CountingTable(), VirtualClock(), Services([box])
        first, second = (Function(services, Limits(**SERVERLESS), table, clock, process=name) for name in ("a", "b"))
        await first.serverless.records([record(0)], first.deadline())
        await second.serverless.woken(WakeUp("box/k"), second.deadline())
        # Spilled after two attempts; another process makes the third, and pauses as long as the policy says.
        assert [round(b - a, 1) for a, b in itertools.pairwise(times)] == [1, 1, 4, 8]

    run_virtual(scenario())


@pytest.mark.parametrize(("limit", "counts"), [(ATTEMPTS, 2), (None, 0)])
def test_only_a_failure_that_a_policy_counts_costs_a_write(limit: int | None, counts: int) -> None:
    async def scenario() -> None:
        box = frail([], limit, well_after=2)
        meter = meter_of(box)
        meter.deliver(box.handlers["event"], "k")
        await meter.quiet()
        # The commit takes the count away, and is the one write of an event that goes well.
        assert [line for line in meter.count().log if "tried" in line] == ["head tried"] * counts
        assert meter.head("box", "k").tried is None
        meter.deliver(box.handlers["event"], "k")
        await meter.quiet()
        assert meter.count().writes == 1

    run_virtual(scenario())


def test_a_count_is_about_one_event_alone() -> None:
    tries: list[int] = []

    async def scenario() -> None:
        box = frail(tries, 3)
        meter = Meter(Services([box]), dead_letter="t.dead-letter")
        for n in (1, 2, 3):
            meter.deliver(box.handlers["event"], "k", b"%d" % n)
        await meter.quiet()
        assert tries == [1, 1, 1, 2, 2, 2, 3, 3, 3]

    run_virtual(scenario())
