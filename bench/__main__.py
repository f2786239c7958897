"""`python -m bench`: run workloads, write the JSON, print the table.

Owns the command line. Does not own how anything is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from bench import kafka_load, machine, naive_load, rpc_load
from bench.commits import StalledError
from bench.environment import ROOT, require_embedded, settings
from bench.figures import NaiveResult, WorkloadResult
from bench.kafka_load import Say, WrongOutcomeError
from bench.report import COMPARED, NAIVE, Report, ratios, render
from bench.workloads import WORKLOADS, Workload
from tenuto_local.errors import ConfigurationError, LocalStackError

RESULTS: Final = ROOT / "bench" / "results"
NAMES: Final = (*WORKLOADS, NAIVE)
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. A failure is one line on standard error."""
    options = _parser().parse_args(arguments)
    try:
        report = asyncio.run(_interruptible(options.workloads, options.scale))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; everything is stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except ConfigurationError as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (LocalStackError, StalledError, WrongOutcomeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_FAILED
    except BaseExceptionGroup as errors:
        first = first_of(errors)
        print(f"bench: {type(first).__name__}: {first}", file=sys.stderr)
        return EXIT_FAILED
    out: Path = options.out or RESULTS / f"{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    print(f"\n{render(report)}\n\nwritten: {out}")
    return 0


async def _interruptible(names: Sequence[str], scale: float) -> Report:
    """Run, and take everything down first when told to end."""
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    with contextlib.suppress(NotImplementedError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run(names, scale, _say_since(time.monotonic()))


async def run(names: Sequence[str], scale: float, say: Say) -> Report:
    """Run the workloads of these names, and the baseline if it is among them.

    Raises ConfigurationError, LocalStackError, StalledError, WrongOutcomeError, or a group of these.
    """
    require_embedded()
    started = datetime.now(UTC)
    facts = machine.facts()
    results: dict[str, WorkloadResult] = {}
    for name in [name for name in WORKLOADS if name in names]:
        workload = WORKLOADS[name].scaled(scale)
        say(f"{name}: {workload.title}, {workload.events:,} events over {workload.keys:,} keys")
        results[name] = await _measure(workload, say)
    naive: NaiveResult | None = None
    if NAIVE in names:
        stream = WORKLOADS[COMPARED].scaled(scale)
        say(f"naive: one UpdateItem an event, {stream.events:,} events over {stream.keys:,} keys")
        naive = await naive_load.measure(stream, say)
    return Report(
        started=started.isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "bench", "--workloads", ",".join(names), "--scale", f"{scale:g}"]),
        scale=scale,
        machine=facts,
        settings=settings(),
        workloads=results,
        naive=naive,
        ratios=ratios(results.get(COMPARED), naive),
    )


async def _measure(workload: Workload, say: Say) -> WorkloadResult:
    measure = kafka_load.measure if workload.kind == "kafka" else rpc_load.measure
    return await measure(workload, say)


def _say_since(start_s: float) -> Say:
    return lambda text: print(f"{time.monotonic() - start_s:6.1f} s  {text}", flush=True)


def first_of(error: BaseException) -> BaseException:
    """The first cause of a group: the other tasks were cancelled, or failed likewise."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {w.name}  {w.title}: {w.events:,} over {w.keys:,} keys" for w in WORKLOADS.values())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure workloads on the embedded stack (docs/reference/benchmarks.md says how).",
        epilog=f"workloads:\n{listed}\n  naive  the baseline over the stream of {COMPARED}",
    )
    parser.add_argument(
        "--workloads", type=_names, default=list(NAMES), metavar="w1,w3", help="which ones, default: all of them"
    )
    parser.add_argument("--scale", type=positive_scale, default=1.0, help="share of the events and keys, default 1")
    parser.add_argument("--out", type=Path, help="where the JSON goes, default bench/results/<date>.json")
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or 'nothing'} is no workload; there are {', '.join(NAMES)}"
        )
    return names


def positive_scale(text: str) -> float:
    """The argument of --scale. Raises ArgumentTypeError."""
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not 0 < scale <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, at most 100")
    return scale


if __name__ == "__main__":
    sys.exit(main())
