"""Runs the baseline over the stream of w1, on a broker and a DynamoDB of its own.

Owns that pass. Does not own the consumer (`naive`).
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any, Final, cast

import msgspec

from bench.environment import PARTITIONS, TOPIC, dynamodb_client
from bench.figures import NaiveResult, latency
from bench.kafka_load import RUN_TIMEOUT_S, TABLE, Say, WrongOutcomeError, publish
from bench.naive import COUNT_NAME, READY, Completion
from bench.resources import ResourceSampler
from bench.workloads import Workload
from tenuto_local.errors import ProcessFailed
from tenuto_local.processes import ManagedProcess
from tenuto_local.stack import EmbeddedStack
from tenuto_local.system import import_path
from tenuto_local.table import TableAdminClient, create_table
from tenuto_local.topics import create_topics

WARM_UP_EVENTS: Final = 64
POLL_INTERVAL_S: Final = 0.1


async def measure(workload: Workload, say: Say, topic: str = TOPIC, table_engine: str | None = None) -> NaiveResult:
    """One pass. Raises WrongOutcomeError or LocalStackError."""
    async with EmbeddedStack(table_engine=table_engine) as stack, ResourceSampler() as resources:
        await create_topics(stack.bootstrap_servers, {topic: PARTITIONS})
        async with dynamodb_client(stack, stack.dynamodb_endpoint_url) as client:
            await create_table(cast("TableAdminClient", client), TABLE)
            consumer = _consumer(stack, topic, workload.events + WARM_UP_EVENTS)
            await consumer.start()
            try:
                await _warm_up(client, stack, topic)
                resources.mark()
                await publish(stack.bootstrap_servers, workload.stream(), topic)
                status = await consumer.wait_exit(RUN_TIMEOUT_S)
                processes = resources.usage(workload.events)
                if status != 0:
                    raise ProcessFailed(f"the naive consumer ended with {status}:\n{consumer.log_since_start()[-800:]}")
            finally:
                await consumer.kill()
            await _check(client, workload)
        completions = msgspec.msgpack.decode((stack.workdir / "naive.out").read_bytes(), type=list[Completion])
    timed = completions[WARM_UP_EVENTS:]
    ended_ms = [completion.committed_ms for completion in timed]
    seconds = max((max(ended_ms) - min(ended_ms)) / 1000, 1e-3)
    say(f"naive: {workload.events / seconds:,.0f} events/s")
    return NaiveResult(
        title="one UpdateItem an event",
        events=workload.events,
        keys=workload.keys,
        events_per_s=round(workload.events / seconds, 1),
        seconds=round(seconds, 3),
        latency_ms=latency([completion.committed_ms - completion.produced_ms for completion in timed]),
        processes=processes,
        # By construction: an item of under 1 KB and one update for each event.
        write_units_per_event=1.0,
    )


def _consumer(stack: EmbeddedStack, topic: str, events: int) -> ManagedProcess:
    words = {"--topic": topic, "--table": TABLE, "--events": str(events), "--out": str(stack.workdir / "naive.out")}
    return ManagedProcess(
        "the naive consumer",
        [sys.executable, "-m", "bench.naive", *(word for option in words.items() for word in option)],
        stack.workdir / "naive.log",
        ready_marker=READY,
        env={**os.environ, **stack.environment(), "PYTHONPATH": import_path("bench", "tenuto", "tenuto_local")},
    )


async def _warm_up(client: Any, stack: EmbeddedStack, topic: str) -> None:
    await publish(stack.bootstrap_servers, [("warm", b"{}")] * WARM_UP_EVENTS, topic)
    async with asyncio.timeout(RUN_TIMEOUT_S):
        while await _counted(client, "warm") < WARM_UP_EVENTS:  # noqa: ASYNC110 - another process counts
            await asyncio.sleep(POLL_INTERVAL_S)


async def _check(client: Any, workload: Workload) -> None:
    for key, events in workload.per_key().items():
        counted = await _counted(client, key)
        if counted != events:
            raise WrongOutcomeError(f"naive: {key} counted {counted} events, it was sent {events}")


async def _counted(client: Any, key: str) -> int:
    answer = await client.get_item(
        TableName=TABLE, Key={"pk": {"S": key}, "sk": {"S": COUNT_NAME}}, ConsistentRead=True
    )
    return int(answer["Item"]["count"]["N"]) if "Item" in answer else 0
