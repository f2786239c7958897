"""The real runtime over the in-memory table, in one process: no broker, no function.

    local = InProcess(profile)
    await local.deliver("user-events", "ann", user_event, b'{"id": "ann", "name": "Ann"}')
    await local.advance(timedelta(seconds=1))

Owns a plain sequencer of lanes: one lane at a time, no speculation races, no storage faults but the kills it
is told to make. Does not own proof of the dispatcher, which the simulation has. Real time passes, and
`advance` skips ahead.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, assert_never

import msgspec

from tenuto.errors import TerminalError
from tenuto.handler import Handler
from tenuto.lane.head import head_key, parse_head
from tenuto.lane.items import unbundled
from tenuto.lane.transitions import effects_of, result_key, result_put, slots_put, spec_commit, takeover, trim_head
from tenuto.lane.writes import Answer, Applied, Delete, Item, Key, Put, Write
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane, kafka_nonce, message_nonce
from tenuto.protocol.messages import (
    Activation,
    Committed,
    Fenced,
    Head,
    Rejected,
    Speculated,
    Suspended,
    Trim,
)
from tenuto.protocol.records import (
    AwakeableSlot,
    BundleOut,
    BuriedOut,
    CallSource,
    DueSlot,
    Entry,
    Event,
    Failed,
    Failure,
    KafkaSource,
    MessageSource,
    Out,
    PublishOut,
    ResolveOut,
    Result,
    ResultOut,
    SendOut,
    SleptSlot,
    Success,
    UnreadableOut,
    pack,
    unpack_bundle,
    unpack_result,
    unpack_slot,
)
from tenuto.runtime.activation import activate
from tenuto.runtime.environment import Environment, InlineWriteLoop, ProcessEnded
from tenuto.service import Service, Services, VirtualObject
from tenuto.store.memory import MemoryTable
from tenuto.store.port import Page

FUNCTION_TIMEOUT_MS = 10_000
ACTIVATIONS_MAX = 1_000
"""Activations one operation may take: a lane that never comes to rest is a fault that should show."""


class Killed(ProcessEnded):
    """The end of a function process, wherever it stood. Raise it in a step, or have `kill_at_write` do it."""


@dataclass(slots=True)
class Kill:
    """Ends a function at its `write`-th write from now on (from 1), before or after that write is applied."""

    write: int
    applied: bool


class FunctionTable:
    """The table as one function process reaches it: after its end it writes nothing more."""

    def __init__(self, table: MemoryTable, kill: Kill | None) -> None:
        self._table = table
        self._kill = kill
        self._ended = False

    async def write(self, write: Write) -> Answer:
        """See `Table.write`. Raises Killed when this is where the function ends."""
        self._check()
        if self._kill is not None:
            self._kill.write -= 1
            if self._kill.write == 0:
                self._ended = True
                if self._kill.applied:
                    await self._table.write(write)
                raise Killed
        return await self._table.write(write)

    async def get(self, key: Key) -> Item | None:
        """See `Table.get`."""
        self._check()
        return await self._table.get(key)

    async def get_all(self, keys: Sequence[Key]) -> list[Item | None]:
        """See `Table.get_all`."""
        self._check()
        return await self._table.get_all(keys)

    async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
        """See `Table.query`."""
        self._check()
        return await self._table.query(pk, low, high, limit=limit, after=after)

    async def put_all(self, puts: Sequence[Put]) -> None:
        """See `Table.put_all`."""
        self._check()
        await self._table.put_all(puts)

    async def delete_all(self, deletes: Sequence[Delete]) -> None:
        """See `Table.delete_all`."""
        self._check()
        await self._table.delete_all(deletes)

    def _check(self) -> None:
        if self._ended:
            raise Killed


class InProcess:
    """Every lane of these services. `published` holds (id, entry), `kills` counts functions that ended."""

    def __init__(self, *services: Service | VirtualObject) -> None:
        self.table = MemoryTable()
        self.published: list[tuple[str, PublishOut]] = []
        self.buried: list[BuriedOut] = []
        self.kills = 0
        self.activations = 0
        self._services = Services(services)
        self._queues: dict[Lane, deque[Event]] = {}
        self._delayed: list[tuple[int, int, Lane, Event]] = []
        self._offsets: dict[str, int] = {}
        self._failures: dict[str, int] = {}
        self._skipped_ms = 0
        self._kill: Kill | None = None

    # --- ways in ---------------------------------------------------------------------------------

    async def deliver(self, topic: str, key: str, handler: Handler[Any, Any], value: bytes) -> str:
        """A record of a topic with one partition arrives. Returns the invocation's id."""
        offset = self._offsets.get(topic, -1) + 1
        self._offsets[topic] = offset
        lane = Lane(handler.service, key)
        source = KafkaSource("0", topic, 0, offset, self._now_ms(), key.encode(), dead_letter=f"{topic}.dead-letter")
        event = Event(str(InvocationId(lane, kafka_nonce("0", topic, 0, offset))), handler.name, source, value)
        await self._accept(lane, event)
        return event.id

    async def call(self, handler: Handler[Any, Any], key: str, argument: Any = None) -> Any:
        """What a handler returns, as parsed JSON. Raises TerminalError, and TimeoutError when it waits."""
        lane = Lane(handler.service, key)
        number = self._offsets[""] = self._offsets.get("", 0) + 1
        source = CallSource(keep_result=True)
        data = handler.encode(argument)
        event = Event(str(InvocationId(lane, message_nonce("call", number))), handler.name, source, data)
        if handler.kind == "shared":
            result = await self._read(lane, event)
        else:
            await self._accept(lane, event)
            item = self.table.items.get((result_key(event.id).pk, result_key(event.id).sk))
            if item is None:
                raise TimeoutError(f"{event.id} has not ended")
            packed = item["res"]
            assert isinstance(packed, bytes)
            result = unpack_result(packed)
        if isinstance(result, Failed):
            failure = result.failure
            raise TerminalError(failure.message, failure.status_code, failure.metadata)
        return None if result.value is None else msgspec.json.decode(result.value)

    async def resolve(self, awakeable: str, value: Any) -> bool:
        """Complete an awakeable; False when nobody waits for it any more."""
        return await self._fill(awakeable, Success(msgspec.json.encode(value)))

    async def reject(self, awakeable: str, reason: str) -> bool:
        """Fail an awakeable; False when nobody waits for it any more."""
        return await self._fill(awakeable, Failed(Failure(reason)))

    async def advance(self, duration: timedelta) -> None:
        """Let time pass: sleeps end and delayed messages arrive, in the order in which they are due."""
        target_ms = self._now_ms() + round(duration.total_seconds() * 1000)
        for _ in range(ACTIVATIONS_MAX):
            due = self._next_due()
            if due is None or due > target_ms:
                break
            self._skip_to(due)
            await self._wake()
        self._skip_to(target_ms)
        await self._wake()

    def kill_at_write(self, write: int, *, applied: bool) -> None:
        """End the function that makes the `write`-th write from now on."""
        self._kill = Kill(write, applied)

    def state(self, service: VirtualObject, key: str) -> dict[str, Any]:
        """The stored state of an object, as parsed JSON."""
        return {name: msgspec.json.decode(value) for name, value in self.head(service, key).state.items()}

    def head(self, service: VirtualObject, key: str) -> Head:
        """The lane's record."""
        at = head_key(Lane(service.name, key))
        return parse_head(self.table.items.get((at.pk, at.sk)))

    # --- lanes -----------------------------------------------------------------------------------

    async def _accept(self, lane: Lane, event: Event) -> None:
        self._queues.setdefault(lane, deque()).append(event)
        await self._settle(lane)

    async def _settle(self, lane: Lane) -> None:
        """Run a lane until it is idle or waits."""
        for _ in range(ACTIVATIONS_MAX):
            head = await self._read_head(lane)
            head = await self._ship(lane, head)
            request = await self._next(lane, head)
            if request is None:
                return
            self.activations += 1
            try:
                outcome = await activate(request, self._services, self._environment())
            except Killed:
                self.kills += 1
                continue
            match outcome:
                case Speculated():
                    await self._commit(lane, request, outcome)
                case Committed() | Suspended() | Fenced():
                    pass
                case Rejected(failure):
                    raise AssertionError(failure.message)
                case _:
                    raise AssertionError(f"unexpected outcome {outcome}")
        raise AssertionError(f"{lane} did not come to rest")

    async def _next(self, lane: Lane, head: Head) -> Activation | None:
        """What the lane needs now; None when it is idle or waits."""
        if head.run is not None:
            due = self._due_slots(head)
            waiting = head.run.awaits
            overdue = head.run.wake_ms is not None and head.run.wake_ms <= self._now_ms()
            if waiting is not None and not (due or overdue) and not any(s in head.slots for s in waiting):
                return None
            holder = f"h{self.activations}"
            lease_ms = self._now_ms() + FUNCTION_TIMEOUT_MS
            answer = await self.table.write(takeover(lane, head, holder, lease_ms, due, f"{holder}.takeover"))
            assert isinstance(answer, Applied)
            return Activation(lane.service, lane.key, "resume", parse_head(answer.item), holder)
        queue = self._queues.get(lane, deque())
        waiting_events = [e for e in queue if not _finished(head, e)]
        self._queues[lane] = deque(waiting_events)
        if not waiting_events:
            return None
        holder = f"h{self.activations}"
        attempt = self._failures.get(waiting_events[0].id, 0) + 1
        return Activation(lane.service, lane.key, "speculate", head, holder, tuple(waiting_events), attempt)

    async def _commit(self, lane: Lane, request: Activation, outcome: Speculated) -> None:
        stopped = outcome.stopped
        if stopped is not None:
            self._failures[stopped.event_id] = self._failures.get(stopped.event_id, 0) + 1
            self._skip_to(self._now_ms() + (stopped.retry_after_ms or 0))
        if not outcome.results:
            return
        events = request.events[: len(outcome.results)]
        effects = effects_of(events, outcome.state, dict(enumerate(outcome.out)), self._now_ms())
        tok = f"{request.holder}.spec"
        answer = await self.table.write(spec_commit(lane, request.head, effects, tok, drain=False))
        assert isinstance(answer, Applied)

    async def _ship(self, lane: Lane, head: Head) -> Head:
        entries = [found for sequence, entry in head.out.items() for found in self._entries(lane, sequence, entry)]
        for sequence, entry in entries:
            match entry:
                case PublishOut():
                    self.published.append((f"{lane.pk}.{sequence}", entry))
                case SendOut():
                    source = MessageSource(lane.pk, sequence)
                    event = Event(entry.event_id, entry.handler, source, entry.input, entry.headers)
                    due_ms = entry.due_ms or self._now_ms()
                    self._delayed.append((due_ms, len(self._delayed), entry.lane, event))
                case BuriedOut():
                    self.buried.append(entry)
                case ResultOut(invocation, result):
                    await self.table.write(result_put(invocation, result, self._now_ms()))
                case ResolveOut(awakeable, result):
                    await self._fill(awakeable, result)
                case _:
                    assert_never(entry)
        if not head.out:
            return head
        answer = await self.table.write(trim_head(lane, Trim(out=tuple(head.out))))
        assert isinstance(answer, Applied)
        return parse_head(answer.item)

    def _entries(self, lane: Lane, sequence: str, entry: Out) -> list[tuple[str, Entry]]:
        assert not isinstance(entry, UnreadableOut), "nobody writes what cannot be read"
        if not isinstance(entry, BundleOut):
            return [(sequence, entry)]
        packed = self.table.items[lane.pk, entry.item]["outs"]
        assert isinstance(packed, bytes)
        return unbundled(sequence, unpack_bundle(packed))

    async def fill(self, awakeable: str, value: Any) -> bool:
        """Complete an awakeable while its run is at work; nobody comes by to look."""
        return await self._put(awakeable, Success(msgspec.json.encode(value)))

    async def _fill(self, awakeable: str, result: Result) -> bool:
        applied = await self._put(awakeable, result)
        await self._settle(AwakeableId.parse(awakeable).invocation.lane)
        return applied

    async def _put(self, awakeable: str, result: Result) -> bool:
        named = AwakeableId.parse(awakeable)
        lane = named.invocation.lane
        head = await self._read_head(lane)
        if head.run is None or head.run.event.nonce != named.invocation.nonce:
            return False
        mark = f"a{self.activations}.{len(head.slots)}"
        put = slots_put(lane, head, {named.slot: pack(AwakeableSlot(result, self._now_ms()))}, mark)
        return isinstance(await self.table.write(put), Applied)

    async def _read(self, lane: Lane, event: Event) -> Result:
        head = await self._read_head(lane)
        request = Activation(lane.service, lane.key, "shared", head, "reader", (event,))
        outcome = await activate(request, self._services, self._environment())
        assert isinstance(outcome, Speculated)
        assert outcome.stopped is None, outcome.stopped
        return outcome.results[0].result

    async def _wake(self) -> None:
        now = self._now_ms()
        arrived = sorted(entry for entry in self._delayed if entry[0] <= now)
        self._delayed = [entry for entry in self._delayed if entry[0] > now]
        for _, _, lane, event in arrived:
            await self._accept(lane, event)
        for lane in list(self._queues):
            await self._settle(lane)

    def _next_due(self) -> int | None:
        due = [entry[0] for entry in self._delayed]
        for lane in self._queues:
            at = head_key(lane)
            run = parse_head(self.table.items.get((at.pk, at.sk))).run
            if run is not None and run.wake_ms is not None:
                due.append(run.wake_ms)
        return min(due, default=None)

    def _due_slots(self, head: Head) -> dict[str, bytes]:
        due: dict[str, bytes] = {}
        for slot in (head.run.awaits if head.run is not None else None) or ():
            packed = head.slots.get(f"{slot}d")
            when = None if packed is None else unpack_slot(packed)
            if isinstance(when, DueSlot) and when.wake_ms <= self._now_ms() and slot not in head.slots:
                due[slot] = pack(SleptSlot())
        return due

    async def _read_head(self, lane: Lane) -> Head:
        return parse_head(await self.table.get(head_key(lane)))

    def _environment(self) -> Environment:
        kill = self._kill if self._kill is not None and self._kill.write > 0 else None
        return Environment(
            table=FunctionTable(self.table, kill),
            now_ms=self._now_ms,
            deadline_ms=self._now_ms() + FUNCTION_TIMEOUT_MS,
            writes=InlineWriteLoop(),
        )

    def _now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self._skipped_ms

    def _skip_to(self, target_ms: int) -> None:
        self._skipped_ms += max(0, target_ms - self._now_ms())


def _finished(head: Head, event: Event) -> bool:
    match event.source:
        case KafkaSource() as source:
            return source.offset < head.watermarks.get(source.watermark, 0)
        case MessageSource() | CallSource():
            return event.nonce in head.fin
