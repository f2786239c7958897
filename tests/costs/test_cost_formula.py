"""The formula of `tenuto cost` against requests that the production code makes.

Owns what is measured, and where the formula is exact or an upper bound. Does not own the table of costs (`test_costs`)
or what requests are charged at (`tests.control.test_costs_model`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

import msgspec
import pytest

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.writes import Answer, Write
from tenuto.protocol.records import Success
from tenuto.service import Services
from tenuto.store.sizes import item_bytes
from tenuto_control.core import costs
from tenuto_control.core.costs import Workload, count, write_units_of_event
from tenuto_control.limits import Limits
from tests.costs.meter import CountingTable, Meter, meter_of
from tests.support.virtual_time import block, run_virtual

SLOW_CODE_SECONDS = 0.05
"""Longer than the 20 ms after which a finished step is flushed on its own."""
CALL_WAIT_MS = 25_000
SETTLE_SECONDS = 10.0
SETTLES = 8
"""Long enough for the last sleep to end, and for every guard to fall due."""


class HeadsTable(CountingTable):
    """Also keeps the largest size that a head had."""

    def __init__(self) -> None:
        super().__init__()
        self.head_bytes = 0

    def apply(self, write: Write) -> Answer:
        """See `MemoryTable.apply`."""
        answer = super().apply(write)
        item = self.items.get((write.key.pk, write.key.sk))
        if write.key.sk == "H" and item is not None:
            self.head_bytes = max(self.head_bytes, item_bytes(item))
        return answer


class Task(msgspec.Struct, frozen=True):
    """What an event has its handler do: one letter an action, in order (m: message, s: step, z: sleep)."""

    actions: str
    number: int = 0
    sleep_seconds: float = 0.0
    slow: bool = False
    fill_bytes: int = 0


@dataclass
class Handlers:
    """The handlers under measurement, with how often their code has run."""

    sender: VirtualObject = field(default_factory=lambda: VirtualObject("sender"))
    receiver: VirtualObject = field(default_factory=lambda: VirtualObject("receiver"))
    turns: int = 0


def declare() -> Handlers:
    """Fresh handlers."""
    made = Handlers()

    async def step(number: int) -> int:
        await asyncio.sleep(0.001)
        return number

    @made.receiver.handler()
    async def take(ctx: ObjectContext, amount: int) -> None:
        made.turns += 1
        ctx.set("amount", amount)

    @made.sender.handler()
    async def work(ctx: ObjectContext, task: Task) -> None:
        made.turns += 1
        if task.fill_bytes:
            ctx.set("fill", "x" * task.fill_bytes)
        ctx.set("last", task.number)
        for at, action in enumerate(task.actions):
            match action:
                case "m":
                    ctx.object_send(take, f"r{task.number}.{at}", 1)
                case "s":
                    await ctx.run(f"step {at}", step, at)
                    if task.slow:
                        block(SLOW_CODE_SECONDS)
                case _:
                    await ctx.sleep(timedelta(seconds=task.sleep_seconds))

    return made


@dataclass
class Measured:
    """Requests of all events of a case, and what the sweep did about the timers they left."""

    writes: int
    units: int
    timers: int
    invocations: int
    turns: int
    head_reads: int
    queries: int
    deletions: int
    sweep_reads: int
    head_bytes: int
    story: str


async def measure(workload: Workload, actions: str, events: int = 1, fill_bytes: int = 0) -> Measured:
    """Run events of one key, which wait together, until nothing is left to do."""
    made, table = declare(), HeadsTable()
    work = made.sender.handlers["work"]
    limits = Limits() if workload.hold_seconds is None else Limits(hold_sleep_ms=int(workload.hold_seconds * 1000))
    # The events behind a sleep stay where they are: moved to the inbox, they would cost more.
    limits = replace(limits, spill_after_ms=int(SETTLE_SECONDS * 1000))
    meter = Meter(Services((made.sender, made.receiver)), limits, table)
    if fill_bytes:
        meter.deliver(work, "k", msgspec.json.encode(Task("", fill_bytes=fill_bytes)))
        await meter.quiet()
        meter.count()
        made.turns = 0
    for number in range(1, events + 1):
        value = msgspec.json.encode(Task(actions, number, workload.sleep_seconds, workload.slow_code))
        if workload.calls:
            event = msgspec.structs.replace(meter.event_of_call(work, "k", f"c{number}"), input=value)
            assert isinstance(await meter.dispatcher.call(event, CALL_WAIT_MS), Success)
        else:
            meter.deliver(work, "k", value)
    return await finish(meter, made, table)


async def finish(meter: Meter, made: Handlers, table: HeadsTable) -> Measured:
    """Count what was requested, then what a sweep requests because of it."""
    for _ in range(SETTLES):
        await meter.quiet()
        await asyncio.sleep(SETTLE_SECONDS)
    units, head_reads, queries = table.units, table.requests.get("get", 0), table.requests.get("query", 0)
    cost = meter.count()
    await meter.sweeper.sweep()
    swept = sum(table.requests.get(kind, 0) for kind in ("get", "query"))
    deletions = [line.split() for line in meter.count().log if line.startswith("delete_all")]
    await meter.sweeper.sweep()
    idle = sum(table.requests.get(kind, 0) for kind in ("get", "query"))
    await meter.dispatcher.stop()
    return Measured(
        writes=cost.writes,
        units=units,
        timers=cost.timers(),
        invocations=cost.invocations,
        turns=made.turns,
        head_reads=head_reads,
        queries=queries,
        deletions=sum(int(number) for _, number, *_ in deletions),
        sweep_reads=swept - idle,
        head_bytes=table.head_bytes,
        story="\n".join(cost.log),
    )


def in_order(workload: Workload) -> str:
    """A handler in the order that the formula is exact for."""
    return "m" * workload.sends + "s" * workload.steps + "z" * workload.sleeps


EXACT = [
    Workload(),
    *(Workload(batch=events) for events in (3, 40)),
    *(Workload(steps=steps) for steps in (1, 2, 5, 20)),
    Workload(steps=3, batch=4),
    Workload(steps=3, slow_code=True),
    Workload(sleeps=1, sleep_seconds=2),
    Workload(sleeps=2, sleep_seconds=2),
    Workload(steps=1, sleeps=1, sleep_seconds=2),
    Workload(steps=3, sleeps=1, sleep_seconds=5),
    Workload(sleeps=1, sleep_seconds=6),
    Workload(sleeps=2, sleep_seconds=6),
    Workload(steps=1, sleeps=1, sleep_seconds=6),
    Workload(steps=3, sleeps=1, sleep_seconds=6, batch=3),
    Workload(steps=2, sleeps=3, sleep_seconds=6),
    Workload(steps=2, sleeps=1, sleep_seconds=6, slow_code=True),
    Workload(steps=3, sleeps=1, sleep_seconds=2, batch=3),
    Workload(steps=2, sleeps=3, sleep_seconds=2),
    Workload(steps=2, sleeps=1, sleep_seconds=2, slow_code=True),
    Workload(sleeps=3, sleep_seconds=0.1),
    Workload(sleeps=1, sleep_seconds=2, hold_seconds=20),
    Workload(steps=2, sleeps=1, sleep_seconds=2, hold_seconds=20),
    Workload(steps=2, sleeps=2, sleep_seconds=2, hold_seconds=20),
    Workload(steps=2, sleeps=1, sleep_seconds=2, hold_seconds=20, slow_code=True),
    Workload(sends=1),
    Workload(sends=3),
    Workload(sends=1, batch=3),
    Workload(sends=1, steps=2),
    Workload(sends=2, steps=1, batch=3),
    Workload(sends=1, steps=2, sleeps=1, sleep_seconds=2),
    Workload(sends=1, steps=2, sleeps=1, sleep_seconds=2, batch=3),
    Workload(sends=1, steps=2, sleeps=1, sleep_seconds=6),
    Workload(sends=1, steps=2, sleeps=1, sleep_seconds=6, batch=3),
    Workload(calls=True),
    Workload(calls=True, steps=1),
    Workload(calls=True, steps=3),
    Workload(calls=True, sends=1),
    Workload(calls=True, sends=1, steps=2),
    Workload(calls=True, steps=2, sleeps=1, sleep_seconds=2),
    Workload(calls=True, steps=2, sleeps=1, sleep_seconds=6),
]


def name_of(workload: Workload) -> str:
    """A workload by what differs from a quiet key's event that only touches state."""
    usual = Workload()
    shown = ("steps", "sleeps", "sleep_seconds", "sends", "batch", "slow_code", "calls", "hold_seconds")
    changed = {one: getattr(workload, one) for one in shown if getattr(workload, one) != getattr(usual, one)}
    return " ".join(f"{one}={value}" for one, value in changed.items()) or "state only"


@pytest.mark.parametrize("workload", EXACT, ids=name_of)
def test_the_formula_counts_what_is_requested(workload: Workload) -> None:
    events = round(workload.batch)
    measured = run_virtual(measure(workload, in_order(workload), events))
    counts = count(workload)
    # No step follows a held sleep here: that it has ended needs no write of its own.
    # What is sent before a nap is cleared by the commit after it.
    # It has left by then, so that the commit claims the next event of the batch. The formula does not count on it.
    joined = events - 1 if workload.sends and (workload.napped or workload.suspended) else 0
    saved = events * workload.held + joined + (1 if workload.sends and workload.napped else 0)
    assert measured.writes == pytest.approx(events * counts.writes - saved), measured.story
    assert measured.timers == measured.deletions == pytest.approx(events * counts.timers), measured.story
    assert measured.turns == events * counts.turns, measured.story
    # Equal but where many steps make the journal, and so the head, pass 1 KB on the way.
    assert measured.head_bytes <= 1_024 or workload.steps == 20
    least, most = (events * write_units_of_event(counts, size) for size in (1, measured.head_bytes))
    billed = measured.units + measured.deletions
    assert least - saved <= billed + 1e-9, measured.story
    assert billed <= most + 1e-9, measured.story
    if workload.held:
        # A function's time may end in the middle of a batch of held sleeps.
        assert measured.invocations <= events * counts.invocations
    else:
        assert measured.invocations == pytest.approx(events * counts.invocations - joined), measured.story


@pytest.mark.parametrize("workload", EXACT, ids=name_of)
def test_the_formula_bounds_what_is_read(workload: Workload) -> None:
    events = round(workload.batch)
    measured = run_virtual(measure(workload, in_order(workload), events))
    counts = count(workload)
    assert measured.head_reads <= round(events * counts.head_reads)
    assert measured.queries <= events * workload.sends
    assert measured.queries + measured.sweep_reads <= events * counts.other_read_units


@pytest.mark.parametrize(
    ("actions", "sleep_seconds", "saved"),
    [
        # A step right before a sleep is written with it.
        ("szs", 2.0, 1),
        ("szs", 6.0, 1),
        ("szszs", 2.0, 2),
        ("szszs", 6.0, 2),
        ("sszss", 2.0, 1),
        ("sszss", 6.0, 1),
        # What is sent between two suspensions is cleared together, what is sent before a nap with the commit; what is
        # sent in the last turn, at the end.
        ("mmz", 2.0, 1),
        ("mmz", 6.0, 1),
        ("mzmzm", 2.0, 0),
        ("mzmzm", 6.0, 0),
        ("smz", 2.0, 1),
        ("smz", 6.0, 0),
        ("zm", 2.0, 0),
        ("zm", 6.0, 0),
        ("mszmszms", 2.0, 2),
        ("mszmszms", 6.0, 2),
    ],
)
def test_no_other_order_costs_more(actions: str, sleep_seconds: float, saved: int) -> None:
    workload = Workload(
        steps=actions.count("s"), sleeps=actions.count("z"), sends=actions.count("m"), sleep_seconds=sleep_seconds
    )
    measured = run_virtual(measure(workload, actions))
    assert measured.writes == count(workload).writes - saved, measured.story
    assert measured.invocations == count(workload).invocations, measured.story


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize(("sleep_seconds", "hold_seconds"), [(1.0, None), (1.0, 20.0), (6.0, None)])
@pytest.mark.parametrize("actions", ["zs", "zzs", "zsz", "szs", "szszs", "zszs", "mzs", "szm", "zmzs"])
def test_the_formula_is_a_bound_where_sleeps_come_first(
    actions: str, sleep_seconds: float, hold_seconds: float | None, slow: bool
) -> None:
    workload = Workload(
        steps=actions.count("s"),
        sleeps=actions.count("z"),
        sends=actions.count("m"),
        sleep_seconds=sleep_seconds,
        hold_seconds=hold_seconds,
        slow_code=slow,
    )
    measured = run_virtual(measure(workload, actions))
    counts = count(workload)
    assert counts.writes - 2 * workload.steps - workload.held <= measured.writes <= counts.writes, measured.story
    assert measured.invocations <= counts.invocations, measured.story


@pytest.mark.parametrize("fill_bytes", [500, 1_500, 5_500, 30_000])
@pytest.mark.parametrize("actions", ["", "sss", "ssz"])
def test_every_write_is_billed_by_the_size_of_its_head(actions: str, fill_bytes: int) -> None:
    workload = Workload(steps=actions.count("s"), sleeps=actions.count("z"), sleep_seconds=2.0)
    measured = run_virtual(measure(workload, actions, fill_bytes=fill_bytes))
    counts = count(workload)
    smallest = write_units_of_event(counts, fill_bytes)
    assert smallest <= measured.units + measured.deletions <= write_units_of_event(counts, measured.head_bytes)
    # The state here is most of the head, so that both say the same but where the journal crosses a unit.
    assert measured.head_bytes - fill_bytes < 600


def test_messages_to_small_heads_cost_no_more_than_the_formula_says() -> None:
    workload = Workload(sends=2, steps=1)
    measured = run_virtual(measure(workload, "mms", fill_bytes=5_500))
    assert measured.units + measured.deletions < write_units_of_event(count(workload), measured.head_bytes)


def test_the_sweep_reads_what_the_formula_says_when_nothing_is_there() -> None:
    async def reads() -> tuple[int, int, int]:
        meter = meter_of(declare().sender)

        async def of(sweep: Callable[[], Awaitable[object]]) -> int:
            meter.count()
            await sweep()
            return sum(meter.table.requests.values())

        # The cursor is stored by a first sweep, and moves on by none that follows at once.
        await meter.sweeper.sweep_deep()
        wide = await of(meter.sweeper.sweep)
        return await of(meter.sweeper.sweep_near), wide, await of(meter.sweeper.sweep_deep)

    near, wide, deep = run_virtual(reads())
    expected = costs.sweep_queries()
    assert expected.near - 4 <= near <= expected.near, "one bucket more at the edges of a minute"
    assert expected.wide - 4 <= wide <= expected.wide, "one bucket more, shortly before a minute ends"
    assert deep == expected.deep


def test_an_idle_hour_reads_what_the_formula_says() -> None:
    async def reads() -> int:
        meter = meter_of(declare().sender)
        await meter.sweeper.sweep_deep()
        sweeping = asyncio.create_task(meter.sweeper.run())
        await asyncio.sleep(60)
        meter.count()
        await asyncio.sleep(3_600)
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)
        return sum(meter.table.requests.values())

    (line,) = (one for one in costs.estimate(Workload()).lines if one.item == "DynamoDB reads, sweep")
    hour = line.count / costs.HOURS_PER_MONTH
    assert 0.85 * hour < run_virtual(reads()) <= hour
