"""A lane's inbox: what waits there, and what becomes of it.

Owns the query and its reading (13) and the cleaning up (14). Does not own running what waits.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from tenuto.lane.transitions import (
    INBOX_HIGH,
    INBOX_LOW,
    check_inbox_events,
    check_waiting,
    inbox_aside,
    inbox_events,
    inbox_gone,
    inbox_key,
    last_offset,
    part_key,
    result_key,
    tombstone,
)
from tenuto.lane.writes import Delete, Item
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Head
from tenuto.protocol.records import CallSource, Event, KafkaSource, MessageSource, event_bytes
from tenuto.store.port import UnstorableError
from tenuto_control.core.lane_memory import DRAIN_EVENTS_MAX
from tenuto_control.core.lane_policy import finished, passed
from tenuto_control.dispatcher.writer import Writer

DRAIN_BYTES_MAX = 1_000_000
"""What they may weigh together: they go into one invocation."""

PAGE_ITEMS_MIN = 64
PAGE_ITEMS_MAX = 1_000
"""Items of the first page of a look, and of a later one.

An item may be a tombstone, or hold many events from Kafka: where few such items suffice, the next look reads few.
"""

REST_BYTES_MAX = 64 * 1024
"""What events may weigh that a look has found, and that wait in memory for the next activation."""

BURIED_AT_ONCE = 25
"""Tombstones that one request puts."""

FORGOTTEN_AT_ONCE = 25
"""Items that one request deletes."""

CALLS_LOW = "I#c#"
"""What the places of calls begin with."""

PAGES_MAX = 1_000
"""Pages of tombstones one look goes through before it gives up for this time."""


@dataclass(frozen=True, slots=True)
class Records:
    """An inbox item with events from Kafka: the `first`, the offset of the last one, and parts of a large input."""

    first: Event
    last: int
    parts: int = 0

    def passed(self, head: Head) -> bool:
        """Whether all its events are finished."""
        source = self.first.source
        return isinstance(source, KafkaSource) and self.last < head.watermarks.get(source.watermark, 0)


@dataclass(frozen=True, slots=True)
class InboxView:
    """What a look found: live events to run in this order, and what is finished already.

    `records` are the items that hold the live events from Kafka, `passed` those whose events are all finished.
    `unreadable` are items that hold no events of this lane, each with the reason. `more`: not all were looked at.
    `kept`: an earlier look found it.
    """

    events: tuple[Event, ...]
    done: tuple[Event, ...]
    records: tuple[Records, ...]
    passed: tuple[Records, ...]
    unreadable: tuple[tuple[Item, Exception], ...]
    more: bool
    kept: bool = False


@dataclass(frozen=True, slots=True)
class _Rest:
    """What a look has found, and nothing has run yet, when the lane was at `ver`.

    It was all that waited (but for `more`) while the mark was `pend`.
    """

    ver: int
    pend: str | None
    events: tuple[Event, ...]
    records: tuple[Records, ...]
    more: bool

    def stands(self, head: Head, now_ms: int) -> bool:
        """Whether it still waits: only this process has written to the lane since, and has run none of it."""
        over = any(passed(head, event) or finished(head, event, now_ms) for event in self.events)
        return self.ver == head.ver and head.pend is not None and not over


class _Look:
    """One look: what it has found so far, and when that is enough."""

    def __init__(self, head: Head, now_ms: int, most: int) -> None:
        self.head = head
        self.now_ms = now_ms
        self.events: list[Event] = []
        self.done: list[Event] = []
        self.records: list[Records] = []
        self.passed: list[Records] = []
        self.unreadable: list[tuple[Item, Exception]] = []
        self.size = 0
        self.results: set[str] = set()
        self.most = most
        self._offsets: dict[str, int] = {}

    @property
    def full(self) -> bool:
        """Whether no more is to be taken up."""
        found = len(self.events) + len(self.done) + len(self.passed) + len(self.unreadable)
        return len(self.events) >= self.most or found >= DRAIN_EVENTS_MAX or self.size > DRAIN_BYTES_MAX

    def add(self, event: Event) -> None:
        """Take up an event that waits."""
        self.events.append(event)
        self.size += event_bytes(event)

    def is_over(self, event: Event) -> bool:
        """Whether a message or call has taken effect."""
        return finished(self.head, event, self.now_ms) or event.id in self.results

    def is_new(self, event: Event) -> bool:
        """Whether an event from Kafka is neither finished nor found already, in an item that holds some of the same."""
        source = event.source
        if not isinstance(source, KafkaSource):
            return True
        if passed(self.head, event) or source.offset <= self._offsets.get(source.watermark, -1):
            return False
        self._offsets[source.watermark] = source.offset
        return True

    def view(self, *, more: bool) -> InboxView:
        """What was found."""
        return InboxView(
            tuple(self.events),
            tuple(self.done),
            tuple(self.records),
            tuple(self.passed),
            tuple(self.unreadable),
            more,
        )


def _since(item: Item) -> int:
    """What sorts a page: calls go in the order in which they came, and stay in front of what the table sorts."""
    at_ms = item.get("at")
    return at_ms if isinstance(at_ms, int) else sys.maxsize


class Inbox:
    """The inbox of one lane."""

    def __init__(self, lane: Lane, writer: Writer) -> None:
        self._lane = lane
        self._writer = writer
        self._first_page_items = PAGE_ITEMS_MIN
        self._lacking: str | None = None
        self._found: InboxView | None = None
        self._found_pend: str | None = None
        self._rest: _Rest | None = None
        self._unburied: list[Event] = []
        self._unforgotten: list[Records] = []
        # The mark that was there when a look found all that waited, and what that was, without what it holds.
        self._complete: tuple[str | None, tuple[Event, ...]] | None = None

    @property
    def holds(self) -> bool:
        """Whether it knows what another look would have to find."""
        return self._rest is not None or bool(self._unburied) or bool(self._unforgotten)

    async def waiting(self, head: Head, now_ms: int, most: int, *, asked: bool = True) -> InboxView:
        """What is to run next, judged by a head that was read before: `most` events, of this look or an earlier one.

        `asked`: there may be something that the mark does not tell of.
        """
        rest, self._rest = self._rest, None
        if rest is not None and rest.stands(head, now_ms):
            more = rest.more or rest.pend != head.pend
            found = InboxView(rest.events, (), rest.records, (), (), more, kept=True)
            self._found_pend = rest.pend
        elif not asked and self._worked_off(head, now_ms):
            self._found = None
            return InboxView((), (), (), (), (), more=False, kept=True)
        else:
            # It finds what has no tombstone yet, and what has not been deleted.
            self._unburied.clear()
            self._unforgotten.clear()
            found = await self.live(head, now_ms)
            self._found_pend = head.pend
            bare = tuple(Event(event.id, event.handler, event.source) for event in found.events)
            self._complete = None if found.more or found.unreadable else (head.pend, bare)
        self._found = found
        more = found.more or len(found.events) > most
        return replace(found, events=found.events[:most], more=more)

    def _worked_off(self, head: Head, now_ms: int) -> bool:
        """Whether all that a look has found is over, and nothing has been marked since: what is put is marked then."""
        pend, events = self._complete or (None, ())
        over = (passed(head, event) or finished(head, event, now_ms) for event in events)
        return pend is not None and pend == head.pend and all(over)

    async def ran(self, over: Sequence[Event], head: Head | None, now_ms: int) -> Sequence[Event]:
        """Messages and calls that were found are over. Returns those that have tombstones now; others have them later.

        With `head`, this process alone has run them, and has left this head: the rest need not be looked for.
        """
        self._unburied += over
        found, self._found = self._found, None
        if found is not None and head is not None:
            events = tuple(e for e in found.events if not (passed(head, e) or finished(head, e, now_ms)))
            if events and sum(map(event_bytes, events)) <= REST_BYTES_MAX:
                records = tuple(item for item in found.records if not item.passed(head))
                more = found.more and not found.kept
                self._rest = _Rest(head.ver, self._found_pend, events, records, more)
        if self._rest is not None and len(self._unburied) < BURIED_AT_ONCE:
            return ()
        buried, self._unburied = self._unburied, []
        await self.bury(buried, now_ms)
        return buried

    async def live(self, head: Head, now_ms: int = 0, most: int = DRAIN_EVENTS_MAX) -> InboxView:
        """What waits, judged by a head that was read before this query: `most` events. Sources are each in order."""
        look = _Look(head, now_ms, most)
        limit, after, used = self._first_page_items, None, 0
        table = self._writer.table
        for _ in range(PAGES_MAX):
            ask = functools.partial(table.query, self._lane.pk, INBOX_LOW, INBOX_HIGH, limit=limit, after=after)
            page = await self._writer.patiently(ask)
            items = sorted(page.items, key=_since)
            await self._look_up_results(items, look)
            for item in items:
                used += 1
                if not await self._take_up(item, look):
                    only_records = used == len(look.records) + len(look.passed)
                    self._first_page_items = 2 * used if only_records else PAGE_ITEMS_MIN
                    return look.view(more=True)
            limit, after = PAGE_ITEMS_MAX, page.last
            if after is None:
                break
        # All there is fits into one page the next time, unless tombstones come faster than looks.
        self._first_page_items = min(PAGE_ITEMS_MAX, max(PAGE_ITEMS_MIN, used + PAGE_ITEMS_MIN // 2))
        return look.view(more=after is not None)

    async def _take_up(self, item: Item, look: _Look) -> bool:
        """Judge what is in an item. False when it is not to be gone through to its end, or no other is."""
        try:
            events = check_inbox_events(self._lane, item)
        except Exception as e:  # noqa: BLE001 - whatever it is, the item has others behind it
            look.unreadable.append((item, e))
            return not look.full
        if not events:
            return True  # A tombstone.
        first, parts = events[0], item.get("parts")
        parts = parts if isinstance(parts, int) else 0
        before, taken = len(look.records), len(look.events)
        if isinstance(first.source, KafkaSource):
            records = Records(first, last_offset(item), parts)
            if records.passed(look.head):
                look.passed.append(records)
                return not look.full
            look.records.append(records)
        try:
            for event in events:
                if look.is_new(event) and not await self._take(event, parts, look):
                    return False
        except (ValueError, UnstorableError) as e:
            if len(look.events) > taken:
                return False  # Those before it run first; then it is met again.
            del look.records[before:]
            look.unreadable.append((item, e))
            return not look.full
        return True

    async def _take(self, event: Event, parts: int, look: _Look) -> bool:
        """Take up an event. False when that ends the look. Raises ValueError, UnstorableError when it can never run."""
        check_waiting(self._lane, event)
        if isinstance(event.source, CallSource | MessageSource) and look.is_over(event):
            look.done.append(event)
            return not look.full
        whole = await self._whole(event, parts)
        if whole is None:
            if event.id == self._lacking:
                raise ValueError("a part of its input is missing")
            # Its end has just been seen elsewhere: what is known of the head is out of date. Unless the next head says
            # the same of it.
            self._lacking = event.id
            return False
        look.add(whole)
        return not look.full

    async def set_aside(self, items: Sequence[Item], now_ms: int) -> None:
        """Move items that cannot be read out of the way. They stay in the table, beside the inbox."""
        for item in items:
            await self._writer.write(inbox_aside(item))
            await self._writer.write(inbox_gone(item, now_ms))

    async def bury(self, events: Sequence[Event], now_ms: int) -> None:
        """Leave tombstones, which refuse late duplicates."""
        await self._writer.put_all([tombstone(self._lane, event, now_ms) for event in events])

    async def forget(self, items: Sequence[Records], *, later: bool = False) -> None:
        """Delete items of events from Kafka that are finished; the watermark refuses their duplicates.

        `later`: with those of the next look, which follows at once and would find them otherwise.
        """
        self._unforgotten += items
        if later and len(self._unforgotten) < FORGOTTEN_AT_ONCE:
            return
        items, self._unforgotten = self._unforgotten, []
        # Parts first: an item whose parts are gone is below the watermark, while parts alone would never be found.
        deletes = [Delete(part_key(self._lane, item.first, n)) for item in items for n in range(item.parts)]
        if deletes:
            await self._writer.patiently(lambda: self._writer.table.delete_all(deletes))
        deletes = [Delete(inbox_key(self._lane, item.first)) for item in items]
        await self._writer.patiently(lambda: self._writer.table.delete_all(deletes))

    async def _whole(self, event: Event, count: int) -> Event | None:
        """The event with its input, should that be in parts; None when one of them is gone."""
        parts: list[bytes] = []
        for number in range(count):
            key = part_key(self._lane, event, number)
            item = await self._writer.patiently(functools.partial(self._writer.table.get, key)) or {}
            data = item.get("input")
            if not isinstance(data, bytes):
                return None
            parts.append(data)
        return structs.replace(event, input=b"".join(parts)) if parts else event

    async def _look_up_results(self, items: Sequence[Item], look: _Look) -> None:
        """Ask for the results of the calls that may be taken up of these items, all at once."""
        asked: list[str] = []
        for item in items:
            if len(asked) + len(look.events) >= look.most:
                break
            asked += [call.id for call in _calls(item) if not finished(look.head, call, look.now_ms)]
        found = await self._writer.read_all([result_key(call) for call in asked])
        look.results.update(call for call, item in zip(asked, found, strict=True) if item is not None and "res" in item)


def _calls(item: Item) -> list[Event]:
    """The calls in an item whose results are kept. What cannot be read is found out when the item is taken up."""
    try:
        events = inbox_events(item) if str(item["sk"]).startswith(CALLS_LOW) else ()
    except ValueError:
        return []
    return [event for event in events if isinstance(event.source, CallSource) and event.source.keep_result]
