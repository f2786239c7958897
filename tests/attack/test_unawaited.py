"""A forgotten `await` is a mistake in the code: it is named, and a corrected deployment loses nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tenuto import InvocationRetryPolicy, ObjectContext, Service, VirtualObject
from tests.support.in_process import InProcess

SOON = InvocationRetryPolicy(initial_interval=timedelta(milliseconds=10))


mail = Service("mail")


@mail.handler()
async def take(_ctx: Any, _event: int) -> None:
    """What a message goes to."""


class Basket(msgspec.Struct):
    """A value with a place for anything."""

    content: Any


@dataclass
class Box:
    """The same of the standard library."""

    content: Any


def price() -> int:
    """A step."""
    return 3


async def later() -> int:
    """What a user's own async function returns without `await`."""
    return 3


MADE: dict[str, Callable[[ObjectContext], Awaitable[Any]]] = {
    "a step": lambda ctx: ctx.run("price", price),
    "a sleep": lambda ctx: ctx.sleep(0),
    "an awakeable": lambda ctx: ctx.awakeable()[1],
    "a coroutine": lambda _: later(),
    "state": lambda ctx: ctx.get("total"),
    "a selection": lambda ctx: ctx.select(one=ctx.sleep(0)),
}
HELD: dict[str, Callable[[Any], Any]] = {
    "itself": lambda value: value,
    "in a list": lambda value: [1, value],
    "in a dict": lambda value: {"a": {"b": value}},
    "in a Struct": Basket,
    "in a dataclass": lambda value: [Box(value)],
}
WRITTEN: dict[str, Callable[[ObjectContext, Any], object]] = {
    "set": lambda ctx, value: ctx.set("total", value),
    "set with a hint": lambda ctx, value: ctx.set("total", value, list[int]),
    "publish": lambda ctx, value: ctx.publish("orders", value),
    "service_send": lambda ctx, value: ctx.service_send(take, value),
    "resolve_awakeable": lambda ctx, value: ctx.resolve_awakeable(ctx.awakeable()[0], value),
}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("held", HELD)
def test_a_result_that_was_not_awaited_is_retried_until_it_is(made: str, held: str, caplog: Any) -> None:
    shop = VirtualObject("shop", retry_policy=SOON)
    attempts: list[int] = []

    @shop.handler()
    async def order(ctx: ObjectContext) -> Any:
        attempts.append(1)
        if len(attempts) == 1:
            return HELD[held](MADE[made](ctx))
        corrected = MADE[made](ctx)
        if made != "an awakeable":
            await corrected
        return "corrected"

    assert asyncio.run(asyncio.wait_for(InProcess(shop).call(order, "k"), 10)) == "corrected"
    said = caplog.text
    is_or_holds = "is" if held == "itself" else "holds"
    assert re.search(rf"TypeError: the result of shop/order \(\S+{Path(__file__).name}:\d+\) {is_or_holds} a ", said)
    assert 'that was not awaited: write "return await' in said
    if made == "a step":
        assert "a durable future that was not awaited: write \"return await ctx.run('price', ...)\"" in said


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("written", WRITTEN)
def test_what_is_written_without_its_await_is_a_type_error_at_the_call(made: str, held: str, written: str) -> None:
    shop = VirtualObject("shop")

    @shop.handler()
    async def order(ctx: ObjectContext) -> str:
        value = HELD[held](MADE[made](ctx))
        with pytest.raises(TypeError, match="that was not awaited: write") as caught:
            WRITTEN[written](ctx, value)
        return str(caught.value)

    said = asyncio.run(InProcess(shop, mail).call(order, "k"))
    assert said.startswith("shop/order: ")


@pytest.mark.parametrize("made", ["a step", "a sleep", "an awakeable"])
@pytest.mark.parametrize("named", [False, True])
def test_an_argument_of_a_step_that_was_not_awaited_is_a_type_error(made: str, named: bool) -> None:
    shop = VirtualObject("shop")

    @shop.handler()
    async def order(ctx: ObjectContext) -> str:
        future: Any = MADE[made](ctx)
        given: Any = {"value": future} if named else {}
        with pytest.raises(TypeError) as caught:
            ctx.run("pay", print, *(() if named else (future,)), **given)
        return str(caught.value)

    said = asyncio.run(InProcess(shop).call(order, "k"))
    assert said.startswith("shop/order: an argument of ctx.run('pay', ...) is a durable future that was not awaited")


def test_an_object_with_tasks_of_its_own_is_just_no_value() -> None:
    shop = VirtualObject("shop")

    class Client:
        def __init__(self, task: Any) -> None:
            self.task = task

    @shop.handler()
    async def order(ctx: ObjectContext) -> str:
        with pytest.raises(Exception, match="it has no JSON form") as caught:
            ctx.publish("orders", Client(ctx.sleep(0)))
        return type(caught.value).__name__

    assert asyncio.run(InProcess(shop).call(order, "k")) == "UnserialisableError"


ASKED: dict[str, Callable[[Any], object]] = {
    "if": lambda future: 1 if future else 2,
    "not": lambda future: not future,
    "or": lambda future: future or 3,
    "all": lambda future: all([future]),
}


@pytest.mark.parametrize(
    ("made", "command", "way_out"),
    [
        ("a step", "ctx.run('price', ...)", "await ctx.run('price', ...)"),
        ("a sleep", "ctx.sleep(...)", "await ctx.sleep(...)"),
        ("an awakeable", "ctx.awakeable()", "await future"),
    ],
)
@pytest.mark.parametrize("asked", ASKED)
def test_a_future_is_no_condition(made: str, command: str, way_out: str, asked: str) -> None:
    shop = VirtualObject("shop")

    @shop.handler()
    async def order(ctx: ObjectContext) -> str:
        with pytest.raises(TypeError) as caught:
            ASKED[asked](MADE[made](ctx))
        return str(caught.value)

    said = asyncio.run(InProcess(shop).call(order, "k"))
    assert said == (
        f"shop/order: {command} returns a durable future, which is neither true nor false: "
        f'write "{way_out}" for its value, or "is not None" to see whether there is a future'
    )


def test_a_condition_that_was_not_awaited_is_retried_until_it_is() -> None:
    shop = VirtualObject("shop", retry_policy=SOON)
    attempts: list[int] = []

    @shop.handler()
    async def order(ctx: ObjectContext) -> str:
        attempts.append(1)
        paid = ctx.run("paid", bool)
        return "paid" if (paid if len(attempts) == 1 else await paid) else "open"

    assert asyncio.run(asyncio.wait_for(InProcess(shop).call(order, "k"), 10)) == "open"
