"""Outgoing entries that can be read and never delivered: whoever writes to the table may have put them into a head.

Owns telling them from others, and keeping them beside their lane with the reason, so that neither the key nor its other
entries wait for them. Does not own entries that cannot be read: a newer version may have written those, and their head
waits for it.
"""

from __future__ import annotations

from tenuto.lane.items import entry_aside
from tenuto.protocol.ids import Lane
from tenuto.protocol.records import Out
from tenuto_control.core.metrics import Metrics
from tenuto_control.core.outcomes import kept_entry_problem, kept_problem
from tenuto_control.dispatcher.unreadable_items import UnreadableItems
from tenuto_control.dispatcher.writer import Writer

DIRECT = "dead."
"""So begin the places of dead letters that are delivered ahead of their commit, and are in no outbox."""


class UndeliverableError(ValueError):
    """What is to be sent can never be delivered."""


class Undeliverable:
    """Sets entries aside."""

    def __init__(self, writer: Writer, metrics: Metrics) -> None:
        self._writer = writer
        self._unreadable = UnreadableItems(metrics)

    async def took(self, sender: Lane, sequence: str, entry: Out) -> bool:
        """Whether an entry can never be delivered: then it is set aside."""
        if sequence.startswith(DIRECT):
            problem = kept_problem(entry, sender)
        else:
            problem = kept_entry_problem(sequence, entry, sender)
        if problem is None:
            return False
        await self.take(sender, sequence, entry, problem)
        return True

    async def take(self, sender: Lane, sequence: str, entry: Out, problem: str) -> None:
        """Set an entry aside. May be repeated."""
        await self._writer.write(entry_aside(sender, sequence, entry, problem))
        what = f"the outgoing {type(entry).__name__} {sequence} of the key {sender.pk}"
        self._unreadable.met(what, UndeliverableError(problem))
