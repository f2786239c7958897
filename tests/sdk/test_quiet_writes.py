"""What a function asks to be answered with: the head after each write, but where it knows that already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.head import head_key
from tenuto.lane.writes import Answer, Update, Write
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.limits import SLOTS_PER_WRITE_MAX
from tenuto.protocol.messages import Activation, Committed, Head, Outcome
from tenuto.protocol.records import Event, KafkaSource
from tenuto.runtime.activation import activate
from tenuto.runtime.environment import Environment, InlineWriteLoop
from tenuto.service import Services
from tenuto.store.memory import MemoryTable

LANE = Lane("box", "k")
EVENT = Event(str(InvocationId(LANE, kafka_nonce("0", "t", 0, 0))), "work", KafkaSource("0", "t", 0, 0, 0), b"1")


class WatchedTable(MemoryTable):
    """Keeps which writes were quiet, by the word that their conditions begin with."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[tuple[str, bool]] = []

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        if isinstance(write, Update) and write.conditions:
            self.writes.append((write.conditions[0].label.partition(".")[0], write.quiet))
        return await super().write(write)


class TalkativeTable(MemoryTable):
    """Answers with the item, asked for or not."""

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        return self.apply(write)


def attempt(table: MemoryTable, box: VirtualObject) -> Outcome:
    """One activation of the event over a table."""

    async def inline(call: Callable[[], object]) -> object:
        return call()

    environment = Environment(table, lambda: 0, 10_000, InlineWriteLoop(), inline, nonce="n")
    request = Activation("box", "k", "speculate", Head(), "h", (EVENT,))
    return asyncio.run(activate(request, Services([box]), environment))


def test_a_checkpoint_of_steps_alone_is_not_answered_with_the_head() -> None:
    box, table = VirtualObject("box"), WatchedTable()

    @box.handler()
    async def work(ctx: ObjectContext, _n: int) -> None:
        for name in ("a", "b", "c"):
            ctx.set("last", await ctx.run(name, str))

    outcome = attempt(table, box)
    assert table.writes == [("claim", False), ("checkpoint", True), ("checkpoint", True), ("commit", False)]
    item = asyncio.run(table.get(head_key(LANE)))
    assert item is not None
    assert not [name for name in item if name.startswith("j.")], "the commit removes what it was never answered with"
    assert isinstance(outcome, Committed)
    assert outcome.head.run is None
    assert outcome.head.state == {"last": b'""'}


def test_a_checkpoint_that_may_find_an_answer_asks_for_the_head() -> None:
    box, table = VirtualObject("box"), WatchedTable()

    @box.handler()
    async def work(ctx: ObjectContext, _n: int) -> None:
        await ctx.run("before", str)
        _, answer = ctx.awakeable(int)
        await ctx.run("a", str)
        await ctx.run("b", str)
        await answer

    attempt(table, box)
    assert [quiet for label, quiet in table.writes if label == "checkpoint"] == [False, False]


def test_a_checkpoint_that_moves_more_than_slots_asks_for_the_head() -> None:
    box, table = VirtualObject("box"), WatchedTable()

    @box.handler()
    async def work(ctx: ObjectContext, _n: int) -> None:
        await ctx.gather(*(ctx.run(f"s{n}", str) for n in range(SLOTS_PER_WRITE_MAX + 1)))
        await ctx.run("after", str)

    attempt(table, box)
    quiet = [quiet for label, quiet in table.writes if label == "checkpoint"]
    assert False in quiet, "results that went to an item of their own are named in the head"


@pytest.mark.parametrize("steps", [1, 3])
def test_a_table_may_answer_a_quiet_write_all_the_same(steps: int) -> None:
    box, table = VirtualObject("box"), TalkativeTable()

    @box.handler()
    async def work(ctx: ObjectContext, _n: int) -> None:
        for n in range(steps):
            ctx.set("last", await ctx.run(f"s{n}", str))

    assert isinstance(attempt(table, box), Committed)
