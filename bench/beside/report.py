"""What a comparison found: one JSON document, and a table to read.

Owns the document's shape and its text. Does not own the page with the plot (`page`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from msgspec import Struct

from bench.beside.sides import RESTATE, TENUTO
from bench.beside.summary import Found, Line, cpu_by_process, lines
from bench.figures import NaiveResult
from bench.tables import aligned

SCHEMA = 1


class Comparison(Struct, frozen=True, kw_only=True):
    """One run. `founds` are by pass and side, a round each; `naive` is the consumer without an engine on W1."""

    started: str
    command: str
    scale: float
    rounds: int
    machine: dict[str, Any]
    settings: dict[str, Any]
    founds: dict[str, dict[str, list[Found]]]
    naive: list[NaiveResult]
    stalled: list[str] = []
    """Passes that were repeated, and why."""

    seconds: float = 0.0
    schema: int = SCHEMA


def outcome(report: Comparison) -> list[Line]:
    """The lines of the table."""
    return lines(report.founds, TENUTO, RESTATE)


def render(report: Comparison) -> str:
    """The whole report as text."""
    machine, settings = report.machine, report.settings
    head = [
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gb']} GB, Python {machine['python']}",
        f"table engine {settings['table']}; calls by {settings['calls']}",
        f"medians of {report.rounds} rounds at scale {report.scale:g}, {report.seconds / 60:.1f} minutes",
        "",
    ]
    remarks = [f"{this}: no ratio, {reason}" for this, reason in refusals(report).items()]
    remarks += [f"repeated: {line}" for line in report.stalled]
    cpu = ["", "CPU milliseconds an event, by process", *aligned(list(cpu_rows(report)))]
    return "\n".join([*head, *aligned(list(table_rows(report))), *cpu, *([""] if remarks else []), *remarks])


def refusals(report: Comparison) -> dict[str, str]:
    """Why no ratio is told, by pass."""
    return {line.row.this: line.refused for line in outcome(report) if line.refused}


def table_rows(report: Comparison) -> Iterator[Sequence[str]]:
    """The table's cells, the header first."""
    yield "", "tenuto", "restate", "naive", "tenuto is better by", "what"
    for line in outcome(report):
        naive = median_naive(report) if line.row.name == "w1" else None
        yield (
            line.row.name,
            figure(line, TENUTO),
            figure(line, RESTATE),
            f"{naive:,.0f}" if naive else "",
            f"{line.ratio:.2f} x" if line.ratio is not None else "-",
            f"{line.row.title} ({line.row.unit})",
        )


def figure(line: Line, side: str) -> str:
    """A median; with a star when no round of it was quiet."""
    if side not in line.medians:
        return ""
    value = line.medians[side]
    noisy = line.noisy[side] == len(line.rounds[side])
    return f"{value:,.0f}{'*' if noisy else ''}" if line.row.more else f"{value:,.1f}{'*' if noisy else ''}"


def cpu_rows(report: Comparison) -> Iterator[Sequence[str]]:
    """CPU by process: a line for each pass and side."""
    by_pass = {
        (name, side): cpu_by_process(rounds) for name, sides in report.founds.items() for side, rounds in sides.items()
    }
    roles = sorted({role for cpu in by_pass.values() for role in cpu})
    yield "", *roles, "invocations an event", "others took"
    for (name, side), cpu in by_pass.items():
        shown = [f"{cpu[role]:.2f}" if role in cpu else "" for role in roles]
        rounds = report.founds[name][side]
        invocations = median([found.invocations_per_event for found in rounds])
        others = median([found.others for found in rounds])
        yield f"{name} {side}", *shown, f"{invocations:.2f}", f"{others:.0%}"


def median_naive(report: Comparison) -> float | None:
    """Events a second of the consumer without an engine."""
    return median([result.events_per_s for result in report.naive]) if report.naive else None
