"""A coroutine of a test, run to its end within a bound: what waits for ever fails, and says where it waited.

Owns the bound. Does not own what is run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

RUN_TIMEOUT_S = 60.0
T = TypeVar("T")


def run(work: Coroutine[Any, Any, T], timeout_s: float = RUN_TIMEOUT_S) -> T:
    """Run a coroutine to its end in a loop of its own, for at most `timeout_s` seconds."""

    async def bounded() -> T:
        async with asyncio.timeout(timeout_s):
            return await work

    return asyncio.run(bounded())
