"""Looking at a running system from outside: its stored heads, its inboxes, its group's lag, the records of a topic.

Owns reading. Does not own what should be found.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiobotocore.session import get_session
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

from tenuto.lane.head import HEAD_SK, parse_head
from tenuto.lane.transitions import INBOX_HIGH, INBOX_LOW
from tenuto.lane.writes import Item
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Head
from tenuto.store.expressions import unmarshal_item
from tenuto_local.system import TABLE, System

GROUP = "tenuto"
PAGES_MAX = 10_000
READ_TIMEOUT_S = 10.0


@asynccontextmanager
async def dynamodb(system: System) -> AsyncIterator[Any]:
    """A client for the system's table."""
    own = system.environment()
    async with get_session().create_client(
        "dynamodb",
        region_name=own["AWS_REGION"],
        endpoint_url=own["AWS_ENDPOINT_URL_DYNAMODB"],
        aws_access_key_id=own["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=own["AWS_SECRET_ACCESS_KEY"],
    ) as client:
        yield client


async def items(client: Any) -> AsyncIterator[Item]:
    """Every item of the table."""
    after: Mapping[str, Any] | None = None
    for _ in range(PAGES_MAX):
        start = {} if after is None else {"ExclusiveStartKey": after}
        page = await client.scan(TableName=TABLE, ConsistentRead=True, **start)
        for raw in page["Items"]:
            yield unmarshal_item(raw)
        after = page.get("LastEvaluatedKey")
        if after is None:
            return
    raise AssertionError("the table does not end")


async def stored(client: Any) -> tuple[dict[Lane, Head], list[str]]:
    """Every head, and the partition keys of lanes where a live inbox item waits."""
    heads: dict[Lane, Head] = {}
    inbox: list[str] = []
    async for item in items(client):
        pk, sk = str(item["pk"]), str(item["sk"])
        if sk == HEAD_SK:
            heads[Lane.from_pk(pk)] = parse_head(item)
        elif INBOX_LOW <= sk <= INBOX_HIGH and "ev" in item:
            inbox.append(pk)
    return heads, inbox


async def lag(system: System, topics: Mapping[str, int]) -> int:
    """Records of `topics` (name to number of partitions) that the group has not committed."""
    consumer = AIOKafkaConsumer(bootstrap_servers=system.bootstrap_servers, group_id=GROUP, enable_auto_commit=False)
    async with asyncio.timeout(READ_TIMEOUT_S):
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, n) for topic, count in topics.items() for n in range(count)]
            # Assigned by hand it joins no group, so the group goes on undisturbed.
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            return sum([ends[p] - (await consumer.committed(p) or 0) for p in partitions])
        finally:
            await consumer.stop()


async def records(system: System, topic: str, partitions: int) -> list[ConsumerRecord[bytes, bytes]]:
    """Every record of a topic as it stands."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=system.bootstrap_servers, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    found: list[ConsumerRecord[bytes, bytes]] = []
    async with asyncio.timeout(READ_TIMEOUT_S):
        await consumer.start()
        try:
            assigned = [TopicPartition(topic, n) for n in range(partitions)]
            consumer.assign(assigned)
            await consumer.seek_to_beginning(*assigned)
            ends = await consumer.end_offsets(assigned)
            while any([await consumer.position(p) < ends[p] for p in assigned]):
                for batch in (await consumer.getmany(timeout_ms=200)).values():
                    found += batch
        finally:
            await consumer.stop()
    return found
