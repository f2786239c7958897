"""Pay, prepare, find a driver; when one of them says no, undo what was done."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from examples.food_order.outside import (
    Acceptance,
    Order,
    cancel_preparation,
    offer_to_drivers,
    order_preparation,
    refund,
    take_payment,
)
from tenuto import ObjectContext, ObjectSharedContext, TerminalError, VirtualObject, aws

orders = VirtualObject("orders")


@orders.handler()
async def place(ctx: ObjectContext, order: Order) -> None:
    undo: list[tuple[str, Callable[[Order], None]]] = []
    try:
        await ctx.run("take payment", take_payment, order)
        undo.append(("refund", refund))
        await ctx.run("order preparation", order_preparation, order)
        undo.append(("cancel preparation", cancel_preparation))
        driver = await find_driver(ctx, order)
        ctx.set("status", f"on its way with {driver}")
    except TerminalError as reason:
        for name, compensation in reversed(undo):
            await ctx.run(name, compensation, order)
        ctx.set("status", f"cancelled: {reason}")
        raise


async def find_driver(ctx: ObjectContext, order: Order) -> str:
    offer, accepted = ctx.awakeable(Acceptance)
    await ctx.run("offer to drivers", offer_to_drivers, order, offer)
    match await ctx.select(driver=accepted, timeout=ctx.sleep(timedelta(seconds=10))):
        case "driver", Acceptance(driver=driver):
            return driver
        case _:
            raise TerminalError("no driver answered", status_code=409)


@orders.handler(kind="shared")
async def status(ctx: ObjectSharedContext) -> str | None:
    return await ctx.get("status", str)


handler = aws.handler(orders)
