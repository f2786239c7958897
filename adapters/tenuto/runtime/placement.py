"""Which thread does what: where a step runs, and where a durable write is made.

Owns the rule, as pure functions, and which steps are quick. Does not own running anything (`step_tasks`, `write_loop`).

Between two completions a handler's tasks all wait. If exactly one command can complete next, nothing else can happen
before it does, so the function's own thread has nothing better to do than to bring it about: a change of threads would
only cost time. As soon as a second one can, that thread stays free.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

QUICK_MS: Final = 2
"""A sync step that takes no longer costs less where it is than in another thread, even if other lanes wait for it."""

QUICK_IN_A_ROW: Final = 8
"""So many quick ones in a row make a step one of the quick ones."""

QUICK_NAMES_MAX: Final = 1_000
"""Names that are remembered: a handler may make up a name for each step."""


class StepPlace(Enum):
    """Where a step runs."""

    HERE = "here"
    """In the function's own thread, which it holds until it returns: no event loop runs meanwhile."""

    LOOP = "loop"
    """In a task of the function's own event loop, beside others."""

    THREAD = "thread"
    """In a worker thread, beside others."""


def may_hold_thread(*, other_steps: int, awaits_outside: bool) -> bool:
    """Whether one step, or a write for it, may hold the function's own thread.

    `other_steps` run or are about to. `awaits_outside`: some task waits for a sleep, a timeout or an answer, which
    could come first.
    """
    return not other_steps and not awaits_outside


def step_place(*, is_async: bool, other_steps: int, awaits_outside: bool, is_quick: bool = True) -> StepPlace:
    """Where a step runs. See `may_hold_thread`. Where other lanes share the thread, only a quick one holds it."""
    if is_async:
        return StepPlace.LOOP
    if is_quick and may_hold_thread(other_steps=other_steps, awaits_outside=awaits_outside):
        return StepPlace.HERE
    return StepPlace.THREAD


class QuickSteps:
    """Which sync steps of a process have been quick lately, by their names."""

    __slots__ = ("_in_a_row",)

    def __init__(self) -> None:
        self._in_a_row: dict[str, int] = {}

    def told(self, name: str, took_ms: int) -> None:
        """A step of that name has held a thread for so long."""
        if took_ms > QUICK_MS:
            self._in_a_row.pop(name, None)
        elif name in self._in_a_row or len(self._in_a_row) < QUICK_NAMES_MAX:
            self._in_a_row[name] = self._in_a_row.get(name, 0) + 1

    def has(self, name: str) -> bool:
        """Whether a step of that name may hold a thread that other lanes share."""
        return self._in_a_row.get(name, 0) >= QUICK_IN_A_ROW
