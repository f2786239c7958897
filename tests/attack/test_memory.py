"""Memory in bytes: what lanes, heads, timers, requests and waiting callers take, and what happens at the bound of each.

Owns the parts of the dispatcher and the consumer, on virtual time; what Python allocates is measured. Does not own
bombs (`test_bombs`) nor the whole process in a memory group (`tests/stack/soak_memory`).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenuto import ObjectContext, VirtualObject
from tenuto.handler import Handler
from tenuto.lane.timers import SendTimer, SleepTimer, Timer
from tenuto.lane.transitions import result_key
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.messages import ServiceManifest
from tenuto.protocol.records import Event
from tenuto.service import Services
from tenuto_control import memory
from tenuto_control.__main__ import main
from tenuto_control.core.routing import Subscription
from tenuto_control.dispatcher import background
from tenuto_control.dispatcher.background import Background
from tenuto_control.dispatcher.capacity import Capacity
from tenuto_control.dispatcher.lane_places import (
    CONTINUING_SHARE,
    FUNCTION_LANES_MIN,
)
from tenuto_control.dispatcher.recoveries import HANDLERS_MAX, LANES_MAX, Recoveries
from tenuto_control.dispatcher.wheel import Wheel
from tenuto_control.limits import MIB, Limits
from tenuto_control.loops import consume
from tenuto_control.loops.consume import RECORD_OVERHEAD_BYTES, Consumer
from tenuto_control.ports import AnswerHolder, LogRecord, Pending, Target, TopicPartition
from tests.attack.examples import examples
from tests.control.test_consume import RecordingExecution, source_of
from tests.costs.meter import Meter
from tests.support.memory_kafka import MemoryKafka
from tests.support.virtual_time import VirtualClock, run_virtual

MANY = 1_000
box = VirtualObject("box")


@box.handler()
async def keep(ctx: ObjectContext) -> None:
    ctx.set("n", (await ctx.get("n", int) or 0) + 1)


@box.handler()
async def fails(_ctx: ObjectContext) -> None:
    raise RuntimeError("not now")


@box.handler()
async def sleeps(ctx: ObjectContext) -> None:
    await ctx.sleep(timedelta(hours=3))


@dataclass(slots=True)
class Hanging(Meter):
    """A function that answers nothing until it is let."""

    answers: asyncio.Event = field(default_factory=asyncio.Event)
    peak: int = 0
    under_way: int = 0

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`."""
        self.under_way += 1
        self.peak = max(self.peak, self.under_way)
        try:
            await self.answers.wait()
            return await Meter.invoke(self, function, payload, room)
        finally:
            self.under_way -= 1


def hanging(**limits: int) -> Hanging:
    return Hanging(Services([box]), Limits(**limits))


class Allocated:
    """Bytes that Python has allocated since, net."""

    def __init__(self) -> None:
        gc.collect()
        self._before = tracemalloc.get_traced_memory()[0]

    @property
    def bytes(self) -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - self._before


@contextmanager
def traced() -> Iterator[None]:
    tracemalloc.start(1)
    try:
        yield
    finally:
        tracemalloc.stop()


def virtually(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a scenario as a test, on a loop where sleeping takes no time."""

    def test() -> None:
        run_virtual(scenario())

    test.__doc__ = scenario.__doc__
    return test


def lane(n: int) -> Lane:
    return Lane("s", f"k{n}")


# --- lanes ------------------------------------------------------------------------------------------------------------


@virtually
async def test_a_lane_that_waits_costs_less_than_2_kb_with_its_record() -> None:
    meter = hanging()
    with traced():
        for n in range(FUNCTION_LANES_MIN):
            meter.deliver(keep, f"first-{n}")
        await asyncio.sleep(1)
        allocated = Allocated()
        for n in range(MANY):
            meter.deliver(keep, f"key-{n}")
        await asyncio.sleep(30)
        assert allocated.bytes / MANY < 2_048 < RECORD_OVERHEAD_BYTES
    assert meter.peak == 8
    await meter.dispatcher.kill()


def test_a_lane_that_waits_for_its_next_attempt_costs_no_task_and_less_than_2_kb() -> None:
    """Failing keys, their events in their inboxes. Nothing is logged: what captures a log keeps its tracebacks."""
    count = 400

    async def wait(meter: Meter, first: int, last: int) -> None:
        for n in range(first, last):
            meter.deliver(fails, f"key-{n}")
        await asyncio.sleep(3)
        meter.table.log.clear()

    async def scenario() -> None:
        meter = Meter(Services([box]), Limits(spill_after_ms=100))
        with traced():
            await wait(meter, 0, 30)
            table = dict(meter.table.items)
            allocated = Allocated()
            await wait(meter, 30, 30 + count)
            meter.table.items.clear()
            meter.table.items.update(table)
            assert len(meter.dispatcher.resting()) == 30 + count == len(meter.released)
            assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("lane ")]
            assert allocated.bytes / count < memory.RESTING_BYTES <= 2_048
        await meter.dispatcher.kill()

    logging.disable(logging.CRITICAL)
    try:
        run_virtual(scenario())
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("handler", "bytes_max"), [(keep, 1_024), (sleeps, 1_536)], ids=["idle", "asleep"])
def test_an_idle_lane_costs_what_is_counted_for_it(handler: Handler[Any, Any], bytes_max: int) -> None:
    count = 300

    async def scenario() -> None:
        meter = Meter(Services([box]))
        for n in range(50):
            meter.deliver(handler, f"before-{n}")
        await meter.quiet()
        with traced():
            allocated = Allocated()
            for n in range(count):
                meter.deliver(handler, f"key-{n}")
            await meter.quiet()
            meter.table.items.clear()
            meter.table.log.clear()
            known = meter.dispatcher._lanes._known
            assert len(known) == 50 + count
            weighed = known.bytes / (50 + count)
            # Tables that grow by doubling are counted half full.
            assert allocated.bytes / count < min(weighed * 1.25, bytes_max)
        await meter.dispatcher.kill()

    run_virtual(scenario())


@virtually
async def test_a_backlog_of_distinct_keys_has_a_bounded_number_of_lanes_at_work_and_all_of_it_runs_once() -> None:
    meter = hanging()
    for n in range(MANY):
        meter.deliver(keep, f"key-{n}")
    await asyncio.sleep(60)
    tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith("lane ")]
    assert len(tasks) == FUNCTION_LANES_MIN - FUNCTION_LANES_MIN // CONTINUING_SHARE
    assert len(meter.dispatcher.at_work) == MANY
    # Nothing is moved to the table for a wait that is not its lane's doing.
    meter.dispatcher.relieve([TopicPartition("t", 0)])
    await asyncio.sleep(1)
    assert not [sk for _, sk in meter.table.items if sk.startswith("I#")]
    meter.answers.set()
    await meter.quiet()
    assert sorted(meter.released) == list(range(MANY))
    assert all(meter.head("box", f"key-{n}").state == {"n": b"1"} for n in range(MANY))


@virtually
async def test_a_backlog_that_is_withdrawn_before_it_begins_asks_the_table_for_nothing() -> None:
    meter = hanging()
    for n in range(300):
        meter.deliver(keep, f"key-{n}", partition=1)
    await asyncio.sleep(1)
    asked = dict(meter.table.requests)
    await meter.dispatcher.withdraw([TopicPartition("t", 1)], 1_000)
    meter.answers.set()
    await meter.quiet()
    assert meter.table.requests["get"] == asked["get"]
    assert meter.released == []


@virtually
async def test_a_call_and_a_lane_that_goes_on_pass_by_the_backlog() -> None:
    meter = hanging()
    for n in range(MANY):
        meter.deliver(keep, f"key-{n}")
    await asyncio.sleep(1)
    call = asyncio.create_task(meter.dispatcher.call(meter.event_of_call(keep, "called", "c1"), 20_000))
    meter.dispatcher.look(Lane("box", "hinted"))
    await asyncio.sleep(1)
    meter.answers.set()
    for _ in range(100):
        await asyncio.sleep(0)
        if call.done():
            break
    else:
        async with asyncio.timeout(20):
            await call
    assert len(meter.released) < MANY
    await meter.quiet()


@virtually
async def test_hints_are_left_to_the_sweep_when_there_are_too_many_lanes_and_records_are_not() -> None:
    meter = hanging(lanes_max=50)
    for n in range(500):
        meter.dispatcher.look(Lane("box", f"hint-{n}"))
    assert len(meter.dispatcher.at_work) == 38, "what is kept for unknown services is left"
    for n in range(500):
        meter.deliver(keep, f"key-{n}")
    meter.answers.set()
    await meter.quiet()
    assert len(meter.released) == 500


@virtually
async def test_failing_lanes_above_the_bound_are_left_to_the_sweep_and_their_events_run_in_the_end() -> None:
    healthy: list[bool] = []
    shop = VirtualObject("shop")

    @shop.handler()
    async def order(ctx: ObjectContext) -> None:
        if not healthy:
            raise RuntimeError("not now")
        ctx.set("n", (await ctx.get("n", int) or 0) + 1)

    meter = Meter(Services([shop]), Limits(spill_after_ms=100, lanes_max=20))
    sweeping = asyncio.create_task(meter.sweeper.run())
    for n in range(60):
        meter.deliver(order, f"key-{n}")
    await asyncio.sleep(30)
    assert len(meter.released) == 60
    assert len(meter.dispatcher.at_work) <= 21
    healthy.append(True)
    await asyncio.sleep(600)
    assert [meter.head("shop", f"key-{n}").state for n in range(60)] == [{"n": b"1"}] * 60
    sweeping.cancel()
    await meter.dispatcher.kill()


# --- records ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def consuming(limits: Limits, execution: Any, *topics: tuple[str, int]) -> AsyncIterator[MemoryKafka]:
    kafka = MemoryKafka(now_ms=VirtualClock().now_ms)
    for topic, partitions in topics:
        kafka.create_topic(topic, partitions)
        kafka.create_topic(f"{topic}.dead-letter")
    subscriptions = [Subscription(topic, "box", "keep") for topic, _ in topics]
    consumer = Consumer(kafka.member(), kafka.sink(), execution, subscriptions, limits, VirtualClock())
    running = asyncio.create_task(consumer.run())
    try:
        yield kafka
    finally:
        consumer.stop()
        await running


@virtually
async def test_a_backlog_of_many_keys_is_held_within_the_bytes_of_the_process() -> None:
    """The real consumer and dispatcher with a function that does not answer: partitions pause, and go on afterwards."""
    limits = Limits(process_bytes_max=MIB, drain_timeout_ms=100)
    meter = Hanging(Services([box]), limits)
    count = 1_600
    async with consuming(limits, meter.dispatcher, ("orders", 8)) as kafka:
        with traced():
            for n in range(count):
                kafka.append("orders", b"", f"key-{n}".encode(), partition=n % 8)
            allocated = Allocated()
            await asyncio.sleep(120)
            held = len(meter.dispatcher.at_work)
            assert held * RECORD_OVERHEAD_BYTES < MIB * 5 // 4 + limits.poll_records_max * RECORD_OVERHEAD_BYTES
            assert allocated.bytes < 4 * MIB
        meter.answers.set()
        await asyncio.sleep(600)
        assert sum(kafka.committed(TopicPartition("orders", n)) or 0 for n in range(8)) == count
    assert all(meter.head("box", f"key-{n}").state == {"n": b"1"} for n in range(count))


@virtually
async def test_a_topic_whose_handler_stands_still_stops_no_other() -> None:
    limits = Limits(process_bytes_max=200 * RECORD_OVERHEAD_BYTES, poll_records_max=10, drain_timeout_ms=5_000)
    execution = Still("slow")
    async with consuming(limits, execution, ("slow", 2), ("quick", 2)) as kafka:
        for n in range(1_000):
            kafka.append("slow", b"", b"%d" % n, partition=n % 2)
        await asyncio.sleep(60)
        assert 150 <= execution.most_held <= 250
        for n in range(300):
            kafka.append("quick", b"", b"%d" % n, partition=n % 2)
        await asyncio.sleep(60)
        assert sum(kafka.committed(TopicPartition("quick", n)) or 0 for n in range(2)) == 300
        assert execution.most_held <= 270


class Still(RecordingExecution):
    """Holds the records of one topic, and is done with others at once."""

    def __init__(self, topic: str) -> None:
        super().__init__(holding=True)
        self._topic = topic

    def deliver(self, event: Event, released: Callable[[], None]) -> None:
        self.holding = source_of(event).topic == self._topic
        super().deliver(event, released)

    async def withdraw(self, partitions: Any, timeout_ms: int) -> None:
        """See `Execution.withdraw`."""


HEADER = st.tuples(st.text(max_size=9), st.binary(max_size=2_000))


@given(
    st.binary(max_size=200),
    st.binary(max_size=200),
    st.lists(HEADER, max_size=4),
)
@settings(max_examples=examples(50), deadline=None)
def test_a_record_weighs_more_than_its_contents(key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> None:
    record = LogRecord("t", 0, 0, 0, key, value, tuple(headers))
    contents = len(key) + len(value) + sum(len(name.encode()) + len(content) for name, content in headers)
    assert consume.weight_of(record) >= contents + RECORD_OVERHEAD_BYTES - 30 * len(headers)


# --- requests, timers, callers, the background ------------------------------------------------------------------------


@virtually
async def test_requests_under_way_share_room() -> None:
    """A function's in the order in which they ask. One that is larger than all has another's room, and only one has."""
    capacity = Capacity(9, 100, functions=3)
    order: list[str] = []

    async def ask(function: str, name: str, size: int) -> None:
        target = Target(function, ServiceManifest(function, keyed=True, handlers=()), 1_000, 9)
        async with capacity.room(target, size):
            order.append(name)
            await asyncio.sleep(1)

    asked = [("f", "a", 60), ("f", "b", 60), ("f", "c", 1), ("g", "huge", 900), ("h", "vast", 900), ("h", "e", 3)]
    tasks = [asyncio.create_task(ask(*one)) for one in [*asked, ("f", "d", 1)]]
    await asyncio.sleep(0.5)
    assert order == ["a", "huge"]
    gone = asyncio.create_task(ask("f", "gone", 1))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(*tasks, gone, return_exceptions=True)
    assert sorted(order) == ["a", "b", "c", "d", "e", "huge", "vast"]
    assert [name for name in order if name in "abcd"] == ["a", "b", "c", "d"]
    assert [name for name in order if name in ("vast", "e")] == ["vast", "e"]
    assert (capacity._room._held, capacity._room._large) == ({}, None)


@virtually
async def test_large_inputs_are_not_all_under_way_at_once() -> None:
    meter = hanging(invoke_bytes_max=5 * MIB)
    for n in range(8):
        meter.deliver(keep, f"key-{n}", bytes(MIB))
    await asyncio.sleep(1)
    assert meter.peak == 1
    meter.answers.set()
    await asyncio.sleep(60)
    assert sorted(meter.released) == list(range(8))


def timer(n: int, due_ms: int, message: bytes | None = None) -> Timer:
    if message is None:
        return SleepTimer(lane(n), "i", due_ms, f"n{n}")
    return SendTimer(lane(n), "i", due_ms, f"n{n}", message, "http", "1")


@virtually
async def test_timers_beyond_their_bytes_are_left_to_the_sweep_and_those_due_soon_come_first() -> None:
    fired: list[Timer] = []
    clock, limits = VirtualClock(), Limits(wheel_bytes_max=200_000)
    wheel = Wheel(cast("Any", None), clock, limits, Background(), fired.append)
    now = clock.now_ms()
    for n in range(500):
        wheel.arm(timer(n, now + 60_000))
    far = len(wheel._armed)
    for n in range(1_000, 1_500):
        wheel.arm(timer(n, now + 5_000))
    assert 50 <= far <= 100 <= len(wheel._armed) <= 2 * far
    for n in range(2_000, 2_100):
        wheel.arm(timer(n, now + 1_000, bytes(100_000)))
    assert wheel._bytes <= 200_000
    armed = len(wheel._armed)
    await asyncio.sleep(61)
    assert len(fired) == armed
    assert wheel._bytes == 0
    wheel.arm(timer(1, clock.now_ms() + 1_000, bytes(100_000)))
    assert len(wheel._armed) == 1
    wheel.clear()
    assert wheel._bytes == 0


@virtually
async def test_timers_that_are_due_together_begin_a_few_at_a_time() -> None:
    meter = hanging()
    now = meter.clock.now_ms()
    for n in range(MANY):
        meter.dispatcher.arm(SleepTimer(Lane("box", f"k{n}"), "i", now + 1_000, f"n{n}"))
    most = 0
    for _ in range(400):
        await asyncio.sleep(0.005)
        tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith("lane ")]
        most = max(most, len(tasks))
    assert most <= FUNCTION_LANES_MIN
    await meter.quiet()


@virtually
async def test_the_background_does_so_much_at_once_and_leaves_what_is_too_much_to_the_sweep() -> None:
    tasks = Background()
    running = most = done = 0

    async def work() -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1
        done += 1

    for _ in range(background.AT_ONCE_MAX + background.WAITING_MAX + 500):
        tasks.spawn(work())
    await tasks.ended(10_000)
    assert most == background.AT_ONCE_MAX
    assert done == background.AT_ONCE_MAX + background.WAITING_MAX
    for _ in range(background.AT_ONCE_MAX + 5):
        tasks.spawn(work())
    await asyncio.sleep(0.5)
    for task in tasks.halt():
        task.cancel()
    await asyncio.sleep(5)
    assert tasks.tasks == ()
    assert done == background.AT_ONCE_MAX + background.WAITING_MAX


@virtually
async def test_so_many_callers_wait_for_results_and_others_are_told_at_once() -> None:
    meter = Meter(Services([box]), Limits(results_awaited_max=10))
    ids = [str(InvocationId(Lane("box", f"k{n}"), f"c{n}")) for n in range(12)]
    for name in ids:
        key = result_key(name)
        meter.table.items[key.pk, key.sk] = {"pk": key.pk, "sk": key.sk, "waits": 1}
    waiting = [asyncio.create_task(meter.dispatcher.result(name, 20_000)) for name in ids]
    await asyncio.sleep(1)
    assert sum(task.done() for task in waiting) == 2
    assert all(isinstance(task.result(), Pending) for task in waiting if task.done())
    await asyncio.gather(*waiting)
    assert (meter.dispatcher._results._room.items, meter.dispatcher._results._waiters) == (0, {})


@virtually
async def test_failing_handlers_are_remembered_up_to_a_number() -> None:
    recoveries = Recoveries(Background(), lambda _lane: None)
    for handler in range(HANDLERS_MAX + 50):
        for n in range(5):
            recoveries.failed(("s", f"h{handler}"), lane(n))
    for n in range(LANES_MAX + 50):
        recoveries.failed(("s", "h149"), lane(n))
    assert len(recoveries._failing) == HANDLERS_MAX
    assert max(map(len, recoveries._failing.values())) == LANES_MAX


# --- the budget -------------------------------------------------------------------------------------------------------


def test_the_defaults_fit_the_task_of_the_template() -> None:
    template = (Path(__file__).parents[2] / "infra/control_plane.yaml").read_text("utf-8")
    assert f'Memory: !If [Traces, "1024", "{memory.TASK_MIB}"]' in template
    assert f'{{ Name: {memory.VARIABLE}, Value: "{memory.TASK_MIB}" }}' in template
    assert sum(memory.parts(Limits()).values()) <= memory.TASK_MIB * MIB


def test_a_problem_names_the_parts_and_the_size() -> None:
    limits = replace(Limits(), process_bytes_max=512 * MIB)
    told = memory.memory_problem(limits, memory.Memory(512 * MIB, "its memory group"))
    assert told is not None
    assert "the task has 512 MiB (its memory group)" in told
    assert told.index("process_bytes_max, and a quarter (640 MiB)") < told.index("wheel_bytes_max (16 MiB)")
    assert memory.memory_problem(Limits(), memory.Memory(512 * MIB, "")) is None


@pytest.mark.parametrize(
    ("variable", "file", "text", "size"),
    [
        ("700", "sys/fs/cgroup/memory.max", "123", 700 * MIB),
        ("", "sys/fs/cgroup/memory.max", "536870912\n", 512 * MIB),
        ("much", "sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n", 512 * MIB),
        ("", "sys/fs/cgroup/memory.max", "max\n", None),
        ("", "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712", None),
        ("0", "elsewhere", "", None),
    ],
)
def test_what_the_task_has(tmp_path: Path, variable: str, file: str, text: str, size: int | None) -> None:
    place = tmp_path / file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    found = memory.memory_of_task({memory.VARIABLE: variable}, tmp_path)
    assert (found and found.bytes) == size


@pytest.mark.parametrize(("limits", "size", "warned"), [("", "512", False), ("", "256", True), ("much", "", True)])
def test_check_warns(
    limits: str,
    size: str,
    warned: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "tenuto.toml"
    file.write_text("[functions.f]\n" + ("[limits]\nlane_cache_bytes_max = 500_000_000\n" if limits else ""))
    monkeypatch.setenv(memory.VARIABLE, size)
    assert main(["check", "--offline", "--config", str(file)]) == 0
    assert ("warning: [limits] may take" in capsys.readouterr().err) == warned
