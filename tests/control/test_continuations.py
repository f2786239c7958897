"""Who carries on with a lane, and how many at a time: environments of the dispatcher on one table, on virtual time.

Owns the bound of what is alive whatever is delivered again, and what becomes of work that outlasts its invocation. Does
not own what one invocation does (`test_serverless`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from tenuto import InvocationRetryPolicy, ObjectContext, VirtualObject
from tenuto.hosts.event_scheduler import Continue, HandedOn, SweepTick, WakeUp
from tenuto.lane.continuations import continuation_key
from tenuto.lane.timers import GuardTimer, timer_put
from tenuto.lane.transitions import Effects, claim
from tenuto.lane.writes import Applied
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Activation, ClaimedRun, Head, decode_request, encode
from tenuto.runtime.activation import activate
from tenuto.runtime.environment import Environment, InlineWriteLoop
from tenuto.service import Services
from tenuto_control.limits import SERVERLESS, Limits
from tenuto_control.loops.serverless import HANDED_ON_TOGETHER, HOPS_MAX, TICK_LANES_MAX
from tenuto_control.ports import AnswerHolder, Pending
from tests.control.test_serverless import Function, function, record
from tests.costs.meter import FUNCTION_TIMEOUT_MS, CountingTable, at_once
from tests.support.virtual_time import VirtualClock, run_virtual

INVOCATION_S = 118
"""What an invocation has until it leaves, as in `infra/dispatcher.yaml`."""


@dataclass(slots=True)
class Apart(Function):
    """A dispatcher whose functions go on when it does not wait for them any more, as those of Lambda do."""

    left: set[asyncio.Task[Any]] = field(default_factory=set)

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        self.invocations += 1
        request = decode_request(payload)
        assert isinstance(request, Activation)
        deadline = self.clock.now_ms() + FUNCTION_TIMEOUT_MS
        environment = Environment(self.table, self.clock.now_ms, deadline, InlineWriteLoop(), at_once)
        task = asyncio.ensure_future(activate(request, self.services, environment))
        self.left.add(task)
        task.add_done_callback(self.left.discard)
        return encode(await asyncio.shield(task))


@dataclass(slots=True)
class Fleet:
    """Environments of one dispatcher function, which Lambda makes as they are needed; each serves one event at a time.

    What one hands on is delivered twice.
    """

    services: Services
    deliveries: int = 2
    limits: Limits = field(default_factory=lambda: Limits(**SERVERLESS))
    table: CountingTable = field(default_factory=CountingTable)
    clock: VirtualClock = field(default_factory=VirtualClock)
    free: list[Apart] = field(default_factory=list)
    made: int = 0
    busy: int = 0
    busy_max: int = 0
    invocations: int = 0
    under_way: set[asyncio.Task[Any]] = field(default_factory=set)

    def environment(self) -> Apart:
        """A warm environment, or a new one."""
        if self.free:
            return self.free.pop()
        self.made += 1
        return Apart(self.services, self.limits, self.table, self.clock, process=f"env-{self.made}")

    async def serve(self, event: Continue | SweepTick | WakeUp | list[Any]) -> int:
        """One invocation. Returns how many records of a batch are left."""
        env = self.environment()
        self.invocations += 1
        self.busy += 1
        self.busy_max = max(self.busy_max, self.busy)
        left: list[Any] = []
        deadline_ms = self.clock.now_ms() + INVOCATION_S * 1_000
        try:
            match event:
                case Continue():
                    await env.serverless.carried_on(event, deadline_ms)
                case SweepTick():
                    await env.serverless.tick(event, deadline_ms)
                case WakeUp():
                    await env.serverless.woken(event, deadline_ms)
                case _:
                    left = await env.serverless.records(event, deadline_ms)
        finally:
            self.busy -= 1
            passed_on, env.passed_on, env.handed_on = env.passed_on, [], []
            scheduled, env.scheduled = env.scheduled, {}
            self.free.append(env)
        for at_ms, woken in scheduled.values():
            self.start(self.later(at_ms, woken))
        for payload in passed_on:
            for _ in range(self.deliveries):
                self.start(self.serve(payload))
        return len(left)

    async def later(self, at_ms: int, woken: WakeUp) -> None:
        """A schedule fires."""
        await asyncio.sleep((at_ms - self.clock.now_ms()) / 1_000)
        await self.serve(woken)

    def end(self) -> None:
        """Cut off whatever goes on."""
        for task in self.under_way:
            task.cancel()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)


def failing(max_interval_s: int, tries: list[float]) -> VirtualObject:
    box = VirtualObject("box")

    @box.handler(retry_policy=InvocationRetryPolicy(max_interval=timedelta(seconds=max_interval_s)))
    async def event(ctx: ObjectContext, _n: int) -> None:
        tries.append(asyncio.get_running_loop().time())
        raise RuntimeError("always")

    return box


def test_a_key_that_fails_has_one_invocation_that_waits_for_it_whatever_is_delivered_again() -> None:
    """Found from outside: 6 chains after 8 minutes, with 572 tries where the policy allows 130."""
    tries: list[float] = []

    async def scenario() -> None:
        fleet = Fleet(Services([failing(5, tries)]))
        for minute in range(10):
            for _ in range(3):
                fleet.start(fleet.serve([record(0)]))
                await asyncio.sleep(20)
            fleet.start(fleet.serve(SweepTick()))
            assert fleet.busy <= 3, f"{fleet.busy} dispatchers are busy after {minute} minutes"
        # One that waits, one a delivery for as long as it takes to be told.
        assert fleet.busy_max <= 4
        # At the policy's pace, and a few for each of the 30 deliveries, which begin anew, until they are told.
        assert len(tries) <= 600 / 2.5 + 30 * 8
        fleet.end()

    run_virtual(scenario())


def test_a_long_wait_is_left_to_a_schedule_and_no_invocation_waits_meanwhile() -> None:
    tries: list[float] = []

    async def scenario() -> None:
        fleet = Fleet(Services([failing(60, tries)]))
        await fleet.serve([record(0)])
        busy = 0
        for _ in range(1_800):
            await asyncio.sleep(1)
            busy += fleet.busy
        assert fleet.busy_max <= 2
        # Pauses of more than 10 s are waited for by nobody: what is busy are the first minute and the tries.
        assert busy < 120
        late = [round(b - a) for a, b in itertools.pairwise(tries)][-10:]
        assert all(25 <= pause <= 75 for pause in late), late
        fleet.end()

    run_virtual(scenario())


def test_who_is_refused_leaves_and_what_came_for_it_is_done_by_the_one_that_waits() -> None:
    box = VirtualObject("box")
    tries: list[int] = []

    @box.handler(retry_policy=InvocationRetryPolicy(initial_interval=timedelta(seconds=8)))
    async def event(ctx: ObjectContext, n: int) -> None:
        if n == 13:
            tries.append(n)
            if len(tries) < 3:
                raise RuntimeError("not now")
        ctx.set("seen", [*(await ctx.get("seen", list[int]) or []), n])

    async def scenario() -> None:
        fleet = Fleet(Services([box]))
        await fleet.serve([record(0, b"13")])
        first = asyncio.ensure_future(fleet.serve(WakeUp("box/k")))
        await asyncio.sleep(1)
        env = fleet.environment()
        await env.dispatcher.send(env.event_of_call(box.handlers["event"], "k", "c1"), 0)
        await env.serverless.answered()
        began_ms = fleet.clock.now_ms()
        await fleet.serve(WakeUp("box/k"))
        assert fleet.clock.now_ms() - began_ms < 1_000
        await first
        assert env.head("box", "k").state["seen"] == b"[13,1]"

    run_virtual(scenario())


def test_a_lane_that_comes_to_rest_by_itself_costs_no_write_more() -> None:
    box = VirtualObject("box")

    @box.handler()
    async def receive(ctx: ObjectContext) -> None:
        await ctx.sleep(timedelta(milliseconds=200))
        ctx.set("came", value=True)

    @box.handler()
    async def event(ctx: ObjectContext, _n: int) -> None:
        ctx.object_send(receive, "other")

    async def scenario() -> None:
        f = function(box)
        await f.dispatcher.call(f.event_of_call(box.handlers["event"], "k", "c1"), 25_000)
        await f.serverless.answered()
        (payload,) = f.passed_on
        assert isinstance(payload, Continue)
        await f.serverless.carried_on(payload, f.deadline())
        assert f.head("box", "other").state["came"] == b"true"
        at = continuation_key("box/other")
        assert (at.pk, at.sk) not in f.table.items

    run_virtual(scenario())


def test_a_run_that_outlives_its_caller_is_finished_when_it_ends() -> None:
    """Found from outside: what it sent was still in the outbox 40 s after its end, until a sweep came by."""
    box = VirtualObject("box")

    @box.handler()
    async def receive(ctx: ObjectContext) -> None:
        ctx.set("came", value=True)

    @box.handler()
    async def event(ctx: ObjectContext, _n: int) -> None:
        await ctx.run("slow", asyncio.sleep, 7)
        ctx.object_send(receive, "other")

    async def scenario() -> None:
        fleet = Fleet(Services([box]), deliveries=1)
        env = fleet.environment()
        began_ms = fleet.clock.now_ms()
        called = env.event_of_call(box.handlers["event"], "k", "c1", keep=True)
        assert await env.dispatcher.call(called, 2_000) == Pending()
        await env.serverless.answered()
        for payload in env.passed_on:
            await fleet.serve(payload)
        assert env.head("box", "other").state["came"] == b"true"
        assert fleet.clock.now_ms() - began_ms < 10_000
        assert env.head("box", "k").out == {}

    run_virtual(scenario())


def test_many_lanes_are_handed_on_together() -> None:
    """Found from outside: of 100 lanes 64 were handed on, each to an invocation of its own."""
    box = VirtualObject("box")

    @box.handler()
    async def receive(ctx: ObjectContext) -> None:
        await ctx.sleep(timedelta(milliseconds=200))
        ctx.set("came", value=True)

    @box.handler()
    async def event(ctx: ObjectContext, _n: int) -> None:
        for n in range(100):
            ctx.object_send(receive, f"r{n}")

    async def scenario() -> None:
        f = function(box)
        await f.dispatcher.call(f.event_of_call(box.handlers["event"], "k", "c1"), 25_000)
        await f.serverless.answered()
        continued = [one for one in f.passed_on if isinstance(one, Continue)]
        assert len({lane.lane for one in continued for lane in one.lanes} - {"box/k"}) == 100
        assert len(continued) == -(-100 // HANDED_ON_TOGETHER)
        await asyncio.gather(*(f.serverless.carried_on(one, f.deadline()) for one in continued))
        assert all(f.head("box", f"r{n}").state["came"] == b"true" for n in range(100))

    run_virtual(scenario())


def test_a_long_chain_begins_anew_from_a_schedule() -> None:
    """Lambda ends a chain of invocations at about its 16th link."""
    box = VirtualObject("box")

    @box.handler()
    async def event(ctx: ObjectContext, _n: int) -> None:
        await ctx.run("slow", asyncio.sleep, 8)

    async def scenario(hops: int) -> tuple[int, int]:
        f = Apart(Services([box]), limits=Limits(**SERVERLESS))
        await f.dispatcher.send(f.event_of_call(box.handlers["event"], "k", "c1"), 5_000)
        await f.dispatcher.halt(f.clock.now_ms())
        await asyncio.sleep(6)
        (timer,) = [key for key, item in f.table.items.items() if "due" in item]
        await f.serverless.carried_on(Continue((HandedOn("box/k", *timer),), hops), f.clock.now_ms() + 2_000)
        return len(f.passed_on), len(f.scheduled)

    assert run_virtual(scenario(HOPS_MAX - 1)) == (1, 0)
    assert run_virtual(scenario(HOPS_MAX)) == (0, 1)


@pytest.mark.parametrize("named", [True, False])
def test_what_is_handed_on_by_name_goes_on_once(*, named: bool) -> None:
    tries: list[float] = []

    async def scenario() -> None:
        fleet = Fleet(Services([failing(5, tries)]))
        await fleet.serve([record(0)])
        fleet.end()
        await asyncio.sleep(0)
        tries.clear()
        payload = Continue((HandedOn("box/k", owner="somebody" if named else None),))
        await fleet.serve(payload)
        assert bool(tries) is not named

    run_virtual(scenario())


def test_a_tick_ends_in_time_and_hands_on_what_is_left() -> None:
    """Found from outside: 1,500 due messages outlasted the function, which was killed with lanes at work."""
    box = VirtualObject("box")
    ran: list[str] = []

    @box.handler()
    async def later(ctx: ObjectContext, _n: int) -> None:
        await asyncio.sleep(0.1)
        ran.append(ctx.key)

    async def scenario() -> None:
        f = function(box)
        for n in range(1_500):
            event = f.event_of_call(box.handlers["later"], f"k{n}", f"c{n}")
            await f.dispatcher.send(event, 30_000)
        await f.dispatcher.halt(f.clock.now_ms())
        await asyncio.sleep(40)
        pending: list[Continue | SweepTick] = [SweepTick()]
        rounds = 0
        while pending:
            event_ = pending.pop(0)
            rounds += 1
            began_ms = f.clock.now_ms()
            at_most = 0

            async def watch() -> None:
                nonlocal at_most
                while True:
                    at_most = max(at_most, len(f.dispatcher.at_work))
                    await asyncio.sleep(0.01)

            watching = asyncio.ensure_future(watch())
            if isinstance(event_, SweepTick):
                await f.serverless.tick(event_, began_ms + 10_000)
            else:
                await f.serverless.carried_on(event_, began_ms + 10_000)
            watching.cancel()
            assert f.clock.now_ms() - began_ms < 11_000
            assert at_most < TICK_LANES_MAX + 64
            pending += f.passed_on
            f.passed_on.clear()
            assert len([one for one in pending if isinstance(one, SweepTick)]) <= 1
        assert rounds > 2
        assert len(ran) == 1_500

    run_virtual(scenario())


def test_a_tick_leaves_alone_what_others_run() -> None:
    async def scenario() -> None:
        f = function(failing(5, []))
        lane = Lane("box", "k")
        event = f.event_of_call(failing(5, []).handlers["event"], "k", "c1")
        held = ClaimedRun(event, 1, 0, 0, 1, "another", f.clock.now_ms() + 60_000)
        assert isinstance(f.table.apply(claim(lane, Head(), Effects(), held, "t", drain=False)), Applied)
        f.table.apply(timer_put(GuardTimer(lane, event.nonce, f.clock.now_ms(), "g")))
        await asyncio.sleep(1)
        await f.serverless.tick(SweepTick(), f.deadline())
        assert (f.scheduled, f.passed_on) == ({}, [])
        at = continuation_key(lane.pk)
        assert (at.pk, at.sk) not in f.table.items

    run_virtual(scenario())


def test_a_sweep_that_another_carries_on_is_not_handed_on_again() -> None:
    async def scenario() -> None:
        f = function(failing(5, []))
        began_ms = f.clock.now_ms()
        await f.serverless.tick(SweepTick(owner="somebody", hops=1), f.deadline())
        assert f.clock.now_ms() == began_ms
        assert f.table.requests.get("query", 0) == 0

    run_virtual(scenario())
