"""Which thread does what: where a step runs, and where a durable write is made.

Owns the rule, as pure functions. Does not own running anything (`step_tasks`, `write_loop`).

Between two completions a handler's tasks all wait. If exactly one command can complete next, nothing else can happen
before it does, so the function's own thread has nothing better to do than to bring it about: a change of threads would
only cost time. As soon as a second one can, that thread stays free.
"""

from __future__ import annotations

from enum import Enum


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


def step_place(*, is_async: bool, other_steps: int, awaits_outside: bool) -> StepPlace:
    """Where a step runs. See `may_hold_thread`."""
    if is_async:
        return StepPlace.LOOP
    if may_hold_thread(other_steps=other_steps, awaits_outside=awaits_outside):
        return StepPlace.HERE
    return StepPlace.THREAD
