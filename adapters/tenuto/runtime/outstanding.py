"""The commands that a handler has issued and has not been told of yet: which of them have completed, and since when.

Owns the choice of the next completion, and the time that follows from those told. Does not own telling it, nor waiting
for more (`attempt`). Everything here takes about as long for ten thousand commands as for ten.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from msgspec import structs

from tenuto.machine.journal import Journal, due_name
from tenuto.protocol.records import AwakeableSlot, DueSlot, Failed, Result, RunSlot, SleptSlot, Success
from tenuto.runtime.futures import AwakeableFuture, DurableFuture, RunFuture, SleepFuture


class Outstanding:
    """Outstanding commands of one attempt, by index.

    `start_ms` is when the invocation began, `told_ms` the time of the last completion that was told (ms since the
    epoch).
    """

    def __init__(self, journal: Journal, now_ms: Callable[[], int], start_ms: int) -> None:
        self.told_ms = start_ms
        self.start_ms = start_ms
        self._journal = journal
        self._now_ms = now_ms
        self._all: dict[int, DurableFuture[Any]] = {}
        # Sleeps and awakeables, which wait for something outside of the function; steps that have not begun.
        self._outside: dict[int, DurableFuture[Any]] = {}
        self._unstarted: dict[int, RunFuture[Any]] = {}
        # Completed, by when; ends of sleeps, by when. Entries of commands that are told or discarded are passed over.
        self._completed: list[tuple[int, int]] = []
        self._due: list[tuple[int, int]] = []
        # Sleeps whose end no slot says yet.
        self._unnoted: list[SleepFuture] = []

    def __len__(self) -> int:
        """How many there are."""
        return len(self._all)

    def add(self, future: DurableFuture[Any]) -> None:
        """A command was issued."""
        self._all[future.index] = future
        if isinstance(future, RunFuture):
            self._unstarted[future.index] = future
        else:
            self._outside[future.index] = future
            if isinstance(future, SleepFuture):
                heapq.heappush(self._due, (future.due_ms, future.index))
                self._unnoted.append(future)
        self.look(future.index)

    def look(self, index: int) -> None:
        """Its outcome may be known already."""
        future = self._all.get(index)
        if future is not None and self.outcome(future) is not None:
            heapq.heappush(self._completed, (self._completed_ms(future), index))

    def discard(self, index: int) -> None:
        """Nobody will ever wait for it."""
        for kept in (self._all, self._outside, self._unstarted):
            kept.pop(index, None)

    def first(self) -> int | None:
        """The command that completed first, of those that have not been told."""
        now_ms = self._now_ms()
        while self._due and self._due[0][0] <= now_ms:
            heapq.heappush(self._completed, heapq.heappop(self._due))
        while self._completed and self._completed[0][1] not in self._all:
            heapq.heappop(self._completed)
        return self._completed[0][1] if self._completed else None

    def take(self, index: int) -> tuple[DurableFuture[Any], Result]:
        """A command is told now: its future and its outcome. Raises KeyError when it has none."""
        future = self._all[index]
        result = self.outcome(future)
        if result is None and isinstance(future, SleepFuture) and future.due_ms <= self._now_ms():
            self._journal.finish(future.slot, SleptSlot(max(0, self._now_ms() - self.start_ms)))
            result = Success()
        if result is None:
            raise KeyError(index)
        self.discard(index)
        self.told_ms = max(self.told_ms, self._completed_ms(future))
        return future, result

    def outcome(self, future: DurableFuture[Any]) -> Result | None:
        """What the journal has of a command."""
        match self._journal.slot(future.slot):
            case AwakeableSlot(Failed(failure)):
                # Whoever rejected it has written the text.
                return Failed(structs.replace(failure, foreign=True))
            case RunSlot(_, result) | AwakeableSlot(result):
                return result
            case SleptSlot():
                return Success()
            case _:
                return None

    def _completed_ms(self, future: DurableFuture[Any]) -> int:
        match self._journal.slot(future.slot):
            case RunSlot(after_ms=after_ms):
                return self.start_ms + after_ms
            case AwakeableSlot(at_ms=at_ms):
                return at_ms
            case SleptSlot(after_ms) if isinstance(future, SleepFuture):
                return max(self.start_ms + after_ms, future.due_ms)
            case _:
                return 0

    def note_ends(self) -> None:
        """Have the ends of sleeps journaled with the next write."""
        for future in self._unnoted:
            due = due_name(future.index)
            if not future.done() and self._journal.slot(due) is None:
                self._journal.finish(due, DueSlot(future.due_ms))
        self._unnoted.clear()

    # --- who waits --------------------------------------------------------------------------------------------------

    def anybody_waits(self) -> bool:
        """Whether any of them is awaited."""
        return any(future.awaited for future in self._all.values())

    def to_start(self) -> list[RunFuture[Any]]:
        """Steps that should run now: all that have not begun, but for those that interest nobody."""
        starting = [future for future in self._unstarted.values() if not future.lost]
        for future in starting:
            del self._unstarted[future.index]
        return [future for future in starting if self._journal.slot(future.slot) is None]

    def start_again(self, future: RunFuture[Any]) -> None:
        """A step that failed while nobody waited for it runs again should somebody wait for it later."""
        self._unstarted[future.index] = future

    def awaited(self) -> list[DurableFuture[Any]]:
        """Sleeps and awakeables that are awaited: what a suspension is for."""
        return [future for future in self._outside.values() if future.awaited]

    def waits_outside(self) -> bool:
        """Whether a sleep, a timer or an answer is awaited."""
        return bool(self._outside) and any(future.awaited for future in self._outside.values())

    def nearest_ms(self) -> int | None:
        """The first end of a sleep that is awaited."""
        if not self._outside:
            return None
        return min((f.due_ms for f in self._outside.values() if isinstance(f, SleepFuture) and f.awaited), default=None)

    def slept_by(self, time_ms: int) -> dict[str, SleptSlot]:
        """The slots of the awaited sleeps that are over at a time, as the journal will have them then."""
        sleeps = (future for future in self.awaited() if isinstance(future, SleepFuture))
        return {f.slot: SleptSlot(max(0, f.due_ms - self.start_ms)) for f in sleeps if f.due_ms <= time_ms}

    def may_be_answered(self) -> bool:
        """Whether an answer may come, be it awaited or not."""
        return bool(self._outside) and any(isinstance(future, AwakeableFuture) for future in self._outside.values())

    def asks(self) -> bool:
        """Whether an answer is awaited."""
        if not self._outside:
            return False
        return any(isinstance(future, AwakeableFuture) and future.awaited for future in self._outside.values())
