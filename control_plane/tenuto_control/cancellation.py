"""Cancellations that are meant, and those that escaped from a library.

Owns telling them apart. Does not own what follows.
"""

from __future__ import annotations

import asyncio


def is_meant() -> bool:
    """Whether somebody asked the current task to end.

    A library that cancels its own task and awaits it may raise CancelledError in whoever called it. Taken for a
    meant one, it ends a loop without a word and for good.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
