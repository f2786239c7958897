"""Workloads whose events come from Kafka: publish everything at once, watch the heads until all is committed.

Owns one pass of such a workload. Does not own the system it runs on (`environment`) or the watching (`commits`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import msgspec
from aiokafka import AIOKafkaProducer

from bench.commits import CommitWatch, Published, group_admin, read_heads, topic_id
from bench.environment import PARTITIONS, SERVICE, TOPIC, WORKERS, Bench, running
from bench.figures import Requests, WorkloadResult, latency
from bench.resources import ResourceSampler
from bench.workloads import COUNTED_SHARE, Workload
from tenuto.protocol.messages import Head

TABLE: Final = "tenuto"
WARM_UP_KEYS: Final = 8 * WORKERS
PROGRESS_INTERVAL_S: Final = 5.0
RUN_TIMEOUT_S: Final = 900.0

Say = Callable[[str], None]


SETTLE_S = 60.0
SETTLE_INTERVAL_S = 0.5
"""How long events may wait in inboxes once all offsets are committed, and how often that is looked at."""


class WrongOutcomeError(Exception):
    """An event took effect more or less than once: figures of such a run would mean nothing."""


async def measure(workload: Workload, say: Say) -> WorkloadResult:
    """The timed pass, then the counting pass. Raises WrongOutcomeError, StalledError or LocalStackError."""
    async with running(workload.handler, counted=False) as bench, ResourceSampler() as resources:
        await _warm_up(bench, workload)
        resources.mark()
        invocations = await bench.invocations()
        watch, published = await _run(bench, workload, say)
        settled_s = await _settled(bench, workload, say)
        processes = resources.usage(workload.events)
        invocations = await bench.invocations() - invocations
        heads = await checked_heads(bench, workload)
    observed = watch.observed(published)
    seconds = max(observed.last_s, settled_s or 0.0) - observed.first_s
    late = [ms for head in heads.values() if "late_ms" in head.state for ms in _late_ms(head)]
    result = WorkloadResult(
        title=workload.title,
        events=workload.events,
        keys=workload.keys,
        events_per_s=round(workload.events / seconds, 1),
        seconds=round(seconds, 3),
        latency_ms=observed.latency,
        processes=processes,
        invocations_per_event=round(invocations / workload.events, 4),
        lane_versions_per_event=round(sum(head.ver for head in heads.values()) / workload.events, 4),
        wake_lateness_ms=latency(late) if late else None,
    )
    say(f"{workload.name}: {result.events_per_s:,.0f} events/s; now counting requests")
    return msgspec.structs.replace(result, requests=await _count(workload, say))


async def _settled(bench: Bench, workload: Workload, say: Say) -> float | None:
    """Wait for events whose offsets are committed because they wait in a key's inbox.

    Returns when they were done (monotonic clock), None when there were none.
    """
    began_s = time.monotonic()
    while True:
        try:
            await checked_heads(bench, workload)
        except WrongOutcomeError:
            if time.monotonic() - began_s > SETTLE_S:
                raise
            say(f"{workload.name}: events wait in inboxes")
            await asyncio.sleep(SETTLE_INTERVAL_S)
        else:
            now_s = time.monotonic()
            return now_s if now_s - began_s > SETTLE_INTERVAL_S else None


async def publish(bootstrap_servers: str, stream: Sequence[tuple[str, bytes]], topic: str = TOPIC) -> list[Published]:
    """Publish events as fast as Kafka takes them. A record bears the time it was handed to the producer."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all", linger_ms=5)
    await producer.start()
    try:
        sent = []
        for key, value in stream:
            now_ms = int(time.time() * 1000)
            sent.append((key, now_ms, await producer.send(topic, value, key=key.encode(), timestamp_ms=now_ms)))
        records = await asyncio.gather(*(acknowledged for _, _, acknowledged in sent))
    finally:
        await producer.stop()
    return [
        Published(key, record.partition, record.offset, at_ms)
        for (key, at_ms, _), record in zip(sent, records, strict=True)
    ]


async def checked_heads(bench: Bench, workload: Workload) -> dict[str, Head]:
    """Every head of the workload. Raises WrongOutcomeError when a counter is not the number of its events."""
    expected = workload.per_key()
    heads = await read_heads(bench.dynamodb, TABLE, SERVICE, list(expected))
    for key, events in expected.items():
        counted = msgspec.json.decode(heads[key].state["count"]) if key in heads else 0
        if counted != events:
            raise WrongOutcomeError(f"{workload.name}: {key} counted {counted} events, it was sent {events}")
    return heads


def _late_ms(head: Head) -> list[float]:
    return msgspec.json.decode(head.state["late_ms"], type=list[float])


async def _warm_up(bench: Bench, workload: Workload) -> None:
    """Start every function process and open every connection, on keys of their own."""
    stream = [(f"warm-{i:03d}", value) for i, (_, value) in enumerate(workload.stream()[:WARM_UP_KEYS])]
    async with _watching(bench, [key for key, _ in stream]) as watch, asyncio.timeout(RUN_TIMEOUT_S):
        watch.expect(await publish(bench.system.bootstrap_servers, stream))
        await watch.watch()


async def _run(bench: Bench, workload: Workload, say: Say) -> tuple[CommitWatch, list[Published]]:
    async with (
        _watching(bench, list(workload.per_key())) as watch,
        asyncio.timeout(RUN_TIMEOUT_S),
        asyncio.TaskGroup() as group,
    ):
        watching = group.create_task(watch.watch())
        published = await publish(bench.system.bootstrap_servers, workload.stream())
        watch.expect(published)
        while not watching.done():
            await asyncio.wait([watching], timeout=PROGRESS_INTERVAL_S)
            if not watching.done():
                say(f"{workload.name}: {watch.progress()}")
    return watch, published


async def _count(workload: Workload, say: Say) -> Requests:
    part = workload.scaled(COUNTED_SHARE)
    async with running(part.handler, counted=True) as bench:
        await _warm_up(bench, part)
        counting = bench.counting
        assert counting is not None, "a counted system has its counter"
        counting.reset()
        invocations = await bench.invocations()
        await _run(bench, part, say)
        invocations = await bench.invocations() - invocations
        requests = counting.result(part.events, part.keys, invocations)
        await checked_heads(bench, part)
    return requests


@asynccontextmanager
async def _watching(bench: Bench, keys: Sequence[str]) -> AsyncIterator[CommitWatch]:
    async with group_admin(bench.system.bootstrap_servers) as admin:
        life = await topic_id(admin, TOPIC)
        yield CommitWatch(bench.dynamodb, admin, TABLE, SERVICE, TOPIC, life, PARTITIONS, keys)
