"""What a handler may ask of its context, and what it gets on every attempt.

Owns the public behaviour of contexts, over the real runtime and an in-memory table. Does not own the dispatcher
(`tests/simulation`) nor serdes (`test_serde`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from tenuto import (
    Context,
    ObjectContext,
    ObjectSharedContext,
    Request,
    RetryableError,
    RunOptions,
    Service,
    TenutoError,
    TerminalError,
    VirtualObject,
    gather,
    idempotency_key,
)
from tenuto.lane.transitions import slots_put
from tenuto.lane.writes import Applied
from tenuto.protocol.ids import AwakeableId
from tenuto.protocol.records import AwakeableSlot, Success, pack
from tenuto.runtime.state import STATE_KEYS_MAX
from tests.support.in_process import InProcess, Killed

LONG = timedelta(seconds=30)
"""Long enough that a sleep suspends."""


class Stage:
    """One object whose only handler is the test's, and what it noted down."""

    def __init__(self) -> None:
        self.object = VirtualObject("stage")
        self.notes: list[Any] = []

    def note(self, value: Any) -> Any:
        self.notes.append(value)
        return value

    async def play(self, body: Any, value: bytes = b"1") -> InProcess:
        """Run a handler on one record, up to its first suspension."""

        async def act(ctx: ObjectContext, event: int) -> Any:
            return await body(ctx)

        handler = self.object.handler()(act)

        @self.object.handler(kind="shared")
        async def read(ctx: ObjectSharedContext) -> dict[str, Any]:
            return {name: await ctx.get(name) for name in await ctx.state_keys()}

        local = InProcess(self.object)
        await local.deliver("events", "ann", handler, value)
        return local

    async def call(self, body: Any) -> Any:
        """What a handler answers to a call."""

        async def act(ctx: ObjectContext) -> Any:
            return await body(ctx)

        return await InProcess(self.object).call(self.object.handler()(act), "ann")


@pytest.fixture
def stage() -> Stage:
    return Stage()


@contextmanager
def dead_letter(local: InProcess) -> Iterator[str]:
    """The reason for which the one event went to its dead-letter topic."""
    assert [entry.topic for _, entry in local.published] == ["events.dead-letter"]
    yield " ".join(value.decode() for _, value in local.published[0][1].headers)


# --- the invocation itself -------------------------------------------------------------------------------------------


async def keyed(ctx: ObjectContext) -> str:
    return ctx.key


def test_a_handler_knows_its_key(stage: Stage) -> None:
    assert asyncio.run(stage.call(keyed)) == "ann"


def test_an_event_knows_the_record_it_came_from(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> None:
        request = ctx.request()
        stage.note(request)

    asyncio.run(stage.play(body))
    (request,) = stage.notes
    assert request.id.startswith("inv_")
    assert request.body == b"1"
    assert request.kafka is not None
    assert (request.kafka.topic, request.kafka.partition, request.kafka.offset) == ("events", 0, 0)
    assert request.kafka.key == b"ann"
    assert request.kafka.timestamp_ms > 0


def test_a_call_came_from_no_record(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> bool:
        return ctx.request().kafka is None

    assert asyncio.run(stage.call(body)) is True


def test_headers_keep_their_order_and_the_last_of_a_name_counts() -> None:
    request = Request("inv_x", (("a", b"1"), ("b", b"2"), ("a", b"3")), None)
    assert request.header("a") == b"3"
    assert request.header("b") == b"2"
    assert request.header("c") is None


def test_time_random_and_uuid_are_the_same_on_every_attempt(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> None:
        stage.note((ctx.time(), ctx.random().random(), ctx.uuid(), ctx.uuid()))
        await ctx.run("step", lambda: None)
        await ctx.sleep(LONG)

    async def main() -> None:
        local = await stage.play(body)
        await local.advance(LONG)

    asyncio.run(main())
    first, second = stage.notes
    assert first == second
    assert isinstance(first[2], UUID)
    assert first[2].version == 4
    assert first[2] != first[3]


def test_two_invocations_draw_different_numbers(stage: Stage) -> None:
    async def draw(ctx: ObjectContext, event: int) -> None:
        stage.note(ctx.uuid())

    async def main() -> None:
        handler = stage.object.handler()(draw)
        local = InProcess(stage.object)
        for _ in range(3):
            await local.deliver("events", "ann", handler, b"1")

    asyncio.run(main())
    assert len(set(stage.notes)) == 3


# --- steps -----------------------------------------------------------------------------------------------------------


def test_a_step_runs_once_and_its_result_is_replayed(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> None:
        got = await ctx.run("pay", stage.note, "paid")
        await ctx.sleep(LONG)
        ctx.set("got", got)

    async def main() -> dict[str, Any]:
        local = await stage.play(body)
        await local.advance(LONG)
        return local.state(stage.object, "ann")

    assert asyncio.run(main()) == {"got": "paid"}
    assert stage.notes == ["paid"]


def test_arguments_are_passed_to_sync_and_async_steps_alike(stage: Stage) -> None:
    def sync(a: int, b: int, *, c: int) -> list[int]:
        return [a, b, c]

    async def not_sync(a: int, b: int, *, c: int) -> list[int]:
        await asyncio.sleep(0)
        return [a, b, c]

    async def body(ctx: ObjectContext) -> list[list[int]]:
        return [await ctx.run("sync", sync, 1, 2, c=3), await ctx.run("async", not_sync, 1, 2, c=3)]

    assert asyncio.run(stage.call(body)) == [[1, 2, 3], [1, 2, 3]]


def test_a_lambda_that_makes_a_coroutine_is_awaited(stage: Stage) -> None:
    async def fetch(number: int) -> int:
        return number + 1

    async def body(ctx: ObjectContext) -> int:
        return await ctx.run("fetch", lambda: fetch(1))

    assert asyncio.run(stage.call(body)) == 2


def test_what_is_no_callable_is_refused_where_it_stands(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> str:
        with pytest.raises(TypeError, match=r"ctx\.run\('pay', \.\.\.\) takes a callable.*not int"):
            ctx.run("pay", 7)  # type: ignore[call-overload]  # the mistake under test
        return "refused"

    assert asyncio.run(stage.call(body)) == "refused"


def test_a_terminal_error_of_a_step_reaches_the_handler_and_is_replayed(stage: Stage) -> None:
    def refuse() -> None:
        stage.note("asked")
        raise TerminalError("no funds", 402, {"card": "x"})

    async def body(ctx: ObjectContext) -> list[Any]:
        caught: list[Any] = []
        try:
            await ctx.run("pay", refuse)
        except TerminalError as e:
            caught = [e.message, e.status_code, e.metadata]
        await ctx.sleep(LONG)
        ctx.set("caught", caught)
        return caught

    async def main() -> dict[str, Any]:
        local = await stage.play(body)
        await local.advance(LONG)
        return local.state(stage.object, "ann")

    assert asyncio.run(main()) == {"caught": ["no funds", 402, {"card": "x"}]}
    assert stage.notes == ["asked"]


def test_a_step_gives_up_after_its_attempts(stage: Stage) -> None:
    def fail() -> None:
        stage.note("tried")
        raise ConnectionError("down")

    options = RunOptions[None](max_attempts=3, initial_retry_interval=timedelta(milliseconds=1))

    async def body(ctx: ObjectContext) -> str:
        try:
            await ctx.run_with(options, "pay", fail)
        except TerminalError as e:
            return e.message
        return "?"

    answer = asyncio.run(stage.call(body))
    assert stage.notes == ["tried"] * 3
    assert "'pay' failed 3 times" in answer
    assert "down" in answer


def test_a_step_gives_up_after_its_time(stage: Stage) -> None:
    def fail() -> None:
        stage.note("tried")
        raise ConnectionError("down")

    pause = timedelta(milliseconds=10)
    options = RunOptions[None](max_duration=timedelta(milliseconds=25), initial_retry_interval=pause)

    async def body(ctx: ObjectContext) -> str:
        with pytest.raises(TerminalError, match="down"):
            await ctx.run_with(options, "pay", fail)
        return "gave up"

    assert asyncio.run(stage.call(body)) == "gave up"
    assert 2 <= len(stage.notes) <= 4


def test_a_step_without_options_is_tried_until_it_succeeds(stage: Stage) -> None:
    def fail_twice() -> str:
        stage.note("tried")
        if len(stage.notes) < 3:
            raise RetryableError("down", timedelta(milliseconds=1))
        return "up"

    async def body(ctx: ObjectContext) -> str:
        return await ctx.run("pay", fail_twice)

    assert asyncio.run(stage.call(body)) == "up"
    assert stage.notes == ["tried"] * 3


def test_a_type_hint_restores_the_result(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> str:
        hinted: RunOptions[UUID] = RunOptions(type_hint=UUID)
        got = await ctx.run_with(hinted, "id", lambda: UUID(int=7))
        await ctx.sleep(LONG)
        stage.note(got)
        return "ok"

    async def main() -> None:
        local = await stage.play(body)
        await local.advance(LONG)

    asyncio.run(main())
    assert stage.notes == [UUID(int=7)]


def test_a_result_that_cannot_be_written_ends_the_invocation_by_name(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> str:
        await ctx.run("make", object)
        return "unreachable"

    with pytest.raises(TerminalError, match="the result of run 'make' of type object cannot be serialised"):
        asyncio.run(stage.call(body))


def test_the_idempotency_key_is_the_same_each_time_a_step_is_tried(stage: Stage) -> None:
    def pay() -> None:
        stage.note(idempotency_key())
        if len(stage.notes) == 1:
            raise ConnectionError("down")
        if len(stage.notes) == 2:
            raise Killed

    async def body(ctx: ObjectContext) -> None:
        await ctx.run("pay", pay)
        await ctx.run("pay again", lambda: stage.note(idempotency_key()))

    asyncio.run(stage.play(body))
    *tries, other = stage.notes
    assert len(tries) == 3
    assert len(set(tries)) == 1
    assert other not in tries


def test_there_is_no_idempotency_key_outside_of_a_step() -> None:
    with pytest.raises(TenutoError, match=r"inside ctx\.run"):
        idempotency_key()


# --- suspension ------------------------------------------------------------------------------------------------------


def test_a_broad_except_does_not_swallow_a_suspension(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> None:
        try:
            await ctx.sleep(LONG)
        except Exception:  # noqa: BLE001 - the mistake under test
            stage.note("compensated")
        ctx.set("done", 1)

    async def main() -> tuple[dict[str, Any], dict[str, Any]]:
        local = await stage.play(body)
        before = local.state(stage.object, "ann")
        await local.advance(LONG)
        return before, local.state(stage.object, "ann")

    assert asyncio.run(main()) == ({}, {"done": 1})
    assert stage.notes == []


def test_state_before_a_suspension_is_read_at_once_and_unseen_on_replay(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> None:
        stage.note(await ctx.get("count"))
        ctx.set("count", 1)
        await ctx.sleep(LONG)
        stage.note(await ctx.get("count"))

    async def main() -> dict[str, Any]:
        local = await stage.play(body)
        published: dict[str, Any] = await local.call(stage.object.handlers["read"], "ann")
        await local.advance(LONG)
        return published

    assert asyncio.run(main()) == {"count": 1}
    assert stage.notes == [None, None, 1]


def test_a_handler_that_takes_another_path_is_told_both(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> None:
        if not stage.notes:
            await ctx.run("pay", stage.note, "paid")
        else:
            await ctx.run("refund", stage.note, "refunded")
        await ctx.sleep(LONG)

    async def main() -> str:
        local = await stage.play(body)
        await local.advance(LONG)
        run = local.head(stage.object, "ann").run
        assert run is not None
        return run.error or ""

    error = asyncio.run(main())
    assert "the journal has run 'pay'" in error
    assert "now issued run 'refund'" in error
    assert stage.notes == ["paid"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_handler_that_ends_before_its_journal_is_told(stage: Stage, *, fails: bool) -> None:
    async def body(ctx: ObjectContext) -> None:
        if stage.notes and fails:
            raise TerminalError("changed its mind")
        if not stage.notes:
            await ctx.run("pay", stage.note, "paid")
            await ctx.sleep(LONG)

    async def main() -> str:
        local = await stage.play(body)
        await local.advance(LONG)
        run = local.head(stage.object, "ann").run
        assert run is not None
        return run.error or ""

    error = asyncio.run(main())
    assert "the journal has run 'pay'" in error
    assert "ended" in error


def test_a_mismatch_is_not_to_be_caught(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> None:
        try:
            await ctx.run("pay" if not stage.notes else "refund", stage.note, "paid")
        except Exception:  # noqa: BLE001 - the mistake under test
            stage.note("swallowed")
        await ctx.sleep(LONG)

    async def main() -> None:
        local = await stage.play(body)
        await local.advance(LONG)

    asyncio.run(main())
    assert stage.notes == ["paid"]


def test_an_answer_that_comes_while_a_suspension_is_written_is_taken(stage: Stage) -> None:
    """The answer is learned from a checkpoint on the way, so the refused suspension has nothing new to say."""

    async def slow(local: list[InProcess], name: str) -> None:
        await asyncio.sleep(0.01)
        put_slot(local[0], stage.object, name, b'"yes"')
        await asyncio.sleep(0.05)

    here: list[InProcess] = []

    async def body(ctx: ObjectContext) -> None:
        name, answer = ctx.awakeable(str)
        await ctx.run("claim", lambda: None)
        ctx.run("nobody awaits", slow, here, name)
        ctx.run("nor this, which is flushed meanwhile", asyncio.sleep, 0.02)
        ctx.set("got", await answer)

    async def act(ctx: ObjectContext, event: int) -> None:
        await body(ctx)

    async def main() -> tuple[dict[str, Any], int]:
        handler = stage.object.handler()(act)
        here.append(InProcess(stage.object))
        await here[0].deliver("events", "ann", handler, b"1")
        return here[0].state(stage.object, "ann"), here[0].activations

    assert asyncio.run(main()) == ({"got": "yes"}, 1)


def put_slot(local: InProcess, service: VirtualObject, awakeable: str, value: bytes) -> None:
    """Somebody answers, and nobody comes by to look."""
    named = AwakeableId.parse(awakeable)
    head = local.head(service, named.invocation.lane.key)
    put = slots_put(named.invocation.lane, head, {named.slot: pack(AwakeableSlot(Success(value)))}, "m")
    assert isinstance(local.table.apply(put), Applied)


# --- several at once -------------------------------------------------------------------------------------------------


def test_gather_returns_values_in_order_whatever_ends_first(stage: Stage) -> None:
    async def after(seconds: float, value: str) -> str:
        await asyncio.sleep(seconds)
        stage.note(value)
        return value

    async def body(ctx: ObjectContext) -> list[Any]:
        return await gather(ctx.run("slow", after, 0.02, "slow"), ctx.run("fast", after, 0.0, "fast"))

    assert asyncio.run(stage.call(body)) == ["slow", "fast"]
    assert stage.notes == ["fast", "slow"]


def test_gather_of_nothing_is_nothing(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> list[Any]:
        return [*await gather(), *await ctx.gather()]

    assert asyncio.run(stage.call(body)) == []


def test_gather_raises_the_first_failure_in_order_once_all_are_done(stage: Stage) -> None:
    async def fail(seconds: float, why: str) -> None:
        await asyncio.sleep(seconds)
        stage.note(why)
        raise TerminalError(why)

    async def body(ctx: ObjectContext) -> str:
        with pytest.raises(TerminalError, match="slow"):
            await ctx.gather(ctx.run("a", fail, 0.02, "slow"), ctx.run("b", fail, 0.0, "fast"))
        return "raised"

    assert asyncio.run(stage.call(body)) == "raised"
    assert stage.notes == ["fast", "slow"]


def test_gather_refuses_what_is_no_durable_future() -> None:
    class Other:
        waiter = None

    with pytest.raises(TypeError, match="futures that context methods return"):
        asyncio.run(gather(Other()))  # type: ignore[arg-type]  # the mistake under test


def test_gather_goes_on_over_a_suspension(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> None:
        values = await ctx.gather(ctx.sleep(LONG), ctx.run("pay", stage.note, "paid"), ctx.sleep(2 * LONG))
        ctx.set("values", values)

    async def main() -> dict[str, Any]:
        local = await stage.play(body)
        await local.advance(LONG)
        assert local.state(stage.object, "ann") == {}
        await local.advance(LONG)
        return local.state(stage.object, "ann")

    assert asyncio.run(main()) == {"values": [None, "paid", None]}
    assert stage.notes == ["paid"]


def test_select_gives_the_first_and_gives_it_again_on_replay(stage: Stage) -> None:
    async def after(seconds: float, value: str) -> str:
        await asyncio.sleep(seconds)
        return value

    async def body(ctx: ObjectContext) -> None:
        stage.note(
            await ctx.select(slow=ctx.run("slow", after, 0.02, "late"), fast=ctx.run("fast", after, 0.0, "early"))
        )
        await ctx.sleep(LONG)

    async def main() -> None:
        local = await stage.play(body)
        await local.advance(LONG)

    asyncio.run(main())
    assert stage.notes == [("fast", "early")] * 2


@pytest.mark.parametrize("answered", [True, False])
def test_select_between_an_answer_and_a_timeout(stage: Stage, *, answered: bool) -> None:
    async def body(ctx: ObjectContext) -> None:
        name, answer = ctx.awakeable(str)
        await ctx.run("hand out", stage.note, name)
        winner, value = await ctx.select(answer=answer, timeout=ctx.sleep(LONG))
        ctx.set("won", [winner, value])

    async def main() -> tuple[dict[str, Any], bool]:
        local = await stage.play(body)
        if answered:
            assert await local.resolve(stage.notes[0], "yes")
        await local.advance(LONG)
        return local.state(stage.object, "ann"), await local.resolve(stage.notes[0], "too late")

    won = ["answer", "yes"] if answered else ["timeout", None]
    assert asyncio.run(main()) == ({"won": won}, False)


def test_select_over_a_short_sleep_ends_in_the_function(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> str:
        return (await ctx.select(nap=ctx.sleep(timedelta(milliseconds=5)), night=ctx.sleep(LONG)))[0]

    assert asyncio.run(stage.call(body)) == "nap"


def test_select_raises_the_failure_of_the_first(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> str:
        name, answer = ctx.awakeable(str)
        await ctx.run("hand out", stage.note, name)
        with pytest.raises(TerminalError, match="refused by the driver"):
            await ctx.select(answer=answer, timeout=ctx.sleep(LONG))
        ctx.set("refused", 1)
        return "raised"

    async def main() -> dict[str, Any]:
        local = await stage.play(body)
        assert await local.reject(stage.notes[0], "refused by the driver")
        return local.state(stage.object, "ann")

    assert asyncio.run(main()) == {"refused": 1}


def test_select_of_nothing_is_a_mistake(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> str:
        with pytest.raises(ValueError, match="at least one future"):
            await ctx.select()
        return "refused"

    assert asyncio.run(stage.call(body)) == "refused"


def test_commands_come_from_any_task_of_the_handler(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> str:
        async def aside(what: str) -> str:
            await ctx.run(f"ask {what}", stage.note, f"asked {what}")
            return await ctx.run(f"pay {what}", stage.note, f"paid {what}")

        return ", ".join(await asyncio.gather(aside("a"), aside("b")))

    assert asyncio.run(stage.call(body)) == "paid a, paid b"
    assert sorted(stage.notes) == ["asked a", "asked b", "paid a", "paid b"]


def test_a_step_may_not_issue_commands(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> str:
        async def nested() -> None:
            ctx.sleep(LONG)

        with pytest.raises(TerminalError, match=r"ctx\.sleep: not inside a step"):
            await ctx.run_with(RunOptions[None](max_attempts=1), "outer", nested)
        return "refused"

    assert asyncio.run(stage.call(body)) == "refused"


# --- state -----------------------------------------------------------------------------------------------------------


def test_state_is_set_read_listed_and_cleared(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> None:
        ctx.set("b", [1])
        ctx.set("a", {"x": 1})
        ctx.set("c", None)
        stage.note(await ctx.state_keys())
        stage.note([await ctx.get("a"), await ctx.get("b", list[int]), await ctx.get("c"), await ctx.get("d")])
        ctx.clear("b")
        ctx.clear("never set")
        stage.note(await ctx.state_keys())
        ctx.clear_all()
        stage.note(await ctx.state_keys())
        ctx.set("last", 1)

    async def main() -> dict[str, Any]:
        return (await stage.play(body)).state(stage.object, "ann")

    assert asyncio.run(main()) == {"last": 1}
    assert stage.notes == [["a", "b", "c"], [{"x": 1}, [1], None, None], ["a", "c"], []]


def test_a_read_of_another_type_names_the_state(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> None:
        ctx.set("age", "old")
        await ctx.get("age", int)

    async def main() -> str:
        local = await stage.play(body)
        assert local.state(stage.object, "ann") == {}, "what a refused event changed is dropped"
        with dead_letter(local) as reason:
            return reason

    assert "state 'age' is not a valid int" in asyncio.run(main())


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        (lambda ctx: ctx.set("big", "x" * 400_000), "state with 'big' is"),
        (lambda ctx: ctx.set("thing", object()), "state 'thing' of type object cannot be serialised"),
    ],
)
def test_state_that_cannot_be_stored_ends_the_event_with_the_reason(stage: Stage, mistake: Any, reason: str) -> None:
    async def body(ctx: ObjectContext) -> None:
        ctx.set("before", 1)
        mistake(ctx)

    async def main() -> str:
        local = await stage.play(body)
        assert local.state(stage.object, "ann") == {}
        with dead_letter(local) as found:
            return found

    assert reason in asyncio.run(main())


@pytest.mark.parametrize("name", ["", "n" * 256])
def test_a_state_name_has_its_bounds(stage: Stage, name: str) -> None:
    async def body(ctx: ObjectContext) -> str:
        with pytest.raises(TerminalError, match="1 to 255 bytes"):
            ctx.set(name, 1)
        return "refused"

    assert asyncio.run(stage.call(body)) == "refused"


def test_an_object_has_so_many_names_and_freeing_one_makes_room(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> str:
        for number in range(STATE_KEYS_MAX):
            ctx.set(f"n{number}", number)
        with pytest.raises(TerminalError, match=f"{STATE_KEYS_MAX} state names"):
            ctx.set("one more", 1)
        ctx.set("n0", "changed")
        ctx.clear("n1")
        ctx.set("one more", 1)
        return "ok"

    assert asyncio.run(stage.call(body)) == "ok"


# --- messages --------------------------------------------------------------------------------------------------------


def test_messages_leave_with_the_commit_and_arrive_in_order(stage: Stage) -> None:
    other = VirtualObject("other")

    @other.handler()
    async def take(ctx: ObjectContext, number: int) -> None:
        ctx.set("all", [*(await ctx.get("all") or []), number])

    async def body(ctx: ObjectContext, event: int) -> None:
        ids = [ctx.object_send(take, "bob", number) for number in range(3)]
        stage.note(ids)
        if len(stage.notes) == 1:
            raise ConnectionError("before the commit")

    async def main() -> dict[str, Any]:
        handler = stage.object.handler("act")(body)
        local = InProcess(stage.object, other)
        await local.deliver("events", "ann", handler, b"1")
        await local.advance(timedelta())
        return local.state(other, "bob")

    assert asyncio.run(main()) == {"all": [0, 1, 2]}
    first, second = stage.notes
    assert first == second, "a repeated attempt sends under the same ids"
    assert len(set(first)) == 3


def test_a_delayed_message_arrives_after_its_delay() -> None:
    other = Service("other")
    arrived: list[str] = []

    @other.handler()
    async def take(ctx: Context, text: str) -> None:
        arrived.append(text)

    stage = VirtualObject("stage")

    @stage.handler()
    async def act(ctx: ObjectContext, event: int) -> None:
        ctx.service_send(take, "later", send_delay=LONG)

    async def main() -> None:
        local = InProcess(stage, other)
        await local.deliver("events", "ann", act, b"1")
        await local.advance(LONG - timedelta(seconds=1))
        assert arrived == []
        await local.advance(timedelta(seconds=1))

    asyncio.run(main())
    assert arrived == ["later"]


def test_a_negative_delay_is_refused(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> str:
        with pytest.raises(TerminalError, match="send_delay is negative"):
            ctx.object_send(stage.object.handlers["act"], "bob", send_delay=timedelta(seconds=-1))
        return "refused"

    assert asyncio.run(stage.call(body)) == "refused"


def test_a_record_is_published_as_it_is_given(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> None:
        ctx.publish("out", {"a": 1}, key="k", headers={"h": "text", "b": b"\0"})
        ctx.publish("out", b"raw", key=b"k")
        ctx.publish("out", None)

    async def main() -> list[Any]:
        local = await stage.play(body)
        return [(e.topic, e.value, e.key, e.headers) for _, e in local.published]

    assert asyncio.run(main()) == [
        ("out", b'{"a":1}', b"k", (("h", b"text"), ("b", b"\0"))),
        ("out", b"raw", b"k", ()),
        ("out", None, None, ()),
    ]


def test_a_message_before_a_suspension_leaves_once(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> None:
        ctx.publish("out", 1)
        await ctx.sleep(LONG)
        ctx.publish("out", 2)

    async def main() -> list[Any]:
        local = await stage.play(body)
        before = [e.value for _, e in local.published]
        await local.advance(LONG)
        return [before, [e.value for _, e in local.published]]

    assert asyncio.run(main()) == [[b"1"], [b"1", b"2"]]


# --- awakeables ------------------------------------------------------------------------------------------------------


def test_an_awakeable_has_one_answer(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> None:
        name, answer = ctx.awakeable(int)
        await ctx.run("hand out", stage.note, name)
        ctx.set("got", await answer)

    async def main() -> list[Any]:
        local = await stage.play(body)
        done = [await local.resolve(stage.notes[0], 7), await local.resolve(stage.notes[0], 8)]
        return [*done, local.state(stage.object, "ann")]

    assert asyncio.run(main()) == [True, False, {"got": 7}]


def test_an_answer_of_another_type_is_named(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> None:
        name, answer = ctx.awakeable(int)
        await ctx.run("hand out", stage.note, name)
        try:
            await answer
        except TerminalError as e:
            ctx.set("refused", e.message)
            raise

    async def main() -> dict[str, Any]:
        local = await stage.play(body)
        await local.resolve(stage.notes[0], "seven")
        return local.state(stage.object, "ann")

    # What the handler decided about it stays: it was an answer, not the handler's own input, that was wrong.
    assert "the result of an awakeable is not a valid int" in asyncio.run(main())["refused"]


def test_another_handler_may_resolve(stage: Stage) -> None:
    async def body(ctx: ObjectContext) -> None:
        name, answer = ctx.awakeable(str)
        await ctx.run("hand out", stage.note, name)
        ctx.set("got", await answer)

    driver = VirtualObject("driver")

    @driver.handler()
    async def accept(ctx: ObjectContext, awakeable: str) -> None:
        ctx.resolve_awakeable(awakeable, "accepted")

    async def main() -> dict[str, Any]:
        async def act(ctx: ObjectContext, event: int) -> None:
            await body(ctx)

        handler = stage.object.handler()(act)
        local = InProcess(stage.object, driver)
        await local.deliver("events", "ann", handler, b"1")
        await local.deliver("answers", "bob", accept, f'"{stage.notes[0]}"'.encode())
        return local.state(stage.object, "ann")

    assert asyncio.run(main()) == {"got": "accepted"}
