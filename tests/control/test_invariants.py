"""Two invariants that no oracle of the simulation watches: keys delay no others, and no sleep fires that is over.

Owns invariants 7 and 8 as schedules over consumer, dispatcher and runtime on virtual time. Does not own the others,
which the simulation judges; `docs/internals/invariants.md` lists them all.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from tenuto import ObjectContext, VirtualObject
from tenuto.protocol.ids import Lane
from tenuto.protocol.records import Success
from tenuto.service import Services
from tenuto_control.core.routing import Subscription
from tenuto_control.dispatcher import Errand
from tenuto_control.limits import Limits
from tenuto_control.loops.consume import Consumer
from tenuto_control.ports import Resolution, TopicPartition
from tests.costs.meter import FUNCTION_TIMEOUT_MS, Meter
from tests.support.memory_kafka import MemoryKafka
from tests.support.virtual_time import VirtualClock, run_virtual

# --- 7: a slow, sleeping or failing key delays no other key -------------------------------------------------------

GOOD_KEYS = 10
WINDOW = 20
"""Records of one partition that are in flight at once."""

PARTITION = TopicPartition("events", 0)
"""Bad and good keys share the one partition, which is where they could get into each other's way."""

LIMITS = Limits(partition_records_max=WINDOW, poll_records_max=WINDOW)
SLOW_S = 3
SLACK_MS = 2_000
"""Polls, pauses and the function's own time, which a spill may have to wait for."""

crowd = VirtualObject("crowd")


@crowd.handler()
async def act(ctx: ObjectContext, _n: int) -> None:
    """Do as the key says."""
    match ctx.key:
        case "slow":
            await asyncio.sleep(SLOW_S)
        case "slow step":
            await ctx.run("step", asyncio.sleep, SLOW_S)
        case "asleep":
            await ctx.sleep(timedelta(hours=1))
        case "waiting":
            _, answer = ctx.awakeable(str)
            await answer
        case "failing":
            raise ValueError("it never works")
        case "failing step":
            await ctx.run("step", _fail)
        case _:
            pass
    ctx.set("count", (await ctx.get("count", int) or 0) + 1)


def _fail() -> None:
    raise ConnectionError("down")


async def slowest_ms(bad_key: str, bad_records: int) -> int:
    """How long until all good keys, whose records come behind those of a bad key, have taken effect."""
    clock = VirtualClock()
    kafka = MemoryKafka(now_ms=clock.now_ms)
    kafka.create_topic(PARTITION.topic)
    meter = Meter(Services([crowd]), limits=LIMITS, clock=clock)
    subscription = Subscription(PARTITION.topic, "crowd", "act")
    consumer = Consumer(kafka.member(), meter, meter.dispatcher, [subscription], LIMITS, clock)
    for key in [bad_key] * bad_records + [f"good {number}" for number in range(GOOD_KEYS)]:
        kafka.append(PARTITION.topic, b"1", key.encode())
    began_ms = clock.now_ms()
    running = asyncio.create_task(consumer.run())
    held_up = GOOD_KEYS
    while held_up and clock.now_ms() < began_ms + 100_000:
        await asyncio.sleep(0.05)
        held_up = sum(not meter.head("crowd", f"good {number}").state for number in range(GOOD_KEYS))
    took_ms = clock.now_ms() - began_ms
    assert int(meter.head("crowd", bad_key).state.get("count", b"0")) < bad_records, "it was not slow at all"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await meter.dispatcher.stop()
    assert not held_up, f"{held_up} keys wait still after {took_ms} ms"
    return took_ms


@pytest.mark.parametrize("bad", ["slow", "slow step", "asleep", "waiting", "failing", "failing step"])
def test_a_key_that_gets_nowhere_delays_no_other_key(bad: str) -> None:
    assert run_virtual(slowest_ms(bad, WINDOW - GOOD_KEYS - 1)) <= SLACK_MS


def beyond_the_window_ms(bad: str) -> int:
    """As slowest_ms, with so many records of the bad key that they alone fill the window, three times over."""
    return run_virtual(slowest_ms(bad, 3 * WINDOW))


@pytest.mark.parametrize("bad", ["asleep", "waiting", "failing", "failing step"])
def test_a_backlog_that_fills_the_partitions_window_is_spilled_and_lets_others_pass(bad: str) -> None:
    assert beyond_the_window_ms(bad) <= 3 * LIMITS.spill_after_ms + SLACK_MS


@pytest.mark.parametrize("bad", ["slow", "slow step"])
def test_a_backlog_of_a_slow_key_lets_others_pass(bad: str) -> None:
    # A spill comes between two activations: during one, its mark would refuse the commit of what runs.
    activation_ms = FUNCTION_TIMEOUT_MS + SLOW_S * 1_000
    assert beyond_the_window_ms(bad) <= 3 * (LIMITS.spill_after_ms + activation_ms) + SLACK_MS


# --- 8: a sleep never completes early, and one that is over does not fire -------------------------------------------

TIMEOUT = timedelta(seconds=60)
NIGHT = timedelta(minutes=10)
"""Above the time from which on the outside is asked to wake a lane as well."""


@dataclass(slots=True)
class Watched(Meter):
    """A meter that notes what it asks the outside scheduler for."""

    scheduled: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    async def schedule(self, name: str, at_ms: int, payload: bytes) -> None:
        """See `WakeScheduler.schedule`."""
        self.scheduled.append(name)

    async def cancel(self, name: str) -> None:
        """See `WakeScheduler.cancel`."""
        self.cancelled.append(name)


@dataclass
class Sleeper:
    """An object whose handler waits for an answer, for a time at most, and then sleeps."""

    box: VirtualObject = field(default_factory=lambda: VirtualObject("box"))
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Declare the handlers."""

        @self.box.handler()
        async def ask(ctx: ObjectContext, timeout_s: int) -> None:
            name, answer = ctx.awakeable(str)
            await ctx.run("hand out", self._hand_out, name)
            winner, _ = await ctx.select(answer=answer, timeout=ctx.sleep(timedelta(seconds=timeout_s)))
            ctx.set("won", [*(await ctx.get("won") or []), winner])

        @self.box.handler()
        async def ask_and_sleep(ctx: ObjectContext, timeout_s: int) -> None:
            await ask(ctx, timeout_s)
            await ctx.sleep(NIGHT)
            ctx.set("woke", ctx.time())

    async def _hand_out(self, name: str) -> None:
        self.asked.append(name)

    async def begin(self, handler: str, timeout: timedelta) -> Watched:
        """Start a handler and bring it to its first suspension."""
        meter = Watched(Services([self.box]))
        meter.deliver(self.box.handlers[handler], "k", str(round(timeout.total_seconds())).encode())
        await meter.quiet()
        return meter

    async def answer(self, meter: Meter) -> None:
        """Answer what was asked last, and let the lane go on with it."""
        assert await meter.dispatcher.resolve(self.asked[-1], Success(b'"yes"')) is Resolution.ACCEPTED
        await meter.quiet()


def timers(meter: Meter) -> list[str]:
    return [sk for pk, sk in meter.table.items if pk.startswith("T#") and sk != "C"]


async def pass_time(meter: Meter, time: timedelta) -> None:
    """Let time pass with a sweep every now and then, as a process has it."""
    for _ in range(round(time.total_seconds() / 5)):
        await asyncio.sleep(5)
        await meter.sweeper.sweep()
    await meter.quiet()


def test_a_sleep_that_lost_against_an_answer_does_not_wake_its_invocation() -> None:
    async def scenario() -> None:
        sleeper = Sleeper()
        meter = await sleeper.begin("ask_and_sleep", TIMEOUT)
        await sleeper.answer(meter)
        run = meter.head("box", "k").run
        assert run is not None
        assert run.suspended
        meter.count()
        await pass_time(meter, 2 * TIMEOUT)
        assert meter.invocations == 0
        assert meter.head("box", "k").run == run
        await pass_time(meter, NIGHT)
        assert meter.head("box", "k").run is None
        assert meter.head("box", "k").state["won"] == b'["answer"]'
        assert meter.invocations == 1
        await pass_time(meter, NIGHT)
        assert timers(meter) == []

    run_virtual(scenario())


def test_a_sleep_of_an_invocation_that_is_over_does_not_wake_the_next() -> None:
    async def scenario() -> None:
        sleeper = Sleeper()
        meter = await sleeper.begin("ask", TIMEOUT)
        await sleeper.answer(meter)
        assert meter.head("box", "k").run is None
        meter.deliver(sleeper.box.handlers["ask"], "k", b"600")
        await meter.quiet()
        run = meter.head("box", "k").run
        assert run is not None
        meter.count()
        await pass_time(meter, 2 * TIMEOUT)
        assert meter.invocations == 0
        assert meter.head("box", "k").run == run
        await sleeper.answer(meter)
        assert meter.head("box", "k").state["won"] == b'["answer","answer"]'

    run_virtual(scenario())


def test_a_sleep_that_is_over_before_its_time_is_cancelled_outside_as_well() -> None:
    async def scenario() -> None:
        sleeper = Sleeper()
        meter = await sleeper.begin("ask", NIGHT)
        await asyncio.sleep(1)
        assert len(meter.scheduled) == 1
        assert meter.cancelled == []
        await sleeper.answer(meter)
        await asyncio.sleep(1)
        assert meter.cancelled == meter.scheduled

    run_virtual(scenario())


def test_who_is_woken_early_and_often_sleeps_on() -> None:
    async def scenario() -> None:
        sleeper = Sleeper()
        meter = await sleeper.begin("ask", TIMEOUT)
        run = meter.head("box", "k").run
        assert run is not None
        assert run.wake_ms is not None
        lane = Lane("box", "k")
        meter.count()
        while meter.clock.now_ms() < run.wake_ms - 100:
            meter.dispatcher._lanes.wake(lane)
            meter.dispatcher.look(lane)
            await meter.dispatcher.woken(Errand(lane))
            await asyncio.sleep(min(10.0, (run.wake_ms - 50 - meter.clock.now_ms()) / 1_000))
        assert (meter.count().writes, meter.head("box", "k").run) == (0, run)
        await asyncio.sleep(1)
        await meter.quiet()
        assert meter.head("box", "k").state["won"] == b'["timeout"]'
        assert meter.invocations == 1

    run_virtual(scenario())
