"""A function process that works on several keys at a time, over a real table: `aws.handler(..., concurrent_keys=8)`.

Owns the wiring of the production entry point. Does not own what happens between the lanes (`tests.sdk.test_beside`).
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tenuto import ObjectContext, VirtualObject, aws
from tenuto.lane.head import head_key, parse_head
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.limits import BESIDE_MAX
from tenuto.protocol.messages import Activation, Committed, Head, Outcome, Pooled, decode_outcomes, encode
from tenuto.protocol.records import Event, KafkaSource
from tenuto.store.dynamodb import DynamoTable
from tenuto_local.stack import EmbeddedStack
from tenuto_local.table import create_table
from tests.contract.table_clients import TABLE, client_for, use_environment, wire_for

ROUNDS = 3

box = VirtualObject("box")
RAN: list[str] = []


@box.handler()
async def steps(ctx: ObjectContext, number: int) -> None:
    """Two steps and a set."""
    await ctx.run("first", RAN.append, f"{ctx.key} first")
    await ctx.run("second", RAN.append, f"{ctx.key} second")
    ctx.set("number", number)


class Context:
    def get_remaining_time_in_millis(self) -> int:
        return 60_000


def asked(handler: Any, key: str, offset: int, head: Head) -> Activation:
    lane = Lane("box", key)
    source = KafkaSource("0", "t", 0, offset, 0)
    event = Event.of(InvocationId(lane, kafka_nonce("0", "t", 0, offset)), "steps", source, str(offset).encode())
    return Activation("box", key, "speculate", head, f"here.{offset}", (event,), table=TABLE)


def test_lanes_commit_by_themselves_invocation_after_invocation(
    stack: EmbeddedStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint_url = stack.dynamodb_endpoint_url
    use_environment(monkeypatch, endpoint_url)

    async def create() -> None:
        async with client_for(endpoint_url) as client:
            await create_table(client, TABLE)

    async def stored(key: str) -> Head:
        async with wire_for(endpoint_url) as client:
            return parse_head(await DynamoTable(client, TABLE).get(head_key(Lane("box", key))))

    asyncio.run(create())
    handler: Any = aws.handler(box, concurrent_keys=BESIDE_MAX)
    keys = [f"k{number}" for number in range(BESIDE_MAX)]
    heads = dict.fromkeys(keys, Head())
    try:
        for number in range(ROUNDS):
            RAN.clear()
            request = Pooled(tuple(asked(handler, key, number, heads[key]) for key in keys), beside=True)
            answer = handler(json.loads(encode(request)), Context())
            outcomes: tuple[Outcome | Any, ...] = decode_outcomes(json.dumps(answer).encode()).outcomes
            for key, outcome in zip(keys, outcomes, strict=True):
                assert isinstance(outcome, Committed)
                heads[key] = outcome.head
                assert asyncio.run(stored(key)).state == {"number": str(number).encode()} == outcome.head.state
            assert sorted(RAN) == sorted(f"{key} {step}" for key in keys for step in ("first", "second"))
    finally:
        handler._loop.run_until_complete(handler._client.close())
        handler._loop.close()
