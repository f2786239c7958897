"""An async step that is alone in flight begins at once: one that never waits needs no turn of the event loop.

Owns what such a step costs and sees. Does not own where steps run (`test_placement`).
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from tenuto import ObjectContext, VirtualObject
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.messages import Activation, Committed, Head
from tenuto.protocol.records import Event, KafkaSource
from tenuto.runtime.activation import activate
from tenuto.runtime.at_once import run_at_once, task_at_once
from tenuto.runtime.environment import Environment
from tenuto.runtime.write_loop import BlockingWriteLoop
from tenuto.service import Services
from tenuto.store.memory import MemoryTable

NOW_MS = 1_700_000_000_000
EVENT = Event(
    str(InvocationId(Lane("box", "k"), kafka_nonce("0", "t", 0, 0))), "work", KafkaSource("0", "t", 0, 0, 0), b"1"
)

kept: contextvars.ContextVar[str] = contextvars.ContextVar("kept", default="nothing")


class Loop(asyncio.SelectorEventLoop):
    """Counts how often it runs."""

    begun = 0

    def run_until_complete(self, future: Any) -> Any:
        """See `AbstractEventLoop.run_until_complete`."""
        self.begun += 1
        return super().run_until_complete(future)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.run_until_complete(made.shutdown_asyncgens())
    made.close()


def ran(loop: Loop, body: Callable[[ObjectContext], Awaitable[Any]]) -> Any:
    """What a handler's body returns, run as a function runs it."""
    box, results = VirtualObject("box"), []

    @box.handler()
    async def work(ctx: ObjectContext, _n: int) -> None:
        results.append(await body(ctx))

    env = Environment(MemoryTable(), lambda: NOW_MS, NOW_MS + 60_000, BlockingWriteLoop(), nonce="n")
    request = Activation("box", "k", "speculate", Head(), "h", (EVENT,))
    assert isinstance(run_at_once(loop, activate(request, Services([box]), env)), Committed)
    return results[-1]


def test_steps_that_never_wait_begin_no_event_loop(loop: Loop) -> None:
    async def plus_one(number: int) -> int:
        return number + 1

    async def body(ctx: ObjectContext) -> int:
        a = await ctx.run("first", plus_one, 1)
        b = await ctx.run("second", plus_one, a)
        return await ctx.run("third", plus_one, b)

    assert ran(loop, body) == 4
    assert loop.begun == 0


@pytest.mark.parametrize("waits", [0, 1, 3])
def test_a_step_is_a_task_of_the_loop_from_its_beginning_on(loop: Loop, waits: int) -> None:
    async def step() -> list[bool]:
        task = asyncio.current_task()
        found = [task is not None, asyncio.get_running_loop() is loop]
        async with asyncio.timeout(10):
            for _ in range(waits):
                await asyncio.sleep(0)
                found.append(asyncio.current_task() is task)
        async with asyncio.TaskGroup() as group:
            other = group.create_task(asyncio.sleep(0, "other"))
        return [*found, other.result() == "other"]

    assert all(ran(loop, lambda ctx: ctx.run("step", step)))


def test_a_timeout_within_a_step_comes(loop: Loop) -> None:
    async def step() -> str:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(60)
        except TimeoutError:
            return "late"
        return "in time"

    assert ran(loop, lambda ctx: ctx.run("step", step)) == "late"


def test_steps_behind_one_that_waits_begin_at_once_as_well(loop: Loop) -> None:
    async def waits() -> None:
        await asyncio.sleep(0.001)

    async def who() -> bool:
        return asyncio.current_task() is not None

    async def body(ctx: ObjectContext) -> list[bool]:
        await ctx.run("waits", waits)
        found = [await ctx.run("who", who)]
        return [*found, *(await ctx.gather(ctx.run("a", who), ctx.run("b", who)))]

    assert ran(loop, body) == [True, True, True]
    assert loop.begun == 1


def test_a_step_has_the_context_of_its_handler_and_keeps_its_own(loop: Loop) -> None:
    async def step() -> str:
        before = kept.get()
        kept.set("the step's")
        return before

    async def body(ctx: ObjectContext) -> list[str]:
        kept.set("the handler's")
        return [await ctx.run("step", step), kept.get()]

    assert ran(loop, body) == ["the handler's", "the handler's"]


def test_a_generator_that_a_step_drops_gets_to_its_end(loop: Loop) -> None:
    ended = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async def step() -> int:
        async for number in numbers():
            return number
        return 0

    assert ran(loop, lambda ctx: ctx.run("step", step)) == 1
    gc.collect()
    loop.run_until_complete(asyncio.sleep(0.001))
    assert ended == [True]


def test_a_step_that_fails_is_tried_again(loop: Loop) -> None:
    tries: list[int] = []

    async def step() -> str:
        tries.append(len(tries))
        if len(tries) == 1:
            raise ValueError("not yet")
        return "second"

    async def body(ctx: ObjectContext) -> str:
        return await ctx.run("step", step)

    assert ran(loop, body) == "second"
    assert tries == [0, 1]


def test_a_loop_of_another_kind_begins_the_task_at_its_next_turn() -> None:
    class Other(asyncio.SelectorEventLoop):
        """One that does not show what is ready."""

    async def work() -> str:
        return "done"

    async def driver() -> list[Any]:
        running: Any = asyncio.get_running_loop()
        hidden, running._ready = running._ready, list(running._ready)
        try:
            # What it has put there is run by hand, as this loop cannot run with a list.
            task = task_at_once(work(), contextvars.copy_context())
            begun = task.done()
            handles = list(running._ready)
        finally:
            running._ready = hidden
        running._ready.extend(handles)
        return [begun, await task]

    other = Other()
    try:
        assert other.run_until_complete(driver()) == [False, "done"]
    finally:
        other.close()
