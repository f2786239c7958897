"""Which offset of a partition may be committed: the lowest one whose work is not finished.

Owns the window of delivered, unfinished offsets of one partition and its weight, on which pausing is decided.
Does not own when to commit or to pause (`tenuto_control.loops.consume`).
"""

from __future__ import annotations

import heapq


class OffsetWindow:
    """Offsets of one partition between delivery and release.

    Offsets may have gaps (compacted topics, transaction markers), may repeat, and may fall back when the log
    was truncated or its topic created again: what may be committed is then the lower position, so that a
    restart repeats rather than skips.
    """

    __slots__ = ("_bytes", "_heap", "_position", "_unfinished")

    def __init__(self) -> None:
        self._unfinished: dict[int, int] = {}
        # Every unfinished offset is on the heap; finished ones leave it when they reach its top, which keeps
        # `finish` O(1).
        self._heap: list[int] = []
        self._bytes = 0
        self._position: int | None = None

    @property
    def records(self) -> int:
        """How many delivered records are unfinished."""
        return len(self._unfinished)

    @property
    def bytes(self) -> int:
        """What the unfinished records weigh."""
        return self._bytes

    def deliver(self, offset: int, size_bytes: int) -> bool:
        """Take a record into the window.

        False when that offset is in it already: the record is not to be run again.
        """
        if offset in self._unfinished:
            return False
        self._position = offset + 1
        self._unfinished[offset] = size_bytes
        self._bytes += size_bytes
        heapq.heappush(self._heap, offset)
        return True

    def finish(self, offset: int) -> int:
        """The record no longer has to be held; what it weighed. Unknown and finished offsets change nothing: 0."""
        weight = self._unfinished.pop(offset, 0)
        self._bytes -= weight
        while self._heap and self._heap[0] not in self._unfinished:
            heapq.heappop(self._heap)
        return weight

    @property
    def committable(self) -> int | None:
        """The next offset to read after a restart; None when nothing was delivered yet."""
        if self._position is None or not self._heap:
            return self._position
        return min(self._heap[0], self._position)
