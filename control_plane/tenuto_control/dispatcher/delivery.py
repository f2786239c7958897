"""Delivery of messages and results: from an outbox, or straight from HTTP, to where they are durable.

Owns the write order inbox item, guard, mark (9, 10, 11), the guard before a slot (8), and what shipping each kind of
outbox entry means (15). Does not own when a lane ships, nor the table's dead letters (`dead_letters`).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, assert_never

from msgspec.structs import replace

from tenuto.lane.dead_letters import REASON_HEADERS, dead_letter
from tenuto.lane.items import UnreadableItemError, payload_in
from tenuto.lane.timers import HTTP_SENDER, SendTimer, parse_timer, timer_put, timer_put_again
from tenuto.lane.tombstones import is_tombstone, ttl_of
from tenuto.lane.transitions import inbox_put, last_offset, mark_pend, part_puts, result_put
from tenuto.lane.writes import Delete, Item, Key, Refused
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane, digest
from tenuto.protocol.limits import INBOX_ITEM_BYTES_MAX, INBOX_ITEM_EVENTS_MAX, VALUE_BYTES_MAX
from tenuto.protocol.records import (
    BundleOut,
    BuriedOut,
    CallSource,
    Entry,
    Event,
    KafkaSource,
    MessageSource,
    Out,
    PublishOut,
    ResolveOut,
    Result,
    ResultOut,
    SendOut,
    UnreadableOut,
    event_bytes,
    pack,
)
from tenuto.store.port import TableRefusedError, TableUnavailableError, UnstorableError
from tenuto_control.core import log_fields
from tenuto_control.core.clocks import TableClock, UncheckedClock
from tenuto_control.core.log_fields import shown
from tenuto_control.core.metrics import Metrics
from tenuto_control.core.routing import smaller_forms
from tenuto_control.dispatcher.answers import Answers
from tenuto_control.dispatcher.dead_letters import Letters, produce_largest
from tenuto_control.dispatcher.guards import Guards
from tenuto_control.dispatcher.hints import Hints
from tenuto_control.dispatcher.patience import TopicPatience
from tenuto_control.dispatcher.receivers import Receivers
from tenuto_control.dispatcher.undeliverable import Undeliverable
from tenuto_control.dispatcher.writer import Writer, Written, at_once
from tenuto_control.limits import Limits
from tenuto_control.ports import (
    Clock,
    HandlerMissingError,
    OverloadedError,
    RecordRefusedError,
    RecordSink,
    RecordTooLargeError,
    Resolution,
    TopicUnusableError,
)

T = TypeVar("T", bound=Out)
log = logging.getLogger("tenuto.delivery")

PARTLY_DELIVERED_MAX = 1_000
"""Bundles of which it is remembered what has been delivered, while the rest waits for its topic."""

BUNDLES_AT_ONCE = 16
"""So many bundles of an outbox are in memory at once, of up to 400 KB each; a head has room for thousands of names."""

PUT_OFF_MS = 2_000
"""When a message is delivered again whose receiver had no room for it, or no handler."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What came of events that were put into an inbox.

    An event that is there as a tombstone has run already: `buried` has its nonce, with the tombstone's time to live.
    `head` is the lane's head as the mark has left it; None when nothing had to be marked.
    """

    buried: Mapping[str, int]
    head: Item | None = None


@dataclass(frozen=True, slots=True)
class _Opened:
    """A bundle of outgoing entries: its item, what of it waits, and what was delivered before."""

    item: str
    waiting: Mapping[str, Entry]
    delivered: frozenset[str]


class _Stuck:
    """Entries that cannot be delivered now, or ever: why, by their topic or place. The others are delivered."""

    def __init__(self) -> None:
        self.errors: dict[str, Exception] = {}

    @contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """Deliver something whose failure concerns nothing else. Raises what is the table's fault."""
        try:
            yield
        except Exception as e:
            if isinstance(e, TableUnavailableError | TableRefusedError) and not isinstance(e, UnstorableError):
                raise
            self.errors[name] = e


class Delivery:
    """Puts things where they are durable, then tells who is concerned. `token` gives a name that nobody else uses."""

    def __init__(
        self,
        writer: Writer,
        sink: RecordSink,
        clock: Clock,
        limits: Limits,
        token: Callable[[], str],
        metrics: Metrics,
        hints: Hints,
        receivers: Receivers | None = None,
        table_clock: TableClock | None = None,
    ) -> None:
        self._writer = writer
        self._sink = sink
        self._clock = clock
        self._limits = limits
        self._token = token
        self._metrics = metrics
        self._hints = hints
        self._delivered: dict[tuple[Lane, str], frozenset[str]] = {}
        self._guards = Guards(writer, clock, token, table_clock or UncheckedClock(), limits.lease_margin_ms)
        self._answers = Answers(writer, clock, limits, token, self._guards, hints)
        self._patience = TopicPatience(clock, limits.topic_patience_ms, metrics)
        self._undeliverable = Undeliverable(writer, metrics)
        self._receivers = receivers
        self.letters = Letters(writer, clock, metrics)

    async def accept(self, lane: Lane, events: Iterable[Event], *, hint: bool = True) -> Accepted:
        """Make events durable in a lane's inbox. When this returns, they will be run, whatever process dies.

        One that is there alive may lack its mark, whose writer may have died, so guard and mark are repeated for it.
        Not for a call that has run meanwhile: whoever asks for it finds its result, and never the item, which would run
        once more after the result's time. So the guard of a call is put before its item. By a clock that is known to be
        right it lasts for the mark as well; otherwise there is a second one.
        `hint`: have this process look into the inbox. Otherwise it hands them over, perhaps not for the last time.
        """
        last: Event | None = None
        buried: dict[str, int] = {}
        waiting, delay_ms = list(events), self._limits.guard_delay_ms
        call = next((event for event in waiting if isinstance(event.source, CallSource)), None)
        if call is not None:
            await self._guards.put_shared(lane, call.nonce, delay_ms)
        # Some at a time: what is made of all of them at once keeps the event loop from others.
        for at in range(0, len(waiting), INBOX_ITEM_EVENTS_MAX):
            for event, put in await self._put(lane, waiting[at : at + INBOX_ITEM_EVENTS_MAX]):
                answer = put.answer
                if isinstance(answer, Refused) and answer.item is not None and is_tombstone(answer.item):
                    buried[event.nonce] = ttl_of(answer.item) or 0
                    continue
                last = event
        if last is None:
            return Accepted(buried)
        if hint and call is None:
            await self._guards.put(lane, last.nonce, delay_ms)
        else:
            await self._guards.put_shared(lane, last.nonce, delay_ms)
        marked = await self._writer.write(mark_pend(lane, self._token()))
        if hint:
            self._hints.look(lane)
        return Accepted(buried, marked.answer.item)

    async def _put(self, lane: Lane, events: Sequence[Event]) -> list[tuple[Event, Written]]:
        """Put events into an inbox: those of one source one after the other, calls beside each other.

        Whoever drains the lane may look in between, and takes the lowest position of a source that is there: what came
        before it, and is put later, would be taken for passed.
        """
        calls: list[Event] = []
        records: dict[str, dict[int, Event]] = {}
        written: list[tuple[Event, Written]] = []
        for event in events:
            match event.source:
                case CallSource():
                    calls.append(event)
                case MessageSource():
                    written.append((event, await self._writer.write(inbox_put(lane, event))))
                case KafkaSource() as source:
                    records.setdefault(source.watermark, {})[source.offset] = event
                case _:
                    assert_never(event.source)
        puts = [inbox_put(lane, call, at_ms=self._clock.now_ms()) for call in calls]
        written += zip(calls, await self._writer.write_all(puts), strict=True)
        for by_offset in records.values():
            written += await self._put_records(lane, sorted(by_offset.items()))
        return written

    async def _put_records(self, lane: Lane, rest: Sequence[tuple[int, Event]]) -> list[tuple[Event, Written]]:
        """Put events of one Kafka source, in the order of their offsets and into as few items as hold them."""
        written: list[tuple[Event, Written]] = []
        while rest:
            first, *more = (event for _, event in rest[: _fitting([event for _, event in rest])])
            for part in part_puts(lane, first, self._clock.now_ms()):
                await self._writer.write(part)
            put = inbox_put(lane, first, more)
            written.append((first, answer := await self._writer.write(put)))
            last = rest[len(more)][0]
            if isinstance(answer.answer, Refused) and answer.answer.item is not None:
                # Delivered before, and put then together with fewer events, or with more.
                last = last_offset(answer.answer.item)
            rest = [(offset, event) for offset, event in rest if offset > last]
        return written

    async def accept_running(self, lane: Lane, event: Event, guard_ms: int) -> None:
        """Make a call durable while an attempt at it runs in this process: 10 and 9, without 11.

        A mark would refuse the attempt's commit, and have the call run a second time for nothing. The guard, due when
        the attempt must have ended, leads to the item; its commit meanwhile makes the item one that is done. Why the
        guard comes first, `accept` says.
        """
        guarded_ms = self._clock.now_ms()
        await self.guard(lane, event.nonce, guard_ms)
        await self._writer.write(inbox_put(lane, event, at_ms=self._clock.now_ms()))
        if self._clock.now_ms() - guarded_ms > guard_ms // 2:
            # It took so long that the guard may have been judged before.
            await self.guard(lane, event.nonce, guard_ms)

    async def guard(self, lane: Lane, invocation: str, delay_ms: int, ver: int | None = None) -> None:
        """See `Guards.put`."""
        await self._guards.put(lane, invocation, delay_ms, ver)

    async def guard_leftovers(self, lane: Lane) -> None:
        """See `Guards.put_afterwards`."""
        await self._guards.put_afterwards(lane)

    async def ship(self, sender: Lane, entries: Mapping[str, Out], shipped: set[str]) -> None:
        """Deliver outbox entries, in order, adding each that is to `shipped`.

        Idempotent but for published records, which carry their id. A topic that takes no records delays only itself:
        LogUnavailableError is raised at the end, when everything else has been delivered. An entry that cannot be read,
        or never be delivered, is set aside. A record that no waiting brings into its topic, or that has waited for long
        enough, is kept in the table, and so is a message for a handler that there is not: none delays anything.
        """
        stuck = _Stuck()
        for some in _portions(entries):
            await self._ship_some(sender, some, shipped, stuck)
        for error in stuck.errors.values():
            raise error

    async def _ship_some(self, sender: Lane, entries: Mapping[str, Out], shipped: set[str], stuck: _Stuck) -> None:
        inboxes: dict[Lane, list[tuple[str, SendOut]]] = {}
        entries = await self._deliverable(sender, entries, shipped)
        bundles = await self._open(sender, entries)
        loose = {seq: entry for seq, entry in entries.items() if not isinstance(entry, BundleOut | UnreadableOut)}
        opened = {seq: entry for bundle in bundles.values() for seq, entry in bundle.waiting.items()}
        loose |= await self._deliverable(sender, opened, shipped)
        results = [(sequence, entry) for sequence, entry in loose.items() if isinstance(entry, ResultOut)]
        await at_once([functools.partial(self._ship_result, sender, *one, stuck, shipped) for one in results])
        for sequence, entry in loose.items():
            match entry:
                case ResultOut():
                    continue
                case SendOut() if self._problem(entry) is not None:
                    name, delivered = f"#{sequence}", self._keep_unhandled(sender, sequence, entry)
                case SendOut() if entry.due_ms is None or entry.due_ms <= self._clock.now_ms():
                    inboxes.setdefault(entry.lane, []).append((sequence, entry))
                    continue
                case PublishOut(topic=topic):
                    if topic in stuck.errors:
                        continue
                    name, delivered = topic, self._with_payload(sender, sequence, entry)
                case BuriedOut():
                    name, delivered = f"#{sequence}", self._with_payload(sender, sequence, entry)
                case SendOut() | ResolveOut():
                    name, delivered = f"#{sequence}", self._ship_one(sender, sequence, entry)
                case _:
                    assert_never(entry)
            with stuck.apart(name):
                await delivered
                shipped.add(sequence)
        for lane, messages in inboxes.items():
            with stuck.apart(f"#{lane.pk}"):
                await self.accept(lane, [message(sender.pk, sequence, entry) for sequence, entry in messages])
                shipped.update(sequence for sequence, _ in messages)
        await self._close(sender, bundles, shipped)

    async def _deliverable(self, sender: Lane, entries: Mapping[str, T], shipped: set[str]) -> dict[str, T]:
        """The entries that may be delivered; others are set aside, and done with."""
        taken = {seq for seq, entry in entries.items() if await self._undeliverable.took(sender, seq, entry)}
        shipped.update(taken)
        return {seq: entry for seq, entry in entries.items() if seq not in taken} if taken else dict(entries)

    async def _open(self, sender: Lane, entries: Mapping[str, Out]) -> dict[str, _Opened]:
        """Read the bundles among outbox entries. One whose item is gone was delivered before, and only not cleared."""
        opened: dict[str, _Opened] = {}
        for sequence, entry in entries.items():
            if not isinstance(entry, BundleOut):
                continue
            item = await self._writer.read_apart(Key(sender.pk, entry.item))
            delivered = self._delivered.get((sender, sequence), frozenset())
            inside = {} if item is None else await self._undeliverable.readable(sender, sequence, entry, item)
            waiting = {at: one for at, one in inside.items() if at not in delivered}
            opened[sequence] = _Opened(entry.item, waiting, delivered)
        return opened

    async def _close(self, sender: Lane, bundles: Mapping[str, _Opened], shipped: set[str]) -> None:
        """Release bundles that are delivered whole; remember of others what is, since records are not idempotent."""
        for sequence, bundle in bundles.items():
            if bundle.waiting.keys() <= shipped:
                await self._writer.write(Delete(Key(sender.pk, bundle.item)))
                self._delivered.pop((sender, sequence), None)
                shipped.add(sequence)
            else:
                self._delivered[sender, sequence] = bundle.delivered | (bundle.waiting.keys() & shipped)
                while len(self._delivered) > PARTLY_DELIVERED_MAX:
                    self._delivered.pop(next(iter(self._delivered)))

    async def _ship_one(self, sender: Lane, sequence: str, entry: SendOut | ResolveOut) -> None:
        match entry:
            case SendOut():
                await self.postpone(sender.pk, sequence, entry)
            case ResolveOut():
                await self.answer(sender.pk, sequence, entry)
            case _:
                assert_never(entry)

    async def _with_payload(self, sender: Lane, sequence: str, entry: PublishOut | BuriedOut) -> None:
        """Ship what may have its payload in its own item. When that cannot be read, both are set aside."""
        try:
            match entry:
                case PublishOut():
                    await self._publish(sender, sequence, entry)
                case BuriedOut():
                    await self.letters.keep_message(sender, entry)
                case _:
                    assert_never(entry)
        except UnreadableItemError as e:
            await self._undeliverable.take_with_payload(sender, sequence, entry, shown(str(e)))

    def _problem(self, entry: SendOut) -> str | None:
        return None if self._receivers is None else self._receivers.problem(entry.service, entry.handler)

    async def _keep_unhandled(self, sender: Lane, sequence: str, entry: SendOut) -> None:
        if not await self.unhandled(sender.pk, sequence, entry):
            raise HandlerMissingError(f"a message for {entry.service}/{entry.handler} waits")

    async def unhandled(self, sender: str, sequence: str, entry: SendOut) -> bool | None:
        """Whether a message is for a handler that there is not, and was kept among the dead letters; None: it waits."""
        problem = self._problem(entry)
        if problem is None or self._receivers is None:
            return False
        if self._receivers.waits(entry.service, entry.handler, problem):
            return None
        letter = dead_letter(message(sender, sequence, entry), problem, status_code=404)
        assert isinstance(letter, BuriedOut), "nobody waits for the result of a message"
        await self.letters.keep_message(entry.lane, letter)
        return True

    async def _ship_result(
        self, sender: Lane, sequence: str, entry: ResultOut, stuck: _Stuck, shipped: set[str]
    ) -> None:
        with stuck.apart(f"#{sequence}"):
            try:
                await self._store(entry.invocation, entry.result)
            except UnstorableError as e:
                await self._undeliverable.take(sender, sequence, entry, shown(str(e)))
            else:
                self._hints.told(entry.invocation, entry.result)
            shipped.add(sequence)

    async def _store(self, invocation: str, result: Result) -> None:
        """15. A delayed message with this id, which a call came before, must find the result when it is due."""
        now_ms = self._clock.now_ms()
        written = await self._writer.write(result_put(invocation, result, now_ms))
        due_ms = (written.answer.item or {}).get("begins")
        if isinstance(due_ms, int) and due_ms > now_ms:
            await self._writer.write(result_put(invocation, result, due_ms))

    async def _publish(self, sender: Lane, sequence: str, entry: PublishOut) -> None:
        value = entry.value
        at = None if entry.value_item is None else Key(sender.pk, entry.value_item)
        if at is not None:
            item = await self._writer.read_apart(at)
            if item is None:
                # It goes when its record has been produced: this entry was shipped before, and is only not cleared yet.
                return
            stored, carried = payload_in(item)
            value = value if stored is None else stored
            if carried is not None and len(entry.headers) <= REASON_HEADERS:
                entry = replace(entry, key=carried.raw_key, headers=(*carried.headers, *entry.headers))
        entry = replace(entry, value=value, value_item=None)
        identity = ("tenuto-id", f"{sender.pk}#{sequence}".encode())
        try:
            if entry.dead:
                await self._bury(sender, entry, identity)
            else:
                await self._sink.produce(entry.topic, value, entry.key, (*entry.headers, identity))
            self._patience.succeeded(entry.topic)
        except (RecordTooLargeError, RecordRefusedError) as e:
            await self.letters.keep_record(entry, _identity(sender, sequence, entry), str(e))
        except TopicUnusableError as e:
            if not self._patience.over(entry.topic, e):
                raise
            await self.letters.keep_record(entry, _identity(sender, sequence, entry), str(e))
        if at is not None:
            await self._writer.write(Delete(at))

    async def _bury(self, sender: Lane, entry: PublishOut, identity: tuple[str, bytes]) -> None:
        """Produce a dead letter, smaller where its topic does not take it whole."""
        own, reasons = entry.headers[:-REASON_HEADERS], entry.headers[-REASON_HEADERS:]
        forms = smaller_forms(entry.value, entry.key, own, (*reasons, identity))
        kept = await produce_largest(self._sink, entry.topic, forms)
        self._metrics.count("DeadLetters")
        told = {name: content.decode(errors="replace") for name, content in reasons}
        log.error(
            '%s: the record %s/%s offset %s for %s ended as failed and is in "%s": %s',
            sender.pk,
            told.get("tenuto-source-topic"),
            told.get("tenuto-source-partition"),
            told.get("tenuto-source-offset"),
            told.get("tenuto-handler"),
            entry.topic,
            shown(told.get("tenuto-reason", "")),
            extra=log_fields.of_lane(sender) | {"invocation_id": told.get("tenuto-invocation", "")},
        )
        if kept.lacks:
            log.error(
                '%s: a dead letter is too large for "%s", so it lacks %s; raise max.message.bytes there',
                *(sender.pk, entry.topic, kept.lacks),
                extra=log_fields.of_lane(sender),
            )

    async def postpone(self, sender: str, sequence: str, entry: SendOut, *, again: bool = False) -> None:
        """Make a delayed message durable as a timer; `again` leaves one that is there, and its message, as it is."""
        nonce = InvocationId.parse(entry.event_id).nonce
        timer = SendTimer(entry.lane, nonce, entry.due_ms or 0, nonce, pack(entry), sender, sequence)
        written = await self._writer.write(timer_put_again(timer) if again else timer_put(timer))
        there = parse_timer(written.answer.item) if again and written.answer.item else timer
        self._hints.remind(there if isinstance(there, SendTimer) else timer)

    async def put_off(self, timer: SendTimer) -> None:
        """Have a message delivered a little later: its receiver has no room for it, or no handler."""
        later = dataclasses.replace(timer, due_ms=self._clock.now_ms() + PUT_OFF_MS)
        await self._writer.write(timer_put(later))
        self._hints.remind(later)

    async def resolve(self, awakeable: str, result: Result) -> Resolution:
        """Put a result into a waiting slot. Raises OverloadedError while even its name does not fit the head."""
        return await self._answers.give(awakeable, result)

    async def answer(self, sender: str, sequence: str, entry: ResolveOut) -> None:
        """Deliver a handler's answer to an awakeable. One that its receiver has no room for now is put off."""
        try:
            resolution = await self.resolve(entry.awakeable, entry.result)
        except OverloadedError:
            lane, nonce = AwakeableId.parse(entry.awakeable).invocation
            await self.put_off(SendTimer(lane, nonce, 0, digest(sender, sequence), pack(entry), sender, sequence))
            return
        if resolution is Resolution.UNKNOWN:
            _unawaited(entry.awakeable)
        elif resolution is Resolution.CONFLICT:
            fields = log_fields.of_invocation(AwakeableId.parse(entry.awakeable).invocation)
            log.warning("an answer to an awakeable is dropped: another one came first", extra=fields)


def _portions(entries: Mapping[str, Out]) -> Iterator[dict[str, Out]]:
    """Outbox entries in their order, with no more than `BUNDLES_AT_ONCE` bundles at a time."""
    some: dict[str, Out] = {}
    bundles = 0
    for sequence, entry in entries.items():
        if isinstance(entry, BundleOut):
            if bundles == BUNDLES_AT_ONCE:
                yield some
                some, bundles = {}, 0
            bundles += 1
        some[sequence] = entry
    yield some


def _identity(sender: Lane, sequence: str, entry: PublishOut) -> tuple[str, ...]:
    """What tells a record from all others: a dead letter may be produced past the outbox, so its event does."""
    invocation = dict(entry.headers[-REASON_HEADERS:]).get("tenuto-invocation") if entry.dead else None
    return (sender.pk, sequence) if invocation is None else (sender.pk, invocation.decode(errors="replace"))


def _unawaited(awakeable: str) -> None:
    """A line about an answer that nobody takes. Text that is no id is not shown: it may be anything."""
    try:
        name = AwakeableId.parse(awakeable)
    except ValueError:
        log.info("an answer to an awakeable is dropped: what it names is not an awakeable id")
    else:
        fields = log_fields.of_invocation(name.invocation)
        log.info("nothing waits for awakeable %s any longer", awakeable, extra=fields)


def fits(event: Event) -> bool:
    """Whether an event can be a message: only what came from Kafka may wait in parts."""
    return event_bytes(event) <= VALUE_BYTES_MAX


def _fitting(events: Sequence[Event]) -> int:
    """How many of the first events of a Kafka source share an inbox item. One that is large has it for itself."""
    size = 0
    for number, event in enumerate(events[:INBOX_ITEM_EVENTS_MAX]):
        size += len(event.id) + event_bytes(event)
        if size > INBOX_ITEM_BYTES_MAX:
            return max(1, number)
    return min(len(events), INBOX_ITEM_EVENTS_MAX)


def message(sender: str, sequence: str, entry: SendOut) -> Event:
    """The event that a message becomes at its receiver; one from HTTP is what it would have been without its delay."""
    from_http = sender == HTTP_SENDER
    source = CallSource(entry.keep_result, one_way=True) if from_http else MessageSource(sender, sequence)
    return Event(entry.event_id, entry.handler, source, entry.input, entry.headers)
