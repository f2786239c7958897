"""Which lanes of one process nap, whether another may, and how long their leases surely last.

Does not own when a nap ends (`core.lane_policy`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Head
from tenuto.protocol.records import Event


class Naps:
    """The lanes in which this process is to end a nap.

    `wrong_clock` says whether this process's clock is known to differ from the table's; `monotonic_s` is one that
    nobody sets.
    """

    def __init__(
        self, most: int, event_bytes_max: int, wrong_clock: Callable[[], bool], monotonic_s: Callable[[], float]
    ) -> None:
        self._most = most
        self._event_bytes_max = event_bytes_max
        self._wrong_clock = wrong_clock
        self._monotonic_s = monotonic_s
        self._ends_s: dict[Lane, float] = {}
        self._closed = 0

    def __len__(self) -> int:
        return len(self._ends_s)

    def may(self, events: Sequence[Event]) -> bool:
        """Whether an activation of these events may nap.

        Not while many lanes do, nor with much input, nor where lanes are to be let go or the clock is wrong.
        """
        if self._closed or len(self) >= self._most or self._wrong_clock():
            return False
        return all(len(event.input or b"") <= self._event_bytes_max for event in events)

    def note(self, lane: Lane, head: Head | None, now_ms: int) -> None:
        """A lane naps, by this head; without one, it naps no more, or its lease is not known."""
        self.end(lane)
        if head is not None and head.run is not None:
            self._ends_s[lane] = self._monotonic_s() + (head.run.lease_ms - now_ms) / 1000

    def end(self, lane: Lane) -> None:
        """A lane naps no more."""
        self._ends_s.pop(lane, None)

    def left_ms(self, lane: Lane, head: Head, now_ms: int) -> int:
        """How much longer the lease of a lane's run lasts for sure, by this process's clock and by the other one."""
        if lane not in self._ends_s or head.run is None or self._wrong_clock():
            return 0
        return int(min(head.run.lease_ms - now_ms, (self._ends_s[lane] - self._monotonic_s()) * 1000))

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Give no leave meanwhile: lanes are to be let go."""
        self._closed += 1
        try:
            yield
        finally:
            self._closed -= 1

    def clear(self) -> None:
        """Forget the lanes."""
        self._ends_s.clear()
