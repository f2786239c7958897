"""The attempt after a nap: it waits for the nap's end by its own clock, and begins no event loop once that is over."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from msgspec import structs

from tenuto import ObjectContext, VirtualObject
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.messages import Activation, Committed, Head, NapLeave, Outcome, Suspended
from tenuto.protocol.records import Event, KafkaSource
from tenuto.runtime.activation import activate
from tenuto.runtime.at_once import run_at_once
from tenuto.runtime.environment import Environment
from tenuto.runtime.write_loop import BlockingWriteLoop
from tenuto.service import Services
from tenuto.store.memory import MemoryTable

BEGAN_MS = 1_700_000_000_000
NAP_MS = 5_000
LEAVE = NapLeave(30_000, 40_000, "there.1")
EVENT = Event(
    str(InvocationId(Lane("box", "k"), kafka_nonce("0", "t", 0, 0))), "sleeps", KafkaSource("0", "t", 0, 0, 0), b"1"
)

box = VirtualObject("box")


@box.handler()
async def sleeps(ctx: ObjectContext, number: int) -> None:
    """Sleeps between two steps."""
    await ctx.run("before", int)
    await ctx.sleep(timedelta(milliseconds=NAP_MS))
    await ctx.run("after", int)


class Loop(asyncio.SelectorEventLoop):
    """Counts how often it runs."""

    begun = 0

    def run_until_complete(self, future: Any) -> Any:
        """See `AbstractEventLoop.run_until_complete`."""
        self.begun += 1
        return super().run_until_complete(future)


@dataclass
class Function:
    """A function process that serves one lane, at a time that tests set."""

    loop: Loop
    table: MemoryTable = field(default_factory=MemoryTable)
    at_ms: int = BEGAN_MS

    def run(self, request: Activation) -> Outcome:
        """The outcome of an activation."""
        env = Environment(self.table, lambda: self.at_ms, self.at_ms + 60_000, BlockingWriteLoop(), nonce="n")
        work: Coroutine[Any, Any, Outcome] = activate(request, Services([box]), env)
        return run_at_once(self.loop, work)


@pytest.mark.parametrize(("early_ms", "begun"), [(0, 0), (-3, 0), (3, 1)])
def test_an_attempt_whose_nap_is_over_begins_no_event_loop(early_ms: int, begun: int) -> None:
    loop = Loop()
    try:
        function = Function(loop)
        napping = function.run(Activation("box", "k", "speculate", Head(), "here.1", (EVENT,), nap=LEAVE))
        assert isinstance(napping, Suspended)
        assert napping.head.run is not None
        assert loop.begun == 0
        assert napping.head.run.wake_ms == BEGAN_MS + NAP_MS
        function.at_ms += NAP_MS - early_ms
        head = structs.replace(napping.head, out={}, fin={}, watermarks={})
        assert isinstance(function.run(Activation("box", "k", "resume", head, LEAVE.holder)), Committed)
        assert loop.begun == begun
    finally:
        loop.close()
