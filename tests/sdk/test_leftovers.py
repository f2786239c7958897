"""What an attempt leaves behind in its process: nothing that has to be found by a collector, and a loop that refuses.

Owns the memory of one activation. Does not own steps and tasks that outlive their handler (`tests/hostile`).
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tenuto import ObjectContext, ObjectSharedContext, TenutoError, VirtualObject
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.messages import Activation, Head, Outcome
from tenuto.protocol.records import CallSource, Event, KafkaSource
from tenuto.runtime import activation
from tenuto.runtime.activation import activate
from tenuto.runtime.attempt import Attempt
from tenuto.runtime.environment import Environment, InlineWriteLoop
from tenuto.service import Services
from tenuto.store.memory import MemoryTable

EVENT = Event(str(InvocationId(Lane("box", "k"), kafka_nonce("0", "t", 0, 0))), "work", KafkaSource("0", "t", 0, 0, 0))


def ran(work: Callable[[ObjectContext], Any]) -> Outcome:
    box = VirtualObject("box")
    box.handler("work")(work)
    environment = Environment(MemoryTable(), lambda: 0, 10_000, InlineWriteLoop(), _inline, nonce="n")
    return asyncio.run(
        activate(Activation("box", "k", "speculate", Head(), "h", (EVENT,)), Services([box]), environment)
    )


async def _inline(call: Callable[[], object]) -> object:
    return call()


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def reads(ctx: ObjectContext) -> None:
    ctx.set("n", 1)


async def steps(ctx: ObjectContext) -> None:
    await ctx.gather(ctx.run("a", int), ctx.run("b", int))


async def sleeps(ctx: ObjectContext) -> None:
    await asyncio.sleep(0)
    await ctx.sleep(1_000)


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("work", [reads, steps, sleeps])
def test_an_attempt_goes_when_it_is_over(work: Callable[[ObjectContext], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Attempt]] = []

    def attempt(*arguments: Any) -> Attempt:
        new = Attempt(*arguments)
        made.append(weakref.ref(new))
        return new

    monkeypatch.setattr(activation, "Attempt", attempt)
    ran(work)
    assert [ref() for ref in made] == [None]


def test_the_loop_of_an_attempt_that_is_over_begins_no_timer() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def work(_ctx: ObjectContext) -> None:
        loops.append(asyncio.get_running_loop())

    ran(work)
    (loop,) = loops
    assert loop.time() == loop.time()
    with pytest.raises(TenutoError, match="the handler has ended"):
        loop.call_later(1, print)


@pytest.mark.parametrize("handler", ["look", "act"])
def test_an_activation_that_is_closed_from_outside_has_not_failed(
    handler: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As a coroutine is that nobody waits for any more: in another context than the one that it ran in."""
    box = VirtualObject("box")

    @box.handler(kind="shared")
    async def look(_ctx: ObjectSharedContext) -> None:
        await asyncio.Event().wait()

    @box.handler()
    async def act(ctx: ObjectContext) -> None:
        await ctx.run("wait", asyncio.Event().wait)

    event = Event(EVENT.id, handler, CallSource())
    request = Activation("box", "k", "shared" if handler == "look" else "speculate", Head(), "h", (event,))
    environment = Environment(MemoryTable(), lambda: 0, 10_000, InlineWriteLoop(), _inline, nonce="n")

    async def main() -> None:
        work = activate(request, Services([box]), environment)
        contextvars.copy_context().run(work.send, None)
        work.close()

    asyncio.run(main())
    assert caplog.records == []
