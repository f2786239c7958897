"""What the log says of an input that its handler's type refuses: where and why, and no line of the runtime's own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tenuto import ObjectContext, TerminalError, VirtualObject
from tests.support.in_process import InProcess


def test_a_refused_input_logs_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    shop = VirtualObject("shop")

    @shop.handler()
    async def order(_ctx: ObjectContext, event: int) -> int:
        return event

    process = InProcess(shop)
    asyncio.run(process.deliver("orders", "k", order, b'"x"'))
    assert "the input of shop/order is not a valid int: Expected `int`, got `str` (at $)" in caplog.text
    assert "Traceback" not in caplog.text


def test_what_a_handler_reads_itself_is_logged_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    shop = VirtualObject("shop")

    @shop.handler()
    async def order(ctx: ObjectContext) -> Any:
        ctx.set("total", "x")
        return await ctx.get("total", int)

    with pytest.raises(TerminalError, match="state 'total' is not a valid int"):
        asyncio.run(InProcess(shop).call(order, "k"))
    assert "in order" in caplog.text
