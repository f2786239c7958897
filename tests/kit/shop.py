"""Handlers as users write them, for the tests of the test kit.

Owns an object with every kind of wait, and a service. Does not own what is expected of them.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import timedelta

from tenuto import (
    Context,
    InvocationRetryPolicy,
    ObjectContext,
    ObjectSharedContext,
    RunOptions,
    Service,
    TerminalError,
    VirtualObject,
)

orders = VirtualObject("orders")
greeter = Service("greeter")


@dataclass(frozen=True)
class Order:
    """What a customer asks for."""

    item: str
    price: int


@dataclass(frozen=True)
class Receipt:
    """What a customer gets."""

    item: str
    driver: str


charged: list[str] = []
"""What the bank has been told, by everybody who imported this."""


async def charge(order: Order) -> str:
    await asyncio.sleep(0.01)
    charged.append(order.item)
    return f"charged {order.price}"


def pack(order: Order) -> str:
    return f"packed {order.item}"


@orders.handler()
async def place(ctx: ObjectContext, order: Order) -> Receipt:
    if order.price <= 0:
        raise TerminalError("a price is above zero", status_code=409, metadata={"price": str(order.price)})
    ctx.set("status", "charging")
    await ctx.run("charge", charge, order)
    ctx.set("status", "packing")
    await ctx.run("pack", pack, order)
    name, answer = ctx.awakeable(str)
    ctx.publish("drivers", {"order": ctx.key, "answer": name}, key=ctx.key)
    ctx.set("answer", name)
    match await ctx.select(answer=answer, timeout=ctx.sleep(timedelta(days=1))):
        case "answer", driver:
            ctx.set("status", "delivered")
            ctx.clear("answer")
            return Receipt(order.item, str(driver))
        case _:
            raise TerminalError("no driver", status_code=504)


@orders.handler(kind="shared")
async def status(ctx: ObjectSharedContext) -> str | None:
    return await ctx.get("status", str)


@orders.handler()
async def add(ctx: ObjectContext, amount: int) -> int:
    total = (await ctx.get("total", int) or 0) + amount
    ctx.set("total", total)
    return total


@orders.handler()
async def remind(ctx: ObjectContext) -> None:
    ctx.object_send(add, ctx.key, 1, send_delay=timedelta(days=30))
    await ctx.sleep(timedelta(days=10))
    ctx.set("reminded", int(ctx.time()))


failures: dict[str, int] = {}


@orders.handler()
async def flaky(ctx: ObjectContext, times: int) -> int:
    def attempt() -> int:
        failures[ctx.key] = failures.get(ctx.key, 0) + 1
        if failures[ctx.key] <= times:
            raise OSError("the bank does not answer")
        return failures[ctx.key]

    return await ctx.run("call the bank", attempt)


@orders.handler(retry_policy=InvocationRetryPolicy(max_attempts=3))
async def hopeless(ctx: ObjectContext) -> None:
    raise ValueError("this never works")


@orders.handler()
async def gives_up(ctx: ObjectContext) -> str:
    def fail() -> None:
        raise OSError("no")

    await ctx.run_with(RunOptions[None](max_attempts=3), "fail", fail)
    return "never"


@orders.handler()
async def wanders(ctx: ObjectContext) -> None:
    """Not deterministic: a replay goes another way."""
    await ctx.run(f"step {random.random()}", str, "x")
    await ctx.sleep(timedelta(days=1))


@greeter.handler()
async def greet(ctx: Context, name: str) -> str:
    return f"hello {name}"


@greeter.handler()
async def add_to_all(ctx: Context, keys: list[str]) -> int:
    for key in keys:
        ctx.object_send(add, key, 1)
    return len(keys)
