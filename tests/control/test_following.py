"""Events behind a run that sleeps: which of them follow it in the invocation that resumes it, and in which order.

Owns the choice as the dispatcher makes it. Does not own what it saves (`tests.costs`), nor the condition of the write
that ends one run and claims the next (`tests.simulation.directed`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from msgspec import structs

from tenuto import InvocationRetryPolicy, ObjectContext, VirtualObject
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Activation, decode_request
from tenuto.protocol.records import Success
from tenuto.service import Services
from tenuto_control.dispatcher.lane_places import FUNCTION_LANES_MIN
from tenuto_control.ports import AnswerHolder, Target, TopicPartition
from tests.costs.meter import Meter
from tests.support.virtual_time import run_virtual

NAP_S = 2.0
CALL_WAIT_MS = 30_000
SLOW_S = 4.0


@dataclass(slots=True)
class Watched(Meter):
    """A control plane whose invocations are noted: their mode, and how many events they carry.

    `told` is what it was last told of its function, if it is not asked anew.
    """

    asked: list[tuple[str, int]] = field(default_factory=list)
    told: Target | None = None

    def find(self, service: str) -> Target | None:
        """See `Targets.find`."""
        return self.told or Meter.find(self, service)

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`."""
        request = decode_request(payload)
        assert isinstance(request, Activation)
        self.asked.append((request.mode, len(request.events)))
        return await Meter.invoke(self, function, payload, room)


@dataclass
class Log:
    """What handlers did, in order."""

    lines: list[str] = field(default_factory=list)
    fails: int = 0


def declared(log: Log) -> VirtualObject:
    box = VirtualObject("box")

    @box.handler()
    async def doze(ctx: ObjectContext, number: int) -> None:
        await ctx.sleep(timedelta(seconds=NAP_S))
        await ctx.run("step", log.lines.append, f"{number} steps")
        ctx.set("last", number)

    @box.handler()
    async def quick(ctx: ObjectContext, number: int) -> int:
        log.lines.append(f"{number} quick")
        ctx.set("last", number)
        return number

    @box.handler()
    async def fails(ctx: ObjectContext, number: int) -> None:
        log.fails += 1
        if log.fails < 3:
            raise ValueError("not yet")
        log.lines.append(f"{number} at last")
        ctx.set("last", number)

    @box.handler(retry_policy=InvocationRetryPolicy(max_attempts=2))
    async def hopeless(ctx: ObjectContext, number: int) -> None:
        log.fails += 1
        raise ValueError("never")

    @box.handler()
    async def steps(ctx: ObjectContext, number: int) -> None:
        await ctx.run("step", log.lines.append, f"{number} steps")

    @box.handler()
    async def tells(ctx: ObjectContext, number: int) -> None:
        await ctx.sleep(timedelta(seconds=NAP_S))
        log.lines.append(f"{number} tells")
        ctx.publish("told", number)

    @box.handler()
    async def slow(ctx: ObjectContext) -> None:
        await ctx.run("slow", asyncio.sleep, SLOW_S)

    return box


async def delivered(log: Log, *handlers: str) -> Watched:
    """A control plane at rest, after records for these handlers of one key had come at once."""
    box = declared(log)
    meter = Watched(Services([box]))
    for number, name in enumerate(handlers, 1):
        meter.deliver(box.handlers[name], "k", str(number).encode())
    await meter.quiet()
    assert meter.head("box", "k").run is None
    assert meter.head("box", "k").state["last"] == str(len(handlers)).encode()
    assert sorted(meter.released) == list(range(len(handlers)))
    await meter.dispatcher.stop()
    return meter


def test_what_waits_behind_a_sleep_follows_in_the_invocation_that_ends_it() -> None:
    log = Log()
    meter = run_virtual(delivered(log, "doze", "doze", "doze"))
    assert log.lines == ["1 steps", "2 steps", "3 steps"]
    assert meter.asked == [("speculate", 3), ("resume", 2), ("resume", 1), ("resume", 0)]


def test_events_of_another_handler_follow_as_well_and_are_committed_by_the_function() -> None:
    log = Log()
    meter = run_virtual(delivered(log, "doze", "quick", "quick"))
    assert log.lines == ["1 steps", "2 quick", "3 quick"]
    assert meter.asked == [("speculate", 3), ("resume", 2)]


def test_an_event_that_fails_behind_a_run_has_all_its_attempts() -> None:
    log = Log()
    meter = run_virtual(delivered(log, "doze", "fails", "quick"))
    assert log.lines == ["1 steps", "2 at last", "3 quick"]
    assert log.fails == 3
    # What failed unowned is the control plane's to try again, with its pause and its count.
    assert meter.asked[:2] == [("speculate", 3), ("resume", 2)]
    assert all(mode == "speculate" for mode, _ in meter.asked[2:])


@pytest.mark.parametrize("first", ["doze", "steps"])
def test_an_event_that_fails_behind_a_run_has_no_more_attempts_than_its_policy_allows(first: str) -> None:
    log = Log()
    run_virtual(delivered(log, first, "hopeless", "quick"))
    assert log.lines == ["1 steps", "3 quick"]
    assert log.fails == 2


def test_a_call_behind_a_run_has_an_invocation_of_its_own_and_its_answer() -> None:
    async def scenario() -> None:
        log = Log()
        box = declared(log)
        meter = Watched(Services([box]))
        meter.deliver(box.handlers["doze"], "k", b"1")
        await asyncio.sleep(NAP_S / 2)
        call = structs.replace(meter.event_of_call(box.handlers["quick"], "k", "c1"), input=b"2")
        answer = asyncio.create_task(meter.dispatcher.call(call, CALL_WAIT_MS))
        await asyncio.sleep(0)
        meter.deliver(box.handlers["quick"], "k", b"3")
        assert await answer == Success(b"2")
        await meter.quiet()
        assert log.lines == ["1 steps", "2 quick", "3 quick"]
        assert meter.asked[:3] == [("speculate", 1), ("resume", 0), ("speculate", 1)]
        await meter.dispatcher.stop()

    run_virtual(scenario())


def test_what_is_in_the_inbox_comes_before_the_events_behind_a_run() -> None:
    async def scenario() -> None:
        log = Log()
        box = declared(log)
        meter = Watched(Services([box]))
        for number in (1, 2):
            meter.deliver(box.handlers["doze"], "k", str(number).encode())
        await asyncio.sleep(NAP_S / 2)
        call = structs.replace(meter.event_of_call(box.handlers["quick"], "k", "m1"), input=b"9")
        await meter.dispatcher.send(call, 0)
        await meter.quiet()
        assert log.lines == ["1 steps", "9 quick", "2 steps"]
        assert meter.asked[:2] == [("speculate", 2), ("resume", 0)]
        await meter.dispatcher.stop()

    run_virtual(scenario())


def test_a_handler_that_this_function_does_not_have_keeps_nothing_from_its_end() -> None:
    async def scenario() -> None:
        log = Log()
        box = declared(log)
        meter = Watched(Services([box]))
        meter.deliver(box.handlers["doze"], "k", b"1")
        meter.deliver(box.handlers["quick"], "k", b"2")
        await asyncio.sleep(NAP_S / 2)
        # The function is replaced by one without the second handler, and the control plane has not heard of it.
        meter.told = meter.find("box")
        quick = box.handlers.pop("quick")
        await asyncio.sleep(NAP_S)
        assert log.lines == ["1 steps"]
        assert meter.head("box", "k").run is None
        box.handlers["quick"] = quick
        await meter.quiet()
        assert log.lines == ["1 steps", "2 quick"]
        await meter.dispatcher.stop()

    run_virtual(scenario())


def test_the_events_of_a_lane_that_gave_way_stay_in_its_queue_when_their_partition_is_full() -> None:
    """The lane is not what they wait for: in the inbox they would begin no sooner, and cost more."""

    async def scenario() -> None:
        log = Log()
        box = declared(log)
        meter = Watched(Services([box]))
        meter.deliver(box.handlers["tells"], "k", b"1")
        await asyncio.sleep(NAP_S / 2)
        # What is sent ends the invocation, so the lane is to begin something in its own place: others have those.
        meter.deliver(box.handlers["quick"], "k", b"2")
        for number in range(FUNCTION_LANES_MIN):
            meter.deliver(box.handlers["slow"], f"slow {number}")
        await asyncio.sleep(NAP_S + meter.limits.spill_after_ms / 1000)
        lane = meter.dispatcher._lanes._workers[Lane("box", "k")]
        assert (lane.task, lane.resting) == (None, None), "it waits for a place"
        meter.dispatcher.relieve([TopicPartition("t", 0)])
        await meter.quiet()
        assert log.lines == ["1 tells", "2 quick"]
        assert all(mode != "drain" for mode, _ in meter.asked)
        await meter.dispatcher.stop()

    run_virtual(scenario())
