"""Who holds a lease, when responses are lost and attempts overlap."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.head import parse_head
from tenuto.lane.transitions import Effects, claim, takeover
from tenuto.lane.writes import Answer, Applied, Update, Write
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.limits import FLUSH_DELAY_MS_MAX, OUT_PER_WRITE_MAX
from tenuto.protocol.messages import Activation, ClaimedRun, Fenced, Head, Outcome, Suspended
from tenuto.protocol.records import Event, KafkaSource
from tenuto.runtime.activation import activate
from tenuto.runtime.environment import Environment, InlineWriteLoop
from tenuto.service import Services
from tenuto.store.memory import MemoryTable
from tenuto.store.port import TableUnavailableError

LANE = Lane("box", "k")
EVENT = Event(str(InvocationId(LANE, kafka_nonce("0", "t", 0, 0))), "work", KafkaSource("0", "t", 0, 0, 0), b"1")
DEADLINE_MS = 10_000


class OvertakenTable(MemoryTable):
    """The first checkpoint does not arrive, and the lane is taken over before it is repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.overtake: Callable[[], Any] | None = None

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        labels = {clause.label for clause in write.conditions} if isinstance(write, Update) else set()
        if "checkpoint.ver" in labels and self.overtake is not None:
            overtake, self.overtake = self.overtake, None
            await overtake()
            raise TableUnavailableError("no answer")
        return await super().write(write)


class YieldingTable(MemoryTable):
    """Lets others run before it answers."""

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        await asyncio.sleep(0)
        return await super().write(write)


def test_equal_slots_of_the_next_attempt_are_not_taken_for_ones_own() -> None:
    box = VirtualObject("box")
    steps: list[str] = []

    @box.handler()
    async def work(ctx: ObjectContext, _n: int) -> None:
        await ctx.run("a", steps.append, "a")
        await ctx.run("b", steps.append, "b")
        await ctx.awakeable(int)[1]

    async def attempt(table: MemoryTable, head: Head, holder: str) -> Outcome:
        request = Activation("box", "k", "resume", head, holder)
        environment = Environment(table, lambda: 0, DEADLINE_MS, InlineWriteLoop(), _inline, nonce=holder)
        return await activate(request, Services([box]), environment)

    async def scenario() -> tuple[Outcome, Outcome]:
        table = OvertakenTable()
        run = ClaimedRun(EVENT, 1, 0, 0, 1, "first", DEADLINE_MS)
        claimed = _head(table.apply(claim(LANE, Head(), Effects(), run, "t1", drain=False)))
        second: list[Outcome] = []

        async def overtake() -> None:
            taken = _head(table.apply(takeover(LANE, claimed, "second", DEADLINE_MS, {}, "t2")))
            second.append(await attempt(table, taken, "second"))

        table.overtake = overtake
        first = await attempt(table, claimed, "first")
        return first, second[0]

    first, second = asyncio.run(scenario())
    assert isinstance(second, Suspended)
    assert isinstance(first, Fenced)
    # The step in flight at a takeover may repeat; the one behind the lost checkpoint is not even begun.
    assert steps == ["a", "a", "b"]


def _head(answer: Answer) -> Head:
    assert isinstance(answer, Applied)
    return parse_head(answer.item)


async def _inline(call: Callable[[], object]) -> object:
    return call()


# --- two sides, each with what is its own ---------------------------------------------------------------------------


def test_a_run_that_was_lost_while_its_handler_rested_is_not_reported_as_committed() -> None:
    box = VirtualObject("box")
    table = MemoryTable()
    ends_ms = _clock_ms() + DEADLINE_MS
    run = ClaimedRun(EVENT, 1, 0, 0, 1, "first", ends_ms)
    claimed = _head(table.apply(claim(LANE, Head(), Effects(), run, "t1", drain=False)))

    def overtaken() -> None:
        table.apply(takeover(LANE, claimed, "second", ends_ms, {}, "t2"))

    @box.handler()
    async def work(ctx: ObjectContext, _n: int) -> str:
        # The flush that follows is refused; nobody waits for it.
        await ctx.run("a", overtaken)
        await ctx.sleep(timedelta(milliseconds=4 * FLUSH_DELAY_MS_MAX))
        return "done"

    request = Activation("box", "k", "resume", claimed, "first")
    environment = Environment(table, _clock_ms, ends_ms, InlineWriteLoop(), _inline, nonce="n")
    outcome = asyncio.run(activate(request, Services([box]), environment))
    assert isinstance(outcome, Fenced)


def test_messages_that_two_steps_find_waiting_leave_once() -> None:
    box = VirtualObject("box")
    table = YieldingTable()

    @box.handler()
    async def work(ctx: ObjectContext, _n: int) -> None:
        for n in range(OUT_PER_WRITE_MAX + 1):
            ctx.publish("topic", n)
        await ctx.gather(ctx.run("a", int), ctx.run("b", int))
        await ctx.awakeable(int)[1]

    request = Activation("box", "k", "speculate", Head(), "h", (EVENT,))
    environment = Environment(table, lambda: 0, DEADLINE_MS, InlineWriteLoop(), _inline, nonce="n")
    outcome = asyncio.run(activate(request, Services([box]), environment))
    assert isinstance(outcome, Suspended)
    assert len(outcome.head.out) == 1
    assert sum(sk.startswith("O#") for _, sk in table.items) == 1


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000
