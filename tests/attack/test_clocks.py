"""Clocks that differ: what dates of the table's answers tell, and who leaves whose runs alone because of it.

Owns the check of a clock, its driver before real answers, and schedules of two control planes of which one has a wrong
clock, each with the rule and without it. Does not own the rule's place among others
(`tests/control/test_lane_policy.py`) nor random schedules (`tests/simulation`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiobotocore.session import get_session
from botocore.hooks import HierarchicalEmitter
from hypothesis import given
from hypothesis import strategies as st

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.items import input_name, input_put
from tenuto.lane.timers import GuardTimer, parse_timer, timer_put
from tenuto.lane.transitions import part_key, part_puts
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.limits import VALUE_BYTES_MAX
from tenuto.protocol.records import Event, KafkaSource, Success
from tenuto.service import Services
from tenuto.store.dynamodb import DynamoTable
from tenuto_control.core.clocks import ClockCheck, TableClock, UncheckedClock, joined, lease_from_ms, reading
from tenuto_control.core.metrics import Tally
from tenuto_control.drivers import table_clock as table_clock_driver
from tenuto_control.drivers.system import SystemClock
from tenuto_control.drivers.table_clock import READING_INTERVAL_S, DynamoClock
from tenuto_control.ingress.readiness import ready
from tenuto_control.limits import Limits
from tenuto_control.ports import Resolution
from tests.costs.meter import CountingTable, Meter
from tests.support.moto import moto_server
from tests.support.virtual_time import VirtualClock, run_virtual

MARGIN_MS = Limits().lease_margin_ms
HOUR_MS = 3_600_000
PPM_MAX = 200
LARGE = Event(
    str(InvocationId(Lane("box", "k"), "n9")), "slow", KafkaSource("0", "t", 0, 9, 0), b"x" * (VALUE_BYTES_MAX + 1)
)
"""An event that waits in parts."""


# --- what dates tell -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """One request: how long after the one before, and how long it took each way, in milliseconds."""

    pause_ms: int
    there_ms: int
    back_ms: int


asked = st.builds(Asked, st.integers(1_000, 100_000), st.integers(0, 9_000), st.integers(0, 9_000))


def told(offset_ms: float, requests: list[Asked], ppm: int = 0) -> Iterator[tuple[ClockCheck, float]]:
    """What is known after each request by a clock that is ahead by so much, and what is true then."""
    known, now_ms = None, 1_700_000_000_123
    began_ms = now_ms

    def own(true_ms: int) -> int:
        return round(true_ms + offset_ms + (true_ms - began_ms) * ppm / 1_000_000)

    for one in requests:
        sent_ms = now_ms + one.pause_ms
        now_ms = sent_ms + one.there_ms + one.back_ms
        answer = reading(own(sent_ms), own(now_ms), (sent_ms + one.there_ms) // 1_000 * 1_000)
        assert answer is not None
        known = joined(known, answer)
        yield known, own(now_ms) - now_ms


@given(st.integers(-HOUR_MS, HOUR_MS), st.lists(asked, min_size=1, max_size=30), st.integers(-PPM_MAX, PPM_MAX))
def test_the_truth_is_within_what_is_known(offset_ms: int, requests: list[Asked], ppm: int) -> None:
    for known, truth in told(offset_ms, requests, ppm):
        assert known.low_ms - 2 <= truth <= known.high_ms + 2
        assert known.differs(MARGIN_MS) <= (abs(truth) > MARGIN_MS - 2)
        assert abs(known.offset_ms - truth) <= known.within_ms + 2
        took_ms = max(one.there_ms + one.back_ms for one in requests)
        assert abs(truth) <= MARGIN_MS + 1_000 + took_ms + 2 or known.differs(MARGIN_MS)
        assert (known.certain_ms == 0) == (known.low_ms <= 0 <= known.high_ms)


@given(st.integers(-2_000, 2_000))
def test_dates_of_seconds_tell_milliseconds_together(offset_ms: int) -> None:
    requests = [Asked(round(READING_INTERVAL_S * 1_000), 1, 1) for n in range(40)]
    *_, (known, _) = told(offset_ms, requests)
    assert known.within_ms <= 100
    assert known.differs(MARGIN_MS) == (abs(offset_ms) > MARGIN_MS) or abs(abs(offset_ms) - MARGIN_MS) <= 200


@given(st.integers(-HOUR_MS, HOUR_MS), st.integers(-HOUR_MS, HOUR_MS), st.lists(asked, min_size=1, max_size=10))
def test_a_clock_that_was_set_is_known_after_one_more_answer(before_ms: int, by_ms: int, requests: list[Asked]) -> None:
    *_, (known, truth) = told(before_ms, requests)
    for answer, after in told(truth + by_ms, [Asked(1_000, 2, 2)]):
        now = joined(known, answer)
        assert now.low_ms - 2 <= after <= now.high_ms + 2 or abs(by_ms) <= 2 * known.within_ms + 1_010


def test_a_clock_that_was_set_while_a_request_was_under_way_tells_nothing() -> None:
    assert reading(10_000, 9_999, 10_000) is None


@given(st.integers(-HOUR_MS, HOUR_MS), st.integers(0, 3_000))
def test_a_lease_never_ends_before_its_time_by_the_tables_clock(offset_ms: int, within_ms: int) -> None:
    check = ClockCheck(offset_ms - within_ms, offset_ms + within_ms, 0)
    begins_ms = lease_from_ms(check, offset_ms + HOUR_MS, MARGIN_MS)
    # The true time is an hour after the epoch here.
    assert begins_ms >= HOUR_MS - MARGIN_MS - 2 * within_ms
    assert begins_ms == offset_ms + HOUR_MS or offset_ms < -MARGIN_MS
    assert lease_from_ms(None, 5, MARGIN_MS) == 5


def test_whoever_asks_whether_a_process_is_ready_is_told() -> None:
    assert ready(()) == {"status": "ready"}
    clock = {"ahead_of_table_ms": -600_000, "within_ms": 500}
    assert ready((), ClockCheck(-600_500, -599_500, 0)) == {"status": "ready", "clock": clock}


# --- real answers ----------------------------------------------------------------------------------------------------


class Wrong(SystemClock):
    """This machine's clock, set wrong."""

    def __init__(self, ahead_ms: int) -> None:
        self.ahead_ms = ahead_ms

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return super().now_ms() + self.ahead_ms


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as url:
        yield url


def test_a_clock_is_compared_with_the_dates_of_answers(
    endpoint: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_clock_driver, "READING_INTERVAL_S", 3_600.0)
    clock, tally = Wrong(0), Tally()

    async def ask(client: Any, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(Exception, match="get_item on table nothing"):
                await DynamoTable(client, "nothing").get(cast("Any", _Key()))

    async def scenario() -> None:
        async with get_session().create_client(
            "dynamodb",
            region_name="us-east-1",
            endpoint_url=endpoint,
            aws_access_key_id="x",
            aws_secret_access_key="x",
        ) as client:
            table_clock = DynamoClock(client, clock, MARGIN_MS, tally)
            for ahead_ms in (0, 600_000, 0, -600_000, 2_500, 0):
                clock.ahead_ms = ahead_ms
                await ask(client, 10)
                # One of these was read. The pause until the next is not waited for here.
                table_clock._listen()
                check = table_clock.check
                assert check is not None
                assert check.low_ms <= ahead_ms <= check.high_ms
                assert check.differs(MARGIN_MS) == (ahead_ms != 0)
            assert len(tally.take().samples["ClockDifferenceMs"]) == 6
            monkeypatch.setattr(table_clock_driver, "READING_INTERVAL_S", 0.01)
            async with asyncio.timeout(20):
                while len(tally._samples.get("ClockDifferenceMs", ())) < 3:
                    await ask(client)

    with caplog.at_level(logging.INFO, logger="tenuto.clock"):
        asyncio.run(scenario())
    levels = [record.levelname for record in caplog.records if record.name == "tenuto.clock"]
    assert levels == ["INFO", "ERROR", "INFO", "ERROR", "INFO"]
    assert "no run of another process is taken over" in caplog.text
    assert "ms behind the table's" in caplog.text


class _Key:
    pk, sk = "p", "s"


DATES = st.text(max_size=40) | st.sampled_from(
    ["Thu, 99 Foo 2026 88:00:00 GMT", "Sun, 29 Nov 0000 18:17:36 GMT", "Sun, 29 Nov 99999 18:17:36 GMT", "-1", "0"]
)


@given(st.none() | DATES)
def test_answers_without_a_date_tell_nothing_and_harm_nothing(date: str | None) -> None:
    client: Any = SimpleNamespace(meta=SimpleNamespace(events=HierarchicalEmitter()))
    table_clock = DynamoClock(client, SystemClock(), MARGIN_MS, Tally())
    context: dict[str, Any] = {}
    client.meta.events.emit("before-call.dynamodb.GetItem", context=context)
    headers = {} if date is None else {"date": date}
    for response in ({"headers": headers}, None):
        client.meta.events.emit("response-received.dynamodb.GetItem", context=context, response_dict=response)
    client.meta.events.emit("response-received.dynamodb.GetItem", context={}, response_dict={"headers": headers})
    assert table_clock.check is None


# --- two control planes, one with a wrong clock ----------------------------------------------------------------------


@dataclass
class Skewed(VirtualClock):
    """A clock that is ahead of the truth, or behind it, until it is set."""

    ahead_ms: int

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return super().now_ms() + self.ahead_ms


@dataclass
class Dated:
    """What answers of a table tell a clock whose own time is the truth (the TableClock port)."""

    clock: Skewed
    known: ClockCheck | None = None

    @property
    def check(self) -> ClockCheck | None:
        """See `TableClock.check`."""
        now_ms = self.clock.now_ms()
        answer = reading(now_ms, now_ms, VirtualClock().now_ms() // 1_000 * 1_000)
        assert answer is not None
        self.known = joined(self.known, answer)
        return self.known


@dataclass
class Box:
    """An object whose steps take their time, and are noted when they begin."""

    began: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    box: VirtualObject = field(default_factory=lambda: VirtualObject("box"))

    def __post_init__(self) -> None:
        """Declare the handlers."""

        async def slow(ctx: ObjectContext) -> None:
            await ctx.run("slow", self._step, "slow")

        async def answered(ctx: ObjectContext) -> None:
            name, answer = ctx.awakeable(str)
            await ctx.run("ask", self.asked.append, name)
            await answer
            await ctx.run("slow", self._step, "after")

        async def note(ctx: ObjectContext) -> None:
            ctx.set("noted", True)

        for handler in (slow, answered, note):
            self.box.handler()(handler)

    async def _step(self, what: str) -> None:
        self.began.append(what)
        await asyncio.sleep(4)

    def planes(self, ahead_ms: int, *, checked: bool) -> tuple[Meter, Meter, Skewed]:
        """A control plane whose clock is right and one whose clock is not, on one table."""
        services, table, clock = Services([self.box]), CountingTable(), Skewed(ahead_ms)
        table_clock: TableClock = Dated(clock) if checked else UncheckedClock()
        right = Meter(services, table=table, process="right")
        return right, Meter(services, table=table, clock=clock, process="wrong", table_clock=table_clock), clock

    def deliver(self, meter: Meter, name: str, offset: int) -> None:
        """A record of the one key arrives at one of them."""
        meter._offset = offset - 1
        meter.deliver(self.box.handlers[name], "k")


TEN_MINUTES_MS = 600_000
rules = pytest.mark.parametrize("checked", [True, False], ids=["with the rule", "without it"])


@rules
@pytest.mark.parametrize("ahead_ms", [30_000, TEN_MINUTES_MS, 24 * HOUR_MS])
def test_who_is_ahead_leaves_a_healthy_run_alone(ahead_ms: int, checked: bool) -> None:
    async def scenario() -> None:
        box = Box()
        right, wrong, _ = box.planes(ahead_ms, checked=checked)
        box.deliver(right, "slow", 0)
        await asyncio.sleep(2)
        box.deliver(wrong, "note", 1)
        for plane in (right, wrong):
            await plane.quiet()
        # Without the rule, the lease seems to have ended long ago.
        assert box.began == ["slow"] * (1 if checked else 2)
        assert right.head("box", "k").state == {"noted": b"true"}
        assert (right.released, wrong.released) == ([0], [1])

    run_virtual(scenario())


@rules
@pytest.mark.parametrize("ahead_ms", [-30_000, -TEN_MINUTES_MS, -24 * HOUR_MS])
def test_nobody_takes_over_what_somebody_resumes_whose_clock_is_behind(ahead_ms: int, checked: bool) -> None:
    async def scenario() -> None:
        box = Box()
        right, wrong, _ = box.planes(ahead_ms, checked=checked)
        box.deliver(wrong, "answered", 0)
        await asyncio.sleep(1)
        assert await wrong.dispatcher.resolve(box.asked[0], Success(b'"yes"')) is Resolution.ACCEPTED
        await asyncio.sleep(2)
        box.deliver(right, "note", 1)
        await asyncio.sleep(30)
        # Without the rule, the lease is over for others as soon as it is written.
        assert box.began == ["after"] * (1 if checked else 2)
        assert right.head("box", "k").state == {"noted": b"true"}

    run_virtual(scenario())


@pytest.mark.parametrize("ahead_ms", [TEN_MINUTES_MS, 24 * HOUR_MS])
def test_what_is_left_over_goes_on_when_the_clock_is_put_right(ahead_ms: int) -> None:
    async def scenario() -> None:
        box = Box()
        right, wrong, clock = box.planes(ahead_ms, checked=True)
        box.deliver(right, "slow", 0)
        await asyncio.sleep(2)
        await right.dispatcher.kill()
        box.deliver(wrong, "slow", 0)
        await asyncio.sleep(300)
        assert right.head("box", "k").run is not None
        # Looking every few seconds whether the run goes on is all that it costs.
        reads = wrong.table.requests.get("get", 0)
        await asyncio.sleep(600)
        assert wrong.table.requests.get("get", 0) - reads <= 600 / 5 + 1
        clock.ahead_ms = 0
        await asyncio.sleep(30)
        await wrong.quiet()
        assert right.head("box", "k").run is None
        assert wrong.released == [0]

    run_virtual(scenario())


@rules
@pytest.mark.parametrize("ahead_ms", [HOUR_MS, 24 * HOUR_MS + HOUR_MS])
def test_who_is_ahead_lets_no_guard_go_nor_what_a_claim_in_flight_has_put(ahead_ms: int, checked: bool) -> None:
    lane = Lane("box", "k")
    held = {input_name("c1", "somebody"), part_key(lane, LARGE, 0).sk}

    async def scenario() -> None:
        box = Box()
        right, wrong, _ = box.planes(ahead_ms, checked=checked)
        now_ms = right.clock.now_ms()
        right.table.apply(input_put(lane, input_name("c1", "somebody"), b"large", at_ms=now_ms))
        for part in part_puts(lane, LARGE, now_ms):
            right.table.apply(part)
        # One for a write that is still to come, and one that would have the rest looked at.
        due_ms = wrong.clock.now_ms()
        right.table.apply(timer_put(GuardTimer(lane, "c1", due_ms, "somebody", ver=0, since_ms=now_ms)))
        right.table.apply(timer_put(GuardTimer(lane, "c9", due_ms, "old", ver=7, since_ms=now_ms)))
        for _ in range(3):
            await asyncio.sleep(1)
            await wrong.sweeper.sweep()
            await wrong.sweeper.sweep_deep()
        left = {sk for pk, sk in right.table.items if pk == lane.pk and sk != "H"}
        guards = [item["inv"] for (pk, _), item in right.table.items.items() if pk.startswith("T#")]
        if checked:
            assert left >= held
            assert "c1" in guards
        else:
            assert not left >= held or "c1" not in guards, "without the rule, something goes"

    run_virtual(scenario())


@rules
@pytest.mark.parametrize("ahead_ms", [-HOUR_MS, -25 * HOUR_MS])
def test_nobody_lets_a_guard_go_that_somebody_has_put_whose_clock_is_behind(ahead_ms: int, checked: bool) -> None:
    async def scenario() -> None:
        box = Box()
        right, wrong, _ = box.planes(ahead_ms, checked=checked)
        await wrong.dispatcher._parts.delivery.guard(Lane("box", "k"), "c1", 0, ver=0)
        now_ms = right.clock.now_ms()
        (guard,) = [parse_timer(item) for (pk, _), item in right.table.items.items() if pk.startswith("T#")]
        # Wherever it lies, once it is found it is judged by when it says to have been put.
        assert isinstance(guard, GuardTimer)
        right.table.apply(timer_put(dataclasses.replace(guard, due_ms=now_ms)))
        await asyncio.sleep(1)
        await right.sweeper.sweep()
        left = [pk for pk, _ in right.table.items if pk.startswith("T#")]
        assert len(left) == (2 if checked else 1)

    run_virtual(scenario())
