"""The open connections of one server: how many there may be, and which of them go first.

Owns the order in which connections are given up. Does not own their protocol (`http_protocol`).
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

from tenuto_control.limits import HTTP_AHEAD_BYTES_MAX

FILES_KEPT: Final = 512
"""Files that are no callers': connections to AWS and Kafka, and some to spare."""


REFUSED_MAX: Final = FILES_KEPT // 2
"""Connections beyond the bound that are told so before they end. Others only end."""

SILENT_S_MIN: Final = 2.0
"""How long a connection must have been silent to be given up: what it sent may not have been read yet."""


class Silent(Protocol):
    """A connection that can be given up."""

    def give_up(self) -> None:
        """End it at once: nobody is owed an answer on it."""
        ...


class Connections:
    """Counts connections, and gives up silent ones when there are too many.

    First go those that have sent no whole request for the longest time, since they opened or since their last request
    began; then those that are open only to be used again. A connection with a request under way stays, and so does what
    has been silent for less than `SILENT_S_MIN`. `now_s` is any clock that only goes forward.
    """

    def __init__(self, connections_max: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self._max = connections_max
        self._now_s = now_s
        self._incomplete: OrderedDict[Silent, float] = OrderedDict()
        self._idle: OrderedDict[Silent, float] = OrderedDict()
        self._open = 0
        self._refused = 0
        self._ahead = 0

    def opened(self, connection: Silent) -> bool:
        """A connection was opened. False when there is no place for it, and none that can be made."""
        if self._open >= self._max and not self._give_one_up():
            return False
        self._open += 1
        self._incomplete[connection] = self._now_s()
        return True

    def closed(self, connection: Silent) -> None:
        """A connection that had a place has ended."""
        self._open -= 1
        self.works(connection)

    def refused(self, change: int) -> bool:
        """One more or one less (-1) of those without a place is about to be told so. False when there are too many."""
        self._refused += change
        return self._refused <= REFUSED_MAX

    def ahead(self, change: int) -> bool:
        """So many bytes more, or less, wait behind requests that are in progress. False when there are too many."""
        self._ahead += change
        return self._ahead <= HTTP_AHEAD_BYTES_MAX

    def begins(self, connection: Silent) -> None:
        """A request begins to arrive."""
        if self._idle.pop(connection, None) is not None:
            self._incomplete[connection] = self._now_s()

    def works(self, connection: Silent) -> None:
        """A whole request is here, and in progress."""
        self._idle.pop(connection, None)
        self._incomplete.pop(connection, None)

    def idles(self, connection: Silent) -> None:
        """The request was answered, and no other has begun."""
        self._incomplete.pop(connection, None)
        self._idle[connection] = self._now_s()

    def _give_one_up(self) -> bool:
        before_s = self._now_s() - SILENT_S_MIN
        for silent in (self._incomplete, self._idle):
            if silent and next(iter(silent.values())) <= before_s:
                connection, _ = silent.popitem(last=False)
                connection.give_up()
                return True
        return False


def connections_possible(wanted: int) -> int:
    """How many connections this process can hold, at most `wanted`. Raises its limit of open files as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + FILES_KEPT
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, max(soft - FILES_KEPT, soft // 2)))
