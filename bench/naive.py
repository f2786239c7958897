"""The baseline, a program of its own: an aiokafka consumer that awaits one UpdateItem for each event.

It counts events per key, in order within a partition, and is what one would write without an engine. It repeats
events after a crash and cannot wait, retry one key alone, or call anything else safely. Owns the consumer. Does not
own how it is measured (`naive_load`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from aiokafka import AIOKafkaConsumer

from tenuto.store.aws_client import CLIENT_OPTIONS
from tenuto_control.arguments import whole

READY: Final = "consuming"
GROUP: Final = "naive"
COUNT_NAME: Final = "naive"
"""Sort key of the item that holds a key's counter."""


class Completion(msgspec.Struct, frozen=True, array_like=True):
    """One event: when it was produced and when its update was answered, milliseconds since the epoch."""

    produced_ms: float
    committed_ms: float


async def consume(topic: str, table: str, events: int) -> list[Completion]:
    """Handle that many events."""
    done: list[Completion] = []
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=os.environ["TENUTO_BOOTSTRAP_SERVERS"],
        group_id=GROUP,
        auto_offset_reset="earliest",
    )
    async with get_session().create_client("dynamodb", config=AioConfig(**CLIENT_OPTIONS)) as client:
        await consumer.start()
        print(READY, flush=True)
        try:
            while len(done) < events:
                batches = await consumer.getmany(timeout_ms=200)
                await asyncio.gather(*(_partition(client, table, records, done) for records in batches.values()))
        finally:
            await consumer.stop()
    return done


async def _partition(client: Any, table: str, records: list[Any], done: list[Completion]) -> None:
    for record in records:
        msgspec.json.decode(record.value)
        await client.update_item(
            TableName=table,
            Key={"pk": {"S": record.key.decode()}, "sk": {"S": COUNT_NAME}},
            UpdateExpression="ADD #count :one",
            ExpressionAttributeNames={"#count": "count"},
            ExpressionAttributeValues={":one": {"N": "1"}},
        )
        done.append(Completion(record.timestamp, time.time() * 1000))


def main() -> None:
    """Consume, then write the completions as MessagePack."""
    parser = argparse.ArgumentParser(prog="python -m bench.naive")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--table", required=True)
    parser.add_argument("--events", type=whole(1, 1_000_000), required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    done = uvloop.run(consume(options.topic, options.table, options.events))
    options.out.write_bytes(msgspec.msgpack.encode(done))


if __name__ == "__main__":
    main()
