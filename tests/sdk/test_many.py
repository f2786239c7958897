"""Many of everything in one invocation: writes stay within what one expression can name.

Owns the bounds of single writes. Does not own the cost of long journals (`tests/costs`).
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.writes import Answer, Write
from tenuto.store.expressions import render_write
from tests.support.in_process import InProcess

EXPRESSION_BYTES_MAX = 4_096
"""DynamoDB refuses longer update and condition expressions."""

many = VirtualObject("many")


@many.handler()
async def fan_out(ctx: ObjectContext) -> None:
    for n in range(140):
        ctx.publish("out", n)
    await ctx.gather(*(ctx.run(f"step {n}", int) for n in range(120)))
    for n in range(70):
        ctx.set(f"name {n}", n)
    for n in range(140):
        ctx.publish("out", 1_000 + n)
    await ctx.gather(*(ctx.sleep(timedelta(seconds=5 + n)) for n in range(120)))
    for n in range(120):
        ctx.publish("out", 2_000 + n)
    ctx.clear_all()


def test_no_write_outgrows_its_expressions_and_every_message_leaves_once() -> None:
    async def scenario() -> None:
        world = InProcess(many)
        longest = 0
        apply = world.table.apply

        def measured(write: Write) -> Answer:
            nonlocal longest
            arguments = render_write("t", write)
            for name in ("UpdateExpression", "ConditionExpression"):
                longest = max(longest, len(str(arguments.get(name, ""))))
            return apply(write)

        world.table.apply = measured  # type: ignore[method-assign]  # watched, not changed
        await world.deliver("topic", "k", fan_out, b"null")
        await world.advance(timedelta(minutes=5))
        assert world.head(many, "k").run is None
        sent = [int(entry.value or b"-1") for _, entry in world.published]
        assert sorted(sent) == [*range(140), *range(1_000, 1_140), *range(2_000, 2_120)]
        assert longest <= EXPRESSION_BYTES_MAX

    asyncio.run(scenario())
