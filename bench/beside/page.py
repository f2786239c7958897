"""The page of one comparison: `docs/benchmarks/README.md`, its plot, and the JSON that both come from.

Owns their text. `python -m bench.beside.page RESULT.json docs/benchmarks` writes them from a stored result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.beside.report import Comparison, cpu_rows, outcome, refusals, table_rows
from bench.svg import bars

PAGE = "README.md"
PLOT = "beside.svg"
DATA = "beside.json"


def publish(report: Comparison, folder: Path) -> Path:
    """Write the page, the plot and the JSON; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLOT).write_text(plot(report))
    (folder / DATA).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    (folder / PAGE).write_text(text(report))
    return folder / PAGE


def plot(report: Comparison) -> str:
    """How many times better tenuto's figure is, a bar for each row."""
    rows = [
        (
            line.row.title,
            line.ratio,
            f"{line.ratio:.2f} x" if line.ratio is not None else f"no ratio: {line.refused}",
        )
        for line in outcome(report)
    ]
    return bars("tenuto beside Restate: how many times better tenuto's figure is", rows)


def text(report: Comparison) -> str:
    """The page."""
    machine, settings = report.machine, report.settings
    refused = [f"{this}: {reason}" for this, reason in refusals(report).items()]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return f"""\
# tenuto beside Restate

Written by `{report.command}`.
How it is measured: [benchmarks](../reference/benchmarks.md#tenuto-beside-restate).

![How many times better tenuto's figure is]({PLOT})

{_markdown(list(table_rows(report)))}

Medians of {report.rounds} {"round" if report.rounds == 1 else "rounds"} at scale {report.scale:g}.
A star marks a figure that is no measure of the system: during every round of it, other processes took more than a
quarter of the machine.
{_refusals(refused)}{_repeated(report.stalled)}
| | |
|---|---|
| measured | {report.started}, in {report.seconds / 60:.0f} minutes |
| machine | {machine["cores"]} cores ({machine["cpu"]}), {machine["memory_gb"]} GB, {machine["system"]} |
| Restate | {settings["restate"] or "not measured"} |
| tenuto | {packages} |
| function processes, for each system | {settings["function_workers"]} |
| invocations at a time | tenuto {settings["at_a_time"]}, of up to 8 keys each; Restate as many as processes |
| broker | {machine["kafka"]}, {settings["partitions"]} partitions; {machine["java"]} |
| tenuto's table | {settings["table"]} |
| calls | {settings["calls"]} |

## CPU milliseconds an event, by process

{_markdown(list(cpu_rows(report)))}

Every figure of every round is in [{DATA}]({DATA}).
"""


def _refusals(refused: Sequence[str]) -> str:
    return "\nNo ratio is told for " + "; ".join(refused) + ".\n" if refused else ""


def _repeated(stalled: Sequence[str]) -> str:
    return "\nRepeated: " + "; ".join(stalled) + ".\n" if stalled else ""


def _markdown(table: Sequence[Sequence[str]]) -> str:
    head, *rows = table
    divider = ["---", *["---:"] * (len(head) - 2), "---"]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, divider, *rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page from a stored result."""
    parser = argparse.ArgumentParser(prog="python -m bench.beside.page")
    parser.add_argument("result", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    report = msgspec.json.decode(options.result.read_bytes(), type=Comparison)
    print(f"written: {publish(report, options.folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
