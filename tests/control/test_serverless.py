"""The dispatcher as a function: what one invocation does, what it answers, and what it leaves to the next.

Owns the rules of an invocation, over the production dispatcher and runtime on virtual time. Does not own the shapes of
events (`tests/hosts`) nor Lambda itself (`tests/stack`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from tenuto import InvocationRetryPolicy, ObjectContext, VirtualObject
from tenuto.hosts.event_scheduler import Continue, SweepTick, WakeUp, decode
from tenuto.hosts.kafka_event_source import SourceRecord
from tenuto.protocol.ids import Lane
from tenuto.protocol.records import Success
from tenuto.service import Services
from tenuto_control.core.routing import Subscription
from tenuto_control.dispatcher import Errand
from tenuto_control.limits import SERVERLESS, Limits
from tenuto_control.loops.serverless import Serverless, UnsubscribedError
from tenuto_control.ports import Resolution
from tests.costs.meter import FUNCTION_TIMEOUT_MS, Meter
from tests.support.memory_kafka import MemoryKafka
from tests.support.memory_topic_lives import MemoryTopicLives
from tests.support.virtual_time import run_virtual

BUDGET_MS = 30_000


@dataclass(slots=True)
class Function(Meter):
    """One dispatcher function with what surrounds it: schedules that are kept, errands that are handed on."""

    scheduled: dict[str, tuple[int, WakeUp]] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    handed_on: list[Errand] = field(default_factory=list)
    passed_on: list[Continue | SweepTick] = field(default_factory=list)
    records: list[tuple[str, bytes | None]] = field(default_factory=list)
    kafka: MemoryKafka = field(default_factory=MemoryKafka)
    lives: MemoryTopicLives = field(init=False)
    serverless: Serverless = field(init=False)

    def __post_init__(self) -> None:
        Meter.__post_init__(self)
        self.kafka.create_topic("t")
        self.lives = MemoryTopicLives(self.kafka)
        subscription = Subscription("t", "box", "event")
        self.serverless = Serverless(
            self.dispatcher,
            self.sweeper,
            self.wiring.table,
            self,
            self.lives,
            [subscription],
            self.clock,
            self.limits,
            self.hand_on,
        )

    def deadline(self) -> int:
        return self.clock.now_ms() + BUDGET_MS

    async def hand_on(self, payload: Continue | SweepTick) -> None:
        self.passed_on.append(payload)
        if isinstance(payload, Continue):
            self.handed_on += [Errand(Lane.from_pk(one.lane), one.timer) for one in payload.lanes]

    def carry_on(self) -> Continue:
        """What was handed on last."""
        last = self.passed_on[-1]
        assert isinstance(last, Continue)
        return last

    async def schedule(self, name: str, at_ms: int, payload: bytes) -> None:
        woken = decode(payload)
        assert isinstance(woken, WakeUp)
        self.scheduled.setdefault(name, (at_ms, woken))

    async def cancel(self, name: str) -> None:
        self.cancelled.append(name)
        self.scheduled.pop(name, None)

    async def produce(
        self, topic: str, value: bytes | None, key: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        self.records.append((topic, value))

    async def until_scheduled(self) -> WakeUp:
        """Let time pass until the one schedule there is fires."""
        ((at_ms, woken),) = self.scheduled.values()
        await asyncio.sleep((at_ms - self.clock.now_ms()) / 1_000)
        self.scheduled.clear()
        return woken


def function(box: VirtualObject) -> Function:
    return Function(Services([box]), limits=Limits(**SERVERLESS))


def record(offset: int, value: bytes = b"1", key: bytes | None = b"k", partition: int = 0) -> SourceRecord:
    return SourceRecord("t", partition, offset, 0, key, value)


def adding() -> VirtualObject:
    box = VirtualObject("box")

    @box.handler()
    async def event(ctx: ObjectContext, n: int) -> None:
        ctx.set("total", (await ctx.get("total", int) or 0) + n)

    return box


def test_a_batch_is_finished_when_nothing_of_it_needs_its_offset() -> None:
    async def scenario() -> None:
        f = function(adding())
        left = await f.serverless.records([record(n, b"%d" % n) for n in range(5)], f.deadline())
        assert left == []
        assert f.head("box", "k").state["total"] == b"10"
        assert f.invocations == 1
        assert f.handed_on == []
        # A batch that is delivered again finds itself done.
        assert await f.serverless.records([record(3, b"3"), record(5, b"5")], f.deadline()) == []
        assert f.head("box", "k").state["total"] == b"15"

    run_virtual(scenario())


def test_one_record_that_cannot_be_read_fails_alone() -> None:
    async def scenario() -> None:
        f = function(adding())
        batch = [record(0), record(1, key=None), record(2, b"{"), record(3)]
        assert await f.serverless.records(batch, f.deadline()) == []
        assert f.head("box", "k").state["total"] == b"2"
        assert sorted(f.records) == [("t.dead-letter", b"1"), ("t.dead-letter", b"{")]

    run_virtual(scenario())


def test_a_topic_without_a_subscription_is_named_before_anything_happens() -> None:
    async def scenario() -> None:
        f = function(adding())
        with pytest.raises(UnsubscribedError, match="topic 'other' has no subscription"):
            await f.serverless.records([record(0), SourceRecord("other", 0, 0, 0, b"k", b"1")], f.deadline())
        assert f.invocations == 0

    run_virtual(scenario())


def test_a_failing_key_holds_up_no_batch_and_goes_on_with_the_sweep() -> None:
    box = VirtualObject("box")
    well: list[bool] = []

    @box.handler()
    async def event(ctx: ObjectContext, n: int) -> None:
        if n == 13 and not well:
            raise RuntimeError("not now")
        ctx.set("seen", [*(await ctx.get("seen", list[int]) or []), n])

    async def scenario() -> None:
        f = function(box)
        batch = [record(0, b"1"), record(1, b"13"), record(2, b"2"), record(3, b"7", key=b"other")]
        began = f.clock.now_ms()
        assert await f.serverless.records(batch, f.deadline()) == []
        assert f.clock.now_ms() - began < 5_000
        assert f.head("box", "other").state["seen"] == b"[7]"
        well.append(True)
        await asyncio.sleep(60)
        await f.serverless.tick(SweepTick(), f.deadline())
        assert f.head("box", "k").state["seen"] == b"[1,13,2]"

    run_virtual(scenario())


def test_a_batch_that_outlasts_its_function_comes_again_and_is_run_once() -> None:
    box = VirtualObject("box")

    @box.handler()
    async def event(ctx: ObjectContext, n: int) -> None:
        await asyncio.sleep(8)
        ctx.set("total", (await ctx.get("total", int) or 0) + n)

    async def scenario() -> None:
        f = function(box)
        left = await f.serverless.records([record(0), record(1, key=b"other")], f.clock.now_ms() + 2_000)
        assert [r.offset for r in left] == [0, 1]
        assert sorted(e.lane.key for e in f.handed_on) == ["k", "other"]
        # The run may go on without its dispatcher, so to the same process it is somebody else's now.
        assert await f.serverless.records(left, f.deadline()) == []
        await f.serverless.carried_on(f.carry_on(), f.deadline())
        assert (f.head("box", "k").state["total"], f.head("box", "other").state["total"]) == (b"1", b"1")

    run_virtual(scenario())


def test_a_short_sleep_stays_in_the_function_and_a_long_one_goes_to_the_scheduler() -> None:
    box = VirtualObject("box")

    @box.handler()
    async def event(ctx: ObjectContext, seconds: int) -> None:
        await ctx.sleep(timedelta(seconds=seconds))
        ctx.set("slept", seconds)

    async def scenario() -> None:
        f = function(box)
        assert await f.serverless.records([record(0, b"5")], f.deadline()) == []
        assert (f.head("box", "k").state["slept"], f.invocations, f.scheduled) == (b"5", 1, {})
        assert await f.serverless.records([record(1, b"300")], f.deadline()) == []
        assert len(f.scheduled) == 1
        woken = await f.until_scheduled()
        await f.serverless.woken(woken, f.deadline())
        assert f.head("box", "k").state["slept"] == b"300"

    run_virtual(scenario())


def test_a_wake_up_is_cancelled_when_the_sleep_ends_before_its_time() -> None:
    box = VirtualObject("box")
    ids: list[str] = []

    @box.handler()
    async def event(ctx: ObjectContext, _n: int) -> None:
        name, answered = ctx.awakeable(str)
        ids.append(name)
        won, _ = await ctx.select(answer=answered, late=ctx.sleep(timedelta(hours=1)))
        ctx.set("won", won)

    async def scenario() -> None:
        f = function(box)
        assert await f.serverless.records([record(0)], f.deadline()) == []
        (name,) = f.scheduled
        assert await f.dispatcher.resolve(ids[0], Success(b'"yes"')) is Resolution.ACCEPTED
        await f.serverless.answered()
        await asyncio.gather(*(f.serverless.woken(WakeUp(e.lane.pk), f.deadline()) for e in f.handed_on))
        assert f.head("box", "k").state["won"] == b'"answer"'
        assert f.cancelled == [name]

    run_virtual(scenario())


def test_a_delayed_message_is_woken_from_outside() -> None:
    box = VirtualObject("box")

    @box.handler()
    async def later(ctx: ObjectContext) -> None:
        ctx.set("came", value=True)

    @box.handler()
    async def event(ctx: ObjectContext, _n: int) -> None:
        ctx.object_send(later, "other", send_delay=timedelta(minutes=10))

    async def scenario() -> None:
        f = function(box)
        assert await f.serverless.records([record(0)], f.deadline()) == []
        woken = await f.until_scheduled()
        assert woken.timer is not None
        await f.serverless.woken(woken, f.deadline())
        assert f.head("box", "other").state["came"] == b"true"
        assert (woken.timer.pk, woken.timer.sk) not in f.table.items

    run_virtual(scenario())


def test_an_answered_call_leaves_what_it_sent_to_another_invocation() -> None:
    box = VirtualObject("box")

    @box.handler()
    async def slow(ctx: ObjectContext) -> None:
        await ctx.run("work", asyncio.sleep, 5)
        ctx.set("done", value=True)

    @box.handler()
    async def asks(ctx: ObjectContext, n: int) -> int:
        ctx.object_send(slow, "other")
        return n

    async def scenario() -> None:
        f = function(box)
        began = f.clock.now_ms()
        assert await f.dispatcher.call(f.event_of_call(asks, "k", "c1"), 25_000) == Success(b"1")
        await f.serverless.answered()
        assert f.clock.now_ms() - began < 500
        assert [e.lane.key for e in f.handed_on] == ["other"]
        # What ran here was halted in the middle, and holds its lease until its function would have ended.
        await asyncio.sleep(FUNCTION_TIMEOUT_MS / 1_000 + 1)
        await f.serverless.woken(WakeUp(f.handed_on[0].lane.pk), f.deadline())
        assert f.head("box", "other").state["done"] == b"true"

    run_virtual(scenario())


def test_an_invocation_lingers_for_what_is_due_soon() -> None:
    box = VirtualObject("box")
    tries: list[int] = []

    @box.handler(retry_policy=InvocationRetryPolicy(initial_interval=timedelta(seconds=4), max_attempts=3))
    async def event(ctx: ObjectContext, n: int) -> None:
        await ctx.run("claim", int)
        tries.append(n)
        if len(tries) == 1:
            raise RuntimeError("not now")

    async def scenario() -> None:
        f = function(box)
        # The pause outgrows what a function holds, so the run is suspended for it.
        assert await f.serverless.records([record(0)], f.deadline()) == []
        assert [e.lane.key for e in f.handed_on] == ["k"]
        await f.serverless.woken(WakeUp(f.handed_on[0].lane.pk), f.deadline())
        assert tries == [1, 1]
        assert f.head("box", "k").run is None

    run_virtual(scenario())
