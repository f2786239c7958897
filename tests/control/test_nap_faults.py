"""What a nap, or a commit that claims the next event, must not do: outgrow an expression, expire, hide a failure.

Owns naps beside many sleeps, lost answers, messages that cannot leave, the end of a process, and clocks that are set.
Does not own the ordinary course of a nap (`test_naps`).
"""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta
from typing import Any, NoReturn

import pytest

from tenuto import Context, InvocationRetryPolicy, ObjectContext, Service, VirtualObject
from tenuto.lane.writes import Answer, Update, Write
from tenuto.service import Services
from tenuto.store.expressions import render_write
from tenuto.store.port import UnstorableError
from tenuto_control.limits import NAP_EVENT_BYTES_MAX
from tenuto_control.ports import AnswerHolder, FunctionFailedError, LogUnavailableError
from tests.control.test_naps import Nappers
from tests.costs.meter import CountingTable, meter_of
from tests.support.virtual_time import VirtualClock, run_virtual

EXPRESSION_BYTES_MAX = 4_096
"""DynamoDB refuses longer expressions."""

BULK = 1_000
SLEEP = timedelta(seconds=2)


class Narrow(CountingTable):
    """Refuses expressions as DynamoDB does."""

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        if isinstance(write, Update):
            expression = str(render_write("t", write).get("UpdateExpression", ""))
            if len(expression) > EXPRESSION_BYTES_MAX:
                raise UnstorableError("Expression size has exceeded the maximum allowed size")
        return await super().write(write)


class LosesTheSecondAnswer(Nappers):
    """The second invocation ends after all that it has written."""

    __slots__ = ()

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`."""
        answer = await Nappers.invoke(self, function, payload, room)
        if len(self.asked) == 2:
            raise FunctionFailedError("Runtime.ExitError")
        return answer


class WithoutBroker(Nappers):
    """Nothing can be produced."""

    __slots__ = ()

    async def produce(self, *_: Any) -> NoReturn:
        """See `RecordSink.produce`."""
        raise LogUnavailableError("broker away")


class SetBack(VirtualClock):
    """A clock that somebody sets."""

    back_ms = 0

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return super().now_ms() - self.back_ms


@pytest.mark.parametrize(("rounds", "sleeps"), [(1, 400), (8, 100), (30, 8)])
def test_no_write_outgrows_its_expressions_however_many_sleeps_end(rounds: int, sleeps: int) -> None:
    async def scenario() -> None:
        done: list[bool] = []
        sleeper = VirtualObject("sleeper")

        @sleeper.handler()
        async def doze(ctx: ObjectContext) -> None:
            async def one() -> None:
                await ctx.sleep(SLEEP)

            for _ in range(rounds):
                await asyncio.gather(*(one() for _ in range(sleeps)))
            done.append(True)

        meter = Nappers(Services([sleeper]), table=Narrow())
        meter.deliver(doze, "k")
        await asyncio.sleep(rounds * SLEEP.total_seconds() + 5)
        await meter.dispatcher.kill()
        assert done == [True]

    run_virtual(scenario())


def test_a_run_that_was_claimed_with_a_commit_does_not_expire() -> None:
    async def scenario() -> None:
        mailer = Service("mailer")

        @mailer.handler()
        async def later(ctx: Context, n: int) -> None:
            await ctx.run("step", int)
            if n == 2:
                await ctx.sleep(timedelta(days=3))

        meter = meter_of(mailer)
        for n in (1, 2):
            meter.deliver(later, "t/0", str(n).encode())
        await asyncio.sleep(1)
        [head] = [item for (_, sk), item in meter.table.items.items() if sk == "H"]
        assert meter.released == [0, 1]
        assert "rid" in head
        assert "ttl" not in head
        await meter.dispatcher.kill()

    run_virtual(scenario())


def test_the_lost_answer_of_a_nap_is_no_failed_attempt() -> None:
    async def scenario() -> None:
        steps: list[int] = []
        sleeper = VirtualObject("sleeper")

        async def step(n: int) -> None:
            steps.append(n)

        @sleeper.handler(retry_policy=InvocationRetryPolicy(max_attempts=1))
        async def doze(ctx: ObjectContext) -> None:
            for n in range(3):
                await ctx.run("step", step, n)
                await ctx.sleep(SLEEP)

        meter = LosesTheSecondAnswer(Services([sleeper]), dead_letter="dead")
        meter.deliver(doze, "k")
        await asyncio.sleep(3 * SLEEP.total_seconds() + 1)
        await meter.dispatcher.kill()
        assert steps == [0, 1, 2]
        assert not meter.published

    run_virtual(scenario())


def test_what_was_sent_leaves_before_more_is_sent() -> None:
    async def scenario() -> None:
        sleeper = VirtualObject("sleeper")

        @sleeper.handler()
        async def doze(ctx: ObjectContext) -> None:
            for _ in range(BULK):
                ctx.publish("told", "x" * BULK)
                await ctx.sleep(timedelta(seconds=1))

        meter = WithoutBroker(Services([sleeper]))
        meter.deliver(doze, "k")
        await asyncio.sleep(200)
        await meter.dispatcher.kill()
        assert len(meter.head("sleeper", "k").out) <= 2

    run_virtual(scenario())


def test_a_process_that_stops_lets_sleepers_go() -> None:
    async def scenario() -> None:
        times: list[float] = []
        sleeper = VirtualObject("sleeper")

        async def step() -> None:
            times.append(asyncio.get_running_loop().time())

        @sleeper.handler()
        async def poll(ctx: ObjectContext) -> None:
            for _ in range(10):
                await ctx.run("step", step)
                await ctx.sleep(timedelta(seconds=3))

        first = Nappers(Services([sleeper]), process="first", timeout_ms=30_000)
        first.deliver(poll, "k")
        await asyncio.sleep(4)
        await first.dispatcher.stop()
        second = Nappers(Services([sleeper]), process="second", table=first.table, clock=first.clock, timeout_ms=30_000)
        for _ in range(40):
            await second.sweeper.sweep()
            await asyncio.sleep(1)
        await second.dispatcher.kill()
        assert len(times) == 10
        assert max(after - before for before, after in itertools.pairwise(times)) < 6

    run_virtual(scenario())


def test_large_events_suspend() -> None:
    async def scenario() -> None:
        sleeper = VirtualObject("sleeper")

        @sleeper.handler()
        async def doze(ctx: ObjectContext, _text: str) -> None:
            await ctx.sleep(SLEEP)

        meter = Nappers(Services([sleeper]))
        meter.deliver(doze, "k", b'"' + b"x" * NAP_EVENT_BYTES_MAX + b'"')
        await asyncio.sleep(1)
        run = meter.head("sleeper", "k").run
        assert run is not None
        assert run.suspended
        assert meter.released == [0]
        await meter.dispatcher.kill()

    run_virtual(scenario())


def test_after_a_clock_was_set_back_a_nap_ends_with_a_takeover() -> None:
    """By the clock that was set, the lease would seem to last; by others' it may be over, and the lane taken."""

    async def scenario() -> None:
        steps: list[float] = []
        sleeper = VirtualObject("sleeper")

        async def step() -> None:
            steps.append(asyncio.get_running_loop().time())
            await asyncio.sleep(5)

        @sleeper.handler()
        async def doze(ctx: ObjectContext) -> None:
            await ctx.sleep(SLEEP)
            await ctx.run("step", step)
            await ctx.sleep(timedelta(seconds=200))

        clock = SetBack()
        first = Nappers(Services([sleeper]), process="first", clock=clock)
        first.deliver(doze, "k")
        await asyncio.sleep(1)
        clock.back_ms = 18_000
        second = Nappers(Services([sleeper]), process="second", table=first.table, clock=VirtualClock())
        second.deliver(doze, "k")
        await asyncio.sleep(60)
        await first.dispatcher.kill()
        await second.dispatcher.kill()
        assert len(steps) == 1

    run_virtual(scenario())
