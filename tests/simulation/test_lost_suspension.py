"""An answer that arrives while its run suspends, at the worst moments: nothing may be lost, nor a run sleep over it.

Owns the schedules, over the runtime itself: a suspension's response is lost, or a flush is under way before it. Does
not own the random ones (`test_simulation`), nor the rules, which the model calls `suspend.stands`, `suspend.heard`,
`segment.unique` and `segment.truth`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.head import HEAD_SK, parse_head, slot_attribute
from tenuto.lane.transitions import slots_put, takeover
from tenuto.lane.writes import Answer, Applied, Update, Write
from tenuto.protocol.ids import InvocationId, Lane, awakeable_slot, kafka_nonce
from tenuto.protocol.messages import Activation, Head, Outcome, Suspended
from tenuto.protocol.records import AwakeableSlot, Event, KafkaSource, Success, pack
from tenuto.runtime.activation import activate
from tenuto.runtime.environment import Environment, InlineWriteLoop
from tenuto.service import Services
from tenuto.store.memory import MemoryTable
from tenuto.store.port import TableUnavailableError
from tenuto_control.core.lane_policy import can_wake
from tests.support.virtual_time import EPOCH_MS, VirtualClock, run_virtual

LANE = Lane("box", "k")
EVENT = Event(str(InvocationId(LANE, kafka_nonce("0", "t", 0, 0))), "work", KafkaSource("0", "t", 0, 0, 0))
FUNCTION_MS = 10_000
LEASE_MS = EPOCH_MS + 3_600_000
SMALL, ROLLS, BULKY = 10, 1_500, 50_000
"""Bytes of a result: small; two of these roll a journal; one of these never enters the head."""


SLOW_STEP_S = 0.1
"""Longer than a finished step waits for its flush."""

QUICK = slot_attribute(1, "2")
"""Where the result of the quick step is: the command behind the awakeable and the first step."""


class Table(MemoryTable):
    """Loses the response to the first suspension, and has the answer come then.

    With `overtaken`, the lane is taken over right before the first checkpoint behind it.
    """

    def __init__(self, *, overtaken: bool) -> None:
        super().__init__()
        self.overtaken = overtaken
        self.lost = False

    def head(self) -> Head:
        """The head as it is."""
        return parse_head(self.items[LANE.pk, HEAD_SK])

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        suspends = isinstance(write, Update) and "awaits" in write.sets
        if suspends and not self.lost:
            self.lost = True
            assert isinstance(self.apply(write), Applied)
            run = self.head().run
            assert run is not None
            answer = pack(AwakeableSlot(Success(b'"yes"')))
            assert isinstance(self.apply(slots_put(LANE, self.head(), {awakeable_slot(0): answer}, "mark")), Applied)
            raise TableUnavailableError("the response was lost")
        if self.overtaken and self.lost and isinstance(write, Update) and "own" in write.sets and not suspends:
            self.overtaken = False
            assert isinstance(self.apply(takeover(LANE, self.head(), "second", LEASE_MS, {}, "t")), Applied)
        return await super().write(write)


def ran(sizes: tuple[int, ...], *, overtaken: bool) -> tuple[str, ...]:
    """Steps in the order of their execution: one for each size, an awakeable, one more, over all attempts."""
    box = VirtualObject("box")
    steps: list[str] = []

    def step(name: str, size: int) -> str:
        steps.append(name)
        return name + "x" * size

    @box.handler()
    async def work(ctx: ObjectContext) -> str:
        _, answered = ctx.awakeable(str)
        for n, size in enumerate(sizes):
            await ctx.run(f"s{n}", step, f"s{n}", size)
        value = await answered
        await ctx.run("last", step, "last", SMALL)
        return value

    async def scenario() -> None:
        table, clock = Table(overtaken=overtaken), VirtualClock()

        async def attempt(mode: str, head: Head, holder: str) -> Outcome:
            deadline_ms = clock.now_ms() + FUNCTION_MS
            env = Environment(table, clock.now_ms, deadline_ms, InlineWriteLoop(), _inline, nonce=holder)
            events = (EVENT,) if mode == "speculate" else ()
            request = Activation("box", "k", "speculate" if events else "resume", head, holder, events)
            return await activate(request, Services([box]), env)

        outcome = await attempt("speculate", Head(), "first")
        for n in range(5):
            head = table.head()
            if head.run is None:
                break
            if isinstance(outcome, Suspended):
                assert isinstance(table.apply(takeover(LANE, head, f"next{n}", LEASE_MS, {}, "t")), Applied)
            outcome = await attempt("resume", table.head(), f"next{n}")
        assert table.head().run is None, f"the run does not end: {outcome}"

    run_virtual(scenario())
    return tuple(steps)


@pytest.mark.parametrize("overtaken", [False, True])
@pytest.mark.parametrize(
    "sizes", [(SMALL,), (SMALL, SMALL, SMALL), (BULKY,), (ROLLS, ROLLS, SMALL), (ROLLS, ROLLS, ROLLS, SMALL)]
)
def test_a_finished_step_never_runs_again(sizes: tuple[int, ...], *, overtaken: bool) -> None:
    _once(sizes, overtaken=overtaken)


@pytest.mark.parametrize("sizes", [(ROLLS, ROLLS, BULKY), (SMALL, ROLLS, ROLLS, BULKY)])
def test_a_bulky_result_beside_rolling_ones_never_runs_again(sizes: tuple[int, ...]) -> None:
    _once(sizes, overtaken=True)


def test_a_run_whose_attempt_dies_after_a_lost_suspension_can_wake() -> None:
    box = VirtualObject("box")

    @box.handler()
    async def work(ctx: ObjectContext) -> None:
        _, answered = ctx.awakeable(str)
        await ctx.run("s0", str, "x" * ROLLS)
        await ctx.run("s1", str, "x" * ROLLS)
        await answered
        await ctx.run("s2", str, "x")
        await ctx.run("s3", str, "x")

    class Dying(Table):
        """Answers nothing after the first checkpoint behind the lost suspension."""

        dead = False

        async def write(self, write: Write) -> Answer:
            if self.dead:
                raise TableUnavailableError("the function has ended")
            answer = await super().write(write)
            self.dead = self.lost and isinstance(write, Update) and "seg" in write.sets and "awaits" not in write.sets
            return answer

    async def scenario() -> Head:
        table, clock = Dying(overtaken=False), VirtualClock()
        env = Environment(table, clock.now_ms, clock.now_ms() + FUNCTION_MS, InlineWriteLoop(), _inline, nonce="first")
        request = Activation("box", "k", "speculate", Head(), "first", (EVENT,))
        with contextlib.suppress(TableUnavailableError):
            await activate(request, Services([box]), env)
        return table.head()

    head = run_virtual(scenario())
    assert head.run is not None
    assert not head.run.suspended or can_wake(head, head.run, now_ms=0)


def test_a_run_whose_answer_a_flush_has_met_right_before_its_suspension_can_wake() -> None:
    box = VirtualObject("box")

    async def step(after_s: float) -> str:
        await asyncio.sleep(after_s)
        return "x" * ROLLS

    @box.handler()
    async def work(ctx: ObjectContext) -> str:
        _, answered = ctx.awakeable(str)
        await ctx.run("first", str, "x" * ROLLS)
        await ctx.gather(ctx.run("quick", step, SLOW_STEP_S / 10), ctx.run("slow", step, SLOW_STEP_S))
        return await answered

    class Answering(MemoryTable):
        """The answer comes right before the flush of the quick step, which takes until the handler wants to suspend."""

        answered = False

        async def write(self, write: Write) -> Answer:
            if not self.answered and isinstance(write, Update) and "own" in write.sets and QUICK in write.sets:
                answer = pack(AwakeableSlot(Success(b'"yes"')))
                head = parse_head(self.items[LANE.pk, HEAD_SK])
                put = self.apply(slots_put(LANE, head, {awakeable_slot(0): answer}, "mark"))
                self.answered = isinstance(put, Applied)
                left = await super().write(write)
                await asyncio.sleep(2 * SLOW_STEP_S)
                return left
            return await super().write(write)

    async def scenario() -> tuple[bool, Head]:
        table, clock = Answering(), VirtualClock()
        env = Environment(table, clock.now_ms, clock.now_ms() + FUNCTION_MS, InlineWriteLoop(), _inline, nonce="first")
        request = Activation("box", "k", "speculate", Head(), "first", (EVENT,))
        await activate(request, Services([box]), env)
        return table.answered, parse_head(table.items[LANE.pk, HEAD_SK])

    answered, head = run_virtual(scenario())
    assert answered
    run = head.run
    assert run is None or not run.suspended or can_wake(head, run, now_ms=0), f"{run.awaits} sleeps over its answer"


def _once(sizes: tuple[int, ...], *, overtaken: bool) -> None:
    expected = [f"s{n}" for n in range(len(sizes))]
    steps = ran(sizes, overtaken=overtaken)
    assert [s for s in steps if s != "last"] == expected


async def _inline(call: Callable[[], object]) -> object:
    return call()
