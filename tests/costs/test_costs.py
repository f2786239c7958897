"""What an event may cost, row by row: DynamoDB write requests (W) and function invocations (I).

Owns the table. Reads are not counted; deletions by the sweep are counted in a test of their own. Costs are asserted
exactly: a row that has become cheaper is to be written down as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from tenuto import Context, ObjectContext, ObjectSharedContext, RetryableError, Service, VirtualObject
from tenuto.protocol.records import Success
from tenuto_control.ports import Resolution
from tests.costs.meter import Cost, Meter, meter_of
from tests.support.virtual_time import block, run_virtual

PAUSE_THAT_SUSPENDS = timedelta(seconds=2)
NAP = timedelta(seconds=2)
LONG_SLEEP = timedelta(seconds=6)
"""A sleep in which the control plane keeps the lane, and one in which it does not."""
SLOW_STEP_SECONDS = 0.015
SLOW_CODE_SECONDS = 0.05
"""Longer than the 20 ms after which a finished step is flushed on its own."""


@dataclass
class Account:
    """The handlers under measurement, with what they did."""

    service: VirtualObject = field(default_factory=lambda: VirtualObject("account"))
    plain: Service = field(default_factory=lambda: Service("plain"))
    tries: int = 0
    awakeable: str = ""


def declare() -> tuple[Account, Meter]:  # noqa: C901 - a list of small handlers, none of which branches much
    """Fresh handlers, and a meter that runs them."""
    account = Account()
    service, plain = account.service, account.plain

    async def step(number: int) -> int:
        await asyncio.sleep(SLOW_STEP_SECONDS)
        return number

    @service.handler()
    async def add(ctx: ObjectContext, amount: int) -> int:
        total = (await ctx.get("total", int) or 0) + amount
        ctx.set("total", total)
        return total

    @service.handler(kind="shared")
    async def read(ctx: ObjectSharedContext) -> int | None:
        return await ctx.get("total", int)

    @service.handler()
    async def steps(ctx: ObjectContext, count: int) -> None:
        for number in range(count):
            await ctx.run(f"step {number}", step, number)

    @service.handler()
    async def slow(ctx: ObjectContext, count: int) -> None:
        for number in range(count):
            await ctx.run(f"step {number}", step, number)
            block(SLOW_CODE_SECONDS)

    @service.handler()
    async def at_once(ctx: ObjectContext, count: int) -> None:
        await ctx.gather(*(ctx.run(f"step {number}", step, number) for number in range(count)))

    @service.handler()
    async def fails_briefly(ctx: ObjectContext, count: int) -> None:
        await ctx.run("before", step, 0)
        account.tries += 1
        if account.tries <= count:
            raise ConnectionError("not yet")

    @service.handler()
    async def fails_long(ctx: ObjectContext, count: int) -> None:
        await ctx.run("before", step, 0)
        account.tries += 1
        if account.tries == 1:
            raise RetryableError("later", PAUSE_THAT_SUSPENDS)

    @service.handler()
    async def fails_early(ctx: ObjectContext, count: int) -> None:
        account.tries += 1
        if account.tries == 1:
            raise ConnectionError("not yet")

    @service.handler()
    async def sleeps(ctx: ObjectContext, count: int) -> None:
        for number in range(count):
            await ctx.run(f"step {number}", step, number)
        await ctx.sleep(LONG_SLEEP)

    @service.handler()
    async def dozes(ctx: ObjectContext, count: int) -> None:
        for number in range(count):
            await ctx.run(f"step {number}", step, number)
        await ctx.sleep(NAP)

    @service.handler()
    async def dozes_between(ctx: ObjectContext, count: int) -> None:
        for number in range(count):
            await ctx.run(f"before {number}", step, number)
        await ctx.sleep(NAP)
        for number in range(count):
            await ctx.run(f"after {number}", step, number)

    @service.handler()
    async def naps(ctx: ObjectContext, count: int) -> None:
        await ctx.sleep(timedelta(milliseconds=100))

    @service.handler()
    async def sends(ctx: ObjectContext, amount: int) -> None:
        ctx.object_send(add, "receiver", amount)

    @service.handler()
    async def sends_later(ctx: ObjectContext, amount: int) -> None:
        ctx.object_send(add, "receiver", amount, send_delay=PAUSE_THAT_SUSPENDS)

    @service.handler()
    async def publishes(ctx: ObjectContext, amount: int) -> None:
        ctx.publish("out", amount)

    @service.handler()
    async def waits(ctx: ObjectContext, count: int) -> None:
        account.awakeable, answer = ctx.awakeable(str)
        await ctx.run("hand out", step, 0)
        await answer

    @plain.handler()
    async def stateless(ctx: Context, amount: int) -> int:
        return amount

    return account, meter_of(service, plain)


Way = Callable[[Account, Meter], Awaitable[None]]


def record(name: str, value: int = 1, times: int = 1, key: str = "k", first: int = 0) -> Way:
    """So many records for one handler; `first` of them arrive, and become quiet, before the count begins."""

    async def way(account: Account, meter: Meter) -> None:
        service = account.service if name in account.service.handlers else account.plain
        for _ in range(first):
            meter.deliver(service.handlers[name], key, str(value).encode())
            await meter.quiet()
        meter.count()
        for _ in range(times):
            meter.deliver(service.handlers[name], key, str(value).encode())
        await meter.quiet()
        await asyncio.sleep(2 * LONG_SLEEP.total_seconds())
        await meter.quiet()
        assert len(meter.released) == first + times

    return way


def call(name: str, *, keep: bool = False, times: int = 1) -> Way:
    """The same call, so many times."""

    async def way(account: Account, meter: Meter) -> None:
        event = meter.event_of_call(account.service.handlers[name], "k", "c1", keep=keep)
        for _ in range(times):
            answer = await meter.dispatcher.call(event, 5_000)
            assert isinstance(answer, Success)
        await meter.quiet()

    return way


async def shared(account: Account, meter: Meter) -> None:
    """A read-only handler."""
    event = meter.event_of_call(account.service.handlers["read"], "k", "c1")
    await meter.dispatcher.call_shared(event)
    await meter.quiet()


async def resolution(account: Account, meter: Meter) -> None:
    """The resolution of an awakeable that a suspended invocation waits for, and the resumed rest of that invocation."""
    meter.deliver(account.service.handlers["waits"], "k")
    await meter.quiet()
    meter.count()
    assert await meter.dispatcher.resolve(account.awakeable, Success(b'"yes"')) is Resolution.ACCEPTED
    await meter.quiet()


@dataclass(frozen=True)
class Row:
    """One row: what is done, and what it costs. `head` of the writes go to heads, `timers` put timers or guards."""

    name: str
    way: Way
    writes: int
    invocations: int
    head: int | None = None
    timers: int = 0

    def __str__(self) -> str:
        return self.name


ROWS = [
    Row("state only, backlog of 40 for the key", record("add", times=40), 1, 1),
    Row("state only, quiet key, first event", record("add"), 1, 1),
    Row("state only, quiet key, later event", record("add", first=1), 1, 1),
    Row("unkeyed, no durable action", record("stateless", key=""), 0, 1),
    Row("1 run", record("steps", 1), 2, 1),
    Row("5 sequential runs", record("steps", 5), 6, 1),
    Row("20 sequential runs", record("steps", 20), 21, 1),
    Row("5 runs with slow code between them", record("slow", 5), 7, 1),
    Row("3 waiting events of 2 runs", record("steps", 2, times=3), 3 * 2 + 1, 1),
    Row("5 concurrent runs", record("at_once", 5), 2, 1),
    Row("1 run and 3 attempts that fail and retry inside the function", record("fails_briefly", 3), 2 + 1, 1),
    Row("an attempt that fails before anything durable", record("fails_early"), 1, 2),
    Row("1 run and 1 attempt that fails and suspends", record("fails_long"), 2 + 3, 2, head=2 + 2, timers=1),
    Row("a sleep short enough to be held", record("naps"), 1, 1),
    Row("1 run and a sleep that suspends", record("sleeps", 1), 2 + 3, 2, head=2 + 2, timers=1),
    Row("5 runs and a sleep that suspends", record("sleeps", 5), 6 + 3, 2, head=6 + 2, timers=1),
    Row("1 run and a nap", record("dozes", 1), 2 + 1, 2, head=2 + 1),
    Row("5 runs and a nap", record("dozes", 5), 6 + 1, 2, head=6 + 1),
    Row("2 runs, a nap, 2 runs", record("dozes_between", 2), 4 + 1, 2, head=4 + 1),
    Row("durable call: 1 run and a nap, guard, result", call("dozes"), 3 + 1 + 2, 2, timers=1),
    Row("shared handler", shared, 0, 1),
    Row("send to an idle lane", record("sends"), 1 + 6, 2, timers=1),
    Row("delayed send to an idle lane", record("sends_later"), 1 + 8, 2, timers=2),
    Row("publish", record("publishes"), 1 + 1, 1),
    Row("call, state only", call("add"), 1, 1),
    Row("durable call: 1 run, guard, result", call("steps"), 2 + 1 + 2, 1, timers=1),
    Row("call with a result that can be attached to", call("add", keep=True), 1 + 2, 1),
    Row("the same call three times", call("add", keep=True, times=3), 1 + 2, 1),
    Row("awakeable resolution and resume", resolution, 2 + 2, 1, head=1 + 2, timers=1),
]


async def measure(way: Way) -> Cost:
    """What a way costs, from its own first count to the quiet state."""
    account, meter = declare()
    await way(account, meter)
    cost = meter.count()
    await meter.dispatcher.stop()
    return cost


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_row_of_the_cost_table(row: Row) -> None:
    cost = run_virtual(measure(row.way))
    story = f"{row}: {cost.writes} W, {cost.invocations} I\n" + "\n".join(cost.log)
    assert cost.writes == row.writes, story
    assert cost.invocations == row.invocations, story
    assert cost.timers() == row.timers, story
    if row.head is not None:
        assert cost.head() == row.head, story
    assert not [line for line in cost.log if "refused" in line], f"a write for nothing\n{story}"


def test_the_sweep_deletes_what_is_over_in_one_request_a_shard() -> None:
    async def sweep() -> tuple[int, int]:
        account, meter = declare()
        for number in range(60):
            meter.deliver(account.service.handlers["sleeps"], f"k{number}")
        await meter.quiet()
        await asyncio.sleep(2 * LONG_SLEEP.total_seconds())
        await meter.quiet()
        timers = sum(pk.startswith("T#") for pk, _ in meter.table.items)
        meter.count()
        await meter.sweeper.sweep()
        cost = meter.count()
        assert not [pk for pk, _ in meter.table.items if pk.startswith("T#")]
        await meter.dispatcher.stop()
        return timers, cost.writes

    timers, writes = run_virtual(sweep())
    assert timers == 60
    assert writes <= 8, "60 timers in 4 shards, 25 deletions a request"


def test_a_long_journal_costs_linear_write_units() -> None:
    async def units(count: int) -> int:
        account, meter = declare()
        meter.deliver(account.service.handlers["steps"], "k", str(count).encode())
        await meter.quiet()
        assert len(meter.released) == 1
        used = meter.table.units
        await meter.dispatcher.stop()
        return used

    used = {count: run_virtual(units(count)) for count in (100, 300)}
    # A journal rolls above 2 KB, so no write of the head bills more than a handful of units, however long it is.
    assert used[300] <= 2.5 * 300, used
    assert used[300] <= 3.5 * used[100], used
