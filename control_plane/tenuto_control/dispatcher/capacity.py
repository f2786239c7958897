"""How many invocations run at once, in all and per function.

Owns the semaphores. Does not own what is done with a place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tenuto_control.ports import Target


class Capacity:
    """Places for invocations: first come, first served."""

    def __init__(self, total: int) -> None:
        self._all = asyncio.Semaphore(total)
        self._functions: dict[str, asyncio.Semaphore] = {}

    @asynccontextmanager
    async def place(self, target: Target) -> AsyncIterator[None]:
        """Hold a place while an invocation of the target's function runs."""
        own = self._functions.setdefault(target.function, asyncio.Semaphore(target.concurrency))
        async with own, self._all:
            yield
