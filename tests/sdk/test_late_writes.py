"""Writes of a claimed run whose response is lost, and that are applied when others have followed.

Owns what of the head they must not take back. Does not own what is repeated after a lost response (`tests/simulation`).
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.head import OWN, head_key, parse_head
from tenuto.lane.writes import Answer, Refused, Update, Write
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.messages import Activation, Head, Suspended
from tenuto.protocol.records import Event, KafkaSource
from tenuto.runtime.activation import activate
from tenuto.runtime.environment import Environment
from tenuto.runtime.write_loop import BlockingWriteLoop
from tenuto.service import Services
from tenuto.store.memory import MemoryTable
from tenuto.store.port import TableUnavailableError

LANE = Lane("box", "k")
EVENT = Event(str(InvocationId(LANE, kafka_nonce("0", "t", 0, 0))), "work", KafkaSource("0", "t", 0, 0, 0), b"1")
LARGE = "x" * 5_000
"""A result that has a segment for itself."""

box = VirtualObject("box")


@box.handler()
async def work(ctx: ObjectContext, _n: int) -> None:
    """Three steps, and a long sleep."""
    for name in ("a", "b", "c"):
        await ctx.run(name, lambda: LARGE)
    await ctx.sleep(timedelta(days=1))


class LateTable(MemoryTable):
    """Loses the response to the n-th write under the name of an owner, applied or not."""

    def __init__(self, lost: int, *, applied: bool) -> None:
        super().__init__()
        self._lost = lost
        self._applied = applied
        self._owned = 0
        self.late: Update | None = None

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        if isinstance(write, Update) and OWN in write.sets:
            self._owned += 1
            if self._owned == self._lost:
                self.late = write
                if self._applied:
                    self.apply(write)
                raise TableUnavailableError("no answer")
        return await super().write(write)


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_write_that_comes_after_the_next_one_takes_nothing_back(lost: int, applied: bool) -> None:
    table = LateTable(lost, applied=applied)
    clock: Any = iter(range(1_000_000_000_000, 2_000_000_000_000))
    env = Environment(table, lambda: next(clock), 1_000_000_900_000, BlockingWriteLoop(), nonce="n")
    request = Activation("box", "k", "speculate", Head(), "h", (EVENT,))
    outcome = asyncio.run(activate(request, Services([box]), env))
    assert isinstance(outcome, Suspended)
    assert len(outcome.head.segments) == 3
    assert table.late is not None
    assert isinstance(table.apply(table.late), Refused)
    key = head_key(LANE)
    assert parse_head(table.items[key.pk, key.sk]).segments == outcome.head.segments
