"""What a run found: one JSON document, and a table to read.

Owns the document's shape, the ratios to the baseline, and the table. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from bench.figures import NaiveResult, Processes, WorkloadResult
from bench.tables import aligned

SCHEMA: Final = 2
NAIVE: Final = "naive"
COMPARED: Final = "w1"
HARNESS: Final = ("load generator",)
"""Processes that belong to the measuring, not to what is measured."""


class Ratios(Struct, frozen=True, kw_only=True):
    """w1 divided by the baseline, from the same run: above 1 is more of it."""

    events_per_s: float
    latency_p50: float
    cpu: float
    write_units: float


class Report(Struct, frozen=True, kw_only=True):
    """One run. `workloads` holds those that were asked for, by name."""

    started: str
    command: str
    scale: float
    machine: dict[str, Any]
    settings: dict[str, Any]
    workloads: dict[str, WorkloadResult]
    naive: NaiveResult | None
    ratios: Ratios | None
    schema: int = SCHEMA


def ratios(w1: WorkloadResult | None, naive: NaiveResult | None) -> Ratios | None:
    """The comparison, if both sides ran."""
    if w1 is None or naive is None or w1.requests is None:
        return None
    return Ratios(
        events_per_s=_ratio(w1.events_per_s, naive.events_per_s),
        latency_p50=_ratio(w1.latency_ms.p50, naive.latency_ms.p50),
        cpu=_ratio(cpu_ms(w1.processes), cpu_ms(naive.processes)),
        write_units=_ratio(w1.requests.write_units_per_event, naive.write_units_per_event),
    )


def cpu_ms(processes: Mapping[str, Processes]) -> float:
    """CPU milliseconds per event of everything but the harness."""
    return sum(p.cpu_ms_per_event for role, p in processes.items() if role not in HARNESS)


def render(report: Report) -> str:
    """The whole report as text."""
    machine = report.machine
    lines = [
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gb']} GB, Python {machine['python']}",
        f"{machine['java']}; scale {report.scale:g}, load before {machine['load_before']}",
        "",
        *aligned(list(_speed(report))),
        "",
        "CPU milliseconds per event, and peak memory in MB, by process",
        *aligned(list(_resources(report))),
    ]
    if any(w.requests for w in report.workloads.values()):
        lines += ["", "Per event, from the counting pass (versions and i/timed: from the timed one)"]
        lines += aligned(list(_counts(report)))
    lines += ["", *_remarks(report)]
    return "\n".join(lines)


def _speed(report: Report) -> Iterator[Sequence[str]]:
    yield "", "events", "keys", "per second", "p50 ms", "p99 ms", "what"
    rows: dict[str, WorkloadResult | NaiveResult] = {**report.workloads}
    if report.naive is not None:
        rows[NAIVE] = report.naive
    for name, row in rows.items():
        yield (
            name,
            f"{row.events:,}",
            f"{row.keys:,}",
            f"{row.events_per_s:,.0f}",
            f"{row.latency_ms.p50:,.1f}",
            f"{row.latency_ms.p99:,.1f}",
            row.title,
        )


def _resources(report: Report) -> Iterator[Sequence[str]]:
    rows: dict[str, Mapping[str, Processes]] = {name: w.processes for name, w in report.workloads.items()}
    if report.naive is not None:
        rows[NAIVE] = report.naive.processes
    roles = sorted({role for processes in rows.values() for role in processes})
    yield "", *roles, "sum without load"
    for name, processes in rows.items():
        cells = [processes.get(role) for role in roles]
        shown = [f"{p.cpu_ms_per_event:.2f} {p.memory_peak_mb:,.0f}M" if p else "" for p in cells]
        yield name, *shown, f"{cpu_ms(processes):.2f}"


def _counts(report: Report) -> Iterator[Sequence[str]]:
    yield "", "requests", "writes", "write units", "read units", "invocations", "i/timed", "versions"
    for name, workload in report.workloads.items():
        counted = workload.requests
        if counted is None:
            continue
        figures = (
            counted.dynamodb_per_event,
            counted.writes_per_event,
            counted.write_units_per_event,
            counted.read_units_per_event,
            counted.invocations_per_event,
            workload.invocations_per_event,
            workload.lane_versions_per_event,
        )
        yield name, *(f"{figure:.2f}" for figure in figures)


def _remarks(report: Report) -> Iterator[str]:
    for name, workload in report.workloads.items():
        if workload.wake_lateness_ms is not None:
            late = workload.wake_lateness_ms
            yield (f"{name}: a sleep of 1 s ended late by p50 {late.p50:,.1f} ms, p99 {late.p99:,.1f} ms")
        if workload.steady is not None:
            steady = workload.steady.latency_ms
            yield (f"{name}: at {workload.steady.rate_per_s:g}/s p50 {steady.p50:,.1f} ms, p99 {steady.p99:,.1f} ms")
    if report.ratios is not None:
        r = report.ratios
        yield (
            f"w1 / naive: events per second {r.events_per_s:.2f}, latency p50 {r.latency_p50:.2f}, CPU {r.cpu:.2f}, "
            f"write units {r.write_units:.2f}"
        )


def _ratio(ours: float, theirs: float) -> float:
    return round(ours / theirs, 3) if theirs else 0.0
