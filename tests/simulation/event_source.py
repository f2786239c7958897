"""The twin of a Kafka event source mapping: a poller that invokes the dispatcher's function with batches of records.

Owns the shape of a batch, what follows its answer, and that a poller has one batch under way: one that failed comes
again until its answer is a success, as a whole or, where partial answers are on, from the first record that has to.
Now and then the answer is lost and another poller begins where the offsets are, or a batch comes twice. Does not own
the invocation (`instances`) nor the records (`tests.support.memory_kafka`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any

from tenuto_control.ports import LogRecord, TopicPartition
from tenuto_local.event_source import first_failure, mapped
from tests.simulation.invocations import Answered, Function

if TYPE_CHECKING:
    from tests.simulation.world import Simulation

PAYLOAD_BYTES_MAX = 4_000_000
"""Of records, before base64: what fits Lambda's payload of 6 MB."""

DOUBLED_WITHIN_S = 20.0
GIVEN_UP_WITHIN_S = 5.0
PAUSE_S_MAX = 2.0


class EventSourceMapping:
    """One poller: some partitions of a topic, whose records it may put into one batch."""

    def __init__(
        self,
        world: Simulation,
        function: Function,
        partitions: Sequence[TopicPartition],
        rng: random.Random,
        records_max: int,
    ) -> None:
        self._world = world
        self._function = function
        self._partitions = partitions
        self._rng = rng
        self._records_max = records_max

    async def run(self, *, partial: bool) -> None:
        """Poll until cancelled."""
        while True:
            records = self._poll()
            if not records:
                await self._world.kafka.wait_for_change()
                continue
            served = await self._serve(records, partial=partial)
            while not served:
                # The same batch comes again until it is served, or until somebody else polls.
                await asyncio.sleep(self._rng.uniform(0.1, PAUSE_S_MAX))
                served = await self._serve(records, partial=partial)

    def _poll(self) -> list[LogRecord]:
        left = self._rng.randint(1, self._records_max)
        size = 0
        records: list[LogRecord] = []
        for tp in self._rng.sample(self._partitions, len(self._partitions)):
            for record in self._world.kafka.read(tp, self._world.kafka.committed(tp) or 0, left):
                size += len(record.value or b"")
                if records and (size > PAYLOAD_BYTES_MAX or not left):
                    return records
                records.append(record)
                left -= 1
        return records

    async def _serve(self, records: Sequence[LogRecord], *, partial: bool) -> bool:
        """Invoke with a batch. False when the same batch has to come again."""
        plan, event = self._world.plan, batch(records)
        what = f"batch {_span(records)}"
        if plan.happens("batch_doubled"):
            delay_s = self._rng.uniform(0, DOUBLED_WITHIN_S)
            self._world.loop.call_later(delay_s, self._function.serve, event, f"{what} again", context=Context())
        ended = self._function.serve(event, what)
        if plan.happens("batch_answer_lost"):
            # The poller is gone; another one begins at what is committed, whatever becomes of the invocation.
            await asyncio.wait([ended], timeout=self._rng.uniform(0, GIVEN_UP_WITHIN_S))
            return True
        how = await ended
        if not isinstance(how, Answered):
            return False
        failed = False
        for tp in {TopicPartition(record.topic, record.partition) for record in records}:
            end = max(r.offset for r in records if (r.topic, r.partition) == tp) + 1
            again = first_failure(tp, how.value, end) if partial else end
            failed = failed or again < end
            self._world.kafka.store(tp, again)
        self._world.check_commits()
        if failed:
            await asyncio.sleep(self._rng.uniform(0, PAUSE_S_MAX))
        return True


def batch(records: Sequence[LogRecord]) -> dict[str, Any]:
    """The event for a batch (AWS Lambda developer guide, "self-managed Apache Kafka")."""
    by_partition: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_partition.setdefault(f"{record.topic}-{record.partition}", []).append(mapped(record, record.timestamp_ms))
    return {"eventSource": "SelfManagedKafka", "bootstrapServers": "sim:9092", "records": by_partition}


def _span(records: Sequence[LogRecord]) -> str:
    spans: dict[str, list[int]] = {}
    for record in records:
        spans.setdefault(f"{record.topic}-{record.partition}", []).append(record.offset)
    return ", ".join(f"{name}: {min(offsets)}..{max(offsets)}" for name, offsets in sorted(spans.items()))
