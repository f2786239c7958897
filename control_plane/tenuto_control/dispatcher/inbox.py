"""A lane's inbox: what waits there, and what becomes of it.

Owns the query and its reading (13) and the cleaning up (14). Does not own running what waits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import structs

from tenuto.lane.transitions import INBOX_HIGH, INBOX_LOW, inbox_key, part_key, result_key, tombstone
from tenuto.lane.writes import Delete
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Head
from tenuto.protocol.records import CallSource, Event, unpack_event
from tenuto_control.core.lane_memory import DRAIN_EVENTS_MAX
from tenuto_control.core.lane_policy import finished, passed
from tenuto_control.dispatcher.writer import Writer

DRAIN_BYTES_MAX = 1_000_000
"""What they may weigh together: they go into one invocation."""

PAGE_ITEMS = 1_000

PAGES_MAX = 1_000
"""Pages of tombstones one look goes through before it gives up for this time."""


@dataclass(frozen=True, slots=True)
class InboxView:
    """What a look found: live items to run in this order, finished already, or below the watermark.

    `more`: not all were looked at.
    """

    events: tuple[Event, ...]
    done: tuple[Event, ...]
    passed: tuple[Event, ...]
    more: bool


class Inbox:
    """The inbox of one lane."""

    def __init__(self, lane: Lane, writer: Writer) -> None:
        self._lane = lane
        self._writer = writer
        self._parts: dict[str, int] = {}

    async def live(self, head: Head, now_ms: int = 0, most: int = DRAIN_EVENTS_MAX) -> InboxView:
        """What waits, judged by a head that was read before this query: `most` events. Sources are each in order."""
        events: list[Event] = []
        done: list[Event] = []
        below: list[Event] = []
        size = 0
        after: str | None = None
        table = self._writer.table
        for _ in range(PAGES_MAX):
            ask = functools.partial(table.query, self._lane.pk, INBOX_LOW, INBOX_HIGH, limit=PAGE_ITEMS, after=after)
            page = await self._writer.patiently(ask)
            for item in page.items:
                packed = item.get("ev")
                if not isinstance(packed, bytes):
                    continue
                size += len(packed)
                event = unpack_event(packed)
                parts = item.get("parts")
                if isinstance(parts, int):
                    self._parts[event.nonce] = parts
                if passed(head, event):
                    below.append(event)
                elif finished(head, event, now_ms) or await self._has_result(event):
                    done.append(event)
                else:
                    whole = await self._whole(event)
                    if whole is None:
                        # Its end has just been seen elsewhere: what is known of the head is out of date.
                        return InboxView(tuple(events), tuple(done), tuple(below), more=True)
                    size += len(whole.input or b"")
                    events.append(whole)
                full = len(events) >= most or len(events) + len(done) + len(below) >= DRAIN_EVENTS_MAX
                if full or size > DRAIN_BYTES_MAX:
                    return InboxView(tuple(events), tuple(done), tuple(below), more=True)
            after = page.last
            if after is None:
                break
        return InboxView(tuple(events), tuple(done), tuple(below), more=after is not None)

    async def any_live(self) -> bool:
        """Whether anything waits."""
        waiting = await self.live(Head())
        return bool(waiting.events or waiting.done or waiting.passed or waiting.more)

    async def bury(self, events: Sequence[Event], now_ms: int) -> None:
        """Leave tombstones, which refuse late duplicates."""
        for event in events:
            await self._writer.write(tombstone(self._lane, event, now_ms))

    async def forget(self, events: Sequence[Event]) -> None:
        """Delete spilled Kafka events; the watermark refuses their duplicates."""
        # Parts first: an item whose parts are gone is below the watermark, while parts alone would never be found.
        deletes = [
            Delete(part_key(self._lane, event, n)) for event in events for n in range(self._parts.pop(event.nonce, 0))
        ]
        if deletes:
            await self._writer.patiently(lambda: self._writer.table.delete_all(deletes))
        deletes = [Delete(inbox_key(self._lane, event)) for event in events]
        await self._writer.patiently(lambda: self._writer.table.delete_all(deletes))

    async def _whole(self, event: Event) -> Event | None:
        """The event with its input, should that be in parts; None when one of them is gone."""
        parts: list[bytes] = []
        for number in range(self._parts.get(event.nonce, 0)):
            key = part_key(self._lane, event, number)
            item = await self._writer.patiently(functools.partial(self._writer.table.get, key)) or {}
            data = item.get("input")
            if not isinstance(data, bytes):
                return None
            parts.append(data)
        return structs.replace(event, input=b"".join(parts)) if parts else event

    async def _has_result(self, event: Event) -> bool:
        if not (isinstance(event.source, CallSource) and event.source.keep_result):
            return False
        key = result_key(event.id)
        item = await self._writer.patiently(lambda: self._writer.table.get(key))
        return item is not None and "res" in item
