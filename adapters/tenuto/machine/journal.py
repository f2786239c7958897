"""The journal of one invocation, as its handler sees it: numbered commands, what is known of each, in which order.

Owns command numbering, the check of a replay against the journal, and the order of completions. What finishes here is
handed on, through `new`, to the side that stores it (`backlog`); nothing else is shared with that side, which may run
in another thread. Synchronous and free of I/O; the runtime drives it.

Completions are told to the handler one at a time. While only one command is outstanding, which one completes next needs
no record. Otherwise the choice is one that a replay has to repeat, so it is journaled: that is what makes `select`,
timeouts, tasks and whatever else combines commands come out alike on every attempt.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, assert_never

from msgspec import Struct

from tenuto.errors import JournalMismatchError, TerminalError
from tenuto.protocol.ids import awakeable_slot
from tenuto.protocol.limits import COMMANDS_MAX
from tenuto.protocol.records import (
    AwakeableSlot,
    DueSlot,
    ElsewhereSlot,
    Entry,
    NowSlot,
    OrderSlot,
    RunSlot,
    SentSlot,
    SleptSlot,
    Slot,
    TriedSlot,
)

Finished: TypeAlias = deque[tuple[str, Slot]]
"""The queue on which slots that have finished go to the side that stores them."""

ORDER = "o"
"""Before the number of completions that came before those which a slot lists."""


class RunCommand(Struct, frozen=True):
    """Execute a step once."""

    name: str


class SleepCommand(Struct, frozen=True):
    """Wait for a time."""


class AwakeableCommand(Struct, frozen=True):
    """Wait for a result from outside."""


class SendCommand(Struct, frozen=True):
    """Hand a message to the outbox."""

    target: str


class NowCommand(Struct, frozen=True):
    """Ask for the time."""


Command: TypeAlias = RunCommand | SleepCommand | AwakeableCommand | SendCommand | NowCommand


def describe(command: Command) -> str:
    """A command in words, for the error that names both sides of a mismatch."""
    match command:
        case RunCommand(name):
            return f"run {name!r}"
        case SleepCommand():
            return "sleep"
        case AwakeableCommand():
            return "awakeable"
        case SendCommand(target):
            return f"send to {target}"
        case NowCommand():
            return "time"
        case _:
            assert_never(command)


def command_of(slot: Slot) -> Command:
    """The command that a journal slot belongs to. Raises ValueError for one that belongs to several."""
    match slot:
        case RunSlot(name) | TriedSlot(name):
            return RunCommand(name)
        case DueSlot() | SleptSlot():
            return SleepCommand()
        case AwakeableSlot() | ElsewhereSlot():
            return AwakeableCommand()
        case SentSlot(target):
            return SendCommand(target)
        case NowSlot():
            return NowCommand()
        case OrderSlot():
            raise ValueError("an order of completions is no command's own")
        case _:
            assert_never(slot)


def tried_name(index: int, tries: int) -> str:
    """The slot that keeps how often a step has failed when its next try has to wait outside the function."""
    return f"{index}t{tries}"


def due_name(index: int) -> str:
    """The slot that keeps when a sleep ends, beside the one that says it has."""
    return f"{index}d"


def order_name(told: int) -> str:
    """The slot that lists completions, `told` of which came before them."""
    return f"{ORDER}{told}"


def completion_order(slots: Mapping[str, Slot]) -> list[int]:
    """The completions that these slots list, oldest first."""
    lists = sorted(
        (int(name.removeprefix(ORDER)), slot.commands) for name, slot in slots.items() if isinstance(slot, OrderSlot)
    )
    order: list[int] = []
    for told, commands in lists:
        # A list that was written twice, after a lost response, may have grown in between.
        order[told:] = commands
    return order


@dataclass(slots=True)
class Journal:
    """What is known of an invocation's commands, and what it sends before the next durable point.

    One object serves all attempts that one activation makes at an invocation; `restart` begins the next of them.
    `known` are slots, stored or on their way. `order` are the completions that had a choice, oldest first; `told` of
    them this attempt has come to. `out` are messages that no write has taken: position → command, target, entry.
    `replay_end` is the index after the last command that was finished when the attempt began. `new` is the way to the
    writing side, `finished` counts what went there.
    """

    known: dict[str, Slot] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    out: dict[int, tuple[int, str, Entry]] = field(default_factory=dict)
    first_out: int = 0
    next_command: int = 0
    next_out: int = 0
    replay_end: int = 0
    told: int = 0
    new: Finished = field(default_factory=deque)
    finished: int = 0
    _tries: dict[int, TriedSlot] = field(default_factory=dict)

    @classmethod
    def load(cls, slots: Mapping[str, Slot], first_out: int, new: Finished) -> Journal:
        """The journal of a run, by what is stored of it."""
        journal = cls(
            known={name: slot for name, slot in slots.items() if not isinstance(slot, OrderSlot)},
            order=completion_order(slots),
            first_out=first_out,
            next_out=first_out,
            new=new,
        )
        for name, slot in journal.known.items():
            journal._note_tries(name, slot)
        journal.replay_end = journal._finished_end()
        return journal

    @property
    def replaying(self) -> bool:
        """Whether finished commands are still to come: what the handler does now, it has done before."""
        return self.next_command < self.replay_end

    def restart(self) -> None:
        """Begin another attempt: commands are numbered from zero again, finished ones are replayed."""
        self.replay_end = self._finished_end()
        self.next_command = self.told = 0
        self.next_out = self.first_out
        self.out.clear()

    def issue(self, command: Command) -> int:
        """Number a command. Raises JournalMismatchError when the journal has another one there."""
        index = self.next_command
        if index >= COMMANDS_MAX:
            raise TerminalError(f"an invocation may issue {COMMANDS_MAX:,} commands; split the work with a send")
        self.next_command += 1
        slot = self.slot(str(index)) or self.slot(due_name(index))
        if slot is None and isinstance(command, AwakeableCommand):
            slot = self.slot(awakeable_slot(index))
        if slot is not None:
            journaled = command_of(slot)
            if journaled != command:
                raise JournalMismatchError(index, describe(journaled), describe(command))
        return index

    def end(self) -> None:
        """The handler is over. Raises JournalMismatchError when the journal has commands that it did not come to."""
        if self.next_command >= self.replay_end:
            return
        for index, slot in self._commanded():
            if index >= self.next_command:
                raise JournalMismatchError(index, describe(command_of(slot)), "nothing more and ended")

    def _finished_end(self) -> int:
        return max((index + 1 for index, _ in self._commanded()), default=0)

    def _commanded(self) -> Iterator[tuple[int, Slot]]:
        """Slots that a command of the handler made, with its index."""
        for name, slot in self.known.items():
            # An answer is given from outside, maybe to an awakeable that this handler does not make any more.
            if not isinstance(slot, AwakeableSlot | ElsewhereSlot):
                yield int("".join(itertools.takewhile(str.isdigit, name))), slot

    def slot(self, name: str) -> Slot | None:
        """What is known of a slot."""
        return self.known.get(name)

    def tried(self, index: int) -> TriedSlot | None:
        """The last record of a step's failed tries."""
        return self._tries.get(index)

    def _note_tries(self, name: str, slot: Slot) -> None:
        if isinstance(slot, TriedSlot):
            index = int(name.partition("t")[0])
            before = self._tries.get(index)
            self._tries[index] = slot if before is None or slot.tries > before.tries else before

    def finish(self, name: str, slot: Slot) -> None:
        """A command completed. A slot never changes: finishing it again is refused."""
        if name in self.known:
            raise ValueError(f"journal slot {name} is already finished")
        self.known[name] = slot
        self._note_tries(name, slot)
        self._hand_on(name, slot)

    def _hand_on(self, name: str, slot: Slot) -> None:
        self.new.append((name, slot))
        self.finished += 1

    def hear(self, name: str, slot: Slot) -> None:
        """Take over what the writing side found in storage: put by others, or by a write whose response was lost."""
        self.known.setdefault(name, slot)
        if isinstance(slot, SentSlot):
            self.sent([p for p, (index, _, _) in self.out.items() if str(index) == name])

    # --- the order of completions -----------------------------------------------------------------------------------

    @property
    def next_told(self) -> int | None:
        """The command whose completion a replay has to tell next; None when there is no such record any more."""
        return self.order[self.told] if self.told < len(self.order) else None

    def tell(self, index: int, outstanding: int) -> None:
        """The handler is told that a command completed, one of so many that were outstanding."""
        if outstanding <= 1:
            return
        if self.told == len(self.order):
            self.order.append(index)
            self._hand_on(order_name(self.told), OrderSlot((index,)))
        self.told += 1

    # --- messages ---------------------------------------------------------------------------------------------------

    def send(self, index: int, target: str, entry: Entry) -> None:
        """A message for the outbox, unless the journal says that it has left already."""
        position = self.next_out
        self.next_out += 1
        if not isinstance(self.slot(str(index)), SentSlot):
            self.out[position] = (index, target, entry)

    def sent(self, positions: Iterable[int]) -> None:
        """A write has taken these messages."""
        for position in positions:
            index, target, _ = self.out.pop(position)
            self.known.setdefault(str(index), SentSlot(target))
