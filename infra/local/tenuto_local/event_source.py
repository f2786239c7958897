"""A local Kafka event source mapping: polls topics and invokes a function with what it finds, as Lambda's pollers do.

Owns one consumer, a loop for each partition, the shape of a batch, and what follows a partial batch response: offsets
are committed up to the first record that has to come again. Does not own the function. Unlike AWS's, it polls all
partitions from one process, and forgets nothing on its way: a batch that fails as a whole comes again after a pause.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Self

log = logging.getLogger(__name__)

BATCH_RECORDS_MAX = 100
POLL_TIMEOUT_MS = 200
FAILED_PAUSE_S = 1.0
EVENT_SOURCE = "SelfManagedKafka"

Invoke = Callable[[dict[str, Any]], Awaitable[dict[str, Any] | None]]
"""Invokes the function with a batch and returns its parsed answer. Raises when the function failed."""


class KafkaEventSource:
    """A mapping from topics (name to number of partitions) to a function, as an async context manager.

    `group_id` holds its offsets.
    """

    def __init__(self, bootstrap_servers: str, topics: Mapping[str, int], group_id: str, invoke: Invoke) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._topics = topics
        self._group_id = group_id
        self._invoke = invoke
        self._consumer: Any = None
        self._loops: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Begin to poll every partition there is."""
        # Imported late, as in `topics`: not everybody who imports this package needs a Kafka client.
        from aiokafka import AIOKafkaConsumer, TopicPartition

        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap_servers,
            group_id=self._group_id,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await self._consumer.start()
        found = [TopicPartition(topic, n) for topic, count in self._topics.items() for n in range(count)]
        self._consumer.assign(found)
        self._loops = [
            asyncio.create_task(self._poll(tp), name=f"event source {tp.topic}-{tp.partition}") for tp in found
        ]
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Stop polling; a batch that is being served is given up, and comes again to whoever polls next."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._consumer.stop()

    async def _poll(self, tp: Any) -> None:
        while True:
            polled = await self._consumer.getmany(tp, timeout_ms=POLL_TIMEOUT_MS, max_records=BATCH_RECORDS_MAX)
            records = polled.get(tp)
            if records:
                await self._serve(tp, records)

    async def _serve(self, tp: Any, records: Sequence[Any]) -> None:
        again = records[0].offset
        try:
            answer = await self._invoke(batch(self._bootstrap_servers, tp, records))
            again = first_failure(tp, answer, records[-1].offset + 1)
        except Exception as e:  # noqa: BLE001 - whatever went wrong, the batch comes again
            log.warning("a batch of %s-%d failed and will be delivered again: %s", tp.topic, tp.partition, e)
        if again > records[0].offset:
            with contextlib.suppress(Exception):
                # An offset that could not be committed only means that records come again.
                await self._consumer.commit({tp: again})
        if again <= records[-1].offset:
            self._consumer.seek(tp, again)
            await asyncio.sleep(FAILED_PAUSE_S)


def batch(bootstrap_servers: str, tp: Any, records: Sequence[Any]) -> dict[str, Any]:
    """The event for a batch of one partition (AWS Lambda developer guide, "self-managed Apache Kafka")."""
    return {
        "eventSource": EVENT_SOURCE,
        "bootstrapServers": bootstrap_servers,
        "records": {f"{tp.topic}-{tp.partition}": [mapped(record, record.timestamp) for record in records]},
    }


def first_failure(tp: Any, answer: dict[str, Any] | None, end: int) -> int:
    """The offset from which records have to come again; `end` when none has to."""
    items = [failure["itemIdentifier"] for failure in (answer or {}).get("batchItemFailures", [])]
    return min((item["offset"] for item in items if item["partition"] == f"{tp.topic}-{tp.partition}"), default=end)


def mapped(record: Any, timestamp_ms: int) -> dict[str, Any]:
    """A record of any kind as a batch holds it."""
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": timestamp_ms,
        "timestampType": "CREATE_TIME",
        "key": _text(record.key),
        "value": _text(record.value),
        "headers": [{name: list(value)} for name, value in record.headers],
    }


def _text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()
