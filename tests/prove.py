"""The long proof: model, crashes, mutants, foreign bytes, kills, control planes on the real stack, requests, seeds.

Owns the order, the budgets (TENUTO_PROVE_SECONDS for the simulation, of which mutants take what they need, and
TENUTO_PROVE_CHAOS_EVENTS for the real stack, TENUTO_PROVE_MODEL_STATES for each scenario of the model) and the last
line. Does not own what is proven (`tests.model`, `tests.simulation`, `tests.stack.chaos`).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable

from tenuto.protocol.limits import BESIDE_MAX
from tests.attack.examples import EVERY, TIMES
from tests.model import proof
from tests.simulation import exhaustive, mutants, scenarios
from tests.simulation.directed import DIRECTED
from tests.simulation.runner import Verdict, judge_seeds
from tests.stack import chaos, hand_over

DEFAULT_SECONDS = 420.0
DEFAULT_CHAOS_EVENTS = 20_000
CHAOS_EVENTS_PER_SECOND = 50
"""What the real stack does on two cores under kills: the kills go on for about as long as the events do."""

CHAOS_KEYS = 300
FIRST_SEED = 1_000_000
SEEDS_MAX = 100_000_000
SEEDS_SECONDS_MIN = 30.0
SHOWN_MAX = 10
SHOWN_LINES_MAX = 60
ATTACK_TIMES = 10
ATTACK_TEST_SECONDS_MAX = 1_200


class Tally:
    """Counts, and prints the first failures in full."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0

    def take(self, count: int, failures: list[Verdict]) -> None:
        """Some runs are over, and these of them failed."""
        self.passed += count - len(failures)
        for verdict in failures:
            self.failed += 1
            if self.failed <= SHOWN_MAX:
                print(verdict.text(), flush=True)


def main() -> int:
    """The exit status: 1 when anything failed."""
    seconds = float(os.environ.get("TENUTO_PROVE_SECONDS", DEFAULT_SECONDS))
    began = time.monotonic()
    tally = Tally()
    _model(tally, int(os.environ.get("TENUTO_PROVE_MODEL_STATES", proof.STATES_MAX)))
    modelled, began = tally.passed + tally.failed, time.monotonic()
    print(f"crashes before and after every write of {len(scenarios.SMALL)} scenarios", flush=True)
    for verdict in exhaustive.judge_all(list(scenarios.SMALL)):
        tally.take(1, [] if verdict.problem is None else [verdict])
    print(f"  {tally.passed + tally.failed - modelled} runs, {time.monotonic() - began:.0f} s", flush=True)
    _mutants(tally)
    _attacks(tally)
    simulated = time.monotonic() - began
    events = int(os.environ.get("TENUTO_PROVE_CHAOS_EVENTS", DEFAULT_CHAOS_EVENTS))
    for keys in (1, BESIDE_MAX):
        _chaos(tally, events // 2, keys)
    _hand_over(tally)
    _combinations(tally)
    left = max(SEEDS_SECONDS_MIN, seconds - simulated)
    print(f"random seeds from {FIRST_SEED} for {left:.0f} s", flush=True)
    said = time.monotonic()
    for count, failures in judge_seeds(FIRST_SEED, FIRST_SEED + SEEDS_MAX, jobs=os.cpu_count() or 1, seconds=left):
        tally.take(count, failures)
        if time.monotonic() - said > 30:
            said = time.monotonic()
            print(f"  {tally.passed} passed, {tally.failed} failed so far", flush=True)
    print(f"{tally.passed} passed, {tally.failed} failed")
    return 1 if tally.failed else 0


def _model(tally: Tally, states_max: int) -> None:
    """Every interleaving of small scenarios, as far as so many states of each."""
    print(f"the model of the protocol, up to {states_max:,} states of each scenario", flush=True)
    for part in proof.prove(states_max):
        print(f"  {part.line}", flush=True)
        tally.take(1, [] if part.problem is None else [Verdict(part.name, "python -m tests.model", part.problem)])


def _chaos(tally: Tally, events: int, keys: int) -> None:
    """SIGKILL on the real stack, with so many keys in an invocation; none with TENUTO_PROVE_CHAOS_EVENTS=0."""
    if not events:
        return
    seed = int(time.time()) % 1_000_000
    print(f"kills on the real stack: {events} events, up to {keys} keys in an invocation, seed {seed}", flush=True)
    options = chaos.Options(
        events=events, keys=CHAOS_KEYS, seconds=events / CHAOS_EVENTS_PER_SECOND, seed=seed, concurrent_keys=keys
    )
    began = time.monotonic()
    report = asyncio.run(chaos.run(options, lambda line: print(f"  {line}", flush=True)))
    print(f"  {report.line()}, {time.monotonic() - began:.0f} s", flush=True)
    wrong = [*report.differences, *report.tracebacks]
    tally.take(
        1, [Verdict("kills on the real stack", chaos.replay(options), "; ".join(wrong[:SHOWN_MAX]))] if wrong else []
    )


def _hand_over(tally: Tally) -> None:
    """One key over several real control planes; left out with TENUTO_PROVE_CHAOS_EVENTS=0."""
    if os.environ.get("TENUTO_PROVE_CHAOS_EVENTS") == "0":
        return
    for planes in hand_over.PLANES:
        print(f"one key over {planes} control planes", flush=True)
        wrong = asyncio.run(hand_over.measure(lambda line: print(f"  {line}", flush=True), planes)).problems()
        tally.take(1, [Verdict("hand-over", "python -m tests.stack.hand_over", "; ".join(wrong))] if wrong else [])


def _attacks(tally: Tally) -> None:
    """Foreign bytes into every decoder and loop, many more of them than `make test` generates."""
    print(f"foreign bytes, {ATTACK_TIMES} times as many as in make test", flush=True)
    _tests(tally, "foreign bytes", "tests/attack", TIMES, str(ATTACK_TIMES))


def _combinations(tally: Tally) -> None:
    """Every pair of requests with one idempotency key, where `make test` plays a share."""
    print("every combination of repeated requests", flush=True)
    # One file, whose tests share nothing: both cores take part.
    _tests(tally, "repeated requests", "tests/hostile/test_idempotency.py", EVERY, "1", spread="load")


def _tests(tally: Tally, name: str, path: str, variable: str, value: str, *, spread: str = "loadfile") -> None:
    """Tests of `make test`, with the variable by which they do more."""
    command = [sys.executable, "-m", "pytest", "-q", "--numprocesses", "auto", "--dist", spread, path]
    command += ["--override-ini", f"faulthandler_timeout={ATTACK_TEST_SECONDS_MAX}"]
    environment = {**os.environ, variable: value}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    problem = "\n".join(ended.stdout.splitlines()[-SHOWN_LINES_MAX:]) if ended.returncode else None
    tally.take(1, [] if problem is None else [Verdict(name, f"{variable}={value} python -m pytest {path}", problem)])


def _mutants(tally: Tally) -> None:
    print(f"{len(mutants.DEADLY) + len(DIRECTED)} mutants of the protocol; equivalent by argument:", flush=True)
    for label, argument in mutants.EQUIVALENT.items():
        print(f"  {label}: {argument}")
    for label, schedule in DIRECTED.items():
        tally.take(1, _directed(label, schedule))
    for label in mutants.DEADLY:
        kill = mutants.hunt(label)
        if kill.verdict is None:
            problem = f"nobody missed it in {kill.runs} runs"
            tally.take(
                1, [Verdict(f"mutant {label}", f"python -m tests.simulation --seeds … --without {label}", problem)]
            )
        else:
            law = (kill.verdict.problem or "").partition(" at ")[0]
            print(f"  {label}: missed by {law} after {kill.runs} runs", flush=True)
            tally.take(1, [])


def _directed(label: str, schedule: Callable[[frozenset[str]], None]) -> list[Verdict]:
    """A schedule written for one clause: it has to break without the clause, and only then."""
    replay = "python -m pytest tests/simulation/test_mutants.py"
    try:
        schedule(frozenset())
    except AssertionError as e:
        return [Verdict(f"schedule for {label}", replay, f"broken with the clause: {e}")]
    try:
        schedule(frozenset([label]))
    except AssertionError as e:
        print(f"  {label}: missed by its schedule: {e}", flush=True)
        return []
    return [Verdict(f"mutant {label}", replay, "its schedule does not miss it")]


if __name__ == "__main__":
    sys.exit(main())
