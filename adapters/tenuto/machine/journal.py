"""The journal of one invocation: numbered commands, their finished slots, and what still has to be written.

Owns command numbering, the check of a replay against the journal, and when a journal rolls into a segment. Does not own
the writes themselves. Synchronous and free of I/O; the runtime drives it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, assert_never

from tenuto.errors import JournalMismatchError, TerminalError
from tenuto.lane.transitions import Progress
from tenuto.protocol.ids import awakeable_slot
from tenuto.protocol.limits import COMMANDS_MAX, OUT_PER_WRITE_MAX, SLOTS_PER_WRITE_MAX
from tenuto.protocol.records import (
    AwakeableSlot,
    DueSlot,
    Out,
    RunSlot,
    SelectedSlot,
    SentSlot,
    SleptSlot,
    Slot,
    TriedSlot,
    pack,
    unpack_slot,
)

SEGMENT_BYTES = 2_048
"""A journal above this size in the head rolls into a segment item: DynamoDB bills the whole head on every write."""


@dataclass(frozen=True, slots=True)
class Run:
    """Execute a step once."""

    name: str


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait for a time."""


@dataclass(frozen=True, slots=True)
class Awakeable:
    """Wait for a result from outside."""


@dataclass(frozen=True, slots=True)
class Send:
    """Hand a message to the outbox."""

    target: str


@dataclass(frozen=True, slots=True)
class Select:
    """Decide which of several commands completed first."""


Command: TypeAlias = Run | Sleep | Awakeable | Send | Select


def describe(command: Command) -> str:
    """A command in words, for the error that names both sides of a mismatch."""
    match command:
        case Run(name):
            return f"run {name!r}"
        case Sleep():
            return "sleep"
        case Awakeable():
            return "awakeable"
        case Send(target):
            return f"send to {target}"
        case Select():
            return "select"
        case _:
            assert_never(command)


def command_of(slot: Slot) -> Command:
    """The command that a journal slot belongs to."""
    match slot:
        case RunSlot(name) | TriedSlot(name):
            return Run(name)
        case DueSlot() | SleptSlot():
            return Sleep()
        case AwakeableSlot():
            return Awakeable()
        case SentSlot(target):
            return Send(target)
        case SelectedSlot():
            return Select()
        case _:
            assert_never(slot)


def tried_name(index: int, tries: int) -> str:
    """The slot that keeps how often a step has failed when its next try has to wait outside the function."""
    return f"{index}t{tries}"


def due_name(index: int) -> str:
    """The slot that keeps when a sleep ends, beside the one that says it has."""
    return f"{index}d"


@dataclass(slots=True)
class Journal:
    """Slots known to be stored (`stored`), slots finished since (`fresh`) and messages not yet in the outbox (`out`).

    One object serves all attempts that one activation makes at an invocation; `restart` begins the next of them.
    `in_head` counts the bytes of slots that sit in the head item, by slot. `replay_end` is the index behind the last
    command that was finished when the attempt began.
    """

    stored: dict[str, Slot] = field(default_factory=dict)
    fresh: dict[str, Slot] = field(default_factory=dict)
    out: dict[int, tuple[int, Out]] = field(default_factory=dict)
    in_head: dict[str, bytes] = field(default_factory=dict)
    segments: tuple[str, ...] = ()
    first_out: int = 0
    next_command: int = 0
    next_out: int = 0
    replay_end: int = 0
    _targets: dict[int, str] = field(default_factory=dict)

    @classmethod
    def load(
        cls, head_slots: Mapping[str, bytes], rolled: Mapping[str, bytes], segments: tuple[str, ...], first_out: int
    ) -> Journal:
        """The journal of a run: slots of the head and of its segments. A rolled slot wins over one put again later."""
        stored = {name: unpack_slot(data) for name, data in {**head_slots, **rolled}.items()}
        journal = cls(
            stored=stored, in_head=dict(head_slots), segments=segments, first_out=first_out, next_out=first_out
        )
        journal.replay_end = journal._finished_end()
        return journal

    @property
    def replaying(self) -> bool:
        """Whether finished commands are still to come: what the handler does now, it has done before."""
        return self.next_command < self.replay_end

    def restart(self) -> None:
        """Begin another attempt: commands are numbered from zero again, finished ones are replayed."""
        self.replay_end = self._finished_end()
        self.next_command = 0
        self.next_out = self.first_out
        self.out.clear()

    def issue(self, command: Command) -> int:
        """Number a command. Raises JournalMismatchError when the journal has another one there."""
        index = self.next_command
        if index >= COMMANDS_MAX:
            raise TerminalError(f"an invocation may issue {COMMANDS_MAX:,} commands; split the work with a send")
        self.next_command += 1
        slot = self.slot(str(index)) or self.slot(due_name(index))
        if slot is None and isinstance(command, Awakeable):
            slot = self.slot(awakeable_slot(index))
        if slot is not None:
            journaled = command_of(slot)
            if journaled != command:
                raise JournalMismatchError(index, describe(journaled), describe(command))
        return index

    def end(self) -> None:
        """The handler is over. Raises JournalMismatchError when the journal has commands that it did not come to."""
        for index, slot in self._commanded():
            if index >= self.next_command:
                raise JournalMismatchError(index, describe(command_of(slot)), "nothing more and ended")

    def _finished_end(self) -> int:
        return max((index + 1 for index, _ in self._commanded()), default=0)

    def _commanded(self) -> Iterator[tuple[int, Slot]]:
        """Slots that a command of the handler made, with its index."""
        for name, slot in (*self.stored.items(), *self.fresh.items()):
            # Whoever guesses an id may fill the slot of an awakeable that never was.
            if not isinstance(slot, AwakeableSlot):
                yield int("".join(itertools.takewhile(str.isdigit, name))), slot

    def slot(self, name: str) -> Slot | None:
        """What is known of a slot, stored or fresh."""
        return self.stored.get(name) or self.fresh.get(name)

    def tried(self, index: int) -> TriedSlot | None:
        """The last record of a step's failed tries."""
        prefix = f"{index}t"
        names = (n for n in (*self.stored, *self.fresh) if n.startswith(prefix))
        slots = (s for n in names if isinstance(s := self.slot(n), TriedSlot))
        return max(slots, key=lambda s: s.tries, default=None)

    def finish(self, name: str, slot: Slot) -> None:
        """A command completed. A slot never changes: finishing it again is refused."""
        if self.slot(name) is not None:
            raise ValueError(f"journal slot {name} is already finished")
        self.fresh[name] = slot

    def send(self, index: int, target: str, entry: Out) -> None:
        """A message for the outbox, unless the journal says that it has left already."""
        position = self.next_out
        self.next_out += 1
        if not isinstance(self.slot(str(index)), SentSlot):
            self.out[position] = (index, entry)
            self._targets[index] = target

    def progress(self, *, publish: bool) -> Progress:
        """What the next write should make durable, as much as fits.

        `publish` takes the waiting messages along, each with its slot.
        """
        some = itertools.islice(self.fresh.items(), SLOTS_PER_WRITE_MAX)
        slots = {name: pack(slot) for name, slot in some}
        out: dict[int, Out] = {}
        if publish:
            for position, (index, entry) in itertools.islice(self.out.items(), OUT_PER_WRITE_MAX):
                out[position] = entry
                slots[str(index)] = pack(SentSlot(self._targets[index]))
        return Progress(slots, out)

    def rolls(self) -> Mapping[str, bytes]:
        """Slots that should move into a segment before the next write; empty while the head is small."""
        if sum(map(len, self.in_head.values())) <= SEGMENT_BYTES:
            return {}
        return dict(self.in_head)

    def rolled(self, names: tuple[str, ...], segments: tuple[str, ...]) -> None:
        """A write dropped these slots from the head, after their segment was put."""
        self.segments = segments
        for name in names:
            self.in_head.pop(name, None)

    def written(self, progress: Progress) -> None:
        """A write stored this progress."""
        for name, data in progress.slots.items():
            self.stored[name] = unpack_slot(data)
            self.fresh.pop(name, None)
            self.in_head[name] = data
        for name, data in progress.large.items():
            self.stored[name] = unpack_slot(data)
            self.fresh.pop(name, None)
        for position in progress.out:
            self.out.pop(position, None)

    def learn(self, head_slots: Mapping[str, bytes]) -> list[str]:
        """Take over slots that others put into the head meanwhile; the names that are new."""
        news = [name for name in head_slots if name not in self.stored]
        for name in news:
            self.stored[name] = unpack_slot(head_slots[name])
            self.in_head[name] = head_slots[name]
            self.fresh.pop(name, None)
        # A write whose response was lost may have published messages that this side still holds.
        sent = [p for p, (index, _) in self.out.items() if isinstance(self.stored.get(str(index)), SentSlot)]
        for position in sent:
            del self.out[position]
        return news
