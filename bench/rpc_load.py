"""Calls over HTTP: as many as 64 connections carry, then at a steady rate.

Owns one pass of that workload. The client runs in this process and takes its share of the machine; how much is in the
figures as "load generator".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final

import aiohttp
import msgspec

from bench.environment import SERVICE, WORKERS, Bench, running
from bench.figures import Latency, Requests, Steady, WorkloadResult, latency
from bench.kafka_load import Say, WrongOutcomeError, checked_heads
from bench.resources import ResourceSampler
from bench.workloads import COUNTED_SHARE, Workload

CONNECTIONS: Final = 64
STEADY_RATE_PER_S: Final = 100.0
STEADY_SHARE: Final = 0.1
"""Calls at the steady rate, as a part of the workload's: 10 s of them at full scale."""

CALL_TIMEOUT_S: Final = 60.0
RUN_TIMEOUT_S: Final = 900.0
OK: Final = 200


async def measure(workload: Workload, say: Say) -> WorkloadResult:
    """The timed pass, the steady one, then the counting pass. Raises as `kafka_load.measure`."""
    async with (
        running(workload.handler, counted=False) as bench,
        ResourceSampler() as resources,
        _session() as session,
        asyncio.timeout(RUN_TIMEOUT_S),
    ):
        caller = _Caller(bench, session)
        await caller.flood(8 * WORKERS, _warm_keys())
        resources.mark()
        invocations = await bench.invocations()
        seconds, all_ms = await caller.flood(workload.events, _keys(workload))
        processes = resources.usage(workload.events)
        invocations = await bench.invocations() - invocations
        heads = await checked_heads(bench, workload)
        say(f"{workload.name}: {workload.events / seconds:,.0f} calls/s; now at {STEADY_RATE_PER_S:.0f}/s")
        steady = await caller.steadily(max(20, round(workload.events * STEADY_SHARE)), workload.keys)
    say(f"{workload.name}: now counting requests")
    return WorkloadResult(
        title=workload.title,
        events=workload.events,
        keys=workload.keys,
        events_per_s=round(workload.events / seconds, 1),
        seconds=round(seconds, 3),
        latency_ms=all_ms,
        processes=processes,
        invocations_per_event=round(invocations / workload.events, 4),
        lane_versions_per_event=round(sum(head.ver for head in heads.values()) / workload.events, 4),
        steady=Steady(rate_per_s=STEADY_RATE_PER_S, latency_ms=steady),
        requests=await _count(workload),
    )


class _Caller:
    """Sends calls and measures each, from when it was meant to be sent to its answer."""

    def __init__(self, bench: Bench, session: aiohttp.ClientSession) -> None:
        self._url = f"{bench.system.ingress}/call/{SERVICE}"
        self._session = session
        self._ended_s: list[float] = []
        self._latencies_ms: list[float] = []

    async def flood(self, calls: int, keys: Iterator[str]) -> tuple[float, Latency]:
        """`calls` calls over CONNECTIONS, each connection one after the other.

        Returns the seconds from the first completion to the last, and the latencies.
        """
        self._ended_s, self._latencies_ms = [], []
        left = iter(range(calls))

        async def connection() -> None:
            for _ in left:
                await self._call(next(keys), time.perf_counter())

        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(connection())
        return max(self._ended_s[-1] - self._ended_s[0], 1e-3), latency(self._latencies_ms)

    async def steadily(self, calls: int, keys: int) -> Latency:
        """`calls` calls at STEADY_RATE_PER_S, whether or not earlier ones have been answered."""
        self._latencies_ms = []
        start_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(calls):
                due_s = start_s + number / STEADY_RATE_PER_S
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                group.create_task(self._call(f"steady-{number % keys:04d}", due_s))
        return latency(self._latencies_ms)

    async def _call(self, key: str, due_s: float) -> None:
        async with self._session.post(f"{self._url}/{key}/add", json=1) as answer:
            body = await answer.read()
            if answer.status != OK:
                raise WrongOutcomeError(f"a call was answered {answer.status}: {body[:200]!r}")
            msgspec.json.decode(body, type=int)
        now_s = time.perf_counter()
        self._ended_s.append(now_s)
        self._latencies_ms.append(1000 * (now_s - due_s))


async def _count(workload: Workload) -> Requests:
    part = workload.scaled(COUNTED_SHARE)
    async with running(part.handler, counted=True) as bench, _session() as session, asyncio.timeout(RUN_TIMEOUT_S):
        caller = _Caller(bench, session)
        await caller.flood(8 * WORKERS, _warm_keys())
        counting = bench.counting
        assert counting is not None, "a counted system has its counter"
        counting.reset()
        invocations = await bench.invocations()
        await caller.flood(part.events, _keys(part))
        requests = counting.result(part.events, part.keys, await bench.invocations() - invocations)
        await checked_heads(bench, part)
    return requests


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S), connector=aiohttp.TCPConnector(limit=CONNECTIONS)
    )


def _keys(workload: Workload) -> Iterator[str]:
    return (key for key, _ in workload.stream())


def _warm_keys() -> Iterator[str]:
    return (f"warm-{i:03d}" for i in range(8 * WORKERS))
