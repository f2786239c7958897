"""Hints: what a process is told of at once that it has put into the table itself.

Owns the port and its silent twin. Does not own what is put, nor what follows. Any hint may be lost: what it tells of is
in the table, and a guard or timer leads there.
"""

from __future__ import annotations

from typing import Protocol

from tenuto.lane.timers import SendTimer
from tenuto.protocol.ids import Lane
from tenuto.protocol.records import Result


class Hints(Protocol):
    """Who hears of it."""

    def look(self, lane: Lane) -> None:
        """Something was put into a lane's inbox or slots."""
        ...

    def told(self, invocation: str, result: Result) -> None:
        """The result of an invocation was stored."""
        ...

    def remind(self, timer: SendTimer) -> None:
        """A delayed message was put, which waits for its time."""
        ...


class NoHints:
    """For a process that runs no lanes: a control plane comes by."""

    def look(self, lane: Lane) -> None:
        """See `Hints.look`."""

    def told(self, invocation: str, result: Result) -> None:
        """See `Hints.told`."""

    def remind(self, timer: SendTimer) -> None:
        """See `Hints.remind`."""
