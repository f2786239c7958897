"""The journal between two threads: the handler's reads it while the other one stores what has finished.

Owns the race, with real threads and a table that takes its time. Does not own schedules on one loop, which the
simulation draws, nor who may hold a thread (`test_placement`).
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tenuto import ObjectContext, RetryableError, VirtualObject
from tenuto.lane.head import head_key, parse_head
from tenuto.lane.transitions import Effects, slots_put, takeover
from tenuto.lane.writes import Answer, Applied, Write
from tenuto.machine.backlog import Backlog
from tenuto.machine.journal import Journal
from tenuto.protocol.ids import InvocationId, Lane, awakeable_slot, kafka_nonce
from tenuto.protocol.limits import FLUSH_DELAY_MS_MAX, HOLD_SLEEP_MS_MAX, OUT_PER_WRITE_MAX
from tenuto.protocol.messages import Activation, Committed, Head, Suspended
from tenuto.protocol.records import AwakeableSlot, Event, KafkaSource, Success, pack
from tenuto.runtime import activation as activation_module
from tenuto.runtime import lane_writer as lane_writer_module
from tenuto.runtime import lease as lease_module
from tenuto.runtime.activation import activate
from tenuto.runtime.attempt import Attempt
from tenuto.runtime.environment import Environment
from tenuto.runtime.lane_writer import LaneWriter
from tenuto.runtime.lease import Lease
from tenuto.runtime.state import StateView
from tenuto.runtime.steps import RunLimits
from tenuto.runtime.write_loop import BlockingWriteLoop
from tenuto.serde import serde_for
from tenuto.service import Services
from tenuto.store.memory import MemoryTable
from tests.support.write_loops import ended_afterwards

LANE = Lane("box", "k")
EVENT = Event(str(InvocationId(LANE, kafka_nonce("0", "t", 0, 0))), "work", KafkaSource("0", "t", 0, 0, 0))
FUNCTION_MS = 60_000
WRITE_S_MAX = 0.0005
SWITCH_S = 1e-6
ROUNDS = 1_000
READ_S = 0.001
ATTEMPTS = 40
STEPS = 200


class SlowTable(MemoryTable):
    """Answers after a moment, each time another."""

    def __init__(self) -> None:
        super().__init__()
        self._rng = random.Random(1)

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        await asyncio.sleep(self._rng.uniform(0, WRITE_S_MAX))
        return await super().write(write)


@pytest.fixture(autouse=True)
def _threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def environment() -> Iterator[Environment]:
    loop = BlockingWriteLoop()
    deadline_ms = time.time_ns() // 1_000_000 + FUNCTION_MS
    with ended_afterwards(loop):
        yield Environment(SlowTable(), lambda: time.time_ns() // 1_000_000, deadline_ms, loop, _inline, nonce="n")


async def _inline(call: Callable[[], object]) -> object:
    return call()


def test_what_has_finished_is_there_whoever_stores_it(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other thread is told at once; then this one reads on, while that one stores.
    monkeypatch.setattr(lease_module, "FLUSH_DELAY_MS_MAX", 0)

    async def scenario() -> tuple[int, int]:
        lease = Lease(Activation("box", "k", "speculate", Head(), "h", (EVENT,)), environment)
        lease.begin(EVENT, Journal(), Effects)
        attempt = Attempt(EVENT, lease, StateView({}), environment)
        reads = missed = 0

        async def handler() -> None:
            nonlocal reads, missed
            for n in range(ROUNDS):
                future = attempt.commands.run(f"s{n}", int, serde_for(int), RunLimits())
                await future
                ends = time.monotonic() + READ_S
                while time.monotonic() < ends:
                    reads += 1
                    missed += lease.journal.slot(future.slot) is None

        await attempt.drive(handler)
        await lease.flush()
        await lease.close()
        return reads, missed

    reads, missed = asyncio.run(scenario())
    assert reads > 10 * ROUNDS
    assert missed == 0, f"{missed} of {reads} reads missed a step that had finished"


def test_a_replay_inside_the_function_runs_no_finished_step_again(environment: Environment) -> None:
    box = VirtualObject("box")
    ran: list[int] = []
    tries = 0

    @box.handler()
    async def work(ctx: ObjectContext) -> None:
        nonlocal tries
        tries += 1
        for n in range(tries):
            await ctx.run(f"s{n}", ran.append, n)
        if tries < ATTEMPTS:
            raise RetryableError("once more", timedelta(milliseconds=1))

    outcome = asyncio.run(
        activate(Activation("box", "k", "speculate", Head(), "h", (EVENT,)), Services([box]), environment)
    )
    assert isinstance(outcome, Committed)
    assert ran == list(range(ATTEMPTS))


def test_steps_that_were_asked_for_together_do_not_wait_for_each_others_writes(environment: Environment) -> None:
    box = VirtualObject("box")

    async def nothing() -> None: ...

    @box.handler()
    async def work(ctx: ObjectContext) -> None:
        await ctx.gather(*(ctx.run("a", nothing) for _ in range(STEPS)))

    request = Activation("box", "k", "speculate", Head(), "h", (EVENT,))
    outcome = asyncio.run(activate(request, Services([box]), environment))
    assert isinstance(outcome, Committed)
    assert outcome.writes < STEPS // 2


def test_an_answer_that_a_run_did_not_hear_is_not_the_next_runs(environment: Environment) -> None:
    box = VirtualObject("box")
    table = environment.table
    assert isinstance(table, MemoryTable)
    second = Event(str(InvocationId(LANE, kafka_nonce("0", "t", 0, 1))), "work", KafkaSource("0", "t", 0, 1, 0), b"2")

    key = head_key(LANE)

    def answer() -> None:
        head = parse_head(table.items[key.pk, key.sk])
        table.apply(slots_put(LANE, head, {awakeable_slot(0): pack(AwakeableSlot(Success(b"1")))}, "mark"))

    @box.handler()
    async def work(ctx: ObjectContext, n: int) -> None:
        _, future = ctx.awakeable(int)
        if n == 2:
            await future
        await ctx.run("answer", answer)
        # The flush meets the answer, and this handler does not look any more.
        time.sleep(4 * FLUSH_DELAY_MS_MAX / 1_000)  # noqa: ASYNC251 - it blocks, as handlers do

    request = Activation("box", "k", "speculate", Head(), "h", (EVENT, second))
    outcome = asyncio.run(activate(request, Services([box]), environment))
    assert isinstance(outcome, Suspended)
    assert len(outcome.results) == 1


def test_each_side_touches_what_is_its_own(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other thread never looks into the journal, and what is stored is looked into by one thread at a time."""
    touched: set[tuple[str, str]] = set()
    writes = environment.writes
    assert isinstance(writes, BlockingWriteLoop)

    def watched(kind: type[Any], of: str) -> type[Any]:
        def read(self: Any, name: str) -> Any:
            value = object.__getattribute__(self, name)
            if not callable(value):
                thread = threading.current_thread()
                whose = writes._here if thread is threading.main_thread() else writes._there and not writes._here
                touched.add((of if of == "journal" or whose else "stored by another", thread.name))
            return value

        return type(kind.__name__, (kind,), {"__getattribute__": read})

    monkeypatch.setattr(lease_module, "LaneWriter", made_unwatched(watched(LaneWriter, "stored")))
    monkeypatch.setattr(lease_module, "Journal", watched(Journal, "journal"))
    monkeypatch.setattr(activation_module, "Journal", watched(Journal, "journal"))
    monkeypatch.setattr(lane_writer_module, "Backlog", watched(Backlog, "stored"))
    box = VirtualObject("box")

    @box.handler()
    async def work(ctx: ObjectContext) -> None:
        ctx.set("n", 1)
        for _ in range(OUT_PER_WRITE_MAX + 1):
            ctx.publish("topic", 1)
        await ctx.gather(ctx.run("a", int), ctx.run("b", int))
        await ctx.run("c", int)
        time.sleep(2 * FLUSH_DELAY_MS_MAX / 1_000)  # noqa: ASYNC251 - it blocks, as handlers do
        await ctx.sleep(timedelta(milliseconds=HOLD_SLEEP_MS_MAX + 1))
        await ctx.awakeable(int)[1]

    async def scenario() -> Suspended:
        request = Activation("box", "k", "speculate", Head(), "h", (EVENT,))
        first = await activate(request, Services([box]), replace(environment, hold_ms=10 * HOLD_SLEEP_MS_MAX))
        assert isinstance(first, Suspended)
        taken = await environment.table.write(takeover(LANE, first.head, "h2", environment.deadline_ms, {}, "t2"))
        assert isinstance(taken, Applied)
        resumed = Activation("box", "k", "resume", parse_head(taken.item), "h2")
        second = await activate(resumed, Services([box]), environment)
        assert isinstance(second, Suspended)
        return second

    asyncio.run(scenario())
    main = threading.main_thread().name
    assert touched == {("stored", "tenuto-writes"), ("stored", main), ("journal", main)}


def made_unwatched(kind: type[Any]) -> Callable[..., Any]:
    """What a side is made of is set by the other one, before it is handed over."""

    def make(*arguments: Any) -> Any:
        made = LaneWriter(*arguments)
        made.__class__ = kind
        return made

    return make
