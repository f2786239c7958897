"""What asyncio offers, inside a handler: it is durable, or refused at once with the durable way in the message.

Each scenario is played once as it is, and then once for each durable write it makes, with the function killed before
and after that write. Whatever happens, the outcome is the same, and no step that finished runs again.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from tenuto import Context, InvocationRetryPolicy, ObjectContext, RunOptions, Service, TerminalError, VirtualObject
from tests.support.in_process import InProcess

LONG = timedelta(seconds=30)
"""Long enough that a sleep suspends."""

Body = Callable[["Stage", ObjectContext], Awaitable[Any]]


class Stage:
    """One object with the handler under test, the steps that ran to their end, and the ids it handed out."""

    def __init__(self, body: Body, policy: InvocationRetryPolicy | None = None) -> None:
        self.ran: Counter[str] = Counter()
        self.ids: list[str] = []
        self.object = VirtualObject("stage")

        @self.object.handler(retry_policy=policy)
        async def act(ctx: ObjectContext, _event: int) -> None:
            ctx.set("outcome", await body(self, ctx))

        self.handler = act
        self.local = InProcess(self.object)

    def done(self, name: str) -> str:
        """What a step does."""
        self.ran[name] += 1
        return name

    async def slowly(self, name: str, seconds: float = 0.02) -> str:
        """A step that takes a while."""
        await asyncio.sleep(seconds)
        return self.done(name)

    def handed(self, name: str) -> None:
        """Give an id away, once."""
        if name not in self.ids:
            self.ids.append(name)

    async def play(self, answers: int) -> Any:
        """The outcome, by which time everything has been answered and every sleep is over."""
        await self.local.deliver("events", "k", self.handler, b"1")
        for number in range(answers):
            if number < len(self.ids):
                await self.local.resolve(self.ids[number], f"answer {number}")
        for _ in range(12):
            if self.local.head(self.object, "k").run is None:
                break
            await self.local.advance(LONG)
        head = self.local.head(self.object, "k")
        assert head.run is None, head.run
        return self.local.state(self.object, "k").get("outcome")


# --- what works ------------------------------------------------------------------------------------------------------


async def timeout_over_an_awakeable(stage: Stage, ctx: ObjectContext) -> str:
    _, answer = ctx.awakeable(str)
    await ctx.run("a", stage.done, "a")
    try:
        async with asyncio.timeout(5):
            return str(await answer)
    except TimeoutError:
        return await ctx.run("late", stage.done, "late")


async def wait_for_an_awakeable(stage: Stage, ctx: ObjectContext) -> str:
    _, answer = ctx.awakeable(str)
    try:
        return str(await asyncio.wait_for(answer, 5))
    except TimeoutError:
        return await ctx.run("late", stage.done, "late")


async def answered_in_time(stage: Stage, ctx: ObjectContext) -> str:
    name, answer = ctx.awakeable(str)
    await ctx.run("hand out", stage.handed, name)
    async with asyncio.timeout(3_600):
        got = await answer
    return await ctx.run("after", stage.done, got)


async def awaited_again_after_its_timeout(stage: Stage, ctx: ObjectContext) -> list[str]:
    _, answer = ctx.awakeable(str)
    told: list[str] = []
    for _ in range(3):
        try:
            await asyncio.wait_for(answer, 5)
        except TimeoutError:
            told.append(await ctx.run("remind", stage.done, f"reminder {len(told)}"))
    return told


async def wait_for_a_step_that_is_quick(stage: Stage, ctx: ObjectContext) -> str:
    got = await asyncio.wait_for(ctx.run("a", stage.done, "a"), 20)
    await ctx.sleep(LONG)
    return got + await ctx.run("b", stage.done, "b")


async def wait_for_a_step_that_is_slow(stage: Stage, ctx: ObjectContext) -> str:
    try:
        await asyncio.wait_for(ctx.run("slow", stage.slowly, "slow", 0.25), 0.05)
    except TimeoutError:
        got = await ctx.run("instead", stage.done, "instead")
        await ctx.sleep(LONG)
        return got
    return "not late"


async def tasks_with_several_commands_each(stage: Stage, ctx: ObjectContext) -> list[str]:
    async def branch(name: str) -> str:
        await ctx.run(f"{name}1", stage.slowly, f"{name}1", 0.01 if name == "a" else 0.002)
        await ctx.sleep(LONG)
        return await ctx.run(f"{name}2", stage.done, f"{name}2")

    return list(await asyncio.gather(branch("a"), branch("b"), branch("c")))


async def a_task_group(stage: Stage, ctx: ObjectContext) -> list[str]:
    async with asyncio.TaskGroup() as group:
        first = group.create_task(asyncio.wait_for(ctx.run("a", stage.done, "a"), 9))
        second = group.create_task(_then(ctx, stage))
    return [first.result(), second.result()]


async def _then(ctx: ObjectContext, stage: Stage) -> str:
    await asyncio.sleep(40)
    return await ctx.run("b", stage.done, "b")


async def a_task_group_whose_step_fails_for_good(stage: Stage, ctx: ObjectContext) -> str:
    def refuse() -> None:
        stage.done("refused")
        raise TerminalError("no funds", 402)

    outcome = "paid"
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.wait_for(ctx.run("pay", refuse), 9))
            group.create_task(_then(ctx, stage))
    except* TerminalError:
        outcome = await ctx.run("undo", stage.done, "undone")
    return outcome


async def wait_first_completed(stage: Stage, ctx: ObjectContext) -> str:
    slow = asyncio.ensure_future(ctx.run("slow", stage.slowly, "slow", 0.1))
    fast = asyncio.ensure_future(ctx.run("fast", stage.slowly, "fast", 0.001))
    done, _ = await asyncio.wait({slow, fast}, return_when=asyncio.FIRST_COMPLETED)
    got = "fast" if fast in done else "slow"
    await ctx.sleep(LONG)
    return got + await slow


async def as_completed(stage: Stage, ctx: ObjectContext) -> list[str]:
    futures = [ctx.run(name, stage.slowly, name, pause) for name, pause in (("b", 0.03), ("a", 0.001))]
    got = [await each for each in asyncio.as_completed(futures)]
    await ctx.sleep(LONG)
    return [*got, await ctx.run("c", stage.done, "c")]


async def shielded(stage: Stage, ctx: ObjectContext) -> str:
    step = asyncio.ensure_future(ctx.run("slow", stage.slowly, "slow", 0.1))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(step), 0.01)
    return await step


async def a_plain_sleep_is_durable(stage: Stage, ctx: ObjectContext) -> str:
    await ctx.run("a", stage.done, "a")
    await asyncio.sleep(3_600 / 120)
    return await ctx.run("b", stage.done, "b")


async def a_queue_between_tasks(stage: Stage, ctx: ObjectContext) -> list[str]:
    queue: asyncio.Queue[str | None] = asyncio.Queue(maxsize=1)

    async def produce() -> None:
        for name in "abc":
            await queue.put(await ctx.run(name, stage.done, name))
        await queue.put(None)

    producing = asyncio.create_task(produce())
    got = []
    while (name := await queue.get()) is not None:
        await ctx.sleep(1)
        got.append(await ctx.run(f"{name}'", stage.done, f"{name}'"))
    await producing
    return got


async def locks_and_events(stage: Stage, ctx: ObjectContext) -> list[str]:
    lock, start, order = asyncio.Lock(), asyncio.Event(), []

    async def work(name: str) -> None:
        await start.wait()
        async with lock:
            order.append(await ctx.run(name, stage.slowly, name, 0.003))

    tasks = [asyncio.create_task(work(name)) for name in "abc"]
    await asyncio.sleep(0)
    start.set()
    await asyncio.gather(*tasks)
    return order


async def cancelled_by_the_handler(stage: Stage, ctx: ObjectContext) -> str:
    async def forever() -> None:
        try:
            while True:
                await ctx.sleep(1_000)
        finally:
            stage.ids.append("cleaned up")

    task = asyncio.create_task(forever())
    await ctx.run("a", stage.done, "a")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return await ctx.run("b", stage.done, "b")


async def async_generators(stage: Stage, ctx: ObjectContext) -> list[str]:
    async def pages() -> Any:
        try:
            for name in "abcd":
                yield await ctx.run(name, stage.done, name)
                await ctx.sleep(LONG)
        finally:
            await ctx.run("close", stage.done, "close")

    got = []
    async with contextlib.aclosing(pages()) as each:
        async for page in each:
            got.append(page)
            if page == "b":
                break
    return got


async def select_with_many_kinds(stage: Stage, ctx: ObjectContext) -> list[Any]:
    name, answer = ctx.awakeable(str)
    await ctx.run("hand out", stage.handed, name)
    step = ctx.run("slow", stage.slowly, "slow", 0.05)
    won = []
    futures: dict[str, Any] = {"answer": answer, "step": step, "nap": ctx.sleep(0.01), "night": ctx.sleep(100)}
    while futures:
        winner, _ = await ctx.select(**futures)
        won.append(winner)
        del futures[winner]
        if winner != "night":
            await ctx.run(f"after {winner}", stage.done, f"after {winner}")
    return won


async def time_is_the_same_on_replay(stage: Stage, ctx: ObjectContext) -> bool:
    before = ctx.time()
    await ctx.run("a", stage.done, "a")
    await ctx.sleep(LONG)
    after = ctx.time()
    await ctx.sleep(LONG)
    stage.ids.append(f"{before} {after}")
    return after - before >= LONG.total_seconds() and ctx.start_time() <= before


WORKS: list[tuple[Body, Any, int]] = [
    (timeout_over_an_awakeable, "late", 0),
    (wait_for_an_awakeable, "late", 0),
    (answered_in_time, "answer 0", 1),
    (awaited_again_after_its_timeout, ["reminder 0", "reminder 1", "reminder 2"], 0),
    (wait_for_a_step_that_is_quick, "ab", 0),
    (wait_for_a_step_that_is_slow, "instead", 0),
    (tasks_with_several_commands_each, ["a2", "b2", "c2"], 0),
    (a_task_group, ["a", "b"], 0),
    (a_task_group_whose_step_fails_for_good, "undone", 0),
    (wait_first_completed, "fastslow", 0),
    (as_completed, ["a", "b", "c"], 0),
    (shielded, "slow", 0),
    (a_plain_sleep_is_durable, "b", 0),
    (a_queue_between_tasks, ["a'", "b'", "c'"], 0),
    (locks_and_events, ["a", "b", "c"], 0),
    (cancelled_by_the_handler, "b", 0),
    (async_generators, ["a", "b"], 0),
    (select_with_many_kinds, None, 1),
    (time_is_the_same_on_replay, True, 0),
]
INTERRUPTED = {"slow"}
"""Steps that may be given up in the middle, and so may run again or not at all."""


@pytest.mark.parametrize(("body", "outcome", "answers"), WORKS, ids=lambda part: getattr(part, "__name__", ""))
def test_it_works_and_is_durable(body: Body, outcome: Any, answers: int) -> None:
    async def scenario() -> None:
        whole = Stage(body)
        got = await whole.play(answers)
        assert got == outcome or outcome is None
        writes = whole.local.table.writes if hasattr(whole.local.table, "writes") else 40
        for write in range(1, min(writes, 40) + 1):
            for applied in (True, False):
                again = Stage(body)
                again.local.kill_at_write(write, applied=applied)
                found = await again.play(answers)
                # Which of several completes first may differ from run to run, but never within one.
                assert found == got or outcome is None or sorted(found) == sorted(got), (write, applied)
                if not again.local.kills:
                    return
                repeated = {name: times for name, times in again.ran.items() if times > 1}
                # A kill costs what was in flight: in the first of concurrent steps that may be several.
                assert all(times <= 2 for times in repeated.values()), repeated

    asyncio.run(scenario())


def test_a_replay_never_runs_a_finished_step_again_nor_tells_another_time() -> None:
    async def scenario() -> None:
        stage = Stage(time_is_the_same_on_replay)
        assert await stage.play(0) is True
        assert stage.ran == {"a": 1}
        assert len(set(stage.ids)) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("pause", [0, 40], ids=["at once", "after a suspension"])
def test_a_step_that_nobody_awaits_runs_before_the_invocation_ends(pause: int, is_async: bool) -> None:
    async def body(stage: Stage, ctx: ObjectContext) -> str:
        if pause:
            await ctx.sleep(pause)
        ctx.run("forgotten", stage.slowly if is_async else stage.done, "forgotten")
        return "returned"

    async def scenario() -> None:
        stage = Stage(body)
        assert await stage.play(0) == "returned"
        assert stage.ran == {"forgotten": 1}
        for write in range(1, 10):
            for applied in (True, False):
                again = Stage(body)
                again.local.kill_at_write(write, applied=applied)
                assert await again.play(0) == "returned"
                assert 1 <= again.ran["forgotten"] <= 2, (write, applied)

    asyncio.run(scenario())


def test_the_failure_of_a_step_that_nobody_awaits_fails_the_attempt() -> None:
    tries: list[int] = []

    async def body(stage: Stage, ctx: ObjectContext) -> str:
        def fail_twice() -> None:
            tries.append(1)
            if len(tries) < 3:
                raise ValueError("not yet")
            stage.done("forgotten")

        ctx.run("forgotten", fail_twice)
        return "returned"

    async def scenario() -> None:
        stage = Stage(body)
        assert await stage.play(0) == "returned"
        assert (stage.ran, len(tries)) == ({"forgotten": 1}, 3)

    asyncio.run(scenario())


# --- what is refused -------------------------------------------------------------------------------------------------


async def in_a_thread(_stage: Stage, _ctx: ObjectContext) -> None:
    await asyncio.to_thread(time.sleep, 0)


async def in_an_executor(_stage: Stage, _ctx: ObjectContext) -> None:
    await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0)


async def a_connection(_stage: Stage, _ctx: ObjectContext) -> None:
    await asyncio.open_connection("127.0.0.1", 9)


async def a_process(_stage: Stage, _ctx: ObjectContext) -> None:
    await asyncio.create_subprocess_exec("true")


async def a_name_lookup(_stage: Stage, _ctx: ObjectContext) -> None:
    await asyncio.get_running_loop().getaddrinfo("localhost", 1)


async def a_server(_stage: Stage, _ctx: ObjectContext) -> None:
    await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)


async def a_signal(_stage: Stage, _ctx: ObjectContext) -> None:
    asyncio.get_running_loop().add_signal_handler(10, print)


async def a_loop_of_its_own(_stage: Stage, _ctx: ObjectContext) -> None:
    asyncio.get_running_loop().run_forever()


async def a_call_from_a_thread(_stage: Stage, _ctx: ObjectContext) -> None:
    asyncio.get_running_loop().call_soon_threadsafe(print)


async def asyncio_wait_on_a_command(_stage: Stage, ctx: ObjectContext) -> None:
    await asyncio.wait({ctx.sleep(1)})  # type: ignore[type-var]  # the mistake under test


async def a_task_of_a_command(_stage: Stage, ctx: ObjectContext) -> None:
    await asyncio.create_task(ctx.run("a", int))  # type: ignore[arg-type]  # the mistake under test


async def a_command_in_a_group(_stage: Stage, ctx: ObjectContext) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.run("a", int))  # type: ignore[arg-type]  # the mistake under test
    except BaseExceptionGroup as e:
        raise e.exceptions[0] from None


async def nothing_will_come(_stage: Stage, _ctx: ObjectContext) -> None:
    await asyncio.Event().wait()


async def only_what_nobody_awaits(_stage: Stage, ctx: ObjectContext) -> None:
    ctx.awakeable()
    await asyncio.get_running_loop().create_future()


async def a_busy_wait(_stage: Stage, ctx: ObjectContext) -> None:
    step = ctx.run("a", int)
    while not step.done():  # noqa: ASYNC110 - the mistake under test
        await asyncio.sleep(0)


REFUSED: list[tuple[Body, str]] = [
    (in_a_thread, r"sleep in a thread.*ctx\.run\(name, function"),
    (in_an_executor, r"ctx\.run\(name, function"),
    (a_connection, r"no I/O of its own \(loop\.\w+\).*ctx\.run"),
    (a_process, r"no I/O of its own.*ctx\.run"),
    (a_name_lookup, r"no I/O of its own.*ctx\.run"),
    (a_server, r"no I/O of its own.*ctx\.run"),
    (a_signal, r"no I/O of its own.*ctx\.run"),
    (a_loop_of_its_own, "is already running: await"),
    (a_call_from_a_thread, "through an awakeable"),
    (asyncio_wait_on_a_command, r"use ctx\.select or ctx\.gather"),
    (a_task_of_a_command, r"Await it, use ctx\.gather.*asyncio\.ensure_future"),
    (a_command_in_a_group, r"Await it, use ctx\.gather.*asyncio\.ensure_future"),
    (nothing_will_come, "nothing will bring about"),
    (only_what_nobody_awaits, "nothing will bring about"),
    (a_busy_wait, r"without waiting for a durable command.*ctx\.sleep"),
]


@pytest.mark.parametrize(("body", "message"), REFUSED, ids=lambda part: getattr(part, "__name__", ""))
def test_it_is_refused_at_once_and_the_durable_way_is_named(
    body: Body, message: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenuto.runtime.handler_loop.CALLBACKS_MAX", 10_000)
    stage = Stage(body)
    caught: list[Exception] = []

    async def noted(_stage: Stage, ctx: ObjectContext) -> None:
        try:
            await body(stage, ctx)
        except Exception as e:
            caught.append(e)
            raise TerminalError("refused") from e

    async def scenario() -> None:
        seen = Stage(noted, InvocationRetryPolicy(max_attempts=1))
        began = time.monotonic()
        with contextlib.suppress(AssertionError):
            await asyncio.wait_for(seen.local.deliver("events", "k", seen.handler, b"1"), 3)
        assert time.monotonic() - began < 3, "it waits in silence"

    with contextlib.suppress(TimeoutError):
        asyncio.run(scenario())
    text = " ".join([*(str(e) for e in caught), caplog.text]).replace("\n", " ")
    import re

    assert re.search(message, text), text[:2_000]


# --- what user code may raise ----------------------------------------------------------------------------------------

RAISED: list[Callable[[], Any]] = [
    lambda: next(iter([])),
    lambda: (_ for _ in ()).throw(SystemExit(2)),
    lambda: (_ for _ in ()).throw(KeyboardInterrupt()),
    lambda: (_ for _ in ()).throw(asyncio.CancelledError()),
    lambda: (_ for _ in ()).throw(GeneratorExit()),
    lambda: (_ for _ in ()).throw(StopAsyncIteration()),
    lambda: (_ for _ in ()).throw(BaseException("bare")),
    lambda: (_ for _ in ()).throw(BaseExceptionGroup("many", [SystemExit(1)])),
    lambda: (_ for _ in ()).throw(RecursionError()),
    lambda: (_ for _ in ()).throw(MemoryError()),
]
NAMES = [
    "StopIteration",
    "SystemExit",
    "KeyboardInterrupt",
    "CancelledError",
    "GeneratorExit",
    "StopAsyncIteration",
    "BaseException",
    "ExceptionGroup",
    "RecursionError",
    "MemoryError",
]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("raises", "name"), list(zip(RAISED, NAMES, strict=True)), ids=NAMES)
def test_what_a_step_raises_of_any_class_is_a_failed_try_with_its_name(
    raises: Callable[[], Any], name: str, is_async: bool
) -> None:
    tries: list[int] = []

    def sync() -> None:
        tries.append(1)
        raises()

    async def other() -> None:
        tries.append(1)
        await asyncio.sleep(0)
        raises()

    async def body(_stage: Stage, ctx: ObjectContext) -> str:
        options = RunOptions[None](max_attempts=3, initial_retry_interval=timedelta(milliseconds=1))
        try:
            await ctx.run_with(options, "odd", other if is_async else sync)
        except TerminalError as e:
            return e.message
        return "?"

    async def scenario() -> None:
        stage = Stage(body)
        outcome = await asyncio.wait_for(stage.play(0), 5)
        assert len(tries) == 3
        assert name in outcome or (name.startswith("Stop") and "RuntimeError" in outcome)

    asyncio.run(scenario())


@pytest.mark.parametrize(("raises", "name"), list(zip(RAISED, NAMES, strict=True)), ids=NAMES)
def test_what_a_handler_raises_of_any_class_is_a_failed_attempt_with_its_name(
    raises: Callable[[], Any], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[int] = []

    async def body(_stage: Stage, _ctx: ObjectContext) -> str:
        attempts.append(1)
        if len(attempts) < 3:
            raises()
        return "done"

    async def scenario() -> None:
        assert await Stage(body).play(0) == "done"

    asyncio.run(scenario())
    assert len(attempts) == 3
    assert name in caplog.text or "RuntimeError" in caplog.text


def test_a_terminal_error_inside_a_group_ends_the_invocation() -> None:
    service = Service("stage")
    seen: list[int] = []

    @service.handler()
    async def act(ctx: Context) -> None:
        seen.append(1)

        async def pay() -> None:
            raise TerminalError("no funds", 402, {"card": "x"})

        async with asyncio.TaskGroup() as group:
            group.create_task(pay())

    async def scenario() -> None:
        with pytest.raises(TerminalError) as caught:
            await InProcess(service).call(act, "k")
        assert (caught.value.message, caught.value.status_code, caught.value.metadata) == (
            "no funds",
            402,
            {"card": "x"},
        )

    asyncio.run(scenario())
    assert seen == [1]


# --- the context elsewhere -------------------------------------------------------------------------------------------

USES: dict[str, Callable[[ObjectContext], Any]] = {
    "set": lambda ctx: ctx.set("x", 1),
    "clear": lambda ctx: ctx.clear("x"),
    "clear_all": lambda ctx: ctx.clear_all(),
    "uuid": lambda ctx: ctx.uuid(),
    "random": lambda ctx: ctx.random(),
    "time": lambda ctx: ctx.time(),
    "run": lambda ctx: ctx.run("inner", int),
    "sleep": lambda ctx: ctx.sleep(1),
    "awakeable": lambda ctx: ctx.awakeable(),
    "publish": lambda ctx: ctx.publish("t", 1),
}


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("use", USES)
def test_the_context_inside_a_step_is_refused(use: str, is_async: bool) -> None:
    async def body(_stage: Stage, ctx: ObjectContext) -> str:
        async def other() -> None:
            USES[use](ctx)

        try:
            await ctx.run_with(RunOptions[None](max_attempts=1), "outer", other if is_async else lambda: USES[use](ctx))
        except TerminalError as e:
            return e.message
        return "?"

    async def scenario() -> None:
        assert "not inside a step" in await Stage(body).play(0)

    asyncio.run(scenario())


def test_random_numbers_drawn_before_are_refused_in_a_step_too() -> None:
    async def body(_stage: Stage, ctx: ObjectContext) -> str:
        numbers = ctx.random()
        first = numbers.random()
        try:
            await ctx.run_with(RunOptions[float](max_attempts=1), "draw", lambda: numbers.choice([1, 2]) + first)
        except TerminalError as e:
            return e.message
        return "?"

    async def scenario() -> None:
        assert "random numbers: not inside a step" in await Stage(body).play(0)

    asyncio.run(scenario())


def test_a_task_that_outlives_its_handler_is_cancelled_and_named(caplog: pytest.LogCaptureFixture) -> None:
    late: list[str] = []

    async def body(_stage: Stage, ctx: ObjectContext) -> str:
        async def linger() -> None:
            try:
                await ctx.sleep(1_000)
            finally:
                try:
                    ctx.set("late", 1)
                except Exception as e:  # noqa: BLE001 - what it says is asserted below
                    late.append(str(e))

        task = asyncio.create_task(linger(), name="lingering")
        await asyncio.sleep(0)
        assert not task.done()
        return "now"

    async def scenario() -> None:
        stage = Stage(body)
        assert await stage.play(0) == "now"
        assert stage.local.state(stage.object, "k") == {"outcome": "now"}

    asyncio.run(scenario())
    assert "lingering" in caplog.text


def test_context_variables_do_not_reach_the_next_event_of_a_batch() -> None:
    variable: contextvars.ContextVar[int | None] = contextvars.ContextVar("variable", default=None)
    seen: list[int | None] = []
    box = VirtualObject("box")

    @box.handler()
    async def act(ctx: ObjectContext, number: int) -> None:
        if number < 0:
            raise ValueError("not yet")
        seen.append(variable.get())
        variable.set(number)
        seen.append(await ctx.run("in a step", variable.get))

    async def scenario() -> None:
        local = InProcess(box)
        for number in range(6):
            await local.deliver("t", "k", act, str(number).encode())

    asyncio.run(scenario())
    assert seen == [value for number in range(6) for value in (None, number)]


# --- steps that lost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_step_that_lost_holds_nobody(is_async: bool) -> None:
    over = threading.Event()

    async def async_step() -> str:
        await asyncio.sleep(5)
        return "late"

    async def body(_stage: Stage, ctx: ObjectContext) -> str:
        step = ctx.run("slow", async_step if is_async else lambda: over.wait(5))
        won, _ = await ctx.select(step=step, timeout=ctx.sleep(0.02))
        return won

    async def scenario() -> None:
        began = time.monotonic()
        stage = Stage(body)
        assert await stage.play(0) == "timeout"
        assert time.monotonic() - began < 1.5
        # The next event of the key is not held either.
        await stage.local.deliver("events", "k", stage.handler, b"2")
        assert time.monotonic() - began < 3
        over.set()

    asyncio.run(scenario())


def test_an_answer_wakes_a_select_beside_a_running_step_at_once() -> None:
    async def body(stage: Stage, ctx: ObjectContext) -> list[Any]:
        name, answer = ctx.awakeable(str)
        await ctx.run("hand out", stage.handed, name)
        began = time.monotonic()
        won, _ = await ctx.select(answer=answer, work=ctx.run("slow", stage.slowly, "slow", 2.0))
        return [won, time.monotonic() - began < 1.2]

    async def scenario() -> None:
        stage = Stage(body)

        async def answer() -> None:
            while not stage.ids:  # noqa: ASYNC110 - a step notes them, in a thread
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            await stage.local.fill(stage.ids[0], "yes")

        answering = asyncio.create_task(answer())
        assert await stage.play(0) == ["answer", True]
        await answering

    asyncio.run(scenario())


def test_more_awakeables_than_one_condition_could_name() -> None:
    async def body(stage: Stage, ctx: ObjectContext) -> list[str]:
        asked = [ctx.awakeable(str) for _ in range(130)]
        await ctx.run("hand out", lambda: stage.ids.extend(name for name, _ in asked if name not in stage.ids))
        first, _ = await ctx.select(**{f"n{number}": future for number, (_, future) in enumerate(asked)})
        return [first]

    async def scenario() -> None:
        stage = Stage(body)
        await stage.local.deliver("events", "k", stage.handler, b"1")
        assert await stage.local.resolve(stage.ids[127], "yes")
        assert stage.local.state(stage.object, "k") == {"outcome": ["n127"]}

    asyncio.run(scenario())


# --- found from outside ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails_after_s", [0.0, 0.02, 0.08])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_step_beside_one_that_fails_is_kept_when_it_ends(is_async: bool, fails_after_s: float) -> None:
    async def body(stage: Stage, ctx: ObjectContext) -> str:
        async def bad() -> None:
            await asyncio.sleep(fails_after_s)
            if stage.done("bad") and stage.ran["bad"] < 4:
                raise ConnectionError("down")

        def charge() -> str:
            time.sleep(0.06)
            return stage.done("charge")

        charging = ctx.run("charge", stage.slowly, "charge", 0.06) if is_async else ctx.run("charge", charge)
        await ctx.gather(charging, ctx.run("mail", bad))
        return "done"

    async def scenario() -> None:
        stage = Stage(body)
        assert await stage.play(0) == "done"
        assert stage.ran == {"charge": 1, "bad": 4}

    asyncio.run(scenario())


def test_the_time_of_the_loop_passes_over_suspensions() -> None:
    async def body(stage: Stage, ctx: ObjectContext) -> list[Any]:
        loop = asyncio.get_running_loop()
        deadline, turns = loop.time() + 95, 0
        while loop.time() < deadline:
            turns += 1
            await asyncio.sleep(30)
        timed_out = False
        try:
            async with asyncio.timeout_at(deadline):
                await ctx.sleep(3_600)
        except TimeoutError:
            timed_out = True
        return [turns, timed_out]

    async def scenario() -> None:
        assert await Stage(body).play(0) == [4, True]

    asyncio.run(scenario())


@pytest.mark.parametrize("grouped", [False, True])
def test_a_timeout_that_nobody_catches_is_terminal_since_every_replay_would_repeat_it(grouped: bool) -> None:
    box = VirtualObject("box")
    attempts: list[int] = []

    @box.handler()
    async def act(ctx: ObjectContext, _n: int) -> None:
        attempts.append(1)
        _, answer = ctx.awakeable(str)
        if not grouped:
            async with asyncio.timeout(5):
                await answer
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.wait_for(answer, 5))

    async def scenario() -> None:
        local = InProcess(box)
        await local.deliver("t", "k", act, b"1")
        await local.advance(LONG)
        assert local.head(box, "k").run is None
        assert len(attempts) == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("in_step", [False, True])
def test_groups_nested_beyond_any_stack_are_failures_like_others(in_step: bool) -> None:
    def deep() -> None:
        error: Exception = TerminalError("at the bottom", 409)
        for _ in range(5_000):
            error = ExceptionGroup("deeper", [error])
        raise error

    async def body(_stage: Stage, ctx: ObjectContext) -> str:
        try:
            if in_step:
                await ctx.run("deep", deep)
            else:
                deep()
        except TerminalError as e:
            return f"{e.status_code} {e.message}"
        return "?"

    async def scenario() -> None:
        stage = Stage(body)
        outcome = await stage.play(0)
        assert outcome == ("409 at the bottom" if in_step else None)
        assert stage.local.head(stage.object, "k").run is None

    asyncio.run(scenario())


def test_the_work_grows_in_proportion_to_the_commands() -> None:
    async def _nothing() -> None: ...

    async def calls_of(commands: int) -> int:
        async def body(_stage: Stage, ctx: ObjectContext) -> int:
            return len(await ctx.gather(*(ctx.run("n", _nothing) for _ in range(commands))))

        stage, calls = Stage(body), 0

        def count(_frame: Any, event: str, _argument: Any) -> None:
            nonlocal calls
            calls += event in {"call", "c_call"}

        sys.setprofile(count)
        try:
            assert await stage.play(0) == commands
        finally:
            sys.setprofile(None)
        return calls

    async def scenario() -> None:
        few, many = await calls_of(500), await calls_of(2_000)
        # Four times the commands took sixteen times the work when each completion looked at all the others.
        assert many < 5 * few

    asyncio.run(scenario())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_handler_that_swallows_what_ends_it_is_left_behind() -> None:
    async def body(_stage: Stage, ctx: ObjectContext) -> str:
        while True:
            try:
                await ctx.sleep(LONG)
            except BaseException:  # noqa: BLE001 - the mistake under test
                continue
            return "slept"

    async def scenario() -> None:
        assert await asyncio.wait_for(Stage(body).play(0), 5) == "slept"

    asyncio.run(scenario())


def test_an_attempt_that_is_over_leaves_no_task_to_be_reported(caplog: pytest.LogCaptureFixture) -> None:
    attempts = 0

    async def body(stage: Stage, ctx: ObjectContext) -> str:
        nonlocal attempts
        attempts += 1
        name = "other" if attempts == 2 else "one"
        await ctx.run(name, stage.done, name)
        await ctx.sleep(LONG)
        return "done"

    async def scenario() -> None:
        assert await Stage(body).play(0) == "done"

    asyncio.run(scenario())
    gc.collect()
    assert attempts > 2
    # Not those of asyncio's own log: a garbage collection also finds what tests before have left.
    reported = [record.getMessage() for record in caplog.records if record.name == "tenuto.handler"]
    assert not any("never retrieved" in line for line in reported)


def test_a_step_that_nobody_awaits_runs_all_the_same() -> None:
    async def body(stage: Stage, ctx: ObjectContext) -> str:
        ctx.run("a", stage.done, "a")
        ctx.run("b", stage.slowly, "b")
        return "returned"

    async def scenario() -> None:
        stage = Stage(body)
        assert await stage.play(0) == "returned"
        assert stage.ran == {"a": 1, "b": 1}

    asyncio.run(scenario())


def test_arguments_of_a_step_may_have_any_name() -> None:
    async def body(_stage: Stage, ctx: ObjectContext) -> dict[str, int]:
        return await ctx.run("a", _named, name=1, action=2, self=3)

    async def scenario() -> None:
        assert await Stage(body).play(0) == {"name": 1, "action": 2, "self": 3}

    asyncio.run(scenario())


def _named(**given: int) -> dict[str, int]:
    return given
