"""A large answer whose response is lost, while another answer comes and its run goes on: it is not taken back.

Owns the schedule, over dispatcher and runtime together. Does not own the random ones (`test_simulation`).
"""

from __future__ import annotations

import asyncio

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.writes import Answer, Applied, Item, Key, Update, Write
from tenuto.protocol.records import Success
from tenuto.service import Services
from tenuto.store.port import TableUnavailableError
from tenuto_control.ports import Resolution
from tests.costs.meter import CountingTable, Meter
from tests.support.virtual_time import run_virtual

LARGE = 40_000
"""Bytes of an answer that the head has no room for: it gets an item of its own."""

ROLLS = 1_500
"""Bytes of a result; two of these roll what is in the head into a segment."""

LOST_AFTER_S = 2.0


class Losing(CountingTable):
    """The first answer is put, and its response is lost only after others had time to come."""

    lost = False

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        answer = await super().write(write)
        if not self.lost and isinstance(write, Update) and "ans" in write.sets:
            assert isinstance(answer, Applied)
            self.lost = True
            await asyncio.sleep(LOST_AFTER_S)
            raise TableUnavailableError("the response was lost")
        return answer


def test_an_item_that_a_segment_names_is_not_deleted() -> None:
    box = VirtualObject("box")
    names: list[str] = []

    @box.handler()
    async def ask(ctx: ObjectContext, _n: int) -> None:
        asked = [ctx.awakeable(str) for _ in range(3)]
        names.extend(name for name, _ in asked)
        await asked[1][1]
        for n in range(3):
            await ctx.run(f"step {n}", str, "x" * ROLLS)
        await asked[2][1]
        ctx.set("size", len(await asked[0][1]))

    async def scenario() -> None:
        table = Losing()
        meter = Meter(Services([box]), table=table)
        meter.deliver(ask, "k")
        await meter.quiet()
        large = Success(b'"' + b"x" * LARGE + b'"')
        slow = asyncio.create_task(meter.dispatcher.resolve(names[0], large))
        await asyncio.sleep(LOST_AFTER_S / 4)
        assert await meter.dispatcher.resolve(names[1], Success(b'"go on"')) is Resolution.ACCEPTED
        await asyncio.sleep(LOST_AFTER_S / 4)
        assert 0 in meter.head("box", "k").took, "the large answer is in a segment before its response is lost"
        assert await slow in {Resolution.ACCEPTED, Resolution.REPEATED}
        assert await meter.dispatcher.resolve(names[2], Success(b'"end"')) is Resolution.ACCEPTED
        await meter.quiet()
        head = meter.head("box", "k")
        assert head.run is None, f"attempt {head.run.attempt} does not end"
        assert head.state["size"] == str(LARGE).encode()
        assert not [sk for _, sk in table.items if sk.startswith("Q#")]

    run_virtual(scenario())


class LosingRead(CountingTable):
    """The first read of a large answer fails, with which a flush that has met it ends."""

    lost = False

    async def get(self, key: Key) -> Item | None:
        """See `Table.get`."""
        if not self.lost and key.sk.startswith("Q#"):
            self.lost = True
            raise TableUnavailableError("the response was lost")
        return await super().get(key)


def test_an_answer_whose_item_could_not_be_read_is_told_all_the_same() -> None:
    """It is known to be in the head by then, and would leave for a segment while the run waits for it in the head."""
    box = VirtualObject("box")
    names: list[str] = []

    @box.handler()
    async def ask(ctx: ObjectContext, _n: int) -> None:
        name, answered = ctx.awakeable(str)
        names.append(name)
        for n in range(4):
            await ctx.run(f"step {n}", step)
        ctx.set("size", len(await answered))

    async def step() -> str:
        await asyncio.sleep(0.5)
        return "x" * ROLLS

    async def scenario() -> None:
        table = LosingRead()
        meter = Meter(Services([box]), table=table)
        meter.deliver(ask, "k")
        await asyncio.sleep(0.7)
        assert await meter.dispatcher.resolve(names[0], Success(f'"{"y" * LARGE}"'.encode())) is Resolution.ACCEPTED
        await asyncio.sleep(20)
        assert table.lost
        assert meter.head("box", "k").state["size"] == str(LARGE).encode()
        await meter.dispatcher.stop()

    run_virtual(scenario())
