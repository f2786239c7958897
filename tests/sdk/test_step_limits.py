"""Steps with retry limits of their own, over suspensions and beside the invocation's policy.

Owns `RunOptions` across attempts. Does not own retries of whole invocations (`tests/costs`, `tests/simulation`).
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from tenuto import InvocationRetryPolicy, ObjectContext, RunOptions, TerminalError, VirtualObject
from tests.support.in_process import InProcess

tries: list[str] = []
limited = VirtualObject("limited", InvocationRetryPolicy(max_attempts=2))


def refuse(name: str) -> str:
    """Fail, and remember it."""
    tries.append(name)
    raise ConnectionError(name)


@limited.handler()
async def patient(ctx: ObjectContext) -> None:
    options = RunOptions[str](max_attempts=4, initial_retry_interval=timedelta(seconds=5))
    try:
        await ctx.run_with(options, "pay", refuse, "pay")
    except TerminalError as e:
        ctx.set("outcome", str(e))


@limited.handler()
async def brief(ctx: ObjectContext) -> None:
    await ctx.sleep(timedelta(minutes=5))
    options = RunOptions[str](max_duration=timedelta(seconds=20), initial_retry_interval=timedelta(seconds=5))
    try:
        await ctx.run_with(options, "ship", refuse, "ship")
    except TerminalError as e:
        ctx.set("outcome", str(e))


@limited.handler()
async def unkeepable(ctx: ObjectContext) -> None:
    await ctx.run("odd", lambda: {1, object()})


def test_a_step_counts_its_own_tries_over_suspensions_and_the_invocation_does_not() -> None:
    async def scenario() -> None:
        tries.clear()
        world = InProcess(limited)
        await world.deliver("topic", "k", patient, b"null")
        for _ in range(6):
            await world.advance(timedelta(minutes=1))
        assert tries == ["pay"] * 4
        assert "failed 4 times" in str(world.state(limited, "k")["outcome"])

    asyncio.run(scenario())


def test_max_duration_begins_with_the_step() -> None:
    async def scenario() -> None:
        tries.clear()
        world = InProcess(limited)
        await world.deliver("topic", "k", brief, b"null")
        for _ in range(8):
            await world.advance(timedelta(minutes=5))
        assert 1 < len(tries) < 6, "the duration counts from the step's first try, and ends it"
        assert "failed" in str(world.state(limited, "k")["outcome"])

    asyncio.run(scenario())


def test_a_result_that_cannot_be_kept_goes_to_the_dead_letters() -> None:
    async def scenario() -> None:
        world = InProcess(limited)
        await world.deliver("topic", "k", unkeepable, b"null")
        ((_, letter),) = world.published
        assert letter.topic.endswith("dead-letter")

    asyncio.run(scenario())
