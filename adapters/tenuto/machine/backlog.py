"""What of a journal still has to be written, and what of it is where: the side that stores.

Owns which slots are stored, which sit in the head, when they move into a segment, and what a write takes along. Does
not own numbering or results (`journal`), from which finished slots arrive through a queue, nor the writes themselves.
Used by one thread alone, the one that writes. Synchronous and free of I/O.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from msgspec import Struct

from tenuto.lane.transitions import Progress
from tenuto.machine.journal import Finished, order_name
from tenuto.protocol.ids import command_of_awakeable
from tenuto.protocol.limits import INLINE_BYTES_MAX, SLOTS_PER_WRITE_MAX
from tenuto.protocol.records import Entry, OrderSlot, SentSlot, Slot, pack, unpack_slot

SEGMENT_BYTES = 2_048
"""A journal above this size in the head rolls into a segment item: DynamoDB bills the whole head on every write."""


class Unstored(Struct, frozen=True):
    """What the next write is to make durable, before it is decided what of it goes into items of its own.

    `rolls` are slots of the head that move into a segment, `apart` new ones that go to a segment at once.
    """

    slots: Mapping[str, bytes]
    apart: Mapping[str, bytes]
    rolls: Mapping[str, bytes]
    out: Mapping[int, Entry]
    took: tuple[int, ...]


@dataclass(slots=True)
class Backlog:
    """Slots on their way into storage.

    `new` is the queue that the handler's side fills; `durable` counts what of it is stored. `in_head` are the slots
    that sit in the head item. `segments` is what the head names, the only truth about them. `took` are awakeables
    whose results are in segments.
    """

    new: Finished = field(default_factory=deque)
    durable: int = 0
    in_head: dict[str, bytes] = field(default_factory=dict)
    segments: tuple[str, ...] = ()
    took: set[int] = field(default_factory=set)
    _fresh: dict[str, bytes] = field(default_factory=dict)
    _stored: set[str] = field(default_factory=set)
    _order: list[int] = field(default_factory=list)
    _ordered: int = 0
    _arrived: int = 0

    @classmethod
    def load(
        cls,
        new: Finished,
        head: Mapping[str, bytes],
        rolled: Iterable[str],
        order: int,
        *,
        segments: tuple[str, ...] = (),
        took: Iterable[int] = (),
    ) -> Backlog:
        """What is stored of a run: slots in its head, names of those in segments, and how many completions are told."""
        return cls(
            new=new, in_head=dict(head), segments=segments, took=set(took), _stored={*head, *rolled}, _ordered=order
        )

    def arrive(self) -> None:
        """Take in what has finished since the last look."""
        while self.new:
            name, slot = self.new.popleft()
            self._arrived += 1
            if isinstance(slot, OrderSlot):
                self._order.extend(slot.commands)
            else:
                self._fresh[name] = pack(slot)

    @property
    def empty(self) -> bool:
        """Whether everything that has arrived is stored."""
        return not self._fresh and not self._order

    def unstored(self, out: Mapping[int, tuple[int, str, Entry]]) -> Unstored:
        """Everything that a write is to make durable, with these messages, each of which has a slot."""
        slots = dict(self._fresh)
        if self._order:
            slots[order_name(self._ordered)] = pack(OrderSlot(tuple(self._order)))
        slots |= {str(index): pack(SentSlot(target)) for index, target, _ in out.values()}
        apart = {name: data for name, data in slots.items() if len(data) > INLINE_BYTES_MAX}
        small = [name for name in slots if name not in apart]
        apart |= {name: slots[name] for name in small[SLOTS_PER_WRITE_MAX:]}
        kept = {name: slots[name] for name in small[:SLOTS_PER_WRITE_MAX]}
        rolls = self._rolls()
        took = self.took | set(_awakeables(rolls))
        entries = {position: entry for position, (_, _, entry) in out.items()}
        return Unstored(kept, apart, rolls, entries, tuple(sorted(took)) if took != self.took else ())

    def _rolls(self) -> dict[str, bytes]:
        """Slots that should move into a segment with the next write; none while the head is small."""
        if sum(map(len, self.in_head.values())) <= SEGMENT_BYTES:
            return {}
        largest = sorted(self.in_head, key=lambda name: len(self.in_head[name]), reverse=True)
        return {name: self.in_head[name] for name in itertools.islice(largest, SLOTS_PER_WRITE_MAX)}

    def written(self, progress: Progress) -> None:
        """A write stored this progress."""
        for name, data in (*progress.slots.items(), *progress.apart.items()):
            self._store(name, data)
        self.in_head |= progress.slots
        for name in progress.rolled:
            self.in_head.pop(name, None)
        if progress.segments is not None:
            self.segments = progress.segments
        self.took.update(progress.took)
        self._settle()

    def learn(self, head: Mapping[str, bytes], segments: tuple[str, ...]) -> list[tuple[str, Slot]]:
        """Take over what the head holds: what others put there meanwhile, and the names of segments.

        Returns the slots that are news to the handler's side.
        """
        self.segments = segments
        news: list[tuple[str, Slot]] = []
        for name, data in head.items():
            if name in self._stored:
                continue
            if name not in self._fresh:
                news.append((name, unpack_slot(data)))
            self._store(name, data)
            self.in_head[name] = data
        self._settle()
        return [(name, slot) for name, slot in news if not isinstance(slot, OrderSlot)]

    def _store(self, name: str, data: bytes) -> None:
        """A slot is in storage."""
        self._stored.add(name)
        self._fresh.pop(name, None)
        if name == order_name(self._ordered):
            slot = unpack_slot(data)
            if isinstance(slot, OrderSlot):
                # It may have grown since that write was made.
                del self._order[: len(slot.commands)]
                self._ordered += len(slot.commands)

    def _settle(self) -> None:
        if self.empty:
            self.durable = self._arrived


def _awakeables(slots: Mapping[str, bytes]) -> Iterable[int]:
    for name in slots:
        command = command_of_awakeable(name)
        if command is not None:
            yield command
