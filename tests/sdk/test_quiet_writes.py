"""What a function asks to be answered with: the head after each write, but where it knows that already."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.head import head_key, parse_head
from tenuto.lane.transitions import Effects
from tenuto.lane.writes import Answer, Item, Update, Write
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.limits import SLOTS_PER_WRITE_MAX
from tenuto.protocol.messages import Activation, Committed, Head, Outcome, Trim
from tenuto.protocol.records import Event, KafkaSource, SleptSlot
from tenuto.runtime.activation import activate
from tenuto.runtime.environment import Environment, InlineWriteLoop
from tenuto.runtime.lane_news import NewRun
from tenuto.runtime.lane_writer import LaneWriter
from tenuto.service import Services
from tenuto.store.memory import MemoryTable

LANE = Lane("box", "k")
EVENT, IDLER = (
    Event(str(InvocationId(LANE, kafka_nonce("0", "t", 0, at))), "work", KafkaSource("0", "t", 0, at, 0), value)
    for at, value in ((8, b"1"), (7, b"2"))
)
IDLE: Item = {"pk": LANE.pk, "sk": "H", "ver": 4, "tok": "t", "s.n": b"1", "w.0|t|0": 7, "f.old": 1}
MARKED: Item = IDLE | {"pend": "mark"}
REQUEST = Activation("box", "k", "speculate", Head(), "h", (EVENT,))


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


def attempt(table: MemoryTable, box: VirtualObject, request: Activation = REQUEST) -> Outcome:
    """One activation over a table, of the event by default."""
    return asyncio.run(activate(request, Services([box]), environment(table)))


def environment(table: MemoryTable) -> Environment:
    """What a function has, over a table."""

    async def inline(call: Callable[[], object]) -> object:
        return call()

    return Environment(table, lambda: 0, 10_000, InlineWriteLoop(), inline, nonce="n")


def test_a_claim_and_a_checkpoint_of_steps_alone_are_not_answered_with_the_head() -> None:
    box, table = VirtualObject("box"), WatchedTable()

    @box.handler()
    async def work(ctx: ObjectContext, _n: int) -> None:
        for name in ("a", "b", "c"):
            ctx.set("last", await ctx.run(name, str))

    outcome = attempt(table, box)
    assert table.writes == [("claim", True), ("checkpoint", True), ("checkpoint", True), ("commit", False)]
    item = asyncio.run(table.get(head_key(LANE)))
    assert item is not None
    assert not [name for name in item if name.startswith("j.")], "the commit removes what it was never answered with"
    assert isinstance(outcome, Committed)
    assert outcome.head.run is None
    assert outcome.head.state == {"last": b'""'}


@pytest.mark.parametrize(
    ("changes", "before", "quiet"),
    [
        ({"head": parse_head(IDLE)}, IDLE, True),
        ({"events": (IDLER, EVENT)}, None, False),
        ({"head": parse_head(IDLE), "trim": Trim(fin=("old",))}, IDLE, False),
        ({"head": parse_head(MARKED), "mode": "drain"}, MARKED, False),
    ],
    ids=["an idle lane", "an event before it", "something to remove", "a drain"],
)
def test_a_claim_asks_for_the_head_where_it_changes_more_of_it(
    changes: dict[str, Any], before: Item | None, quiet: bool
) -> None:
    box, table = VirtualObject("box"), WatchedTable()

    @box.handler()
    async def work(ctx: ObjectContext, n: int) -> None:
        if n == 1:
            await ctx.run("a", str)

    if before is not None:
        table.items[LANE.pk, "H"] = dict(before)
    assert isinstance(attempt(table, box, structs.replace(REQUEST, **changes)), Committed)
    assert table.writes[0] == ("claim", quiet)


def test_a_head_that_a_claim_was_not_answered_with_is_what_the_table_holds() -> None:
    table = WatchedTable()
    table.items[LANE.pk, "H"] = dict(IDLE)
    writer = LaneWriter(structs.replace(REQUEST, head=parse_head(IDLE)), environment(table), deque())
    asyncio.run(writer.claim(NewRun(EVENT, 5, 1, b"secret", deque([("0", SleptSlot())])), Effects()))
    assert table.writes == [("claim", True)]
    assert asyncio.run(writer.close()).head == parse_head(table.items[LANE.pk, "H"])


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
