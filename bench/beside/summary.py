"""Medians over rounds, and ratios where they may be told.

Owns what a pass found, which rows there are, and the rule that refuses a ratio: a pass during which other processes
took more than a quarter of the machine does not count, and where a side has no other, its ratios are not told. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

import msgspec
from msgspec import Struct

from bench.figures import Processes

OTHERS_MAX: Final = 0.25
"""The share of the machine that other processes may take during a pass."""


class Found(Struct, frozen=True):
    """What one pass found: figures by the names of rows, CPU and memory by process, and how noisy it was."""

    values: dict[str, float]
    processes: dict[str, Processes]
    others: float
    """The share of the machine, 0 to 1, that processes outside of the bench took."""

    invocations_per_event: float
    repeats: int
    """Events whose handler reached its end more than once."""

    def also(self, values: Mapping[str, float], others: float) -> Found:
        """With what a second part of the pass found."""
        return msgspec.structs.replace(self, values={**self.values, **values}, others=max(self.others, others))


class Row(Struct, frozen=True):
    """One line of the result. `more` says whether a larger figure is the better one."""

    name: str
    title: str
    unit: str
    more: bool
    this: str
    """The pass that finds it."""


class Line(Struct, frozen=True):
    """A row's outcome: each side's median over its quiet rounds (all rounds, if none was), and the ratio or None.

    `ratio` is tenuto's advantage: above 1, tenuto has the better figure, whichever way is better.
    """

    row: Row
    medians: dict[str, float]
    rounds: dict[str, list[float]]
    noisy: dict[str, int]
    ratio: float | None
    refused: str | None


ROWS: Final = (
    Row("w1", "W1 get and set, a backlog over 1,000 keys", "events/s", True, "w1"),
    Row("w2", "W2 three runs and a set", "events/s", True, "w2"),
    Row("w2s", "W2s two runs, a sleep of 1 s, a run", "events/s", True, "w2s"),
    Row("w3", "W3 get and set, one hot key", "events/s", True, "w3"),
    Row("w4", "W4 user updates: four runs, a sleep of 1 s, state", "events/s", True, "w4"),
    Row("w4 wake p50", "W4 sleeps end late, under that load, p50", "ms", False, "w4"),
    Row("w4 wake p99", "W4 sleeps end late, under that load, p99", "ms", False, "w4"),
    Row("w4 half wake p50", "W4 sleeps end late, at half its own load, p50", "ms", False, "w4"),
    Row("w4 half wake p99", "W4 sleeps end late, at half its own load, p99", "ms", False, "w4"),
    Row("w5", "W5 calls, get and set, 64 connections", "calls/s", True, "w5"),
    Row("kafka p50", "Kafka record to end of handler at 100/s, p50", "ms", False, "w1"),
    Row("kafka p99", "Kafka record to end of handler at 100/s, p99", "ms", False, "w1"),
    Row("http p50", "HTTP call at 100/s, p50", "ms", False, "w5"),
    Row("http p99", "HTTP call at 100/s, p99", "ms", False, "w5"),
)

Founds = Mapping[str, Mapping[str, Sequence[Found]]]
"""What was found, by pass and then by side, a round each."""


def lines(founds: Founds, ours: str, theirs: str) -> list[Line]:
    """A line for each row that a pass was made for."""
    return [line_of(row, founds[row.this], ours, theirs) for row in ROWS if row.this in founds]


def line_of(row: Row, sides: Mapping[str, Sequence[Found]], ours: str, theirs: str) -> Line:
    """One row's outcome."""
    having = {side: [found for found in rounds if row.name in found.values] for side, rounds in sides.items()}
    having = {side: rounds for side, rounds in having.items() if rounds}
    quiet = {side: [found for found in rounds if is_quiet(found)] for side, rounds in having.items()}
    medians = {side: median([f.values[row.name] for f in quiet[side] or rounds]) for side, rounds in having.items()}
    refused = _refusal(having, quiet, (ours, theirs))
    ratio = None
    if refused is None and medians[ours] > 0 and medians[theirs] > 0:
        ratio = medians[ours] / medians[theirs] if row.more else medians[theirs] / medians[ours]
    return Line(
        row=row,
        medians=medians,
        rounds={side: [found.values[row.name] for found in rounds] for side, rounds in having.items()},
        noisy={side: len(rounds) - len(quiet[side]) for side, rounds in having.items()},
        ratio=ratio,
        refused=refused,
    )


def is_quiet(found: Found) -> bool:
    """Whether the machine was ours enough for its figures to be compared."""
    return found.others <= OTHERS_MAX


def _refusal(
    having: Mapping[str, Sequence[Found]], quiet: Mapping[str, Sequence[Found]], sides: tuple[str, str]
) -> str | None:
    missing = [side for side in sides if side not in having]
    if missing:
        return f"{' and '.join(missing)} not measured"
    if all(quiet[side] for side in sides):
        return None
    least = max(min(found.others for found in having[side]) for side in sides)
    return f"other processes took {least:.0%} of the machine"


def cpu_by_process(founds: Sequence[Found]) -> dict[str, float]:
    """Milliseconds of CPU an event, by process: the median over rounds."""
    roles = sorted({role for found in founds for role in found.processes})
    return {
        role: median([found.processes[role].cpu_ms_per_event for found in founds if role in found.processes])
        for role in roles
    }
