"""What must hold, whatever happens: each law of the design as a check on every write, or on the world at the end.

Owns the judgement. Does not own how the world is run. A violation is kept and trips the run; it is never raised inside
product code, which might swallow it.

    on every write    one-owner  immutable-journal  together  finished-once  early-sleep  driver  offset
    on every invocation of a dispatcher that scales to zero (`instances`)    frozen  runaway
    at the end        order  messages  nothing-lost  liveness  leftovers
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

import msgspec

from tenuto.lane.dead_letters import letter_key, letter_partitions, message_letter_id, parse_letter
from tenuto.lane.head import HEAD_SK, RUN_ATTRIBUTES, parse_head
from tenuto.lane.items import unbundled
from tenuto.lane.timers import SWEEP_CURSOR, WIDE_MARK_SK, SendTimer, Timer, parse_timer
from tenuto.lane.transitions import inbox_events
from tenuto.lane.writes import Delete, Item, Write
from tenuto.protocol.ids import InvocationId, digest
from tenuto.protocol.messages import Activation, ClaimedRun, Head
from tenuto.protocol.records import (
    AwakeableSlot,
    BundleOut,
    BuriedOut,
    DueSlot,
    ElsewhereSlot,
    Event,
    KafkaSource,
    Out,
    PublishOut,
    ResolveOut,
    ResultOut,
    RunSlot,
    SendOut,
    SleptSlot,
    Success,
    UnreadableOut,
    unpack_bundle,
    unpack_slot,
)
from tests.simulation import programs
from tests.simulation.gate import Process
from tests.simulation.loop import SimulatedLoop

Table = Mapping[tuple[str, str], Item]

MESSAGE = "m"
"""How the nonce of a message begins."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A law that was broken, by its name, when (true time in ms since the run began), and how."""

    law: str
    at_ms: int
    text: str

    def __str__(self) -> str:
        return f"{self.law} at {self.at_ms} ms: {self.text}"


@dataclass(frozen=True, slots=True)
class Journaled:
    """A finished step: its value, when it became durable and which process wrote it."""

    value: bytes
    at_ms: int
    by: str


def kept_letters(table: Table) -> list[str]:
    """Ids of the messages that are dead letters: in the table's partitions for them, or on their way there."""
    partitions = frozenset(letter_partitions())
    found: list[str] = []
    for (pk, sk), item in table.items():
        if pk in partitions:
            letter = parse_letter(item)
            found += [letter.invocation] if letter is not None and letter.kind == "message" else []
        elif sk == HEAD_SK:
            for sequence, entry in parse_head(item).out.items():
                packed = table.get((pk, entry.item), {}).get("outs") if isinstance(entry, BundleOut) else None
                inside = [e for _, e in unbundled(sequence, unpack_bundle(packed))] if isinstance(packed, bytes) else []
                found += [e.event.id for e in (entry, *inside) if isinstance(e, BuriedOut)]
    return found


WRONG_CLOCK_MS_MIN = 10_000
"""A clock that is off by more is known to be, whatever dates leave open and however long a write is under way."""


@dataclass(slots=True)
class Oracles:
    """Watches one world. `skew_ms` is how far apart two clocks of it can be.

    `kept` finds the ids of messages that the table keeps as dead letters. `sent` are ids of what was sent from outside,
    for whose end nobody waits.
    """

    loop: SimulatedLoop
    skew_ms: int
    table: Table = field(default_factory=dict)
    published: Callable[[str], Collection[bytes]] = lambda _topic: ()
    let_go: Callable[[KafkaSource], bool] = lambda _source: False
    kept: Callable[[Table], Collection[str]] = kept_letters
    sent: Collection[str] = ()
    tripped: asyncio.Event = field(default_factory=asyncio.Event)
    violations: list[Violation] = field(default_factory=list)
    journaled: dict[str, Journaled] = field(default_factory=dict)
    executed: dict[str, int] = field(default_factory=dict)
    settled_events: set[str] = field(default_factory=set)
    timers: dict[str, dict[tuple[str, str], Timer]] = field(default_factory=lambda: defaultdict(dict))
    inbox: dict[str, dict[str, tuple[Event, ...]]] = field(default_factory=lambda: defaultdict(dict))
    progress: int = 0
    unmarked: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _origins: dict[tuple[str, str], dict[str, tuple[int, int]]] = field(default_factory=dict)
    _owners: dict[tuple[str, int], str] = field(default_factory=dict)
    _leases: set[tuple[str, int]] = field(default_factory=set)
    _slots: dict[tuple[str, str], bytes] = field(default_factory=dict)

    def report(self, law: str, text: str) -> None:
        """Keep a violation and end the run."""
        self.violations.append(Violation(law, round(self.loop.time() * 1_000), text))
        self.tripped.set()

    # --- on every write ----------------------------------------------------------------------------------------------

    def wrote(self, process: Process | None, write: Write, before: Item | None, after: Item | None) -> None:
        """A write was applied."""
        pk, sk = write.key.pk, write.key.sk
        if write.key == SWEEP_CURSOR:
            return
        if pk.startswith("T#"):
            self._timer(write, before, after)
        elif sk == HEAD_SK and not pk.startswith("R#"):
            self._head(process, pk, before, after)
        elif sk.startswith("I#"):
            self._inbox(pk, sk, before, after)
        elif after is None and before is not None:
            self._still_named(pk, sk)

    def _still_named(self, pk: str, sk: str) -> None:
        """An item beside a head was deleted: its run must be over."""
        head = parse_head(self.table.get((pk, HEAD_SK)))
        if head.run is None:
            return
        named = {*head.segments, head.run.input_item}
        named |= {slot.item for slot in map(unpack_slot, head.slots.values()) if isinstance(slot, ElsewhereSlot)}
        if sk in named:
            self.report("immutable-journal", f"{pk} {sk} was deleted while the run that names it goes on")

    def _inbox(self, pk: str, sk: str, before: Item | None, after: Item | None) -> None:
        live = self.inbox[pk]
        if after is not None and "ev" in after:
            live[sk] = inbox_events(after)
            # Until its guard and mark follow, whoever put it still has it: an offset, an outbox entry, a caller.
            self.unmarked[pk].add(sk)
        else:
            live.pop(sk, None)
            self.unmarked[pk].discard(sk)
        if after is None and before is not None and "done" in before:
            self.report("leftovers", f"the tombstone {pk} {sk} was deleted, a late duplicate would run")

    def _timer(self, write: Write, before: Item | None, after: Item | None) -> None:
        at = (write.key.pk, write.key.sk)
        if write.key.sk == WIDE_MARK_SK or (after or before or {}).get("inv") == "":
            # A guard for leftovers is due in an hour or two, and leads to no work.
            return
        if after is not None:
            timer = parse_timer(after)
            self.timers[timer.lane.pk][at] = timer
        elif before is not None and isinstance(write, Delete):
            pk = parse_timer(before).lane.pk
            self.timers[pk].pop(at, None)
            self._drivers(pk, parse_head(self.table.get((pk, HEAD_SK))))

    def _head(self, process: Process | None, pk: str, before: Item | None, after: Item | None) -> None:
        if after is None:
            self.report("together", f"the head of {pk} was deleted")
            return
        was, now = parse_head(before), parse_head(after)
        who = process.name if process is not None else "nobody"
        self.progress += now.watermarks != was.watermarks or bool(now.fin.keys() - was.fin.keys())
        self._together(pk, was, now)
        left = sorted(after.keys() & set(RUN_ATTRIBUTES)) if now.run is None else []
        if left:
            self.report("together", f"{pk}: the run is over, and left {', '.join(left)} for the next one")
        self._outbox(pk, was, now)
        self._one_owner(pk, who, was, now)
        self._clock(process, pk, was, now)
        self._journal(pk, who, was, now)
        self._sleeps(pk, who, was, now)
        self._steps(pk, was, now)
        if now.run is not None and now.run.suspended:
            self.settled_events.add(now.run.event.id)
        if now.pend != was.pend and now.pend is not None:
            self.unmarked[pk].clear()
        self._drivers(pk, now)

    def asked(self, request: Activation) -> None:
        """A control plane has a function resume a run: it does so once for each lease."""
        run = request.head.run
        if request.mode != "resume" or run is None:
            return
        lease = (f"{request.service}/{request.key}", request.head.ver)
        if lease in self._leases:
            self.report("one-owner", f"{lease[0]}: a second attempt under ver {lease[1]} begins, for {run.holder}")
        self._leases.add(lease)

    def _together(self, pk: str, was: Head, now: Head) -> None:
        """State, watermark and outbox change in a write that raises `ver`, by one."""
        if now.ver not in (was.ver, was.ver + 1):
            self.report("together", f"{pk} went from ver {was.ver} to {now.ver}")
        if now.ver == was.ver:
            if now.watermarks != was.watermarks:
                self.report("together", f"{pk} moved its watermark without a new ver")
            if now.state != was.state and not (now.run is not None and now.run.suspended):
                self.report("together", f"{pk} changed its state without a new ver")
        for source, at in was.watermarks.items():
            if now.watermarks.get(source, 0) < at:
                self.report("together", f"{pk}: the watermark of {source} fell from {at}")
        wrong = now.state.get("wrong")
        if wrong is not None and was.state.get("wrong") != wrong:
            self.report("order", f"{pk}: {wrong.decode()}")

    def _outbox(self, pk: str, was: Head, now: Head) -> None:
        """Remember which offsets each outgoing entry came from: those its write finished, or its run's own."""
        new = now.out.keys() - was.out.keys()
        if not new:
            return
        moved = {s: (was.watermarks.get(s, 0), at) for s, at in now.watermarks.items() if was.watermarks.get(s) != at}
        run = now.run
        if run is not None and isinstance(run.event.source, KafkaSource) and now.ver == was.ver:
            moved = {run.event.source.watermark: (run.event.source.offset, run.event.source.offset + 1)}
        for sequence in new:
            self._origins[pk, sequence] = moved

    def _came_from(self, pk: str, sequence: str, source: str, offset: int) -> bool:
        low, high = self._origins.get((pk, sequence), {}).get(source, (0, 0))
        return low <= offset < high

    def _one_owner(self, pk: str, who: str, was: Head, now: Head) -> None:
        """No two processes make the writes that only the owner of the run may make, under one ver."""
        if was.run is None or not who.startswith("fn-"):
            return
        owner = self._owners.setdefault((pk, was.ver), who)
        if owner != who:
            self.report("one-owner", f"{pk}: {owner} and {who} both wrote under ver {was.ver}")
        naps = now.run is not None and now.run.napping and now.run.event.id == was.run.event.id
        if now.ver == was.ver + 1 and now.run is not None and not naps and not _ended(now, was.run.event):
            self.report("one-owner", f"{pk}: {who} replaced a run that was there")

    def _clock(self, process: Process | None, pk: str, was: Head, now: Head) -> None:
        """Nobody whose clock is off by far takes over what another process runs."""
        if process is None or process.role != "control" or was.run is None or was.run.suspended or now.run is None:
            return
        foreign = now.run.holder != was.run.holder and not was.run.holder.startswith(process.name)
        if foreign and abs(process.skew_ms) > WRONG_CLOCK_MS_MIN:
            self.report("clock", f"{pk}: {process.name}, {process.skew_ms} ms off, took over a run of {was.run.holder}")

    def _journal(self, pk: str, who: str, was: Head, now: Head) -> None:
        """A slot, once there, never changes; a finished step is one whose slot is there."""
        run = now.run
        if now.run is not None and (was.run is None or was.run.event.id != now.run.event.id):
            self._owners[pk, now.ver] = who
        if run is None:
            return
        for slot, data in now.slots.items():
            self.progress += (run.event.id, slot) not in self._slots
            known = self._slots.setdefault((run.event.id, slot), data)
            # An awakeable's slot that rolled into a segment may be put again; the segment's is the one that counts. It
            # was judged when it came.
            again = was.run is not None and was.slots.get(slot) in (None, data)
            if known != data and not (again and isinstance(unpack_slot(data), AwakeableSlot)):
                self.report("immutable-journal", f"{pk}: slot {slot} of {run.event.id} changed")
            record = unpack_slot(data)
            if isinstance(record, RunSlot) and isinstance(record.result, Success):
                key = digest(run.event.id, slot)
                if key not in self.journaled:
                    value = record.result.value or b"null"
                    self.journaled[key] = Journaled(value, self.loop.now_ms(), who)

    def _sleeps(self, pk: str, who: str, was: Head, now: Head) -> None:
        run = now.run
        if was.run is not None and was.run.napping and (now.ver != was.ver or who.startswith("fn-")):
            early = (was.run.wake_ms or 0) - self.skew_ms - self.loop.now_ms()
            if early > 0:
                self.report("early-sleep", f"{pk}: a nap ended {early} ms early")
        if run is None or run.napping:
            return
        for slot, data in now.slots.items():
            if slot in was.slots or not isinstance(unpack_slot(data), SleptSlot):
                continue
            due = self._slots.get((run.event.id, f"{slot}d"))
            record = unpack_slot(due) if due is not None else None
            if isinstance(record, DueSlot) and self.loop.now_ms() < record.wake_ms - self.skew_ms:
                early = record.wake_ms - self.loop.now_ms()
                self.report("early-sleep", f"{pk}: sleep {slot} ended {early} ms early")

    def _steps(self, pk: str, was: Head, now: Head) -> None:
        """What a handler took for the result of a finished step is what the journal has."""
        told = now.state.get("steps")
        if told is None or told == was.state.get("steps"):
            return
        for key, value in msgspec.json.decode(told, type=list[tuple[str, Any]]):
            known = self.journaled.get(key)
            if known is not None and programs.brief(msgspec.json.decode(known.value)) != value:
                self.report("immutable-journal", f"{pk}: a handler saw {value}, the journal has {known.value!r}")

    def _drivers(self, pk: str, now: Head) -> None:
        """Unfinished work that Kafka would not deliver again has a timer item, or waits for an answer only."""
        if self.timers[pk]:
            return
        run = now.run
        source = None if run is None else run.event.source
        items = self.inbox[pk]
        unmarked = {event.id for sk in self.unmarked[pk] for event in items.get(sk, ())}
        accepted = run is not None and run.event.id not in unmarked
        if run is not None and accepted and (not isinstance(source, KafkaSource) or self.let_go(source)):
            waits_for_others = run.suspended and run.wake_ms is None and not set(run.awaits or ()) & now.slots.keys()
            if not waits_for_others:
                self.report("driver", f"{pk}: {run.event.id} is unfinished and no timer points at it")
        # An item beside the mark of an earlier one is still its sender's, until a guard and a mark of its own follow.
        waiting = (event for sk in items.keys() - self.unmarked[pk] for event in items[sk])
        if now.pend is not None and any(not _passed(now, event) for event in waiting):
            self.report("driver", f"{pk}: its inbox is marked and no timer points at it")

    # --- outside -----------------------------------------------------------------------------------------------------

    def executes(self, process: Process | None, key: str, what: str) -> None:
        """A step is about to have its effect."""
        self.executed[key] = self.executed.get(key, 0) + 1
        done = self.journaled.get(key)
        if done is None or process is None:
            return
        if process.born_ms > done.at_ms or process.name == done.by:
            self.report("finished-once", f"step {what} ran again in {process.name}, finished by {done.by}")

    def committed(self, key_of: Mapping[int, str], source: str, low: int, high: int, table: Table) -> None:
        """The offsets from low up to high were committed: none of them may still need Kafka.

        `key_of` has the lane of each offset that is an event.
        """
        for offset in range(low, high):
            pk = key_of.get(offset)
            if pk is None:
                continue
            item = table.get((pk, HEAD_SK))
            head = parse_head(item)
            if head.watermarks.get(source, 0) > offset:
                waits = [seq for seq, entry in head.out.items() if not self._delivered(pk, seq, entry, table)]
                waits = [seq for seq in waits if self._came_from(pk, seq, source, offset)]
                # A run that came from Kafka and never suspended still holds its own offset, which brings someone here.
                held = head.run is not None and head.run.event.id not in self.settled_events
                if waits and not held and not self.timers[pk]:
                    self.report("offset", f"{pk}: offset {offset} was let go of while {waits} wait in the outbox")
                continue
            suspended = any(e in self.settled_events for e in _ids(head.run, source, offset))
            if not suspended and not self._in_inbox(pk, source, offset):
                self.report("offset", f"{pk}: offset {offset} of {source} was committed, unfinished and not spilled")

    def _in_inbox(self, pk: str, source: str, offset: int) -> bool:
        kafka = (e.source for events in self.inbox[pk].values() for e in events if isinstance(e.source, KafkaSource))
        return any((k.watermark, k.offset) == (source, offset) for k in kafka)

    def _delivered(self, pk: str, sequence: str, entry: Out, table: Table) -> bool:
        """Whether an outbox entry has reached its target, though it may not be cleared yet."""
        match entry:
            case SendOut():
                sends = (timer for timer in self.timers[entry.lane.pk].values() if isinstance(timer, SendTimer))
                on_its_way = any((send.sender, send.sequence) == (pk, sequence) for send in sends)
                return on_its_way or (entry.lane.pk, f"I#m|{digest(pk)}#{sequence}") in table
            case PublishOut(topic):
                return f"{pk}#{sequence}".encode() in self.published(topic)
            case ResultOut(invocation):
                return (f"R#{invocation}", "R") in table
            case ResolveOut():
                return True
            case BundleOut(item):
                packed = table.get((pk, item), {}).get("outs")
                # Its item goes when all of it has been delivered.
                inside = unbundled(sequence, unpack_bundle(packed)) if isinstance(packed, bytes) else []
                return all(self._delivered(pk, at, one, table) for at, one in inside)
            case BuriedOut(event=event):
                key = letter_key(message_letter_id(event.id))
                return (key.pk, key.sk) in table
            case UnreadableOut():
                raise AssertionError("nobody writes what cannot be read")
            case _:
                assert_never(entry)

    # --- at the end --------------------------------------------------------------------------------------------------

    def unsettled(
        self, expected: Mapping[str, Mapping[str, str]], expected_counts: Mapping[str, int], table: Table
    ) -> list[str]:
        """What is still to be done, one line each; empty when the world has come to rest.

        `expected`: lane to state name to the value that the offline truth demands; `expected_counts`: events of each
        lane.
        """
        waits: list[str] = []
        heads = {pk: parse_head(item) for (pk, sk), item in table.items() if sk == HEAD_SK}
        for pk, names in expected.items():
            state = heads[pk].state if pk in heads else {}
            for name, value in names.items():
                found = state.get(name)
                if found is None or msgspec.json.decode(found) != value:
                    waits.append(f"{pk}: {name} is {found!r}, should become {value!r}")
        for pk, head in heads.items():
            if head.run is not None:
                waits.append(f"{pk}: run {head.run.event.handler} attempt {head.run.attempt} awaits {head.run.awaits}")
            # A result that is shipped may stay: whoever asks for it finds it in its own item.
            waits += [f"{pk}: outbox {name}" for name, out in head.out.items() if not isinstance(out, ResultOut)]
        for pk, items in self.inbox.items():
            head = heads.get(pk, Head())
            waits += [f"{pk}: inbox {e.id}" for sk in sorted(items) for e in items[sk] if not _passed(head, e)]
        for pk, timers in self.timers.items():
            waits += [f"{pk}: {type(t).__name__} due {t.due_ms}" for t in timers.values()]
        waits += self._letters(heads)
        waits += self._doomed(heads, table)
        if not waits:
            self._counts(heads, expected_counts)
        return waits

    def _counts(self, heads: Mapping[str, Head], events: Mapping[str, int]) -> None:
        """No change of state was overwritten by another that had not seen it."""
        for pk, head in heads.items():
            if not pk.startswith("box/"):
                continue
            state = head.state
            count = events.get(pk, 0)
            count += sum(len(msgspec.json.decode(state.get(name, b"[]"))) for name in ("calls", "slips"))
            count += sum(_number(data) for name, data in state.items() if name.startswith("got."))
            count += sum(len(msgspec.json.decode(data)) for name, data in state.items() if name.startswith("came."))
            if _number(state.get("count")) != count:
                self.report("order", f"{pk}: {count} things took effect, its count is {state.get('count')!r}")

    def _doomed(self, heads: Mapping[str, Head], table: Table) -> list[str]:
        """Messages that failed for good and are not kept. One that is still to run shows as what waits elsewhere."""
        kept = set(self.kept(table))
        failed = {i for head in heads.values() for name in ("doomed", "gave_up") for i in _texts(head.state, name)}
        # A record of Kafka, or a call that somebody waits for, gives up without being a dead letter.
        failed = {i for i in failed if i in self.sent or InvocationId.parse(i).nonce.startswith(MESSAGE)}
        if sound := kept - failed:
            self.report("nothing-lost", f"sound messages are kept as dead letters: {sorted(sound)}")
        return [f"the failed message {i} is not kept" for i in sorted(failed - kept)]

    def _letters(self, heads: Mapping[str, Head]) -> list[str]:
        """Messages that a box has sent and the receiver has not taken."""
        waits: list[str] = []
        for pk, head in heads.items():
            sender = pk.partition("/")[2]
            for name, data in head.state.items():
                kind, _, key = name.partition(".")
                if kind not in ("sent", "later"):
                    continue
                count = msgspec.json.decode(data)
                receiver = heads.get(f"box/{key}", Head()).state
                if kind == "sent":
                    got = _number(receiver.get(f"got.{sender}"))
                    if got != count:
                        waits.append(f"{pk}: sent {count} to {key}, who has {got}")
                    continue
                came = msgspec.json.decode(receiver.get(f"came.{sender}", b"[]"))
                if came != list(range(1, count + 1)):
                    waits.append(f"{pk}: sent {count} delayed to {key}, who has {came}")
        return waits


def _texts(state: Mapping[str, bytes], name: str) -> list[str]:
    return msgspec.json.decode(state.get(name, b"[]"), type=list[str])


def chain_of(offsets: Iterable[tuple[int, int]]) -> str:
    """The offline truth: the hash chain over (partition, offset) in order."""
    chain: str | None = None
    for partition, offset in offsets:
        chain = programs.link(chain, partition, offset)
    return chain or ""


def _number(data: bytes | None) -> int:
    value: int = 0 if data is None else msgspec.json.decode(data)
    return value


def _ended(head: Head, event: Event) -> bool:
    return _passed(head, event) or event.nonce in head.fin


def _passed(head: Head, event: Event) -> bool:
    """Whether an event in the inbox is finished, and was put there again."""
    source = event.source
    return isinstance(source, KafkaSource) and source.offset < head.watermarks.get(source.watermark, 0)


def _ids(run: ClaimedRun | None, source: str, offset: int) -> list[str]:
    if run is None or not isinstance(run.event.source, KafkaSource):
        return []
    kafka = run.event.source
    return [run.event.id] if kafka.watermark == source and kafka.offset == offset else []
