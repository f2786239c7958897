"""Delivery of messages and results: from an outbox, or straight from HTTP, to where they are durable.

Owns the write order inbox item, guard, mark (9, 10, 11), the guard before a slot (8), and what shipping each kind of
outbox entry means (15). Does not own when a lane ships.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import assert_never

from tenuto.lane.head import head_key, parse_head
from tenuto.lane.transitions import (
    Timer,
    inbox_put,
    mark_pend,
    parse_timer,
    part_puts,
    refused_put,
    result_put,
    slot_put,
    timer_put,
    timer_put_again,
)
from tenuto.lane.writes import Applied, Delete, Key, Refused
from tenuto.protocol.dead_letters import REASON_HEADERS
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane, is_awakeable_slot
from tenuto.protocol.limits import AWAKEABLES_BYTES_MAX, VALUE_BYTES_MAX
from tenuto.protocol.records import (
    AwakeableSlot,
    CallSource,
    Event,
    MessageSource,
    Out,
    PublishOut,
    ResolveOut,
    Result,
    ResultOut,
    SendOut,
    pack,
)
from tenuto_control.core import log_fields
from tenuto_control.core.metrics import Metrics
from tenuto_control.core.routing import smaller_forms
from tenuto_control.dispatcher.dead_letters import produce_largest
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.limits import Limits
from tenuto_control.ports import (
    Clock,
    LogUnavailableError,
    OverloadedError,
    RecordSink,
    RecordTooLargeError,
    Resolution,
)

log = logging.getLogger("tenuto.delivery")

HTTP_SENDER = "http"
"""Stands in a timer for the sender of a message that came over HTTP; no partition key looks like it."""


class Delivery:
    """Puts things where they are durable, then tells the lanes concerned.

    `look` is called with a lane whose inbox or slots have something new; `told` with an invocation whose result is
    stored; `arm` with a timer that was put.
    """

    def __init__(
        self,
        writer: Writer,
        sink: RecordSink,
        clock: Clock,
        limits: Limits,
        token: Callable[[], str],
        look: Callable[[Lane], None],
        told: Callable[[str, Result], None],
        arm: Callable[[Timer], None],
        metrics: Metrics,
    ) -> None:
        self._writer = writer
        self._sink = sink
        self._clock = clock
        self._limits = limits
        self._token = token
        self._look = look
        self._told = told
        self._arm = arm
        self._metrics = metrics

    async def accept(self, lane: Lane, events: Iterable[Event]) -> dict[str, int]:
        """Make events durable in a lane's inbox. When this returns, they will be run, whatever process dies.

        An event that is there as a tombstone has run already: its nonce is returned, with the tombstone's time to live.
        One that is there alive may lack its mark, whose writer may have died, so guard and mark are repeated for it.
        """
        nonce = None
        buried: dict[str, int] = {}
        for event in events:
            for part in part_puts(lane, event):
                await self._writer.write(part)
            written = await self._writer.write(inbox_put(lane, event))
            answer = written.answer
            if isinstance(answer, Refused) and answer.item is not None and "done" in answer.item:
                ttl = answer.item.get("ttl")
                buried[event.nonce] = ttl if isinstance(ttl, int) else 0
                continue
            nonce = event.nonce
        if nonce is None:
            return buried
        due_ms = self._clock.now_ms() + self._limits.guard_delay_ms
        await self._writer.write(timer_put(Timer(lane, "guard", nonce, due_ms, self._token())))
        await self._writer.write(mark_pend(lane, self._token()))
        self._look(lane)
        return buried

    async def accept_running(self, lane: Lane, event: Event, guard_ms: int) -> None:
        """Make a call durable while an attempt at it runs in this process: 9 and 10, without 11.

        A mark would refuse the attempt's commit, and have the call run a second time for nothing. The guard, due when
        the attempt must have ended, leads to the item; its commit meanwhile makes the item one that is done.
        """
        await self._writer.write(inbox_put(lane, event))
        await self.guard(lane, event.nonce, guard_ms)

    async def guard(self, lane: Lane, invocation: str, delay_ms: int, ver: int | None = None) -> None:
        """Make sure that someone looks at a lane after this delay; `ver` is what a write that follows expects."""
        now_ms = self._clock.now_ms()
        guard = Timer(lane, "guard", invocation, now_ms + delay_ms, self._token(), ver=ver, since_ms=now_ms)
        await self._writer.write(timer_put(guard))

    async def ship(self, sender: Lane, entries: Mapping[str, Out], shipped: set[str]) -> None:
        """Deliver outbox entries, in order, adding each that is to `shipped`.

        Idempotent but for published records, which carry their id. A topic that takes no records holds up only itself:
        LogUnavailableError is raised at the end, when everything else has been delivered. A record that is too large
        for its topic holds up nothing.
        """
        inboxes: dict[Lane, list[tuple[str, SendOut]]] = {}
        stuck: dict[str, LogUnavailableError] = {}
        for sequence, entry in entries.items():
            match entry:
                case SendOut() if entry.due_ms is None or entry.due_ms <= self._clock.now_ms():
                    inboxes.setdefault(entry.lane, []).append((sequence, entry))
                    continue
                case PublishOut(topic=topic):
                    if topic in stuck:
                        continue
                    try:
                        await self._publish(sender, sequence, entry)
                    except LogUnavailableError as e:
                        stuck[topic] = e
                        continue
                case _:
                    await self._ship_one(sender, sequence, entry)
            shipped.add(sequence)
        for lane, messages in inboxes.items():
            await self.accept(lane, [message(sender.pk, sequence, entry) for sequence, entry in messages])
            shipped.update(sequence for sequence, _ in messages)
        for error in stuck.values():
            raise error

    async def _ship_one(self, sender: Lane, sequence: str, entry: SendOut | ResultOut | ResolveOut) -> None:
        match entry:
            case SendOut():
                await self.postpone(sender.pk, sequence, entry)
            case ResultOut(invocation, result):
                await self._store(invocation, result)
                self._told(invocation, result)
            case ResolveOut(awakeable, result):
                if await self.resolve(awakeable, result) in (Resolution.UNKNOWN, Resolution.CONFLICT):
                    _unawaited(awakeable)
            case _:
                assert_never(entry)

    async def _store(self, invocation: str, result: Result) -> None:
        """15. A delayed message with this id, which a call came before, must find the result when it is due."""
        now_ms = self._clock.now_ms()
        written = await self._writer.write(result_put(invocation, result, now_ms))
        due_ms = (written.answer.item or {}).get("begins")
        if isinstance(due_ms, int) and due_ms > now_ms:
            await self._writer.write(result_put(invocation, result, due_ms))

    async def _publish(self, sender: Lane, sequence: str, entry: PublishOut) -> None:
        value = entry.value
        table = self._writer.table
        at = None if entry.value_item is None else Key(sender.pk, entry.value_item)
        if at is not None:
            item = await self._writer.patiently(lambda: table.get(at))
            if item is None:
                # It goes when its record has been produced: this entry was shipped before, and is only not cleared yet.
                return
            stored = item.get("input")
            value = stored if isinstance(stored, bytes) else None
        identity = ("tenuto-id", f"{sender.pk}#{sequence}".encode())
        if entry.dead:
            await self._bury(sender, entry, value, identity)
        else:
            try:
                await self._sink.produce(entry.topic, value, entry.key, (*entry.headers, identity))
            except RecordTooLargeError as e:
                await self._set_aside(sender, sequence, entry, e)
        if at is not None:
            await self._writer.write(Delete(at))

    async def _bury(self, sender: Lane, entry: PublishOut, value: bytes | None, identity: tuple[str, bytes]) -> None:
        """Produce a dead letter, smaller where its topic does not take it whole."""
        own, reasons = entry.headers[:-REASON_HEADERS], entry.headers[-REASON_HEADERS:]
        forms = smaller_forms(value, entry.key, own, (*reasons, identity))
        kept = await produce_largest(self._sink, entry.topic, forms)
        self._metrics.count("DeadLetters")
        if kept.lacks:
            log.error(
                '%s: a dead letter is too large for "%s", so it lacks %s; raise max.message.bytes there',
                *(sender.pk, entry.topic, kept.lacks),
                extra=log_fields.of_lane(sender),
            )

    async def _set_aside(self, sender: Lane, sequence: str, entry: PublishOut, error: RecordTooLargeError) -> None:
        """Keep a published record that its topic does not take in an item of its own.

        In the outbox it would hold up its lane until somebody raises the bound, and with it the offset of its event:
        where a mapping delivers, all of the partition. What one commit publishes is far below the brokers' default
        bound, so only a topic that somebody made narrower refuses any.
        """
        kept = refused_put(sender, sequence, entry)
        await self._writer.write(kept)
        self._metrics.count("RecordsRefused")
        text = "%s: the published record with tenuto-id %s#%s was not produced and is kept in the item %s: %s"
        log.error(text, sender.pk, sender.pk, sequence, kept.key.sk, error, extra=log_fields.of_lane(sender))

    async def postpone(self, sender: str, sequence: str, entry: SendOut, *, again: bool = False) -> None:
        """Make a delayed message durable as a timer; `again` leaves one that is there, and its message, as it is."""
        nonce = InvocationId.parse(entry.event_id).nonce
        timer = Timer(entry.lane, "send", nonce, entry.due_ms or 0, nonce, pack(entry), sender, sequence)
        written = await self._writer.write(timer_put_again(timer) if again else timer_put(timer))
        self._arm(parse_timer(written.answer.item) if again and written.answer.item else timer)

    async def resolve(self, awakeable: str, result: Result) -> Resolution:
        """Put a result into a waiting slot, after a guard. The first answer stays.

        Raises OverloadedError while too many results wait that the run has not taken.
        """
        try:
            name = AwakeableId.parse(awakeable)
        except ValueError:
            return Resolution.UNKNOWN
        lane, nonce = name.invocation
        if not is_awakeable_slot(name.slot):
            return Resolution.UNKNOWN
        table = self._writer.table
        head = parse_head(await self._writer.patiently(lambda: table.get(head_key(lane))))
        if head.run is None or head.run.event.nonce != nonce:
            return Resolution.UNKNOWN
        data = pack(AwakeableSlot(result))
        waiting = sum(len(d) for slot, d in head.slots.items() if is_awakeable_slot(slot) and slot != name.slot)
        if waiting + len(data) > AWAKEABLES_BYTES_MAX:
            # An id need not have been handed out, and what fills the head would keep its run from writing.
            raise OverloadedError("as many results as the invocation can hold wait for it already")
        await self.guard(lane, nonce, self._limits.guard_delay_ms)
        written = await self._writer.write(slot_put(lane, head.run, name.slot, data))
        if isinstance(written.answer, Applied):
            self._look(lane)
            return Resolution.ACCEPTED
        seen = parse_head(written.answer.item)
        if seen.run is None or seen.run.event.nonce != nonce:
            return Resolution.UNKNOWN
        return Resolution.REPEATED if seen.slots.get(name.slot) == data else Resolution.CONFLICT


def _unawaited(awakeable: str) -> None:
    """A line about an answer that nobody takes. Text that is no id is not shown: it may be anything."""
    try:
        name = AwakeableId.parse(awakeable)
    except ValueError:
        log.info("an answer to an awakeable is dropped: what it names is no awakeable id")
    else:
        fields = log_fields.of_invocation(name.invocation)
        log.info("nobody waits for awakeable %s (any more)", awakeable, extra=fields)


def fits(event: Event) -> bool:
    """Whether an event can be a message: only what came from Kafka may wait in parts."""
    return len(event.input or b"") + sum(len(n) + len(v) for n, v in event.headers) <= VALUE_BYTES_MAX


def message(sender: str, sequence: str, entry: SendOut) -> Event:
    """The event that a message becomes at its receiver; one from HTTP is what it would have been without its delay."""
    source = CallSource(entry.keep_result) if sender == HTTP_SENDER else MessageSource(sender, sequence)
    return Event(entry.event_id, entry.handler, source, entry.input, entry.headers)
