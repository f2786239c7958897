"""`python -m bench.beside`: measure both systems alternately, write the JSON, print the table.

Owns the command line and the order of passes. Does not own how anything is measured.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from bench import machine, naive_load
from bench.__main__ import RESULTS, first_of, positive_scale
from bench.beside.calls import CallGenerator
from bench.beside.page import publish
from bench.beside.passes import PASSES, Pass, measure
from bench.beside.report import Comparison, render
from bench.beside.restate import SDK_VERSION, SERVER, install
from bench.beside.sides import AT_A_TIME, BROKER_VARIABLE, RESTATE, TENUTO, Opening, shared_broker
from bench.beside.summary import OTHERS_MAX, Found
from bench.commits import StalledError
from bench.environment import WORKERS, require_embedded, settings
from bench.figures import NaiveResult
from bench.kafka_load import Say, WrongOutcomeError
from bench.report import NAIVE
from bench.workloads import WORKLOADS
from tenuto_local.commands import run_to_end
from tenuto_local.dynoxide import find_program
from tenuto_local.errors import LocalStackError, PrerequisiteMissing, ProcessFailed
from tenuto_local.table_engine import ENGINES, NATIVE, REFERENCE

SIDES: Final = (TENUTO, RESTATE, NAIVE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. A failure is one line on standard error."""
    options = _parser().parse_args(arguments)
    return run_to_end("bench-beside", _run(options, sys.argv[1:] if arguments is None else arguments))


async def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    started = datetime.now(UTC)
    began_s = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began_s:6.1f} s  {text}", flush=True)

    try:
        report = await compare(options, say)
    except (StalledError, WrongOutcomeError) as error:
        raise LocalStackError(str(error)) from error
    except ExceptionGroup as errors:
        # Of calls that were under way together: the first says what is wrong, the others say the same.
        first = first_of(errors)
        raise LocalStackError(f"{type(first).__name__}: {first}") from errors
    report = msgspec.structs.replace(
        report,
        started=started.isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "bench.beside", *arguments]),
        seconds=round(time.monotonic() - began_s, 1),
    )
    _keep(report, options.out or RESULTS / f"beside-{started:%Y-%m-%dT%H%M%SZ}.json", options.publish)
    return 0


def _keep(report: Comparison, out: Path, page: Path | None) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    print(f"\n{render(report)}\n\nwritten: {out}")
    if page is not None:
        print(f"written: {publish(report, page)}")


async def compare(options: argparse.Namespace, say: Say) -> Comparison:
    """All rounds. Raises ConfigurationError, LocalStackError, StalledError, WrongOutcomeError, or a group of these."""
    require_embedded()
    programs = await install(say) if RESTATE in options.sides else None
    engine = options.engine or await _engine(say)
    calls = CallGenerator()
    say(f"table engine {ENGINES[engine].title()}, calls by {calls.name}")
    facts = machine.facts()
    opening = Opening(
        engine,
        programs,
        on_disk=options.table_on_disk,
        processes=options.processes,
        at_a_time=options.at_a_time,
    )
    sides = [side for side in options.sides if side != NAIVE]
    founds: dict[str, dict[str, list[Found]]] = {name: {side: [] for side in sides} for name in options.passes if sides}
    naive: list[NaiveResult] = []
    stalled: list[str] = []
    async with shared_broker(say):
        for number in range(options.rounds):
            # Who begins is swapped every round: what warms up or fills up meanwhile favours neither.
            order = sides if number % 2 == 0 else sides[::-1]
            for name in founds:
                this = PASSES[name].scaled(options.scale)
                for side in order:
                    found = await _measured(opening, side, this, calls, stalled, say)
                    founds[name][side].append(found)
                    say(f"round {number + 1}: {_told(name, side, found)}")
            if NAIVE in options.sides and "w1" in options.passes:
                workload = WORKLOADS["w1"].scaled(options.scale)
                naive.append(await naive_load.measure(workload, say, f"naive-{number}", engine))
    return Comparison(
        started="",
        command="",
        scale=options.scale,
        rounds=options.rounds,
        machine=facts,
        settings={
            **settings(engine, on_disk=options.table_on_disk),
            "function_workers": options.processes,
            "at_a_time": min(options.at_a_time, options.processes),
            "calls": calls.name,
            "restate": f"server {SERVER.version}, SDK {SDK_VERSION}, Lambda transport" if programs else "",
        },
        founds=founds,
        naive=naive,
        stalled=stalled,
    )


async def _measured(
    opening: Opening, side: str, this: Pass, calls: CallGenerator, stalled: list[str], say: Say
) -> Found:
    """One pass; one that stalled or could not start is repeated once, and told in the report."""
    try:
        return await measure(opening, side, this, calls)
    except (StalledError, ProcessFailed) as error:
        say(f"{this.name} is repeated: {error}")
        stalled.append(f"{this.name}: {error}")
    return await measure(opening, side, this, calls)


async def _engine(say: Say) -> str:
    """The native table engine where it can be had, for it leaves the machine to what is measured."""
    try:
        await find_program(say)
    except PrerequisiteMissing as error:
        say(f"DynamoDB Local is the table engine, which makes tenuto slower: {error}")
        return REFERENCE.name
    return NATIVE.name


def _told(name: str, side: str, found: Found) -> str:
    figures = ", ".join(f"{row} {value:,.1f}" for row, value in found.values.items())
    noise = f"; others took {found.others:.0%} of the machine" if found.others > OTHERS_MAX else ""
    return f"{name} {side}: {figures}{noise}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.beside",
        description="Measure tenuto beside Restate on this machine (docs/benchmarks says how).",
        epilog=f"It starts the broker itself; {BROKER_VARIABLE} must not be set.",
    )
    parser.add_argument("--rounds", type=int, choices=range(1, 21), default=3, metavar="3", help="rounds, default 3")
    parser.add_argument("--scale", type=positive_scale, default=1.0, help="share of events and seconds, default 1")
    parser.add_argument("--passes", type=_of(PASSES), default=list(PASSES), metavar="w1,w2", help="which, default all")
    parser.add_argument("--sides", type=_of(SIDES), default=list(SIDES), metavar=",".join(SIDES), help="default all")
    parser.add_argument(
        "--engine", choices=list(ENGINES), help="tenuto's table engine; default dynoxide, if it is there"
    )
    parser.add_argument(
        "--processes", type=int, choices=range(1, 65), default=WORKERS, metavar="8", help="of each system's function"
    )
    parser.add_argument(
        "--at-a-time",
        type=int,
        choices=range(1, 65),
        default=AT_A_TIME,
        metavar="3",
        help="tenuto's invocations at a time, of up to eight keys each",
    )
    parser.add_argument("--table-on-disk", action="store_true", help="tenuto's table in a file, not in memory")
    parser.add_argument("--out", type=Path, help="where the JSON goes, default bench/results/beside-<date>.json")
    parser.add_argument(
        "--publish", type=Path, metavar="docs/benchmarks", help="also write the page and its plot there"
    )
    return parser


def _of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Reads a list of these names, separated by commas."""
    known = list(names)

    def read(text: str) -> list[str]:
        asked = [name.strip().lower() for name in text.split(",") if name.strip()]
        unknown = [name for name in asked if name not in known]
        if unknown or not asked:
            wrong = ", ".join(unknown) or "nothing"
            raise argparse.ArgumentTypeError(f"{wrong} is not known; there are {', '.join(known)}")
        return asked

    return read


if __name__ == "__main__":
    sys.exit(main())
