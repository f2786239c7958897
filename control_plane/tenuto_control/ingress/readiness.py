"""Readiness: whether calls can be served right now.

Owns the probe of the table. Does not own its route or its time limit (`app`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tenuto.lane.transitions import SWEEP_CURSOR
from tenuto.store.port import Table, TableRefusedError, TableUnavailableError


def probe(table: Table) -> Callable[[], Awaitable[str | None]]:
    """A probe that says why the table cannot be used, None when it can."""

    async def ask() -> str | None:
        try:
            await table.get(SWEEP_CURSOR)
        except (TableUnavailableError, TableRefusedError) as e:
            return str(e)
        return None

    return ask
