"""Work that is done side by side, and waited for to its end.

Owns that nothing of it is in progress afterwards, whatever fails. Does not own what is done, nor how much at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def all_of(work: Iterable[Coroutine[Any, Any, T]], name: str) -> list[T]:
    """The results of all, in order. An error is raised when every one has ended."""
    loop = asyncio.get_running_loop()
    # Named alike in every run: the simulation's histories tell of tasks by their names.
    tasks = [loop.create_task(one, name=f"{name} {number}") for number, one in enumerate(work)]
    results: list[T] = []
    for end in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(end, BaseException):
            raise end
        results.append(end)
    return results
