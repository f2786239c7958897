"""`python -m bench.scaling`: how tenuto's cost of an event follows keys, sizes of heads, journals and control planes.

Owns the four series, the rule that says where one grows faster than it should, and its plots. Does not own how an event
is observed (`beside.passes`).
"""

from __future__ import annotations

import argparse
import math
import random
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from bench import machine
from bench.__main__ import RESULTS, positive_scale
from bench.beside.passes import ended, publish, warm_up
from bench.beside.sides import Opening, shared_broker
from bench.beside.summary import OTHERS_MAX
from bench.commits import StalledError
from bench.environment import WORKERS, require_embedded, settings
from bench.kafka_load import Say
from bench.resources import ResourceSampler
from bench.svg import lines
from bench.tables import aligned
from bench.workloads import SEED
from tenuto_local.commands import run_to_end
from tenuto_local.errors import LocalStackError
from tenuto_local.table_engine import ENGINES, chosen_engine

CODE: Final = "bench.scaling_handlers.handler"
TOLERANCE: Final = 0.25
"""What an exponent may be above the expected one before it is told: figures of short runs vary."""


class Series(Struct, frozen=True, kw_only=True):
    """Points along one size. The cost of an event is expected to grow with the size to the power of `exponent`.

    `events` says how many are sent for a size at full scale; `field` is what the size is called in an event.
    """

    name: str
    across: str
    handler: str
    sizes: tuple[float, ...]
    exponent: float
    events: tuple[int, ...]
    field: str | None = None
    keys: int = 1000


class Point(Struct, frozen=True):
    """One measurement: the size, milliseconds an event (all of it and CPU), and what other processes took."""

    size: float
    ms_per_event: float
    cpu_ms_per_event: float
    others: float


class Scaling(Struct, frozen=True, kw_only=True):
    """One run."""

    started: str
    command: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    points: dict[str, list[Point]]


SERIES: Final = {
    series.name: series
    for series in (
        Series(
            name="keys",
            across="keys",
            handler="hold",
            sizes=(1, 10, 100, 1_000, 10_000, 100_000),
            exponent=0,
            events=(10_000, 10_000, 10_000, 10_000, 20_000, 100_000),
        ),
        Series(
            name="heads",
            across="KB of state in a key",
            handler="hold",
            sizes=(0.2, 1, 4, 16, 64),
            exponent=1,
            events=(10_000, 10_000, 5_000, 2_000, 1_000),
            field="bytes",
            keys=200,
        ),
        Series(
            name="journals",
            across="steps of an event",
            handler="walk",
            sizes=(1, 10, 100, 1_000),
            exponent=1,
            events=(4_000, 800, 80, 16),
            field="steps",
            keys=200,
        ),
        Series(
            name="planes",
            across="control planes",
            handler="hold",
            sizes=(1, 2, 3, 4),
            exponent=0,
            events=(20_000, 20_000, 20_000, 20_000),
        ),
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. A failure is one line on standard error."""
    options = _parser().parse_args(arguments)
    return run_to_end("bench.scaling", _run(options, sys.argv[1:] if arguments is None else arguments))


async def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    require_embedded()
    began_s, started = time.monotonic(), datetime.now(UTC)

    def say(text: str) -> None:
        print(f"{time.monotonic() - began_s:6.1f} s  {text}", flush=True)

    engine = chosen_engine(options.engine).name
    facts = machine.facts()
    points: dict[str, list[Point]] = {}
    try:
        async with shared_broker(say):
            for name in options.series:
                points[name] = await _series(SERIES[name], Opening(engine, None, at_a_time=WORKERS), options.scale, say)
    except StalledError as error:
        raise LocalStackError(str(error)) from error
    report = Scaling(
        started=started.isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "bench.scaling", *arguments]),
        machine=facts,
        settings=settings(engine),
        points=points,
    )
    _keep(report, options.out or RESULTS / f"scaling-{started:%Y-%m-%dT%H%M%SZ}.json", options.publish)
    return 0


async def _series(series: Series, opening: Opening, scale: float, say: Say) -> list[Point]:
    points = []
    for size, full in zip(series.sizes, series.events, strict=True):
        events = max(8, round(full * scale))
        if series.name == "keys" and size > events:
            say(f"keys {size:g}: left out, {events:,} events would not touch them all")
            continue
        point = await _point(series, size, events, opening)
        points.append(point)
        say(f"{series.name} {size:g}: {point.ms_per_event:.2f} ms an event; others took {point.others:.0%}")
    return points


async def _point(series: Series, size: float, events: int, opening: Opening) -> Point:
    keys = round(size) if series.name == "keys" else series.keys
    planes = round(size) if series.name == "planes" else 1
    more = {"bytes": 100, "steps": 1}
    if series.field is not None:
        more[series.field] = round(size * 1000) if series.field == "bytes" else round(size)
    topic = f"{series.name}-{size:g}-{time.time_ns() // 1_000_000}"
    numbers = range(events)
    shuffled = [f"key-{number % keys:06d}" for number in numbers]
    random.Random(SEED).shuffle(shuffled)
    async with opening.tenuto(series.handler, topic, CODE, planes) as side, ResourceSampler() as resources:
        await warm_up(side, bytes=100, steps=1)
        resources.mark()
        await publish(side, list(zip(shuffled, numbers, strict=True)), **more)
        await ended(side, numbers)
        usage, others = resources.usage(events), resources.others()
        cpu_ms = sum(used.cpu_ms_per_event for role, used in usage.items() if role != "load generator")
        return Point(size, round(1000 / side.readings.per_s(numbers), 4), round(cpu_ms, 4), others)


def faster_than_expected(series: Series, points: Sequence[Point]) -> list[str]:
    """Where the cost of an event grows faster with the size than the series says, in words."""
    told = []
    for before, after in pairwise(points):
        grown = math.log(after.ms_per_event / before.ms_per_event) / math.log(after.size / before.size)
        if grown > series.exponent + TOLERANCE:
            told.append(
                f"{series.name}: from {before.size:g} to {after.size:g} {series.across}, the time of an event grows "
                f"with the power of {grown:.2f}, expected {series.exponent:g}"
            )
    return told


def render(report: Scaling) -> str:
    """The whole report as text."""
    rows = [("", "size", "ms an event", "CPU ms an event", "others", "")]
    rows += [
        (name, f"{p.size:,g}", f"{p.ms_per_event:.2f}", f"{p.cpu_ms_per_event:.2f}", f"{p.others:.0%}", "")
        for name, points in report.points.items()
        for p in points
    ]
    return "\n".join([*aligned(rows), "", *_verdicts(report)])


def _verdicts(report: Scaling) -> list[str]:
    told = []
    for name, points in report.points.items():
        others = max((point.others for point in points), default=0.0)
        if others > OTHERS_MAX:
            told.append(f"{name}: no verdict, other processes took up to {others:.0%} of the machine")
        else:
            told += faster_than_expected(SERIES[name], points)
    return told or ["No series grows faster than it should."]


def write_page(report: Scaling, folder: Path) -> Path:
    """Write the page and a plot for each series; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = report.machine
    head = (
        f"Written by `{report.command}` on {report.started}: {facts['cores']} cores ({facts['cpu']}), table engine "
        f"{report.settings['table']}, {report.settings['function_workers']} function processes. Everything shares the "
        "machine, so more control planes divide the same cores.\n"
    )
    parts = ["# How the cost of an event scales\n", head, *(f"- {line}" for line in _verdicts(report))]
    for name, points in report.points.items():
        series = SERIES[name]
        drawn = {
            "all of it": [(p.size, p.ms_per_event) for p in points],
            "CPU": [(p.size, max(p.cpu_ms_per_event, 1e-3)) for p in points],
        }
        (folder / f"scaling_{name}.svg").write_text(
            lines(f"milliseconds an event, by {series.across}", series.across, drawn)
        )
        parts.append(f"\n## By {series.across}\n\n![Milliseconds an event](scaling_{name}.svg)\n")
        parts.append("| | ms an event | CPU ms an event | others took |\n|---:|---:|---:|---:|")
        parts += [f"| {p.size:,g} | {p.ms_per_event:.2f} | {p.cpu_ms_per_event:.2f} | {p.others:.0%} |" for p in points]
    (folder / "scaling.md").write_text("\n".join(parts) + "\n")
    return folder / "scaling.md"


def _keep(report: Scaling, out: Path, page: Path | None) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    print(f"\n{render(report)}\n\nwritten: {out}")
    if page is not None:
        print(f"written: {write_page(report, page)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--scale", type=positive_scale, default=1.0, help="share of the events, default 1")
    parser.add_argument("--series", nargs="+", choices=list(SERIES), default=list(SERIES), help="default all")
    parser.add_argument("--engine", choices=list(ENGINES), help="the table engine")
    parser.add_argument("--out", type=Path, help="where the JSON goes, default bench/results/scaling-<date>.json")
    parser.add_argument(
        "--publish", type=Path, metavar="docs/benchmarks", help="also write the page and its plots there"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
