"""A call that is repeated at another control plane, after the one that ran it died before it delivered the result.

Owns the schedule, over two dispatchers and one table. Does not own the random ones (`test_simulation`).
"""

from __future__ import annotations

import asyncio

import pytest

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.writes import Answer, Update, Write
from tenuto.protocol.ids import Lane
from tenuto.protocol.records import Success
from tenuto.service import Services
from tests.costs.meter import CountingTable, Meter
from tests.support.virtual_time import run_virtual

WAIT_MS = 5_000


class Undelivered(CountingTable):
    """Commits take place. The delivery of results hangs while `dying`, as it does in a process that is about to end."""

    def __init__(self) -> None:
        super().__init__()
        self.dying = True
        self.delivering = asyncio.Event()

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        if self.dying and isinstance(write, Update) and write.key.pk.startswith("R#"):
            self.delivering.set()
            await asyncio.Event().wait()
        return await super().write(write)


@pytest.mark.parametrize("looked_before", [False, True])
def test_a_repeated_call_finds_its_result_in_the_outbox(*, looked_before: bool) -> None:
    """`looked_before`: the second control plane has seen the head before it gets the call, and need not read again."""
    box = VirtualObject("box")

    @box.handler()
    async def touch(ctx: ObjectContext, n: int) -> int:
        ctx.set("touched", True)
        return n

    async def scenario() -> None:
        table = Undelivered()
        first, second = (Meter(Services([box]), table=table, process=name) for name in ("first", "second"))
        event = first.event_of_call(touch, "k", "n1", keep=True)
        asked = asyncio.create_task(first.dispatcher.call(event, WAIT_MS))
        await table.delivering.wait()
        await first.dispatcher.kill()
        asked.cancel()
        table.dying = False
        if looked_before:
            second.dispatcher.look(Lane("box", "k"))
            await second.quiet()
        assert await second.dispatcher.call(event, WAIT_MS) == Success(b"1")
        assert second.invocations == 0

    run_virtual(scenario())
