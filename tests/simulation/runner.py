"""Runs many seeds, on several processor cores, and says how to replay one that fails.

Owns the budget of time and the words. Does not own what a seed means (`scenarios`).
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

from tests.simulation import scenarios
from tests.simulation.world import Report, Scenario, run

CHUNK = 20
"""Seeds one task of a worker process runs."""

TRACE_TAIL = 40


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one run: its name, how to repeat it, and the first violation (None: all laws held)."""

    name: str
    replay: str
    problem: str | None
    trace: tuple[str, ...] = ()

    def text(self) -> str:
        """For people."""
        if self.problem is None:
            return f"{self.name} passed"
        return "\n".join([f"{self.name} FAILED: {self.problem}", f"  replay: {self.replay}", *self.trace])


def judge(name: str, replay: str, scenario: Scenario) -> Verdict:
    """Run a scenario; an error of the simulation itself is a failure too."""
    quiet()
    try:
        report = run(scenario)
    except Exception as e:  # noqa: BLE001 - whatever breaks a run belongs to its seed
        return Verdict(name, replay, f"the simulation broke: {type(e).__name__}: {e}")
    return _verdict(name, replay, report)


def _verdict(name: str, replay: str, report: Report) -> Verdict:
    if report.passed:
        return Verdict(name, replay, None)
    return Verdict(name, replay, str(report.violations[0]), tuple(report.trace[-TRACE_TAIL:]))


def judge_seed(
    seed: int, profile: str | None = None, without: frozenset[str] = frozenset(), shape: str | None = None
) -> Verdict:
    """Run the random scenario of a seed."""
    flag = (f" --faults {profile}" if profile else "") + (f' --shape "{shape}"' if shape else "")
    replay = f"python -m tests.simulation --seed {seed}{flag} --trace"
    return judge(f"seed {seed}{flag}", replay, replace(scenarios.drawn(seed, profile, shape), without=without))


def quiet() -> None:
    """Faults make the product log a lot, as they should; here the laws speak."""
    logging.disable(logging.CRITICAL)


def judge_chunk(first: int, last: int, profile: str | None, shape: str | None = None) -> tuple[int, list[Verdict]]:
    """Run seeds first to last (inclusive): how many, and those that failed."""
    verdicts = [judge_seed(seed, profile, shape=shape) for seed in range(first, last + 1)]
    return len(verdicts), [v for v in verdicts if v.problem is not None]


def judge_seeds(
    first: int, last: int, *, jobs: int, seconds: float, profile: str | None = None, shape: str | None = None
) -> Iterator[tuple[int, list[Verdict]]]:
    """Run seeds from first to last until the time is up: after each chunk, how many ran and which of them failed."""
    deadline = time.monotonic() + seconds
    starts = iter(range(first, last + 1, CHUNK))
    if jobs <= 1:
        for start in starts:
            if time.monotonic() > deadline:
                return
            yield judge_chunk(start, min(start + CHUNK - 1, last), profile, shape)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {
            pool.submit(judge_chunk, start, min(start + CHUNK - 1, last), profile, shape)
            for start in itertools.islice(starts, jobs + 1)
        }
        try:
            while waiting:
                done = next(as_completed(waiting))
                waiting.discard(done)
                yield done.result()
                for start in itertools.islice(starts, 1 if time.monotonic() < deadline else 0):
                    waiting.add(pool.submit(judge_chunk, start, min(start + CHUNK - 1, last), profile, shape))
        except BrokenProcessPool as e:
            yield 1, [Verdict(f"seeds from {first}", "", f"a worker process died: {e}")]
