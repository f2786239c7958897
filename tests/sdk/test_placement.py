"""Where steps run and writes are made: no change of threads where nothing else can happen, and none in the way of it.

Owns the rule, and what handlers see of it over the production write loop. Does not own the races
(`test_journal_threads`), nor what asyncio's constructs mean (`tests/hostile/test_asyncio.py`).
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from msgspec import structs

from tenuto import ObjectContext, ObjectSharedContext, RunOptions, TenutoError, VirtualObject, aws
from tenuto.lane.head import head_key, parse_head
from tenuto.lane.transitions import slots_put
from tenuto.lane.writes import Answer, Write
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane, kafka_nonce
from tenuto.protocol.limits import DEADLINE_MARGIN_MS
from tenuto.protocol.messages import Activation, Committed, Head, ModeTag, Outcome, Speculated, Suspended, encode
from tenuto.protocol.records import AwakeableSlot, CallSource, Event, KafkaSource, Success, pack, unpack_slot
from tenuto.runtime import lane_writer
from tenuto.runtime.activation import activate
from tenuto.runtime.alarm import open_alarm
from tenuto.runtime.at_once import run_at_once, within
from tenuto.runtime.environment import Environment
from tenuto.runtime.placement import StepPlace, may_hold_thread, step_place
from tenuto.runtime.write_loop import BlockingWriteLoop
from tenuto.service import Services
from tenuto.store.memory import MemoryTable
from tenuto.store.port import TableUnavailableError
from tests.support.write_loops import BESIDE, ended_afterwards

LANE = Lane("box", "k")
EVENT = Event(str(InvocationId(LANE, kafka_nonce("0", "t", 0, 0))), "work", KafkaSource("0", "t", 0, 0, 0), b"1")
FUNCTION_MS = 60_000
WAIT_S = 20
"""What a test waits for something that comes at once, unless a thread is held in its way."""

DELAY_MS = 300
"""Longer than a busy machine takes for the next line."""

HERE = threading.main_thread().name


# --- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("awaits_outside", [False, True])
@pytest.mark.parametrize("other_steps", [0, 1, 2])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_thread_is_held_only_where_nothing_else_can_happen(
    is_async: bool, other_steps: int, awaits_outside: bool
) -> None:
    alone = other_steps == 0 and not awaits_outside
    assert may_hold_thread(other_steps=other_steps, awaits_outside=awaits_outside) is alone
    expected = StepPlace.LOOP if is_async else StepPlace.HERE if alone else StepPlace.THREAD
    assert step_place(is_async=is_async, other_steps=other_steps, awaits_outside=awaits_outside) is expected


# --- what a handler sees of it ---------------------------------------------------------------------------------------


class Table(MemoryTable):
    """Notes the thread of each write. The next `away` of the second thread are not answered."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []
        self.away = 0

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        self.threads.append(threading.current_thread().name)
        if self.away and self.threads[-1] == BESIDE:
            self.away -= 1
            raise TableUnavailableError("away")
        return await super().write(write)

    def slots(self) -> set[str]:
        """The slots that the lane's head holds."""
        key = head_key(LANE)
        item = self.items.get((key.pk, key.sk))
        return set() if item is None else set(parse_head(item).slots)

    def answer(self, name: str, value: bytes) -> None:
        """Resolve an awakeable while its run is at work."""
        key, slot = head_key(LANE), AwakeableId.parse(name).slot
        put = slots_put(LANE, parse_head(self.items[key.pk, key.sk]), {slot: pack(AwakeableSlot(Success(value)))}, "m")
        self.apply(put)


@dataclass
class Function:
    """Runs one event with a body of a handler, as a function does."""

    table: Table = field(default_factory=Table)
    writes: BlockingWriteLoop = field(default_factory=BlockingWriteLoop)
    skipped_ms: int = 0
    result: Any = None

    def now_ms(self) -> int:
        """The function's clock."""
        return time.time_ns() // 1_000_000 + self.skipped_ms

    def run(self, body: Callable[[ObjectContext], Coroutine[Any, Any, Any]]) -> Outcome:
        """The outcome; what the body returns is kept."""
        box = VirtualObject("box")

        @box.handler()
        async def work(ctx: ObjectContext, _n: int) -> None:
            self.result = await body(ctx)

        env = Environment(self.table, self.now_ms, self.now_ms() + FUNCTION_MS, self.writes, nonce="n")
        request = Activation("box", "k", "speculate", Head(), "h", (EVENT,))
        return asyncio.run(activate(request, Services([box]), env))


def no_alarm() -> None:
    """What a system without alarms gives."""


@pytest.fixture(params=[open_alarm, no_alarm], ids=["alarm", "looks"])
def function(request: pytest.FixtureRequest) -> Iterator[Function]:
    made = Function(writes=BlockingWriteLoop(request.param))
    with ended_afterwards(made.writes):
        yield made


def where() -> str:
    """A step that tells its thread."""
    return threading.current_thread().name


async def where_async() -> str:
    """The same."""
    await asyncio.sleep(0)
    return threading.current_thread().name


def test_steps_one_after_the_other_change_no_thread(function: Function) -> None:
    async def body(ctx: ObjectContext) -> list[str]:
        return [await ctx.run("a", where), await ctx.run("b", where_async), await ctx.run("c", where)]

    assert isinstance(function.run(body), Committed)
    assert function.result == [HERE] * 3
    # A claim, one checkpoint before each further step, and the commit.
    assert function.table.threads == [HERE] * 4


def test_a_step_that_holds_the_thread_sees_no_event_loop_and_may_run_its_own(function: Function) -> None:
    kept = threading.local()
    told: contextvars.ContextVar[str] = contextvars.ContextVar("told", default="nothing")

    def first() -> list[str]:
        kept.client = "open"
        told.set("by the step")
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return [asyncio.run(where_async()), told.get()]

    def second() -> list[str]:
        return [getattr(kept, "client", "none"), told.get()]

    async def body(ctx: ObjectContext) -> list[Any]:
        told.set("by the handler")
        return [await ctx.run("first", first), await ctx.run("second", second), told.get()]

    assert isinstance(function.run(body), Committed)
    assert function.result == [[HERE, "by the step"], ["open", "by the handler"], "by the handler"]


def test_the_context_is_refused_in_a_step_that_holds_the_thread(function: Function) -> None:
    async def body(ctx: ObjectContext) -> str:
        def uses_it() -> str:
            with pytest.raises(TenutoError, match="not inside a step"):
                ctx.set("n", 1)
            return "refused"

        return await ctx.run("uses it", uses_it)

    assert isinstance(function.run(body), Committed)
    assert function.result == "refused"


def test_what_a_sync_step_returns_to_be_awaited_has_a_task_of_its_own(function: Function) -> None:
    async def fetch(number: int) -> int:
        async with asyncio.timeout(WAIT_S):
            await asyncio.sleep(0)
        return number

    async def body(ctx: ObjectContext) -> int:
        return await ctx.run("fetch", lambda: fetch(7))

    assert isinstance(function.run(body), Committed)
    assert function.result == 7


def test_a_step_that_holds_the_thread_is_tried_again_as_its_options_say(function: Function) -> None:
    tries = itertools.count(1)

    def fails_twice() -> list[Any]:
        number = next(tries)
        if number < 3:
            raise ValueError(number)
        return [number, where()]

    async def body(ctx: ObjectContext) -> list[Any]:
        options: RunOptions[list[Any]] = RunOptions(max_attempts=3, initial_retry_interval=0.01, type_hint=list)
        return await ctx.run_with(options, "fails twice", fails_twice)

    assert isinstance(function.run(body), Committed)
    assert function.result == [3, HERE]


# --- what stays parallel ---------------------------------------------------------------------------------------------


def test_sync_steps_that_are_asked_for_together_run_side_by_side(function: Function) -> None:
    both = threading.Barrier(2)

    def meet() -> bool:
        both.wait(WAIT_S)
        return True

    async def body(ctx: ObjectContext) -> list[Any]:
        gathered = await ctx.gather(ctx.run("a", meet), ctx.run("b", meet))

        async def branch(name: str) -> bool:
            return await ctx.run(name, meet)

        return [*gathered, *await asyncio.gather(branch("c"), branch("d"))]

    assert isinstance(function.run(body), Committed)
    assert function.result == [True] * 4


def test_a_sync_step_beside_an_async_one_leaves_the_loop_free(function: Function) -> None:
    met = threading.Event()

    async def sets() -> None:
        await asyncio.sleep(0.001)
        met.set()

    async def body(ctx: ObjectContext) -> list[Any]:
        return await ctx.gather(ctx.run("waits", met.wait, WAIT_S), ctx.run("sets", sets))

    assert isinstance(function.run(body), Committed)
    assert function.result[0] is True


def test_a_timeout_over_a_sync_step_fires_while_it_runs(function: Function) -> None:
    timed_out = threading.Event()

    async def body(ctx: ObjectContext) -> list[bool]:
        step = ctx.run("waits", timed_out.wait, WAIT_S)
        try:
            await asyncio.wait_for(step, 0.02)
        except TimeoutError:
            timed_out.set()
        return [timed_out.is_set(), await step]

    assert isinstance(function.run(body), Committed)
    assert function.result == [True, True]


def test_a_sleep_that_another_task_waits_for_ends_while_a_sync_step_runs(function: Function) -> None:
    slept = threading.Event()

    async def body(ctx: ObjectContext) -> bool:
        async def sleeps() -> None:
            await ctx.sleep(0.02)
            slept.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(sleeps())
            return await ctx.run("waits", slept.wait, WAIT_S)

    assert isinstance(function.run(body), Committed)
    assert function.result is True


def test_an_answer_that_another_task_waits_for_arrives_while_a_sync_step_runs(function: Function) -> None:
    answered = threading.Event()

    async def body(ctx: ObjectContext) -> bool:
        name, answer = ctx.awakeable(int)

        async def takes() -> None:
            assert await answer == 1
            answered.set()

        def waits() -> bool:
            function.table.answer(name, b"1")
            return answered.wait(WAIT_S)

        await ctx.run("claim", int)
        async with asyncio.TaskGroup() as group:
            group.create_task(takes())
            return await ctx.run("waits", waits)

    assert isinstance(function.run(body), Committed)
    assert function.result is True


def test_a_task_is_cancelled_while_its_sync_step_runs(function: Function) -> None:
    cancelled = threading.Event()

    async def body(ctx: ObjectContext) -> list[bool]:
        step = ctx.run("waits", cancelled.wait, WAIT_S)

        async def waits() -> None:
            await step

        task = asyncio.create_task(waits())
        await ctx.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])
        cancelled.set()
        return [task.cancelled(), await step]

    assert isinstance(function.run(body), Committed)
    assert function.result == [True, True]


# --- what is stored when ---------------------------------------------------------------------------------------------


def held_until_stored(function: Function) -> bool:
    """Hold the thread until the second step is in the table. Whether it came there."""
    ends = time.monotonic() + WAIT_S
    while "1" not in function.table.slots() and time.monotonic() < ends:
        pass
    return "1" in function.table.slots()


def test_a_finished_step_is_stored_while_the_handler_holds_its_thread(function: Function) -> None:
    async def body(ctx: ObjectContext) -> bool:
        await ctx.run("claim", int)
        await ctx.run("a", int)
        return held_until_stored(function)

    assert isinstance(function.run(body), Committed)
    assert function.result is True
    assert function.table.threads == [HERE, HERE, BESIDE, HERE]


def test_a_flush_that_the_table_did_not_answer_is_tried_again_while_the_handler_holds_its_thread(
    function: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_writer, "FLUSH_RETRY_MS", 5)

    async def body(ctx: ObjectContext) -> bool:
        await ctx.run("claim", int)
        await ctx.run("a", int)
        function.table.away = 3
        return held_until_stored(function)

    assert isinstance(function.run(body), Committed)
    assert function.result is True
    assert function.table.away == 0


def test_a_step_begins_when_the_one_before_is_stored(function: Function) -> None:
    stored: list[set[str]] = []

    async def body(ctx: ObjectContext) -> None:
        for number in range(4):
            await ctx.run(f"s{number}", lambda: stored.append(function.table.slots()))

    assert isinstance(function.run(body), Committed)
    assert stored == [set(), {"0"}, {"0", "1"}, {"0", "1", "2"}]


def test_while_steps_run_side_by_side_no_write_holds_the_thread(function: Function) -> None:
    async def body(ctx: ObjectContext) -> None:
        await ctx.run("claim", int)
        await ctx.gather(*(ctx.run(f"s{number}", where_async) for number in range(4)))

    assert isinstance(function.run(body), Committed)
    # The claim for one step, what the next four wait for, and the commit.
    assert function.table.threads == [HERE, BESIDE, HERE]


def test_nothing_begins_past_the_deadline_behind_a_step_that_took_all_the_time(function: Function) -> None:
    ran: list[str] = []

    def takes_long() -> None:
        ran.append("long")
        function.skipped_ms += FUNCTION_MS - DEADLINE_MARGIN_MS // 2

    async def body(ctx: ObjectContext) -> None:
        await ctx.run("long", takes_long)
        await ctx.run("next", ran.append, "next")

    outcome = function.run(body)
    assert isinstance(outcome, Suspended)
    assert ran == ["long"]
    assert [type(unpack_slot(slot)).__name__ for slot in outcome.head.slots.values()] == ["RunSlot"]


# --- the two threads -------------------------------------------------------------------------------------------------


def test_never_are_both_threads_at_work_and_nothing_is_left_undone(function: Function) -> None:
    writes, at_work, overlaps, done = function.writes, threading.Lock(), [], []

    async def work(number: int) -> int:
        if not at_work.acquire(blocking=False):
            overlaps.append(number)
        time.sleep(0.0005)  # noqa: ASYNC251 - it blocks, as the table of a function does
        at_work.release()
        done.append(number)
        return number

    async def flush() -> None:
        await work(-1)

    async def scenario() -> None:
        for number in range(0, 200, 2):
            if number % 3 == 0:
                writes.flush_within(1, flush)
            here = [writes.run(work(number), here=number % 4 == 0)]
            beside = writes.run(work(number + 1), here=False)
            assert await asyncio.gather(*here, beside) == [number, number + 1]
            if number % 10 == 0:
                writes.flushed()

    asyncio.run(scenario())
    assert overlaps == []
    assert sorted(number for number in done if number >= 0) == list(range(200))


def test_a_flush_that_nothing_needs_any_more_does_not_begin(function: Function) -> None:
    begun: list[str] = []

    async def vain() -> None:
        begun.append("vain")

    async def needed() -> None:
        begun.append(threading.current_thread().name)

    async def scenario() -> None:
        function.writes.flush_within(DELAY_MS, vain)
        function.writes.flushed()
        function.writes.flush_within(DELAY_MS, needed)
        ends = time.monotonic() + WAIT_S
        while not begun and time.monotonic() < ends:
            pass

    asyncio.run(scenario())
    assert begun == [BESIDE]


def test_the_work_of_a_caller_that_is_cancelled_goes_on_beside(function: Function) -> None:
    ended = threading.Event()

    async def work() -> None:
        await asyncio.sleep(0.01)
        ended.set()

    async def scenario() -> None:
        task = asyncio.create_task(function.writes.run(work(), here=False))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert ended.wait(WAIT_S)


# --- without a loop, as far as that goes -----------------------------------------------------------------------------

kept: contextvars.ContextVar[str] = contextvars.ContextVar("kept", default="nothing")


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.mark.parametrize("waits", [0, 1, 3])
def test_work_has_its_result_and_its_context_whether_or_not_it_waits(
    loop: asyncio.AbstractEventLoop, waits: int
) -> None:
    async def work() -> list[object]:
        token = kept.set("mine")
        tasks = []
        for _ in range(waits):
            await asyncio.sleep(0.001)
            tasks.append(asyncio.current_task())
        found = [kept.get(), asyncio.get_running_loop() is loop, None not in tasks]
        kept.reset(token)
        return found

    assert run_at_once(loop, work()) == ["mine", True, True]
    assert kept.get() == "nothing"
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()


def test_a_caller_with_a_running_loop_finds_it_again(loop: asyncio.AbstractEventLoop) -> None:
    async def work() -> int:
        return 1

    async def caller() -> None:
        running = asyncio.get_running_loop()
        assert run_at_once(loop, work()) == 1
        assert asyncio.get_running_loop() is running

    asyncio.run(caller())


@pytest.mark.parametrize("waits", [0, 2])
def test_what_work_raises_comes_out_of_it(loop: asyncio.AbstractEventLoop, waits: int) -> None:
    async def work() -> None:
        for _ in range(waits):
            await asyncio.sleep(0)
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        run_at_once(loop, work())


def test_what_work_waits_for_may_fail_and_be_cancelled(loop: asyncio.AbstractEventLoop) -> None:
    async def fails() -> None:
        raise LookupError

    async def work() -> list[str]:
        caught = []
        for awaited in (asyncio.ensure_future(fails()), asyncio.wait_for(asyncio.Event().wait(), 0.001)):
            try:
                await awaited
            except (LookupError, TimeoutError) as e:
                caught.append(type(e).__name__)
        return caught

    assert run_at_once(loop, work()) == ["LookupError", "TimeoutError"]


def test_a_context_of_its_own_holds_for_all_of_a_coroutine(loop: asyncio.AbstractEventLoop) -> None:
    async def work() -> list[str]:
        kept.set("its own")
        await asyncio.sleep(0)
        with pytest.raises(LookupError):
            await asyncio.ensure_future(fails())
        return [kept.get()]

    async def fails() -> None:
        raise LookupError

    async def scenario() -> list[str]:
        kept.set("the caller's")
        return [*await within(contextvars.copy_context(), work()), kept.get()]

    assert loop.run_until_complete(scenario()) == ["its own", "the caller's"]


def test_a_coroutine_that_is_closed_from_outside_ends_in_its_own_context(loop: asyncio.AbstractEventLoop) -> None:
    ended: list[str] = []

    async def work() -> None:
        token = kept.set("its own")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(kept.get())
            kept.reset(token)

    async def scenario() -> None:
        waits = within(contextvars.copy_context(), work())
        waits.send(None)
        waits.close()

    loop.run_until_complete(scenario())
    assert ended == ["its own"]


class Invocation:
    """Lambda's context object."""

    def get_remaining_time_in_millis(self) -> int:
        return FUNCTION_MS


def test_handlers_of_every_kind_run_under_the_entry_point() -> None:
    box = VirtualObject("box")

    @box.handler()
    async def work(ctx: ObjectContext, _n: int) -> None:
        ctx.set("n", 1)

    @box.handler(kind="shared")
    async def look(ctx: ObjectSharedContext) -> int:
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.sleep(0.001, 7))
        return task.result()

    entry = aws.handler(box)
    events: dict[ModeTag, Event] = {
        "speculate": EVENT,
        "shared": structs.replace(EVENT, handler="look", source=CallSource(), input=None),
    }
    for mode, event in events.items():
        request = Activation("box", "k", mode, Head(), "h", (event,))
        outcome = msgspec.convert(entry(msgspec.json.decode(encode(request)), Invocation()), Outcome)
        assert isinstance(outcome, Speculated), outcome
        assert outcome.stopped is None, outcome.stopped
        assert outcome.results[0].result == (Success(b"7") if mode == "shared" else Success())
    # A function's loop lives as long as its process; here it has to go.
    entry._loop.close()  # type: ignore[attr-defined]  # the entry point is a callable to its users
