"""What the suite deploys: an object that counts, and a function that tells the table it was invoked."""

import asyncio
from typing import Any

import msgspec

import tenuto
from tenuto import ObjectContext, VirtualObject, aws
from tenuto.lane.writes import Key, Put
from tenuto.store.dynamodb import BlockingDynamoTable

counter = VirtualObject("counter")


@counter.handler()
async def add(ctx: ObjectContext, amount: int) -> int:
    """Needs the state alone: nothing is written by the function."""
    total: int = (await ctx.get("total") or 0) + amount
    ctx.set("total", total)
    return total


@counter.handler()
async def add_in_a_step(ctx: ObjectContext, amount: int) -> int:
    """Needs a checkpoint: the function itself claims and commits."""
    return await ctx.run("add", lambda: amount + 1)


handler = aws.handler(counter)


def where(_event: Any, _context: Any) -> dict[str, str]:
    """Where the modules were loaded from."""
    return {"tenuto": tenuto.__file__, "msgspec": msgspec.__file__}


def fail(event: Any, _context: Any) -> None:
    """Fails in the handler's own words."""
    raise ValueError(event["words"])


def observe(event: dict[str, str], _context: Any) -> None:
    """Leave an item that says this event arrived."""
    table = BlockingDynamoTable(event["table"])
    asyncio.run(table.write(Put(Key(event["pk"], "seen"), {"event": event["pk"]})))
    table.close()
