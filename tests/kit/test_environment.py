"""What a test gets from an environment: results, time, state, topics, dead letters, and words for what cannot be.

Owns one claim a test. Does not own crashes (`test_crashes`) and journals (`test_replays`).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, assert_type

import pytest

from tenuto import JournalMismatchError, ObjectContext, RunOptions, TerminalError, VirtualObject
from tenuto.testing import (
    DeadLetter,
    Environment,
    HarnessError,
    HungError,
    Invocation,
    KeepsFailingError,
    NoSuchHandlerError,
    NothingWaitsError,
    StillWaitingError,
)
from tests.kit.shop import (
    Order,
    Receipt,
    add,
    add_to_all,
    failures,
    flaky,
    gives_up,
    greet,
    greeter,
    hopeless,
    orders,
    place,
    remind,
    status,
    wanders,
)
from tests.support import bounded

BEGINNING = datetime(2030, 1, 1, tzinfo=UTC)
TEA = Order("tea", 3)
Test = Callable[[Environment], Awaitable[None]]


def run(test: Test, **options: Any) -> None:
    async def main() -> None:
        async with Environment(
            orders, greeter, topics={"orders": place, "amounts": add, "names": greet}, now=BEGINNING, **options
        ) as env:
            await test(env)

    bounded.run(main())


def test_a_call_returns_what_the_handler_does_as_its_hint_reads_it() -> None:
    async def test(env: Environment) -> None:
        assert_type(await env.call(greet, "Ann"), str)
        assert await env.call(greet, "Ann") == "hello Ann"
        assert await env.call("greeter/greet", "Ann") == "hello Ann"
        assert await env.call(status, "o-1") is None
        placed = await env.send(place, "o-1", TEA)
        assert_type(placed, Invocation[Receipt])
        assert await env.call(status, "o-1") == "packing"
        (awakeable,) = await env.awakeables()
        await env.resolve_awakeable(awakeable, "Bo")
        assert await env.result(placed) == Receipt("tea", "Bo")

    run(test)


def test_a_terminal_error_is_raised_as_a_caller_sees_it() -> None:
    async def test(env: Environment) -> None:
        with pytest.raises(TerminalError, match="above zero") as refused:
            await env.call(place, "o-1", Order("tea", 0))
        assert (refused.value.status_code, refused.value.metadata) == (409, {"price": "0"})

    run(test)


def test_time_passes_until_a_call_has_answered_and_no_further() -> None:
    async def test(env: Environment) -> None:
        with pytest.raises(TerminalError, match="no driver"):
            await env.call(place, "o-1", TEA)
        assert timedelta(days=1) <= env.now - BEGINNING < timedelta(days=1, minutes=1)

    run(test)


def test_sleeps_and_delayed_messages_come_in_their_order() -> None:
    async def test(env: Environment) -> None:
        await env.send(remind, "o-1")
        await env.advance(days=9)
        assert await env.state(orders, "o-1") == {}
        await env.advance(days=1)
        assert (
            timedelta(days=10)
            <= (datetime.fromtimestamp(await env.state(orders, "o-1", "reminded"), UTC) - BEGINNING)
            < timedelta(days=10, minutes=1)
        )
        await env.advance(timedelta(days=19))
        assert await env.state(orders, "o-1", "total") is None
        await env.advance(days=2)
        assert await env.state(orders, "o-1", "total", int) == 1

    run(test)


def test_a_message_is_delivered_after_its_delay() -> None:
    async def test(env: Environment) -> None:
        await env.send(add, "o-1", 5, delay=timedelta(days=365))
        await env.advance(days=364)
        assert await env.state(orders, "o-1") == {}
        await env.advance(days=1)
        assert await env.state(orders, "o-1") == {"total": 5}

    run(test)


def test_a_year_takes_no_time() -> None:
    async def test(env: Environment) -> None:
        await env.send(remind, "o-1")
        began = time.perf_counter()
        await env.advance(days=365)
        assert time.perf_counter() - began < 2

    run(test)


def test_messages_between_handlers_arrive() -> None:
    async def test(env: Environment) -> None:
        assert await env.call(add_to_all, ["a", "b"]) == 2
        assert [await env.state(orders, key, "total") for key in "ab"] == [1, 1]

    run(test)


def test_events_run_in_order_and_what_was_published_can_be_read() -> None:
    async def test(env: Environment) -> None:
        for amount in (1, 2, 3):
            await env.event("amounts", "k", amount)
        assert await env.state(orders, "k", "total") == 6
        await env.event("orders", "o-1", {"item": "tea", "price": 3})
        (record,) = await env.published("drivers")
        assert (record.key, record.value["order"]) == (b"o-1", "o-1")
        assert await env.published("nothing-goes-here") == []
        await env.resolve_awakeable(record.value["answer"], "Bo")
        assert await env.call(status, "o-1") == "delivered"
        assert await env.event("names", None, "Ann") is not None

    run(test)


def test_what_a_handler_publishes_to_a_subscribed_topic_arrives() -> None:
    echo = VirtualObject("echo")

    @echo.handler()
    async def again(ctx: ObjectContext, left: int) -> None:
        ctx.set("left", left)
        if left:
            ctx.publish("echoes", left - 1, key=ctx.key)

    async def main() -> None:
        async with Environment(echo, topics={"echoes": again}) as env:
            await env.event("echoes", "k", 3)
            assert await env.state(echo, "k") == {"left": 0}
            assert [record.value for record in await env.published("echoes")] == [2, 1, 0]

    bounded.run(main())


def test_steps_that_fail_are_tried_again() -> None:
    async def test(env: Environment) -> None:
        failures.clear()
        assert await env.call(flaky, "o-1", 3) == 4
        with pytest.raises(TerminalError, match="run 'fail' failed 3 times: OSError: no"):
            await env.call(gives_up, "o-1")

    run(test)


def test_a_handler_that_always_fails_is_told_with_its_error() -> None:
    async def test(env: Environment) -> None:
        failures.clear()
        with pytest.raises(
            KeepsFailingError, match=r"orders/flaky has failed [5-8] times in a row.*OSError.*shop\.py"
        ) as e:
            await env.call(flaky, "o-1", 1_000)
        assert isinstance(e.value.__cause__, OSError)
        # The environment goes on.
        assert await env.call(add, "o-2", 1) == 1

    run(test, attempts_max=5)


def test_dead_letters_of_topics_and_of_the_table() -> None:
    async def test(env: Environment) -> None:
        assert await env.event("amounts", None, 1) is None
        await env.event("amounts", "k", "much")
        await env.send(place, "o-1", Order("tea", 0))
        await env.send(hopeless, "o-2")
        await env.advance(minutes=1)
        no_key, bad, refused, failed = await env.dead_letters()
        assert (no_key.topic, no_key.handler, no_key.value) == ("amounts.dead-letter", "", 1)
        assert (bad.handler, bad.key, bad.value) == ("orders/add", "k", "much")
        assert "not a valid int" in bad.reason
        assert refused == DeadLetter(
            "a price is above zero", "orders/place", "o-1", refused.data, None, refused.invocation
        )
        assert (failed.reason, failed.key) == ("ValueError: this never works", "o-2")

    run(test)


def test_a_call_that_waits_for_an_answer_says_so() -> None:
    waiter = VirtualObject("waiter")

    @waiter.handler()
    async def wait(ctx: ObjectContext) -> None:
        _, answer = ctx.awakeable(str)
        await answer

    async def main() -> None:
        async with Environment(waiter) as env:
            line = wait.function.__code__.co_firstlineno + 3
            with pytest.raises(StillWaitingError, match=rf"waiter/wait of key 'k'.*:{line}: awakeable awk_"):
                await env.call(wait, "k")
            with pytest.raises(StillWaitingError, match=r"its turn, behind another one of its key: waiter/wait"):
                await env.call(wait, "k")

    bounded.run(main())


def test_what_waits_is_told_with_its_line() -> None:
    async def test(env: Environment) -> None:
        await env.send(remind, "o-1")
        (line,) = await env.waits()
        assert re.search(r"^orders/remind of key 'o-1' .* at .*shop\.py:\d+: a sleep until 2030-01-11", line)

    run(test)


def test_a_refused_option_is_told_with_the_line_that_gives_it() -> None:
    """Not with one of the `__init__` that the dataclass has generated."""
    shop = VirtualObject("shop")

    @shop.handler()
    async def pay(ctx: ObjectContext) -> None:
        await ctx.run_with(RunOptions(max_attempts=0), "pay", print)

    async def main() -> None:
        async with Environment(shop, attempts_max=1) as env:
            line = pay.function.__code__.co_firstlineno + 2
            words = rf"max_attempts is at least 1 and at most 1,000,000, or None.*test_environment\.py:{line}\)"
            with pytest.raises(KeepsFailingError, match=words):
                await env.call(pay, "k")

    bounded.run(main())


def test_answers_that_get_nowhere_are_refused() -> None:
    async def test(env: Environment) -> None:
        with pytest.raises(NothingWaitsError, match="begins with awk_"):
            await env.resolve_awakeable("o-1", "Bo")
        placed = await env.send(place, "o-1", TEA)
        (awakeable,) = await env.awakeables()
        await env.reject_awakeable(awakeable, "too far")
        with pytest.raises(TerminalError, match="too far"):
            await env.result(placed)
        with pytest.raises(NothingWaitsError, match=f"nothing waits for awakeable {awakeable}; no awakeable is waited"):
            await env.resolve_awakeable(awakeable, "Bo")

    run(test)


def test_a_replay_that_goes_another_way_fails_the_test() -> None:
    async def test(env: Environment) -> None:
        await env.send(wanders, "o-1")
        with pytest.raises(JournalMismatchError, match="the journal has run 'step"):
            await env.advance(days=1)

    run(test)


def test_the_journal_of_an_invocation() -> None:
    async def test(env: Environment) -> None:
        placed = await env.send(place, "o-1", TEA)
        told = [(entry.command, entry.done, entry.result) for entry in await env.journal(placed)]
        assert told == [
            ("run 'charge'", True, "charged 3"),
            ("run 'pack'", True, "packed tea"),
            ("awakeable", False, None),
            ("send to topic drivers", True, None),
            ("sleep", False, None),
        ]

    run(test)


# Most are mistakes in types as well.
MISTAKES: dict[str, tuple[Callable[[Any], Awaitable[Any]], str]] = {
    "a name": (lambda env: env.call("orders/plac", "o-1", TEA), r"no handler orders/plac; did you mean orders/place\?"),
    "no service": (lambda env: env.call("x/y"), "no handler x/y; this environment serves"),
    "no key": (lambda env: env.call(status), "belongs to a virtual object, so it takes a key: env.call"),
    "a key": (lambda env: env.call(status, 5), "the key of orders is text, not int"),
    "an empty key": (lambda env: env.call(status, ""), "the key"),
    "too much": (
        lambda env: env.call(greet, "a", "b"),
        "greeter/greet belongs to a service, which has no keys, so it takes 1 of these, and was given 2",
    ),
    "an input": (lambda env: env.call(add, "k", "much"), "the message to orders/add"),
    "no input": (lambda env: env.call(add, "k"), "orders/add needs an input"),
    "a shared one": (lambda env: env.send(status, "k"), "which only reads: env.call it"),
    "a topic": (lambda env: env.event("order", "k", 1), r"no topic order; did you mean orders\?"),
    "a service's state": (lambda env: env.state("greeter", "k"), "which has no state"),
    "an id": (lambda env: env.result("o-1"), "the id of an invocation begins with inv_"),
    "backwards": (lambda env: env.advance(days=-1), "time only moves forward"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str) -> None:
    act, words = MISTAKES[mistake]

    async def test(env: Environment) -> None:
        with pytest.raises(HarnessError, match=words):
            await act(env)

    run(test)


def test_an_event_has_no_result() -> None:
    async def test(env: Environment) -> None:
        invocation = await env.event("amounts", "k", 1)
        assert invocation is not None
        with pytest.raises(HarnessError, match="an event has no result"):
            await env.result(invocation)

    run(test)


def test_code_that_does_not_come_back_is_named() -> None:
    slow = VirtualObject("slow")

    @slow.handler()
    async def block(ctx: ObjectContext) -> None:
        await ctx.run("block", time.sleep, 1.0)

    async def main() -> None:
        async with Environment(slow, patience=0.3) as env:
            with pytest.raises(HungError, match=r"user code has been running for 0\.3 s"):
                await env.call(block, "k")

    bounded.run(main())


def test_a_handler_that_waits_in_a_loop_is_named_at_its_first_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the patience of the test is over, which would not say what is wrong."""
    callbacks_max = 10_000
    monkeypatch.setattr("tenuto.runtime.handler_loop.CALLBACKS_MAX", callbacks_max)
    busy = VirtualObject("busy")
    turns = 0

    @busy.handler()
    async def spin(ctx: ObjectContext) -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        async with Environment(busy, patience=None) as env:
            with pytest.raises(HungError, match=r"waits in a loop.*ctx\.sleep.*test_environment\.py:\d+") as caught:
                await env.call(spin, "k")
            assert str(caught.value).startswith("busy/spin does not return: the handler ran 10,000 callbacks ")

    bounded.run(main())
    assert turns <= 2 * callbacks_max, "an attempt that is over is not run on"


def test_without_an_event_loop() -> None:
    with Environment(orders, topics={"amounts": add}) as env:
        assert env.call(add, "k", 2).result() == 2
        env.event("amounts", "k", 3).result()
        assert env.state(orders, "k").result() == {"total": 5}


def test_an_operation_that_is_never_awaited_fails_the_test() -> None:
    def test() -> None:
        with Environment(orders) as env:
            env.call(add, "k", 2)

    with pytest.raises(HarnessError, match=r"env\.call\('orders/add', \.\.\.\) was never awaited"):
        test()


def test_steps_may_wait_for_the_network_of_the_test() -> None:
    client = VirtualObject("client")
    port = 0

    async def ask() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"who\n")
        answer = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return answer.decode().strip()

    @client.handler()
    async def fetch(ctx: ObjectContext) -> str:
        return await ctx.run("ask", ask)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"Bo\n")
        await writer.drain()
        writer.close()

    async def main() -> None:
        nonlocal port
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with Environment(client) as env:
                assert await env.call(fetch, "k") == "Bo"

    bounded.run(main())


def test_a_step_may_answer_an_awakeable_itself() -> None:
    answering = VirtualObject("answering")
    used: list[Environment] = []

    async def answer(name: str) -> None:
        await used[0].resolve_awakeable(name, "yes")

    @answering.handler()
    async def ask_oneself(ctx: ObjectContext) -> str:
        name, future = ctx.awakeable(str)
        await ctx.run("answer", answer, name)
        return await future

    async def main() -> None:
        async with Environment(answering) as env:
            used.append(env)
            assert await env.call(ask_oneself, "k") == "yes"

    bounded.run(main())


def test_the_subscriptions_of_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "tenuto.toml"
    file.write_text(
        '[functions.shop]\n[[subscriptions]]\ntopic = "amounts"\ntarget = "orders/add"\nkey = "json:id"\n'
        '[[subscriptions]]\ntopic = "others"\ntarget = "elsewhere/x"\n'
    )
    with pytest.raises(HarnessError, match="no such file"):
        Environment(orders, config=tmp_path / "none" / "tenuto.toml")
    with Environment(orders, config=file) as env:
        with pytest.raises(NoSuchHandlerError, match="no topic others"):
            env.event("others", "k", 1).result()
        env.event("amounts", None, {"id": "k"}).result()
        assert "not a valid int" in env.dead_letters().result()[0].reason


def test_what_is_no_service_is_refused() -> None:
    with pytest.raises(HarnessError, match="needs the services"):
        Environment()
    with pytest.raises(TypeError, match="not the handler orders/place: give its service"):
        Environment(place)  # type: ignore[arg-type]  # the mistake


def test_an_environment_is_used_once_at_a_time() -> None:
    env = Environment(orders)
    with pytest.raises(HarnessError, match="not in use"):
        env.call(add, "k", 1)
    with env, pytest.raises(HarnessError, match="already"):
        env.__enter__()
