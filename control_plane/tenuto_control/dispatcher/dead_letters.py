"""Dead letters on their last way: to a topic in the largest form that it takes, or into the table, and out of it again.

Owns the order of tries, all requests about the table's letters, and the lines about them. Does not own the forms
(`core.routing`), the items (`tenuto.lane.dead_letters`), which event or record is given up, nor when a letter is run
again (`admin.dead_letters`).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from functools import partial

from msgspec.structs import replace

from tenuto.lane.dead_letters import (
    LETTERS_HIGH,
    LETTERS_LOW,
    Letter,
    cut,
    letter_done,
    letter_key,
    letter_part_key,
    letter_partitions,
    letter_parts,
    letter_put,
    letter_redriving,
    message_letter_id,
    parse_letter,
    record_letter_id,
)
from tenuto.lane.items import payload_in
from tenuto.lane.writes import Applied, Delete, Item, Key
from tenuto.protocol.ids import Lane
from tenuto.protocol.limits import INLINE_BYTES_MAX
from tenuto.protocol.records import (
    BuriedOut,
    Event,
    KafkaSource,
    MessageSource,
    PublishOut,
    Source,
    event_bytes,
    pack,
    unpack_event,
    unpack_out,
)
from tenuto_control.core import log_fields
from tenuto_control.core.log_fields import shown, shown_reason
from tenuto_control.core.metrics import CountName, Metrics
from tenuto_control.core.routing import DeadLetter
from tenuto_control.dispatcher.unreadable_items import UnreadableItems
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.ports import Clock, RecordSink, RecordTooLargeError

log = logging.getLogger("tenuto.delivery")


async def produce_largest(sink: RecordSink, topic: str, forms: Sequence[DeadLetter]) -> DeadLetter:
    """Produce the first form that the topic takes.

    Raises RecordTooLargeError when it takes none, and whatever else `RecordSink.produce` does.
    """
    *larger, smallest = forms
    for form in larger:
        try:
            await sink.produce(topic, form.value, form.key, form.headers)
        except RecordTooLargeError:
            continue
        return form
    await sink.produce(topic, smallest.value, smallest.key, smallest.headers)
    return smallest


class Letters:
    """The dead letters of a table. What is put twice is one letter."""

    def __init__(self, writer: Writer, clock: Clock, metrics: Metrics) -> None:
        self._writer = writer
        self._clock = clock
        self._metrics = metrics
        self._unreadable = UnreadableItems(metrics)

    async def put_ahead(self, entry: BuriedOut) -> BuriedOut:
        """The entry as an outbox takes it: a large event is put into parts now, and no head has to hold it.

        Should the commit that the entry is for be refused, the next one finds the same parts.
        """
        if entry.parts or entry.value_item is not None or event_bytes(entry.event) <= INLINE_BYTES_MAX:
            return entry
        parts = await self._put_parts(message_letter_id(entry.event.id), pack(entry.event))
        size = len(entry.event.input or b"")
        return replace(entry, event=_without_payload(entry.event), parts=parts, size=size)

    async def keep_message(self, sender: Lane, entry: BuriedOut) -> None:
        """Keep an event that ended unseen. Raises UnreadableItemError for the item of its payload."""
        event, name = entry.event, message_letter_id(entry.event.id)
        at = None if entry.value_item is None else Key(sender.pk, entry.value_item)
        if at is not None:
            item = await self._writer.read_apart(at)
            if item is None:
                # It goes when its letter has been put: this entry was shipped before, and is only not cleared yet.
                return
            stored, carried = payload_in(item)
            event = replace(event, input=event.input if stored is None else stored)
            if carried is not None and not event.headers:
                event = replace(event, headers=carried.headers)
        data = pack(event)
        parts = entry.parts or await self._put_parts(name, data)
        lane = event.invocation.lane
        letter = Letter(
            id=name,
            kind="message",
            reason=entry.reason,
            status_code=entry.status_code,
            at_ms=entry.at_ms or self._clock.now_ms(),
            origin=origin_of(event.source),
            lane=lane.pk,
            invocation=event.id,
            handler=event.handler,
            first_ms=entry.first_ms,
            attempts=entry.attempts,
            size=entry.size or len(event.input or b""),
            parts=parts,
            data=None if parts else data,
        )
        if await self._put(letter, "DeadLetters"):
            _tell(lane, event, entry, letter)
        if at is not None:
            await self._writer.write(Delete(at))

    async def keep_record(self, entry: PublishOut, identity: Sequence[str], reason: str) -> None:
        """Keep a record that its topic does not take, so that it delays neither its lane nor its partition."""
        name = record_letter_id(*identity)
        data = pack(entry)
        parts = await self._put_parts(name, data)
        letter = Letter(
            id=name,
            kind="record",
            reason=cut(reason),
            status_code=500,
            at_ms=self._clock.now_ms(),
            origin=cut("#".join(identity)),
            topic=cut(entry.topic),
            size=len(entry.value or b""),
            parts=parts,
            data=None if parts else data,
        )
        if await self._put(letter, "RecordsRefused"):
            if entry.dead:
                self._metrics.count("DeadLetters")
            kind = "a dead letter" if entry.dead else "a published record"
            text = 'topic "%s": %s (%s) was not produced and is kept as dead letter %s: %s'
            log.error(text, shown(entry.topic), kind, shown(letter.origin), name, shown(reason))

    async def all(self, lane: str | None = None) -> AsyncIterator[Letter]:
        """All of them, or those of a lane (its partition key), without their payloads; in no order."""
        for partition in letter_partitions():
            after: str | None = None
            while True:
                ask = partial(self._writer.table.query, partition, LETTERS_LOW, LETTERS_HIGH, after=after)
                page = await self._writer.patiently(ask)
                for item in page.items:
                    letter = self._readable(item)
                    if letter is not None and lane in (None, letter.lane):
                        yield replace(letter, data=None)
                after = page.last
                if after is None:
                    break

    def _readable(self, item: Item) -> Letter | None:
        try:
            return parse_letter(item)
        except ValueError as e:
            # The others are listed all the same.
            self._unreadable.met(f"the dead letter {item['pk']!s} {item['sk']!s}", e)
            return None

    async def read(self, name: str) -> tuple[Letter, Event | PublishOut] | None:
        """A letter with its event, or its record; None when there is none, or it was dealt with."""
        item = await self._get(letter_key(name))
        letter = None if item is None else parse_letter(item)
        data = None if letter is None else await self._data(letter)
        if letter is None or data is None:
            return None
        if letter.kind == "message":
            return letter, unpack_event(data)
        entry = unpack_out(data)
        assert isinstance(entry, PublishOut), "a letter is of a message or of a record"
        return letter, entry

    async def redriving(self, letter: Letter, now_ms: int) -> None:
        """Say that a letter begins to be run again, unless that was said before."""
        await self._writer.write(letter_redriving(letter.id, now_ms))

    async def end(self, letter: Letter) -> None:
        """Forget a letter that was dealt with.

        The letter first: parts that nobody names only cost storage, and a letter without them would be useless.
        """
        await self._writer.write(letter_done(letter.id, self._clock.now_ms()))
        if letter.parts:
            deletes = [Delete(letter_part_key(letter.id, number)) for number in range(letter.parts)]
            await self._writer.patiently(lambda: self._writer.table.delete_all(deletes))

    async def _data(self, letter: Letter) -> bytes | None:
        """A letter's payload, should that be in parts; None when one of them is gone."""
        if letter.data is not None:
            return letter.data
        parts: list[bytes] = []
        for number in range(letter.parts):
            data = (await self._get(letter_part_key(letter.id, number)) or {}).get("input")
            if not isinstance(data, bytes):
                return None
            parts.append(data)
        return b"".join(parts)

    async def _get(self, key: Key) -> Item | None:
        return await self._writer.patiently(partial(self._writer.table.get, key))

    async def _put_parts(self, name: str, data: bytes) -> int:
        puts = letter_parts(name, data)
        for put in puts:
            await self._writer.write(put)
        return len(puts)

    async def _put(self, letter: Letter, counted: CountName) -> bool:
        """Put a letter. False when it is there already, or was dealt with since."""
        written = await self._writer.write(letter_put(letter))
        if not isinstance(written.answer, Applied) and not written.lost:
            return False
        self._metrics.count(counted)
        return True


def _tell(lane: Lane, event: Event, entry: BuriedOut, letter: Letter) -> None:
    text = "%s: %s ended as failed (%d) after %s, from %s; kept as dead letter %s: %s"
    tries = "an attempt" if entry.attempts <= 1 else f"{entry.attempts} attempts"
    reason = shown_reason(entry.reason, foreign=entry.foreign)
    log.error(
        text,
        *(lane.pk, event.handler, entry.status_code, tries, letter.origin, letter.id, reason),
        extra=log_fields.of_event(lane, event, entry.attempts or None),
    )


def origin_of(source: Source) -> str:
    """Where an event came from, in words."""
    match source:
        case KafkaSource():
            return f"{source.topic}/{source.partition} offset {source.offset}"
        case MessageSource(sender, sequence):
            return f"a message of {sender}#{sequence}"
        case _:
            return "HTTP"


def _without_payload(event: Event) -> Event:
    """What of an event may stay in a head."""
    source = event.source
    if isinstance(source, KafkaSource):
        source = replace(source, raw_key=None)
    return replace(event, input=None, headers=(), source=source)
