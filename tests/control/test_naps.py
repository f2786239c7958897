"""Naps: short sleeps in which the control plane keeps the lane, whoever ends meanwhile and whichever version runs.

Owns what a nap is for, and what becomes of one that goes wrong. Does not own its condition
(`tests.simulation.directed`), the decision (`test_lane_policy`), nor its price (`tests.costs`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from msgspec import structs

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.head import head_key, pack_run, parse_head
from tenuto.lane.timers import SleepTimer, parse_timer
from tenuto.lane.writes import Item
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.limits import HOLD_SLEEP_MS_MAX
from tenuto.protocol.messages import Activation, ClaimedRun, Head, Late, Suspended, decode_request, encode
from tenuto.protocol.records import DueSlot, Event, KafkaSource, pack
from tenuto.service import Services
from tenuto_control.limits import NAP_TIMEOUT_MS_MAX, Limits
from tenuto_control.ports import AnswerHolder, FunctionFailedError, FunctionUnreachableError, Target
from tests.costs.meter import FUNCTION_TIMEOUT_MS, CountingTable, Meter
from tests.support.virtual_time import run_virtual

SLEEP_S = 2.0
LIMITS = Limits()
LEASE_S = SLEEP_S + (FUNCTION_TIMEOUT_MS + LIMITS.nap_slack_ms) / 1000
LANE = Lane("sleeper", "k")


@dataclass
class Told:
    """The steps of a sleeper, and when each ran, in seconds of virtual time."""

    steps: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


def sleeper_of(told: Told, sleep_s: float = SLEEP_S) -> VirtualObject:
    """A handler with a step before its sleep and one behind it."""
    sleeper = VirtualObject("sleeper")

    async def step(name: str) -> None:
        told.steps.append(name)
        told.times.append(asyncio.get_running_loop().time())

    @sleeper.handler()
    async def doze(ctx: ObjectContext) -> None:
        ctx.set("asleep", value=True)
        await ctx.run("before", step, "before")
        ctx.publish("told", 1)
        await ctx.sleep(timedelta(seconds=sleep_s))
        await ctx.run("after", step, "after")

    return sleeper


@dataclass(slots=True)
class Nappers(Meter):
    """A control plane whose invocations a test may change: what is asked, or how it ends."""

    change: Callable[[Activation], Activation] = lambda request: request
    ends: Callable[[Activation], BaseException | bytes | None] = lambda _request: None
    asked: list[Activation] = field(default_factory=list)
    timeout_ms: int = FUNCTION_TIMEOUT_MS

    def find(self, service: str) -> Target | None:
        """See `Targets.find`."""
        found = Meter.find(self, service)
        return found and Target(found.function, found.manifest, self.timeout_ms, 8)

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`."""
        request = decode_request(payload)
        assert isinstance(request, Activation)
        self.asked.append(request)
        match self.ends(request):
            case None:
                return await Meter.invoke(self, function, encode(self.change(request)), room)
            case bytes(answer):
                return answer
            case BaseException() as error:
                raise error


def control_plane(told: Told, sleep_s: float = SLEEP_S, like: Meter | None = None, name: str = "first") -> Nappers:
    """A control plane; `like` another one, it has the same table and clock."""
    services = Services([sleeper_of(told, sleep_s)])
    if like is None:
        return Nappers(services, process=name)
    return Nappers(services, table=like.table, clock=like.clock, process=name)


def deliver(meter: Meter) -> None:
    """The event arrives: once more, if another control plane has had it."""
    meter._offset = -1
    meter.deliver(sleeper_of(Told()).handlers["doze"], "k")


def timers(table: CountingTable) -> int:
    """How many timers there are."""
    return sum(pk.startswith("T#") for pk, _ in table.items)


async def settle(meter: Meter) -> None:
    """Until its lanes are idle."""
    await meter.quiet()
    assert meter.head("sleeper", "k").run is None


def test_a_nap_keeps_the_lane_and_the_offset_and_what_was_sent_leaves() -> None:
    async def scenario() -> None:
        told = Told()
        meter = control_plane(told)
        deliver(meter)
        await asyncio.sleep(SLEEP_S / 2)
        head = meter.head("sleeper", "k")
        assert head.run is not None
        assert (head.run.napping, head.run.suspended) == (True, False)
        assert head.state == {"asleep": b"true"}, "who reads meanwhile sees what was written before"
        assert meter.published == ["told"]
        assert (meter.released, timers(meter.table)) == ([], 0)
        await settle(meter)
        assert (meter.released, told.steps) == ([0], ["before", "after"])
        assert [request.mode for request in meter.asked] == ["speculate", "resume"]

    run_virtual(scenario())


def test_when_its_control_plane_ends_another_waits_for_the_lease() -> None:
    async def scenario() -> None:
        told = Told()
        first = control_plane(told)
        began = asyncio.get_running_loop().time()
        deliver(first)
        await asyncio.sleep(SLEEP_S / 2)
        await first.dispatcher.kill()
        second = control_plane(told, like=first, name="second")
        deliver(second)
        await asyncio.sleep(LEASE_S - SLEEP_S / 2)
        assert told.steps == ["before"], "the other might still have begun"
        await settle(second)
        assert (second.released, told.steps) == ([0], ["before", "after"])
        assert LEASE_S <= told.times[1] - began < LEASE_S + 2

    run_virtual(scenario())


def test_a_control_plane_that_stops_waits_for_its_naps() -> None:
    async def scenario() -> None:
        told = Told()
        meter = control_plane(told)
        deliver(meter)
        await asyncio.sleep(0.5)
        await meter.dispatcher.stop()
        assert told.steps == ["before", "after"]
        assert meter.head("sleeper", "k").run is None

    run_virtual(scenario())


@pytest.mark.parametrize("how", ["crashed", "unreachable", "late"])
def test_an_attempt_after_a_nap_that_comes_to_nothing_is_followed_by_a_takeover(how: str) -> None:
    endings: dict[str, BaseException | bytes] = {
        "crashed": FunctionFailedError("out of memory"),
        "unreachable": FunctionUnreachableError("connection reset"),
        "late": encode(Late(0)),
    }

    async def scenario() -> None:
        told = Told()
        meter = control_plane(told)
        meter.ends = lambda request: endings[how] if request.mode == "resume" and len(meter.asked) == 2 else None
        deliver(meter)
        await settle(meter)
        assert told.steps == ["before", "after"]
        resumed = [request.head.ver for request in meter.asked if request.mode == "resume"]
        assert len(resumed) == len(set(resumed)) == 2, "each lease is for one attempt"
        assert sum(line == "head takeover.ver" for line in meter.table.log) == 1

    run_virtual(scenario())


def test_a_nap_that_is_ended_too_late_for_its_lease_is_taken_over() -> None:
    async def scenario() -> None:
        told = Told()
        meter = control_plane(told)
        deliver(meter)
        await asyncio.sleep(SLEEP_S / 2)
        worker = meter.dispatcher._lanes._workers[LANE]
        target = meter.find("sleeper")
        assert target is not None
        places = [meter.dispatcher._parts.capacity.place(target) for _ in range(target.concurrency)]
        for place in places:
            await place.__aenter__()
        await asyncio.sleep(SLEEP_S + LIMITS.nap_slack_ms / 1000)
        assert worker.naps, "it waits for a place"
        for place in places:
            await place.__aexit__(None, None, None)
        await settle(meter)
        assert told.steps == ["before", "after"]
        assert sum(line == "head takeover.ver" for line in meter.table.log) == 1

    run_virtual(scenario())


def test_a_function_whose_clock_is_behind_waits_for_the_end_of_the_nap() -> None:
    async def scenario() -> None:
        told = Told()
        meter = control_plane(told)
        deliver(meter)
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(SLEEP_S / 2)
        # The process that ends it is ahead: it takes the nap for over.
        head = meter.head("sleeper", "k")
        assert head.run is not None
        worker = meter.dispatcher._lanes._workers[LANE]
        early = structs.replace(head, run=structs.replace(head.run, wake_ms=meter.clock.now_ms()))
        worker._learn(early)
        meter.change = lambda request: structs.replace(request, head=structs.replace(request.head, run=head.run))
        worker.nudge()
        await settle(meter)
        assert told.times[1] - began >= SLEEP_S

    run_virtual(scenario())


@pytest.mark.parametrize(
    "why", ["a long sleep", "a function that may run for long", "an answer awaited beside it", "many nap"]
)
def test_other_sleeps_suspend(why: str) -> None:
    async def scenario() -> None:
        told = Told()
        meter = control_plane(told, LIMITS.nap_sleep_ms / 1000 + 1 if why == "a long sleep" else SLEEP_S)
        if why == "a function that may run for long":
            meter.timeout_ms = NAP_TIMEOUT_MS_MAX + 1
        if why == "many nap":
            event = meter.event_of_call(sleeper_of(told).handlers["doze"], "k", "n")
            napping = Head(run=ClaimedRun(event, 1, 0, 0, 2, "meter.1", 60_000, wake_ms=1))
            for n in range(LIMITS.naps_max):
                meter.dispatcher._parts.naps.note(Lane("sleeper", str(n)), napping, 0)
        if why == "an answer awaited beside it":
            asker = VirtualObject("sleeper")

            @asker.handler()
            async def doze(ctx: ObjectContext) -> None:
                answer = ctx.awakeable(str)[1]
                await ctx.select(answer=answer, late=ctx.sleep(timedelta(seconds=SLEEP_S)))

            meter.services = Services([asker])
        deliver(meter)
        await asyncio.sleep(SLEEP_S / 2)
        head = meter.head("sleeper", "k")
        assert head.run is not None
        assert head.run.suspended
        assert (meter.released, timers(meter.table)) == ([0], 1)
        await asyncio.sleep(LIMITS.nap_sleep_ms / 1000 + 1)
        await settle(meter)

    run_virtual(scenario())


@pytest.mark.parametrize("wrong", ["another holder", "a longer lease", "an older head"])
def test_a_nap_without_leave_is_no_answer(wrong: str) -> None:
    async def scenario() -> None:
        told = Told()
        meter = control_plane(told)

        def answer(request: Activation) -> bytes | None:
            if len(meter.asked) > 1:
                return None
            assert request.nap is not None
            wake_ms = meter.clock.now_ms() + 1_000
            lease_ms = wake_ms + request.nap.lease_ms + (wrong == "a longer lease")
            holder = "stranger.1" if wrong == "another holder" else request.nap.holder
            run = ClaimedRun(request.events[0], 1, 0, 0, 2, holder, lease_ms, wake_ms=wake_ms)
            return encode(Suspended((), Head(ver=1 if wrong == "an older head" else 2, run=run)))

        meter.ends = answer
        deliver(meter)
        await settle(meter)
        assert told.steps == ["before", "after"], "the event is tried again"
        assert [request.mode for request in meter.asked] == ["speculate", "speculate", "resume"]

    run_virtual(scenario())


# --- other versions ---------------------------------------------------------------------------------------------------


def test_a_function_or_control_plane_that_knows_no_naps_suspends() -> None:
    """What an older function leaves unread, or an older control plane never sends, is missing from the request."""

    async def scenario() -> None:
        told = Told()
        meter = control_plane(told)
        meter.change = lambda request: structs.replace(request, nap=None)
        deliver(meter)
        await asyncio.sleep(SLEEP_S / 2)
        run = meter.head("sleeper", "k").run
        assert run is not None
        assert run.suspended
        assert (meter.released, timers(meter.table)) == ([0], 1)
        await asyncio.sleep(SLEEP_S)
        await settle(meter)
        assert told.steps == ["before", "after"]

    run_virtual(scenario())


def test_an_older_control_plane_takes_a_run_that_naps_for_one_at_work_until_its_lease_is_over() -> None:
    """It knows `awaits`, which a nap does not set, and waits for the lease."""

    async def scenario() -> None:
        meter = control_plane(Told())
        deliver(meter)
        await asyncio.sleep(SLEEP_S / 2)
        item = meter.table.items[LANE.pk, "H"]
        assert "awaits" not in item
        wake_ms, lease_ms = item["wake"], item["lease"]
        assert isinstance(wake_ms, int)
        assert lease_ms == wake_ms + FUNCTION_TIMEOUT_MS + LIMITS.nap_slack_ms
        assert item.keys() <= {
            *("pk", "sk", "ver", "tok", "rid", "run", "att", "holder", "lease", "wake", "fails"),
            *("s.asleep", "b.asleep", "o.000000000001.000000", "j.1.0", "j.1.1d", "j.1.1", "j.1.2d", "j.1.2", "j.1.1m"),
        }, "nothing in it is new"
        await meter.dispatcher.kill()

    run_virtual(scenario())


def test_a_sleep_that_an_earlier_version_has_begun_ends() -> None:
    """Head and timer, attribute by attribute, as version 0.1 leaves them."""

    async def scenario() -> None:
        told = Told()
        meter = control_plane(told)
        now_ms = meter.clock.now_ms()
        wake_ms = now_ms + 1_000
        nonce = kafka_nonce("0", "t", 0, 0)
        event = Event(str(InvocationId(LANE, nonce)), "doze", KafkaSource("0", "t", 0, 0, 0), b"1")
        run = ClaimedRun(event, 1, now_ms, 0, 1, "old.1", now_ms + 10_000)
        key = head_key(LANE)
        meter.table.items[key.pk, key.sk] = {
            "pk": key.pk,
            "sk": key.sk,
            "ver": 1,
            "tok": "old",
            "rid": nonce,
            "run": pack_run(run),
            "att": 1,
            "holder": "old.1",
            "lease": now_ms + 10_000,
            "own": "old",
            "awaits": ["0"],
            "wake": wake_ms,
            "fails": 0,
            "j.1.0d": pack(DueSlot(wake_ms)),
        }
        timer = SleepTimer(LANE, nonce, wake_ms, f"{nonce}.1.0")
        item: Item = {"lane": LANE.pk, "kind": "sleep", "inv": nonce, "due": wake_ms, "nonce": f"{nonce}.1.0"}
        assert parse_timer(item) == timer
        meter.table.items[timer.key.pk, timer.key.sk] = {"pk": timer.key.pk, "sk": timer.key.sk, **item}
        sleeper = VirtualObject("sleeper")

        async def step() -> None:
            told.times.append(asyncio.get_running_loop().time())

        @sleeper.handler()
        async def doze(ctx: ObjectContext) -> None:
            await ctx.sleep(timedelta(seconds=1))
            await ctx.run("after", step)

        meter.services = Services([sleeper])
        began = asyncio.get_running_loop().time()
        await meter.sweeper.sweep()
        await asyncio.sleep(1.5)
        await settle(meter)
        assert [woke - began >= 1 for woke in told.times] == [True]
        await meter.sweeper.sweep()
        assert timers(meter.table) == 0

    run_virtual(scenario())


def test_a_nap_is_longer_than_a_sleep_that_is_held() -> None:
    assert LIMITS.nap_sleep_ms > HOLD_SLEEP_MS_MAX
    assert parse_head(None).run is None
