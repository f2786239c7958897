"""A crash at every durable write: handlers that survive it, and one that does not.

Owns the claim that a difference is found and told with its write and line.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from tenuto import ObjectContext, TerminalError, VirtualObject
from tenuto.testing import CrashReport, Environment, HarnessError, OutcomesDifferError
from tests.kit.shop import Order, Receipt, add, add_to_all, greeter, orders, place, remind, status
from tests.support import bounded


def prove(env: Environment, scenario: Callable[[Environment], Awaitable[Any]], *without: str) -> CrashReport:
    async def main() -> CrashReport:
        return await env.crash_everywhere(scenario, without=without)

    return bounded.run(main())


def test_an_order_survives_a_crash_at_every_write() -> None:
    async def scenario(env: Environment) -> Receipt:
        placed = await env.send(place, "o-1", Order("tea", 3))
        (awakeable,) = await env.awakeables()
        await env.resolve_awakeable(awakeable, "Bo")
        receipt = await env.result(placed)
        assert await env.call(status, "o-1") == "delivered"
        return receipt

    report = prove(Environment(orders), scenario)
    assert report.writes >= 6
    assert report.runs == 2 * report.writes


def test_calls_events_delays_and_failures_survive() -> None:
    async def scenario(env: Environment) -> int:
        for amount in (1, 2):
            await env.event("amounts", "a", amount)
        await env.event("amounts", "a", "much")
        await env.call(add_to_all, ["a", "b"])
        with pytest.raises(TerminalError):
            await env.call(place, "a", Order("tea", 0))
        await env.send(remind, "c")
        await env.send(add, "a", 4, delay=timedelta(days=3))
        await env.advance(days=31)
        return await env.call(add, "a", 1)

    report = prove(Environment(orders, greeter, topics={"amounts": add}), scenario, "reminded")
    assert report.writes >= 15


def test_a_handler_that_counts_outside_of_its_steps_is_found_out() -> None:
    meter = VirtualObject("meter")

    async def main() -> None:
        async def scenario(env: Environment) -> None:
            seen: list[str] = []

            async def look() -> int:
                seen.append("look")
                return len(seen)

            looks.append(look)
            await env.call(measure, "k")

        await Environment(meter).crash_everywhere(scenario)

    looks: list[Callable[[], Awaitable[int]]] = []

    async def look() -> int:
        return await looks[-1]()

    @meter.handler()
    async def measure(ctx: ObjectContext) -> int:
        first = await ctx.run("first", look)
        return first + await ctx.run("second", look)

    with pytest.raises(OutcomesDifferError) as found:
        bounded.run(main())
    text = str(found.value)
    line = measure.function.__code__.co_firstlineno
    assert f"test_crashes.py:{line + 2}" in text or f"test_crashes.py:{line + 3}" in text
    assert text.startswith("after a crash right ")
    assert "durable write" in text
    assert "+   5" in text


def test_a_scenario_that_fails_after_a_crash_is_told_with_its_error() -> None:
    box = VirtualObject("box")
    runs: list[int] = []

    @box.handler()
    async def put(ctx: ObjectContext) -> int:
        return await ctx.run("put", lambda: len(runs))

    async def scenario(env: Environment) -> None:
        runs.clear()

        def again() -> None:
            runs.append(1)

        again()
        if await env.call(put, "k") != 1:
            raise LookupError("lost")

    assert prove(Environment(box), scenario).writes >= 1

    async def failing(env: Environment) -> None:
        await env.call(put, "k")
        raise LookupError("of the scenario itself")

    with pytest.raises(LookupError, match="of the scenario itself"):
        prove(Environment(box), failing)


def test_a_scenario_that_differs_from_itself_is_refused() -> None:
    async def scenario(env: Environment) -> float:
        await env.call(add, "k", 1)
        times.append(0.0)
        return len(times)

    times: list[float] = [0.0]
    with pytest.raises(HarnessError, match="two runs of this scenario without any crash have different outcomes"):
        prove(Environment(orders), scenario)
