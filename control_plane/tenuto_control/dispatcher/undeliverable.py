"""Outgoing entries that are never delivered: whoever writes to the table may have put them into a head.

Owns telling them from others, and keeping them beside their lane with the reason, so that neither the key nor its other
entries wait for them. Those that cannot be read are among them: should a newer version have written one, an operator
puts it back (`docs/guides/operate.md`). Does not own messages for handlers that there are not (`receivers`).
"""

from __future__ import annotations

from collections.abc import Mapping

from tenuto.lane.dead_letters import item_of
from tenuto.lane.head import OUT, head_key
from tenuto.lane.items import entry_aside, item_aside, unbundled_apart
from tenuto.lane.writes import Delete, Item, Key, Put, Value
from tenuto.protocol.ids import Lane
from tenuto.protocol.records import BundleOut, Entry, Out, UnreadableOut, pack
from tenuto.store.port import UnstorableError
from tenuto_control.core.log_fields import shown
from tenuto_control.core.metrics import Metrics
from tenuto_control.core.outcomes import kept_entry_problem, kept_problem
from tenuto_control.dispatcher.unreadable_items import UnreadableItems
from tenuto_control.dispatcher.writer import Writer

DIRECT = "dead."
"""So begin the places of dead letters that are delivered ahead of their commit, and are in no outbox."""


class UndeliverableError(ValueError):
    """What is to be sent can never be delivered."""


class Undeliverable:
    """Sets entries aside. Each of its methods may be repeated."""

    def __init__(self, writer: Writer, metrics: Metrics) -> None:
        self._writer = writer
        self._unreadable = UnreadableItems(metrics)

    async def took(self, sender: Lane, sequence: str, entry: Out) -> bool:
        """Whether an entry can never be delivered: then it is set aside."""
        if isinstance(entry, UnreadableOut):
            await self._take_unread(sender, sequence, entry)
            return True
        if sequence.startswith(DIRECT):
            problem = kept_problem(entry, sender)
        else:
            problem = kept_entry_problem(sequence, entry, sender)
        if problem is None:
            return False
        await self.take(sender, sequence, entry, problem)
        return True

    async def take(self, sender: Lane, sequence: str, entry: Out, problem: str) -> None:
        """Set an entry aside."""
        await self._put(sender, sequence, pack(entry), problem, type(entry).__name__)

    async def take_with_payload(self, sender: Lane, sequence: str, entry: Entry, problem: str) -> None:
        """Set an entry aside together with the item of its payload, in which something cannot be read."""
        name = item_of(entry)
        item = None if name is None else await self._writer.read_apart(Key(sender.pk, name))
        if item is not None:
            await self._move(item, problem)
        await self.take(sender, sequence, entry, problem)

    async def readable(self, sender: Lane, sequence: str, bundle: BundleOut, item: Item) -> Mapping[str, Entry]:
        """The entries in the item of a bundle. Others are set aside, or all of it when it holds none at all."""
        try:
            entries = unbundled_apart(sequence, item)
        except ValueError as e:
            problem = shown(str(e))
            await self._move(item, problem)
            await self.take(sender, sequence, bundle, problem)
            return {}
        for place, packed in entries.items():
            if isinstance(packed, bytes):
                await self._put(sender, place, packed, "its bytes in a bundle cannot be read", "entry")
        return {place: entry for place, entry in entries.items() if not isinstance(entry, bytes)}

    async def _take_unread(self, sender: Lane, sequence: str, entry: UnreadableOut) -> None:
        """Set aside what is in the head, as it is. What is gone was set aside before, and only not cleared."""
        head = await self._writer.read_apart(head_key(sender)) or {}
        if OUT + sequence in head:
            await self._put(sender, sequence, head[OUT + sequence], shown(entry.reason), "entry")

    async def _move(self, item: Item, problem: str) -> None:
        await self._write(item_aside(item, problem))
        await self._writer.write(Delete(Key(str(item["pk"]), str(item["sk"]))))

    async def _put(self, sender: Lane, sequence: str, entry: Value, problem: str, kind: str) -> None:
        await self._write(entry_aside(sender, sequence, entry, problem))
        self._unreadable.met(f"the outgoing {kind} {sequence} of the key {sender.pk}", UndeliverableError(problem))

    async def _write(self, put: Put) -> None:
        try:
            await self._writer.write(put)
        except UnstorableError:
            # It filled its item to the last bytes, which the reason takes.
            attributes = {name: value for name, value in put.attributes.items() if name != "why"}
            await self._writer.write(Put(put.key, attributes))
