"""Run the simulation by hand: `--seeds 0..999 --jobs 2`, or replay one seed with its history.

Owns the command line. Does not own running a world (`world`).
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from tenuto_control.arguments import real, whole
from tests.simulation import faults, scenarios
from tests.simulation.gate import CrashPoint
from tests.simulation.runner import judge_seeds, quiet
from tests.simulation.world import Scenario, run


def main() -> int:
    """The exit status: 1 when a law was broken."""
    arguments = _arguments()
    if arguments.seeds is not None:
        first, last = (int(part) for part in arguments.seeds.split(".."))
        return _many(first, last, arguments)
    scenario = _one(arguments)
    quiet()
    report = run(scenario, print if arguments.trace else None)
    for violation in report.violations:
        print(violation)
    print(f"virtual time {report.took_ms / 1000:.1f} s, invocations {report.invocations}, faults {dict(report.faults)}")
    print(f"requests {report.requests}")
    print("passed" if report.passed else "FAILED")
    return 0 if report.passed else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seeds", metavar="A..B", help="run these seeds, the last included")
    what.add_argument("--seed", type=whole(0, 2**63), help="run one seed")
    what.add_argument("--small", choices=sorted(scenarios.SMALL), help="run one of the fixed scenarios")
    parser.add_argument("--jobs", type=whole(1, 10_000_000), default=2, help="processes for --seeds")
    parser.add_argument("--seconds", type=real(0, 1_000_000), default=3600.0, help="time for --seeds")
    parser.add_argument("--faults", choices=sorted(faults.PROFILES), help="instead of faults drawn from the seed")
    parser.add_argument("--shape", choices=scenarios.SHAPES, help="instead of the shape drawn from the seed")
    parser.add_argument("--crash", metavar="ROLE:N:WHEN", help='for --small, such as "control:3:after"')
    parser.add_argument("--without", action="append", default=[], help="leave out the clause with this label")
    parser.add_argument("--trace", action="store_true", help="print every write as it happens")
    return parser.parse_args()


def _one(arguments: argparse.Namespace) -> Scenario:
    if arguments.seed is not None:
        scenario = scenarios.drawn(arguments.seed, arguments.faults, arguments.shape)
    else:
        scenario = scenarios.SMALL[arguments.small]
    if arguments.crash:
        role, number, when = arguments.crash.split(":")
        scenario = replace(scenario, crash=CrashPoint(role, int(number), when))
    return replace(scenario, without=frozenset(arguments.without))


def _many(first: int, last: int, arguments: argparse.Namespace) -> int:
    began, ran, failed = time.monotonic(), 0, 0
    for count, failures in judge_seeds(
        first, last, jobs=arguments.jobs, seconds=arguments.seconds, profile=arguments.faults, shape=arguments.shape
    ):
        ran += count
        failed += len(failures)
        for verdict in failures:
            print(verdict.text() if arguments.trace else f"{verdict.name}: {verdict.problem}\n  {verdict.replay}")
    print(f"{ran} seeds in {time.monotonic() - began:.0f} s, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
