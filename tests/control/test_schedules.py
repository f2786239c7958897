"""Schedules that once lost or repeated work, one test each.

Owns dispatcher and runtime together, at the seams between lanes, calls and dead letters. Does not own random schedules
(`tests/simulation`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from tenuto import InvocationRetryPolicy, ObjectContext, VirtualObject
from tenuto.context import Context
from tenuto.lane.timers import GuardTimer, SleepTimer, timer_bucket, timer_put
from tenuto.lane.transitions import inbox_put, mark_pend
from tenuto.lane.writes import Answer, Key, Put, Update, Write
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane, awakeable_slot
from tenuto.protocol.limits import AWAKEABLES_BYTES_MAX
from tenuto.protocol.messages import decode_request
from tenuto.protocol.records import Failed, Success
from tenuto.service import Service, Services
from tenuto.store.port import TableUnavailableError
from tenuto_control.ports import (
    AnswerHolder,
    FunctionFailedError,
    FunctionThrottledError,
    LogUnavailableError,
    Resolution,
)
from tests.costs.meter import CountingTable, Meter
from tests.support.virtual_time import run_virtual


@dataclass(slots=True)
class Faulty(Meter):
    """A meter whose function can be cut off, throttled or killed, and whose topic "missing" takes no records."""

    cut_off: asyncio.Event | None = None
    throttles: int = 0
    dies: bool = False
    topics_exist: bool = False
    records: list[tuple[str, bytes | None]] = field(default_factory=list)

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`."""
        if self.dies:
            self.invocations += 1
            raise FunctionFailedError("killed")
        if self.throttles and decode_request(payload).version and b'"resume"' in payload:
            self.throttles -= 1
            raise FunctionThrottledError("429")
        answer = asyncio.ensure_future(Meter.invoke(self, function, payload))
        if self.cut_off is None:
            return await answer
        cut = asyncio.ensure_future(self.cut_off.wait())
        await asyncio.wait([answer, cut], return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            cut.cancel()
            return answer.result()
        self.cut_off = None
        answer.cancel()
        raise FunctionFailedError("killed")

    async def produce(
        self, topic: str, value: bytes | None, _key: bytes | None, _headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """See `RecordSink.produce`."""
        if topic == "missing" and not self.topics_exist:
            raise LogUnavailableError("no such topic")
        self.records.append((topic, value))


def faulty(service: Service | VirtualObject) -> Faulty:
    """A control plane and a function for one service."""
    return Faulty(Services([service]))


@pytest.mark.parametrize("again", [False, True], ids=["held", "delivered again"])
def test_an_offset_is_let_go_when_what_its_event_sent_has_left_the_outbox(*, again: bool) -> None:
    # It was let go when that had been delivered. A process that ended before it cleared the outbox left the entry to
    # the lane's next event; that shipped it once more, and a day later no tombstone refused it.
    box = VirtualObject("box")

    @box.handler()
    async def tell(ctx: ObjectContext, _n: int) -> None:
        ctx.object_send(box.handlers["told"], "other")

    @box.handler()
    async def told(ctx: ObjectContext) -> None:
        ctx.set("n", (await ctx.get("n", int) or 0) + 1)

    class Clogged(CountingTable):
        clogged = True

        async def write(self, write: Write) -> Answer:
            if self.clogged and isinstance(write, Update) and any(name.startswith("o.") for name in write.removes):
                raise TableUnavailableError("throttled")
            return await super().write(write)

    async def scenario() -> None:
        table = Clogged()
        meter = Meter(Services([box]), table=table)
        meter.deliver(box.handlers["tell"], "k")
        await asyncio.sleep(60)
        assert meter.head("box", "other").state == {"n": b"1"}
        assert meter.released == []
        if again:
            # Another process, which knows nothing of what was delivered, gets the event that was not let go.
            task = meter.dispatcher._lanes._workers[Lane("box", "k")].task
            assert task is not None
            task.cancel()
            meter = Meter(Services([box]), table=table, process="next")
            meter.deliver(box.handlers["tell"], "k")
            await asyncio.sleep(60)
            assert meter.released == []
        table.clogged = False
        await asyncio.sleep(60)
        assert meter.released == [0]
        assert meter.head("box", "k").out == {}
        assert meter.head("box", "other").state == {"n": b"1"}

    run_virtual(scenario())


@pytest.mark.parametrize("error", [asyncio.CancelledError(), RuntimeError("unforeseen")], ids=["cancelled", "error"])
def test_a_lane_outlives_what_escapes_from_a_library(error: BaseException) -> None:
    # Kafka's client cancels tasks of its own when a broker goes, and raises that in the worker of a lane. The worker
    # ended without a word, and its lane stood still for as long as the process lived.
    box = VirtualObject("box")
    escapes = [error]

    class Escaping(Faulty):
        async def produce(
            self, topic: str, value: bytes | None, _key: bytes | None, _headers: Sequence[tuple[str, bytes]]
        ) -> None:
            if escapes:
                raise escapes.pop()
            await Faulty.produce(self, topic, value, _key, _headers)

    @box.handler()
    async def tell(ctx: ObjectContext, n: int) -> None:
        ctx.publish("told", n)

    async def scenario() -> None:
        meter = Escaping(Services([box]))
        for _ in range(3):
            meter.deliver(box.handlers["tell"], "k")
        await asyncio.sleep(30)
        meter.deliver(box.handlers["tell"], "k")
        await asyncio.sleep(30)
        await meter.quiet()
        assert not escapes
        assert meter.records == [("told", b"1")] * 4
        assert sorted(meter.released) == [0, 1, 2, 3]

    run_virtual(scenario())


def test_a_call_before_a_claiming_event_takes_effect_once() -> None:
    box = VirtualObject("box")
    began: list[int] = []

    @box.handler()
    async def add(ctx: ObjectContext, n: int) -> int:
        total = (await ctx.get("t", int) or 0) + n
        ctx.set("t", total)
        return total

    @box.handler()
    async def slow(_ctx: ObjectContext, _n: int) -> None:
        await asyncio.sleep(1)

    async def scenario() -> None:
        meter = faulty(box)

        async def first_time_for_ever() -> None:
            began.append(1)
            if len(began) == 1 and meter.cut_off is not None:
                meter.cut_off.set()
                await asyncio.sleep(100)

        @box.handler()
        async def durable(ctx: ObjectContext, _n: int) -> None:
            await ctx.run("step", first_time_for_ever)

        meter.deliver(slow, "k")
        await asyncio.sleep(0.2)
        meter.cut_off = asyncio.Event()
        call = asyncio.ensure_future(meter.dispatcher.call(meter.event_of_call(add, "k", "c1"), 25_000))
        await asyncio.sleep(0.1)
        meter.deliver(durable, "k")
        await call
        await meter.quiet()
        assert meter.head("box", "k").state["t"] == b"1"

    run_virtual(scenario())


def test_an_event_delivered_again_behind_one_of_another_partition_holds_up_nothing() -> None:
    box = VirtualObject("box")

    @box.handler()
    async def note(ctx: ObjectContext, _n: int) -> None:
        origin = ctx.request().kafka
        assert origin is not None
        ctx.set("seen", [*(await ctx.get("seen", list[str]) or []), f"{origin.partition}/{origin.offset}"])

    async def scenario() -> None:
        first = faulty(box)
        first.deliver(note, "k", partition=1)
        await first.quiet()
        # Its offset was not committed when that process died.
        second = Meter(first.services, table=first.table, clock=first.clock)
        second._offset = 6
        second.deliver(note, "k", partition=0)
        second._offset = -1
        second.deliver(note, "k", partition=1)
        second.deliver(note, "k", partition=1)
        await second.quiet()
        assert second.head("box", "k").state["seen"] == b'["1/0","0/7","1/1"]'
        assert sorted(second.released) == [0, 1, 7]

    run_virtual(scenario())


def test_throttling_is_no_failed_attempt() -> None:
    box = VirtualObject("box")

    @box.handler(retry_policy=InvocationRetryPolicy(max_attempts=3))
    async def naps(ctx: ObjectContext, _n: int) -> None:
        for _ in range(4):
            await ctx.sleep(timedelta(seconds=2))
        ctx.set("done", 1)

    async def scenario() -> None:
        meter = faulty(box)
        meter.throttles = 5
        meter.deliver(naps, "k")
        await asyncio.sleep(60)
        assert meter.head("box", "k").state["done"] == b"1"
        assert meter.records == []

    run_virtual(scenario())


def test_a_sleeping_invocation_of_a_service_does_not_expire() -> None:
    service = Service("service")

    @service.handler()
    async def naps(ctx: Context, _n: int) -> None:
        await ctx.sleep(timedelta(days=5))

    async def scenario() -> None:
        meter = faulty(service)
        meter.deliver(naps, "")
        await asyncio.sleep(2)
        (head,) = (item for (_, sk), item in meter.table.items.items() if sk == "H")
        assert "awaits" in head
        assert "ttl" not in head

    run_virtual(scenario())


def test_an_event_too_large_for_durable_steps_goes_to_the_dead_letters_whole() -> None:
    box = VirtualObject("box")

    @box.handler()
    async def steps(ctx: ObjectContext, _data: bytes) -> None:
        await ctx.run("step", int)

    async def scenario(size: int, handler: Any) -> None:
        meter = faulty(box)
        meter.dead_letter = "box.dead-letter"
        meter.deliver(handler, "k", b"x" * size)
        await asyncio.sleep(30)
        assert [(topic, len(value or b"")) for topic, value in meter.records] == [("box.dead-letter", size)]
        assert meter.released == [0]

    @box.handler(retry_policy=InvocationRetryPolicy(max_attempts=1))
    async def fails(ctx: ObjectContext, _data: bytes) -> None:
        await ctx.run("step", int)
        raise ValueError("for good")

    run_virtual(scenario(500_000, steps))
    run_virtual(scenario(300_000, fails))


def test_a_topic_that_takes_no_records_holds_up_only_itself() -> None:
    box = VirtualObject("box")

    @box.handler()
    async def told(ctx: ObjectContext, n: int) -> None:
        ctx.set("told", n)

    @box.handler()
    async def sends(ctx: ObjectContext, _n: int) -> None:
        ctx.publish("good", 1)
        ctx.publish("missing", 2)
        ctx.object_send(told, "other", 3)

    async def scenario() -> None:
        meter = faulty(box)
        meter.deliver(sends, "k")
        await asyncio.sleep(60)
        assert [topic for topic, _ in meter.records] == ["good"]
        assert meter.head("box", "other").state["told"] == b"3"

    run_virtual(scenario())


def test_an_ended_sleep_does_not_take_the_guard_of_a_waiting_message_along() -> None:
    box = VirtualObject("box")

    @box.handler()
    async def note(_ctx: ObjectContext, _n: int) -> None:
        """What the message is for does not matter here."""

    async def scenario() -> None:
        meter = faulty(box)
        event = meter.event_of_call(note, "k", "c1")
        lane, nonce = InvocationId.parse(event.id)
        now_ms = meter.clock.now_ms()
        meter.table.apply(inbox_put(lane, event))
        guard = GuardTimer(lane, nonce, now_ms - 1_000, "guard.1")
        for timer in (SleepTimer(lane, nonce, now_ms - 2_000, "sleep.1"), guard):
            meter.table.apply(timer_put(timer))
        await meter.sweeper.sweep()
        assert [sk for pk, sk in meter.table.items if pk.startswith("T#")] == [guard.key.sk]

    run_virtual(scenario())


def test_an_event_that_fails_behind_another_has_all_its_attempts() -> None:
    box = VirtualObject("box")
    tried: list[int] = []

    @box.handler(retry_policy=InvocationRetryPolicy(max_attempts=4))
    async def fails(_ctx: ObjectContext, n: int) -> None:
        tried.append(n)
        if n == 2 or tried.count(1) < 3:
            raise RuntimeError("not now")

    async def scenario() -> None:
        meter = faulty(box)
        meter.dead_letter = "dead"
        meter.deliver(fails, "k", b"1")
        meter.deliver(fails, "k", b"2")
        await meter.quiet()
        assert (tried.count(1), tried.count(2)) == (3, 4)
        assert [topic for topic, _ in meter.records] == ["dead"]

    run_virtual(scenario())


def test_an_event_that_always_ends_its_function_is_given_up_as_its_policy_says() -> None:
    box = VirtualObject("box")

    @box.handler(retry_policy=InvocationRetryPolicy(max_attempts=3))
    async def fatal(_ctx: ObjectContext, _n: int) -> int:
        return 1

    async def scenario() -> None:
        meter = faulty(box)
        meter.dead_letter = "dead"
        meter.dies = True
        meter.deliver(fatal, "k", b"1")
        await meter.quiet()
        assert meter.invocations == 3
        assert [topic for topic, _ in meter.records] == ["dead"]
        assert meter.released == [0]
        answer = await meter.dispatcher.call(meter.event_of_call(fatal, "k", "c1"), 600_000)
        assert isinstance(answer, Failed)
        assert "3 attempts failed" in answer.failure.message

    run_virtual(scenario())


def test_no_clock_decides_that_a_guarded_write_can_come_no_more() -> None:
    box = VirtualObject("box")

    @box.handler()
    async def note(ctx: ObjectContext, _n: int) -> None:
        ctx.set("noted", value=True)

    async def scenario() -> None:
        meter = faulty(box)
        lane, nonce = InvocationId.parse(meter.event_of_call(note, "k", "c1").id)
        now_ms = meter.clock.now_ms()
        # As a sweeper sees it whose clock is ahead of that of the process about to write.
        guard = GuardTimer(lane, nonce, now_ms - 1_000, "guard.1", ver=0, since_ms=now_ms - 61_000)
        meter.table.apply(timer_put(guard))
        await meter.sweeper.sweep()
        assert guard.key.sk in [sk for _, sk in meter.table.items]
        meter.deliver(note, "k")
        await meter.quiet()
        await meter.sweeper.sweep()
        assert guard.key.sk not in [sk for _, sk in meter.table.items]

    run_virtual(scenario())


def test_the_record_of_a_finished_invocation_does_not_expire_before_its_messages_have_left() -> None:
    plain = Service("plain")

    @plain.handler()
    async def tells(ctx: Context, _n: int) -> None:
        ctx.publish("missing", 1)

    async def scenario() -> None:
        meter = faulty(plain)
        meter.deliver(tells, "")
        await asyncio.sleep(5)
        (head,) = [item for (_, sk), item in meter.table.items.items() if sk == "H"]
        assert "ttl" not in head
        meter.topics_exist = True
        await meter.quiet()
        (head,) = [item for (_, sk), item in meter.table.items.items() if sk == "H"]
        assert "ttl" in head

    run_virtual(scenario())


def test_a_record_too_large_for_an_inbox_item_holds_up_no_offset_while_it_fails() -> None:
    box = VirtualObject("box")
    well: list[bool] = []
    large = b'"' + b"x" * 800_000 + b'"'

    @box.handler()
    async def takes(ctx: ObjectContext, text: str) -> None:
        if not well:
            raise RuntimeError("not now")
        ctx.set("seen", [*(await ctx.get("seen", list[int]) or []), len(text)])

    async def scenario() -> None:
        meter = faulty(box)
        meter.deliver(takes, "k", large)
        meter.deliver(takes, "k", b'"abc"')
        await asyncio.sleep(60)
        assert meter.released == [0, 1]
        well.append(True)
        await meter.quiet()
        assert meter.head("box", "k").state["seen"] == b"[800000,3]"
        meter.dispatcher.look(Lane("box", "k"))
        await meter.quiet()
        assert [sk for pk, sk in meter.table.items if pk == Lane("box", "k").pk] == ["H"]

    run_virtual(scenario())


def test_what_is_no_timer_is_kept_and_holds_up_no_sweep() -> None:
    box = VirtualObject("box")

    async def scenario() -> None:
        meter = faulty(box)
        minute = meter.clock.now_ms() // 60_000 - 1
        bucket = timer_bucket(minute, 0)
        meter.table.apply(Put(Key(bucket, f"{minute * 60_000:015d}#abc#guard#n"), {"odd": 1}))
        await meter.sweeper.sweep()
        (moved,) = [(pk, sk, item) for (pk, sk), item in meter.table.items.items() if pk.startswith("T#")]
        assert moved[0] != bucket
        assert moved[1].endswith("#abc#guard#n")
        assert moved[2]["odd"] == 1
        # The same item, found by a slower process, makes no second copy.
        meter.table.apply(Put(Key(bucket, f"{minute * 60_000:015d}#abc#guard#n"), {"odd": 1}))
        await meter.sweeper.sweep()
        assert len([pk for pk, _ in meter.table.items if pk.startswith("T#")]) == 1

    run_virtual(scenario())


def test_a_result_that_nobody_asked_for_is_not_taken() -> None:
    box = VirtualObject("box")

    @box.handler()
    async def asks(ctx: ObjectContext, _n: int) -> None:
        ctx.set("answer", await ctx.awakeable(str)[1])

    async def scenario() -> None:
        meter = faulty(box)
        meter.deliver(asks, "k")
        await meter.quiet()
        run = meter.head("box", "k").run
        assert run is not None
        before = meter.head("box", "k").slots.keys()
        invocation = InvocationId.parse(run.event.id)
        large = Success(b'"' + b"x" * 30_000 + b'"')
        slots = [awakeable_slot(index) for index in range(100, 103)]
        guessed = [AwakeableId(invocation, slot, "0" * 32) for slot in slots]
        for name in guessed:
            assert await meter.dispatcher.resolve(str(name), large) is Resolution.UNKNOWN
        assert meter.head("box", "k").slots.keys() == before

    run_virtual(scenario())


def test_results_beyond_the_room_of_a_head_have_items_of_their_own() -> None:
    box = VirtualObject("box")
    names: list[str] = []

    @box.handler()
    async def asks(ctx: ObjectContext, _n: int) -> None:
        asked = [ctx.awakeable(str) for _ in range(12)]
        names.extend(name for name, _ in asked)
        ctx.set("answers", [len(answer) for answer in await ctx.gather(*(future for _, future in asked))])

    async def scenario() -> None:
        meter = faulty(box)
        meter.deliver(asks, "k")
        await meter.quiet()
        heaviest = 0
        large = Success(b'"' + b"x" * 30_000 + b'"')

        async def answer(name: str) -> None:
            assert await meter.dispatcher.resolve(name, large) is Resolution.ACCEPTED

        async def weigh() -> None:
            nonlocal heaviest
            while meter.head("box", "k").run is not None:
                sizes = sum(len(data) for data in meter.head("box", "k").slots.values())
                heaviest = max(heaviest, sizes)
                await asyncio.sleep(0.001)

        weighing = asyncio.create_task(weigh())
        # All at once, so that each judges what the head can hold while the others are put.
        await asyncio.gather(*(answer(name) for name in names[:12]))
        await meter.quiet()
        await weighing
        assert meter.head("box", "k").state["answers"] == b"[" + b",".join([b"30000"] * 12) + b"]"
        assert heaviest <= AWAKEABLES_BYTES_MAX + 1_000
        assert not [sk for pk, sk in meter.table.items if sk.startswith("Q#")]

    run_virtual(scenario())


def test_a_lane_is_looked_at_before_its_guard_moves_on() -> None:
    box = VirtualObject("box")

    @box.handler()
    async def note(ctx: ObjectContext, _n: int) -> None:
        ctx.set("noted", value=True)

    async def scenario() -> None:
        meter = faulty(box)
        event = meter.event_of_call(note, "k", "c1")
        lane, nonce = InvocationId.parse(event.id)
        late = GuardTimer(lane, nonce, meter.clock.now_ms() - 120_000, "guard.1")
        for write in (inbox_put(lane, event), timer_put(late), mark_pend(lane, "mark.1")):
            meter.table.apply(write)

        # The sweep ends here, as by a kill: the guard will be due again in a minute or two.
        async def dies(write: Write) -> Answer:
            if isinstance(write, Put) and write.key.pk.startswith("T#"):
                await asyncio.Event().wait()
            return await CountingTable.write(meter.table, write)

        meter.table.write = dies  # type: ignore[method-assign]  # one death, at one write
        sweeping = asyncio.create_task(meter.sweeper.sweep())
        await asyncio.sleep(5)
        assert meter.head("box", "k").state["noted"] == b"true"
        sweeping.cancel()

    run_virtual(scenario())
