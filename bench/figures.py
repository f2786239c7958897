"""The figures of a run and how they are summed up.

Owns percentiles and the shape of a workload's result, which is what the JSON holds. Measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct


class Latency(Struct, frozen=True, kw_only=True):
    """Milliseconds. A value may be late by up to `resolution_ms`, never early."""

    p50: float
    p99: float
    max: float
    samples: int
    resolution_ms: float = 0.0


class Processes(Struct, frozen=True, kw_only=True):
    """What the processes of one role used: CPU seconds in all and per event, and the highest sum of their RSS."""

    cpu_s: float
    cpu_ms_per_event: float
    memory_peak_mb: float


class Requests(Struct, frozen=True, kw_only=True):
    """Counted in a pass of its own over `events` events, behind a proxy that adds about a millisecond to a request.

    Requests are by sender ("control plane", "functions") and operation; per event are all of them together.
    """

    events: int
    keys: int
    dynamodb: dict[str, dict[str, int]]
    dynamodb_per_event: float
    writes_per_event: float
    write_units_per_event: float
    read_units_per_event: float
    invocations_per_event: float


class Steady(Struct, frozen=True, kw_only=True):
    """Calls at a steady rate, their latency measured from when each was due."""

    rate_per_s: float
    latency_ms: Latency


class WorkloadResult(Struct, frozen=True, kw_only=True):
    """One workload, measured without the counting proxy; `requests` comes from the counting pass."""

    title: str
    events: int
    keys: int
    events_per_s: float
    seconds: float
    latency_ms: Latency
    processes: dict[str, Processes]
    invocations_per_event: float
    lane_versions_per_event: float
    """How often heads moved on (commits, claims, resumes) in the timed pass itself, read from the table afterwards."""
    wake_lateness_ms: Latency | None = None
    steady: Steady | None = None
    requests: Requests | None = None


class NaiveResult(Struct, frozen=True, kw_only=True):
    """An aiokafka consumer that awaits one UpdateItem an event, over the stream of w1."""

    title: str
    events: int
    keys: int
    events_per_s: float
    seconds: float
    latency_ms: Latency
    processes: dict[str, Processes]
    write_units_per_event: float


def latency(values_ms: Sequence[float], resolution_ms: float = 0.0) -> Latency:
    """Percentiles of a sample, by the nearest rank. Raises ValueError for an empty one."""
    if not values_ms:
        raise ValueError("there is nothing to take percentiles of")
    ordered = sorted(values_ms)

    def rank(share: float) -> float:
        return round(ordered[math.ceil(share * len(ordered)) - 1], 3)

    return Latency(
        p50=rank(0.5),
        p99=rank(0.99),
        max=round(ordered[-1], 3),
        samples=len(ordered),
        resolution_ms=resolution_ms,
    )
