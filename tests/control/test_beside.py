"""Lanes that are worked on side by side in an invocation they share: who is, what it saves, and whom it harms.

Owns the dispatcher's side. Does not own what a function does with such an invocation (`tests.sdk.test_beside`).
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from msgspec import structs

from tenuto import InvocationRetryPolicy, ObjectContext, VirtualObject
from tenuto.lane.writes import Answer, Update, Write
from tenuto.protocol.limits import BESIDE_MAX, POOLED_BYTES_MAX
from tenuto.protocol.records import Success
from tenuto.service import Services
from tenuto_control.dispatcher.capacity import GATHER_FROM
from tenuto_control.dispatcher.pools import PATIENCE_MS, Sharing
from tenuto_control.limits import Limits
from tenuto_control.ports import FunctionFailedError, FunctionThrottledError, FunctionUnreachableError, InvokeError
from tests.control.pooling import KEYS, TAKES_S, Pooling, declared, delivered, pooling, shown
from tests.costs.meter import CountingTable
from tests.support.virtual_time import run_virtual

CALL_WAIT_MS = 30_000
HELD_S = 5.0
SHORT_S = 0.001
"""So many of these can be resumed in no time that nobody is held back who will sleep."""

SLOW_S = 3.0
HANDED_OUT_S = 1.5


def with_sleeps(done: list[str]) -> VirtualObject:
    """A handler that sleeps between two steps, and one whose first step takes long for the key `slow`."""
    box = VirtualObject("box")

    @box.handler()
    async def sleeps(ctx: ObjectContext, number: int) -> None:
        await ctx.run("before", done.append, f"{ctx.key} before")
        await ctx.sleep(timedelta(seconds=1))
        await ctx.run("after", done.append, f"{ctx.key} after")
        ctx.set("count", number)

    @box.handler()
    async def works(ctx: ObjectContext, number: int) -> int:
        async def work() -> None:
            done.append(ctx.key)
            await asyncio.sleep(SLOW_S if ctx.key == "slow" else 0)

        await ctx.run("work", work)
        ctx.set("count", number)
        return number

    @box.handler(retry_policy=InvocationRetryPolicy(max_attempts=1))
    async def once(ctx: ObjectContext, number: int) -> None:
        await ctx.run("step", done.append, ctx.key)
        ctx.set("count", number)

    return box


def test_lanes_with_steps_share_invocations_and_each_step_runs_once() -> None:
    done: list[str] = []
    box = declared(done)
    meter = pooling(box, beside=BESIDE_MAX)
    run_virtual(delivered(meter, box, "steps"))
    assert sorted(done) == sorted(["first", *(f"k{number}" for number in range(KEYS))])
    assert sum(meter.asked) == KEYS
    assert max(meter.asked) == BESIDE_MAX
    assert len(meter.asked) <= KEYS // BESIDE_MAX + 3


def test_sleeps_that_end_together_are_resumed_together() -> None:
    done: list[str] = []
    box = with_sleeps(done)
    meter = pooling(box, beside=BESIDE_MAX)
    meter.takes_s = SHORT_S
    run_virtual(delivered(meter, box, "sleeps"))
    lanes = ["first", *(f"k{number}" for number in range(KEYS))]
    assert sorted(done) == sorted(f"{lane} {when}" for lane in lanes for when in ("before", "after"))
    assert sum(meter.asked) == 2 * KEYS
    assert len(meter.asked) < KEYS


@pytest.mark.parametrize("beside", [0, 1])
def test_nothing_is_shared_where_the_function_does_not_tell(beside: int) -> None:
    done: list[str] = []
    box = declared(done)
    meter = pooling(box, beside=beside)
    run_virtual(delivered(meter, box, "steps"))
    assert meter.asked == [1] * KEYS
    assert len(done) == KEYS + 1


def test_lanes_come_together_where_there_are_places_for_all_of_them() -> None:
    done: list[str] = []
    box = declared(done)
    meter = pooling(box, places=KEYS, beside=BESIDE_MAX)
    run_virtual(delivered(meter, box, "steps"))
    assert meter.asked[:GATHER_FROM] == [1] * GATHER_FROM
    assert meter.asked[GATHER_FROM] == BESIDE_MAX
    assert len(meter.asked) <= GATHER_FROM + -(-KEYS // BESIDE_MAX)
    assert len(done) == KEYS + 1


@pytest.mark.parametrize(
    "broken",
    [FunctionFailedError("killed"), FunctionThrottledError("too many"), FunctionUnreachableError("no answer"), None],
    ids=["failed", "throttled", "unreachable", "garbled"],
)
@pytest.mark.parametrize("after", [False, True], ids=["before it ran", "after it ran"])
def test_an_invocation_that_fails_costs_nobody_an_attempt(broken: InvokeError | None, *, after: bool) -> None:
    async def scenario() -> None:
        done: list[str] = []
        box = with_sleeps(done)
        meter = pooling(box, beside=BESIDE_MAX)
        meter.broken, meter.garbled = broken, None if broken else b'{"type":"outcomes","outcomes":[null,7]}'
        meter.breaks_after = after and not isinstance(broken, FunctionThrottledError)
        task = asyncio.create_task(delivered(meter, box, "once"))
        await asyncio.sleep(0.2)
        meter.broken = meter.garbled = None
        await task
        assert meter.published == []
        assert sorted(done) == sorted(["first", *(f"k{number}" for number in range(KEYS))])
        assert max(meter.asked) > 1

    run_virtual(scenario())


def test_who_has_ended_does_not_wait_for_an_answer_that_takes_long() -> None:
    async def scenario() -> None:
        box = with_sleeps([])
        meter = await shown(box, "works", beside=BESIDE_MAX)
        meter.holds_s = HELD_S
        loop = asyncio.get_running_loop()
        began_s = loop.time()

        async def call(number: int) -> float:
            event = meter.event_of_call(box.handlers["works"], f"c{number}", f"n{number}")
            event = structs.replace(event, input=str(number).encode())
            assert await meter.dispatcher.call(event, CALL_WAIT_MS) == Success(str(number).encode())
            return loop.time() - began_s

        took_s = await asyncio.gather(*(call(number) for number in range(BESIDE_MAX)))
        assert max(meter.asked) > 1
        assert max(took_s) < HELD_S
        # The first has an invocation of its own, for which the others wait.
        assert max(took_s) <= PATIENCE_MS / 1_000 + 0.1
        assert meter.sharing("works").most == 1
        await meter.quiet()
        await meter.dispatcher.stop()

    run_virtual(scenario())


def test_a_slow_lane_holds_up_no_other_and_runs_once() -> None:
    async def scenario() -> None:
        done: list[str] = []
        box = with_sleeps(done)
        meter = await shown(box, "works", beside=BESIDE_MAX)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        keys = ["k0", "slow", *(f"k{number}" for number in range(1, 6))]
        for key in keys:
            meter.deliver(box.handlers["works"], key)
        await asyncio.sleep(PATIENCE_MS / 1_000 + 0.2)
        # All but the slow one have let go of their records.
        assert len(meter.released) == len(keys)
        await meter.quiet()
        assert loop.time() - began_s >= SLOW_S
        assert sorted(done) == sorted(["first", *keys])
        assert len(meter.released) == len(keys) + 1
        await meter.dispatcher.stop()

    run_virtual(scenario())


def test_a_handler_without_steps_has_its_lanes_run_one_after_the_other() -> None:
    box = declared([])
    meter = pooling(box, beside=BESIDE_MAX)
    run_virtual(delivered(meter, box, "quick"))
    assert meter.sharing("quick") == Sharing(meter.pools)
    meter = pooling(box, beside=BESIDE_MAX)
    run_virtual(delivered(meter, box, "steps"))
    assert meter.sharing("steps") == Sharing(BESIDE_MAX, beside=True)


def test_a_dispatcher_that_stops_leaves_no_invocation_behind() -> None:
    async def scenario() -> None:
        box = with_sleeps([])
        meter = await shown(box, "works", beside=BESIDE_MAX)
        for number in range(KEYS):
            meter.deliver(box.handlers["works"], f"k{number}")
        meter.holds_s = HELD_S
        await asyncio.sleep(0.02)
        await meter.dispatcher.stop()
        await asyncio.sleep(0)
        left = [repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == []

    run_virtual(scenario())


class SlowClaims(CountingTable):
    """Holds the second claim of one lane back until a time of the loop, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.until_s, self.claims = "", 0.0, 0

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        if self.key and isinstance(write, Update) and "rid" in write.sets and self.key in write.key.pk:
            self.claims += 1
            if self.claims == 2:
                await asyncio.sleep(self.until_s - asyncio.get_running_loop().time())
        return await super().write(write)


def test_who_has_gone_on_behind_a_commit_is_not_taken_over_while_it_runs() -> None:
    async def scenario() -> None:
        done: list[str] = []
        box = with_sleeps(done)

        @box.handler()
        async def then(ctx: ObjectContext, number: int) -> None:
            async def work() -> None:
                done.append(f"{ctx.key} then")
                await asyncio.sleep(SLOW_S)

            await ctx.run("work", work)
            ctx.set("count", number)

        table = SlowClaims()
        meter = Pooling(Services([box]), Limits(quick_in_a_row=1), table=table, beside=BESIDE_MAX)
        meter.deliver(box.handlers["works"], "first")
        await meter.quiet()
        meter.deliver(box.handlers["works"], "ahead")
        await asyncio.sleep(0.001)
        for key in ("two", "other"):
            meter.deliver(box.handlers["works"], key)
        meter.deliver(box.handlers["then"], "two")
        # The second event is begun, and its claim comes just after the lane has looked.
        table.key = "two"
        table.until_s = asyncio.get_running_loop().time() + TAKES_S + PATIENCE_MS / 1_000 + 0.006
        await asyncio.sleep(2 * TAKES_S)
        meter.places = 2
        await asyncio.sleep(PATIENCE_MS / 1_000 + SLOW_S + 0.1)
        # When its function has ended, the lane waits no longer: not for the end of the lease.
        assert len(meter.released) == len(["first", "ahead", "two", "other", "two then"])
        await meter.quiet()
        assert max(meter.asked) == 2
        assert sorted(done) == ["ahead", "first", "other", "two", "two then"]
        await meter.dispatcher.stop()

    run_virtual(scenario())


def test_a_lane_with_more_behind_its_nap_than_has_room_holds_up_no_other() -> None:
    async def scenario() -> None:
        done: list[str] = []
        box = with_sleeps(done)

        @box.handler()
        async def wakes(ctx: ObjectContext, text: str) -> None:
            await ctx.run("before", done.append, f"{ctx.key} before")
            await ctx.sleep(timedelta(seconds=1))

            async def work() -> None:
                done.append(f"{ctx.key} after")
                await asyncio.sleep(SLOW_S if ctx.key == "slow" else 0)

            await ctx.run("after", work)

        meter = await shown(box, "wakes", b'"x"', beside=BESIDE_MAX)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        keys = ["slow", *(f"k{number}" for number in range(5))]
        for key in keys:
            meter.deliver(box.handlers["wakes"], key, b'"x"')
        await asyncio.sleep(0.5)
        # All nap. Behind the slow one comes more than a shared request has room for.
        for _ in range(3):
            meter.deliver(box.handlers["wakes"], "slow", b'"%b"' % (b"x" * POOLED_BYTES_MAX))
        # An invocation is at work when they wake, so they share the next one.
        await asyncio.sleep(began_s + 0.99 - loop.time())
        meter.takes_s = 0.1
        meter.deliver(box.handlers["works"], "other")
        await asyncio.sleep(1.5)
        assert sorted(line for line in done if line.endswith("after")) == sorted(
            ["first after", *(f"{key} after" for key in keys)]
        )
        await meter.quiet()
        await meter.dispatcher.stop()

    run_virtual(scenario())


def test_a_function_of_before_is_asked_for_each_alone_in_its_places() -> None:
    async def scenario() -> None:
        done: list[str] = []
        box = with_sleeps(done)
        meter = pooling(box, beside=BESIDE_MAX)
        meter.takes_s = SHORT_S
        task = asyncio.create_task(delivered(meter, box, "sleeps"))
        await asyncio.sleep(HANDED_OUT_S)
        assert meter.asked.count(BESIDE_MAX) > 1
        # All sleep, and are to wake together.
        meter.is_old = True
        await task
        assert max(meter.asked) > 1
        lanes = ["first", *(f"k{number}" for number in range(KEYS))]
        assert sorted(done) == sorted(f"{lane} {when}" for lane in lanes for when in ("before", "after"))

    run_virtual(scenario())


def test_a_slow_lane_holds_up_none_that_takes_no_step() -> None:
    async def scenario() -> None:
        done: list[str] = []
        box = with_sleeps(done)

        @box.handler()
        async def may_work(ctx: ObjectContext, number: int) -> int:
            async def work() -> None:
                done.append(ctx.key)
                await asyncio.sleep(HELD_S if ctx.key == "slow" else 0)

            if ctx.key in ("first", "slow"):
                await ctx.run("work", work)
            ctx.set("count", number)
            return number

        meter = await shown(box, "may_work", places=2, beside=BESIDE_MAX)
        loop = asyncio.get_running_loop()

        async def call(number: int) -> float:
            began_s = loop.time()
            event = meter.event_of_call(box.handlers["may_work"], f"c{number}", f"n{number}")
            assert await meter.dispatcher.call(event, CALL_WAIT_MS) == Success(b"1")
            return loop.time() - began_s

        # Both places are taken, for which the others wait: they share what is free first.
        for key in ["a", "b", "slow", "record"]:
            meter.deliver(box.handlers["may_work"], key)
        took_s = await asyncio.gather(*(call(number) for number in range(4)))
        assert max(meter.asked) > 1
        # Who looks first does not know yet that they have begun, and looks again after twice the time.
        assert PATIENCE_MS / 1_000 < max(took_s) < 4 * PATIENCE_MS / 1_000
        await asyncio.sleep(3 * PATIENCE_MS / 1_000)
        assert len(meter.released) == len(["first", "a", "b", "record"])
        await meter.quiet()
        assert done == ["first", "slow"]
        await meter.dispatcher.stop()

    run_virtual(scenario())
