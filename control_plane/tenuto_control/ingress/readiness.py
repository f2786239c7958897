"""Readiness: whether calls can be served right now, and what else there is to know.

Owns the probe of the table and the notes of partitions that cannot be read, of functions that do not answer, and of
loops that failed. Does not own its route or its time limit (`app`), nor finding such ones (`loops.unreadable`,
`admin.deployments`, `loops.restarts`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from tenuto.lane.timers import SWEEP_CURSOR
from tenuto.store.port import Table, TableRefusedError, TableUnavailableError
from tenuto_control.core.clocks import ClockCheck
from tenuto_control.ports import StoppedLoop, Unreadable

NOBODY: Final[Mapping[str, str]] = MappingProxyType({})
"""No function whose answer does not count."""


def probe(table: Table) -> Callable[[], Awaitable[str | None]]:
    """A probe that says why the table cannot be used, None when it can."""

    async def ask() -> str | None:
        try:
            await table.get(SWEEP_CURSOR)
        except (TableUnavailableError, TableRefusedError) as e:
            return str(e)
        return None

    return ask


def ready(
    unreadable: Iterable[Unreadable],
    clock: ClockCheck | None = None,
    unanswered: Mapping[str, str] = NOBODY,
    stopped: Iterable[StoppedLoop] = (),
) -> dict[str, Any]:
    """What a control plane says that can serve calls: `clock` is how its clock compares with the table's.

    A clock that differs leaves it ready: it serves calls, and leaves taking over runs to others.

    A partition that cannot be read, a function whose answer to discovery does not count (`unanswered`: why), and a loop
    that failed and is begun again, are told here and leave it ready: another process would fare no better, and to take
    this one away would cost the calls, the sleeps, and all other partitions and functions.
    """
    notes = [
        {
            "topic": one.partition.topic,
            "partition": one.partition.partition,
            "offset": one.offset if one.offset >= 0 else None,
            "reason": one.reason,
        }
        for one in unreadable
    ]
    told: dict[str, Any] = {"status": "ready"}
    if clock is not None:
        told["clock"] = {"ahead_of_table_ms": clock.offset_ms, "within_ms": clock.within_ms}
    if notes:
        told["unreadable"] = notes
    if unanswered:
        told["unanswered"] = [{"function": name, "reason": reason} for name, reason in unanswered.items()]
    loops = [{"loop": one.name, "since_ms": one.since_ms, "reason": one.reason} for one in stopped]
    if loops:
        told["stopped"] = loops
    return told
