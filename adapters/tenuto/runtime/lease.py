"""The durable writes of one activation: claim, checkpoint, suspend, commit, each under the fencing token.

Owns the order of an activation's writes, their repetition after a lost response, and the flush that follows a finished
step within `FLUSH_DELAY_MS_MAX`. Everything `async` here runs on the write loop and owns what is stored (`backlog`);
the journal belongs to the handler's side. What finishes comes from there through one queue, and what is found in
storage goes back through another (`hear`). Does not own what is written (`tenuto.lane`) nor when a handler needs it
(`attempt`).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeAlias

from msgspec.structs import replace

from tenuto.errors import FencedError, StateTooLargeError
from tenuto.lane.dead_letters import item_of
from tenuto.lane.head import OWN, head_key, parse_head
from tenuto.lane.items import bundle_name, bundle_put, input_name, input_put, segment_name, segment_put
from tenuto.lane.timers import GuardTimer, SleepTimer, timer_put
from tenuto.lane.transitions import (
    NO_TRIM,
    Effects,
    Progress,
    Wait,
    checkpoint,
    claim,
    final_commit,
    spec_commit,
    suspend,
)
from tenuto.lane.writes import Answer, Applied, Delete, Item, Key, Refused, Write
from tenuto.machine.backlog import Backlog
from tenuto.machine.journal import Journal
from tenuto.machine.phases import Phase, Step, advance
from tenuto.protocol.ids import Lane
from tenuto.protocol.limits import (
    BUNDLE_BYTES_MAX,
    FLUSH_DELAY_MS_MAX,
    GUARD_MARGIN_MS,
    INLINE_BYTES_MAX,
    OUT_BYTES_MAX,
    OUT_PER_WRITE_MAX,
    SECRET_BYTES,
    VALUE_BYTES_MAX,
)
from tenuto.protocol.messages import Activation, Head, Run
from tenuto.protocol.records import (
    Bundle,
    BundleOut,
    CallSource,
    Carried,
    ElsewhereSlot,
    Entry,
    Event,
    KafkaSource,
    Out,
    Slot,
    pack,
    unpack_carried,
    unpack_slot,
)
from tenuto.runtime.environment import Environment
from tenuto.store.port import TableRefusedError, TableUnavailableError

Messages: TypeAlias = Mapping[int, tuple[int, str, Entry]]
"""Messages of a handler: position in the outbox → command, target, entry."""

NO_MESSAGES: Final[Messages] = MappingProxyType({})

WRITE_PAUSES_MS = (20, 50, 100, 200, 400, 800, 1_600)
"""Pauses between repetitions of a write whose response was lost; after the last one the attempt gives up."""


class Lease:
    """One activation's hold on its lane: first none, then a claim under a fencing token, until it ends."""

    def __init__(self, request: Activation, env: Environment) -> None:
        self.lane = Lane(request.service, request.key)
        self.head = request.head
        self.journal = Journal()
        self.phase = Phase.SPECULATING
        self.writes = 0
        self._backlog = Backlog(self.journal.new)
        self._news: deque[tuple[str, Slot]] = deque()
        self._answers: set[str] = set()
        self._puts = 0
        # Of the run that is or will be claimed: made by the handler's side, and stored with the claim.
        self._secret: bytes | None = None if request.head.run is None else request.head.run.secret
        self._env = env
        self._request = request
        self._writing = asyncio.Lock()
        self._flush_due: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None
        if request.mode == "resume":
            self.phase = Phase.OWNING

    # --- what the handler's side asks, from its own thread ----------------------------------------------------------

    @property
    def owning(self) -> bool:
        """Whether the lease is held, as far as this side knows."""
        return self.phase is Phase.OWNING

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.run.attempt if self.owning else self._request.attempt

    @property
    def run(self) -> Run:
        """The invocation the lease is held for."""
        if self.head.run is None:
            raise FencedError("no run is owned")
        return self.head.run

    @property
    def durable(self) -> bool:
        """Whether everything that has finished is stored. It may be so already when this says no."""
        return self._backlog.durable >= self.journal.finished

    @property
    def may_continue(self) -> bool:
        """Whether the next event may follow a commit at once: nothing has to be shipped or drained before it."""
        head = self.head
        return not head.out and (head.pend is None or self._request.mode == "drain")

    def run_secret(self) -> bytes:
        """What only this run knows; made, at the latest, before its claim."""
        if self._secret is None:
            self._secret = self._env.random_bytes(SECRET_BYTES)
        return self._secret

    def begin(self, journal: Journal) -> None:
        """Work on another invocation from here on: the next event of the activation."""
        self.journal = journal
        self._backlog = Backlog(journal.new)

    def hear(self) -> list[str]:
        """Let the journal know what has been found in storage meanwhile: the names of these slots."""
        names: list[str] = []
        while self._news:
            name, slot = self._news.popleft()
            self.journal.hear([(name, slot)])
            names.append(name)
        return names

    # --- the writes -------------------------------------------------------------------------------------------------

    async def load(self) -> Event:
        """Read what of a resumed run did not come with the request: segments, results, a large event.

        Returns its event. Raises FencedError when they are gone, because the run is over.
        """
        rolled: dict[str, bytes] = {}
        for name in self.head.segments:
            item = await self._env.table.get(Key(self.lane.pk, name))
            if item is None:
                raise FencedError("a journal segment is gone: the run is over")
            rolled |= {slot: data for slot, data in item.items() if isinstance(data, bytes)}
        # A rolled slot wins over one put again later.
        slots = {name: unpack_slot(data) for name, data in {**self.head.slots, **rolled}.items()}
        self.journal = Journal.load({name: await self._whole(slot) for name, slot in slots.items()}, self.run.first_out)
        self._backlog = Backlog.load(self.journal.new, self.head.slots, rolled, len(self.journal.order))
        self._backlog.segments, self._backlog.took = self.head.segments, set(self.head.took)
        if self.run.input_item is None:
            return self.run.event
        item = await self._env.table.get(Key(self.lane.pk, self.run.input_item))
        if item is None:
            # Only the end of a run deletes its input, so another attempt has ended it.
            raise FencedError("the run's input is gone: the run is over")
        return _with_item(self.run.event, item)

    async def claim(self, event: Event, before: Effects, start_ms: int) -> None:
        """Take the lease for `event`, together with the effects of the events before it. Raises FencedError."""
        async with self._writing:
            if self.owning:
                return
            self._require(Phase.SPECULATING)
            if isinstance(event.source, CallSource) and self._request.mode != "drain":
                await self._put_guard(event)
            stored, input_item = await self._put_input(event)
            run = Run(
                event=stored,
                ver=self.head.ver + 1,
                start_ms=start_ms,
                first_out=self.journal.first_out,
                input_item=input_item,
                attempt=1,
                holder=self._request.holder,
                lease_ms=self._env.deadline_ms,
                secret=self.run_secret(),
            )
            self._backlog.arrive()
            batch = self._backlog.batch({})
            progress = Progress(batch.slots) if not batch.apart else Progress()
            tok = self._tok("claim")
            write = claim(
                self.lane,
                self.head,
                before,
                run,
                tok,
                drain=self._request.mode == "drain",
                trim=self._request.trim,
                slots=progress.slots,
            )
            self._settle(await self._write(write, tok), Step.CLAIMED, "claim")
            self._backlog.written(progress)

    async def flush(self, out: Messages = NO_MESSAGES) -> None:
        """Make every finished step, and these messages, durable.

        Raises FencedError when another attempt owns the lane.
        """
        async with self._writing:
            await self._checkpoint(out)

    def flush_soon(self) -> None:
        """Flush within FLUSH_DELAY_MS_MAX, whatever the handler does meanwhile."""
        if self._flush_due is None and self.owning:
            loop = asyncio.get_running_loop()
            self._flush_due = loop.call_later(FLUSH_DELAY_MS_MAX / 1000, self._start_flush)

    async def look(self) -> None:
        """Look whether results of awakeables have come. Raises FencedError when another attempt owns the lane."""
        async with self._writing:
            head = parse_head(await self._env.table.get(head_key(self.lane)))
            if head.run is None or head.ver != self.head.ver:
                self.phase = advance(self.phase, Step.REFUSED)
                raise FencedError("the lane has moved on")
            await self._learn(head)

    async def suspend(
        self,
        state: Mapping[str, bytes | None],
        base: Mapping[str, bytes | None],
        wait: Wait,
        out: Messages = NO_MESSAGES,
    ) -> bool:
        """Let the invocation wait. False when a result has come that it has not heard of: then it goes on with that.

        Raises FencedError when another attempt owns the lane.
        """
        async with self._writing:
            self._require(Phase.OWNING)
            if self._news and wait.slots:
                # The flush that this has waited for has met them. With them unheard, they would leave the head for a
                # segment while the run waits for them there.
                return False
            if wait.wake_ms is not None:
                nonce = f"{self.run.event.nonce}.{self.run.attempt}.{wait.failures}"
                timer = SleepTimer(self.lane, self.run.event.nonce, wait.wake_ms, nonce)
                await self._write(timer_put(timer))
            progress = await self._prepared(out)
            wait = dataclasses.replace(wait, seen=self.head.ans)
            own = self._env.nonce
            answer = await self._write(suspend(self.lane, self.head.ver, self.run, progress, state, base, wait, own))
            if isinstance(answer, Refused):
                seen = parse_head(answer.item)
                if seen.ver == self.head.ver and seen.run is not None and _present(answer.item).get(OWN, own) == own:
                    if not seen.run.suspended:
                        # No try of it was applied, so nothing names what was put for it.
                        await self._forget(self._put_for(progress))
                        await self._learn(seen)
                        return False
                    # An earlier try of this write was applied and its response lost: the invocation waits.
                    answer = Applied(answer.item)
            self._settle(answer, Step.SUSPENDED, "suspend")
            return True

    async def commit(self, effects: Effects) -> None:
        """End the invocation. Raises FencedError when another attempt owns the lane."""
        async with self._writing:
            self._require(Phase.OWNING)
            out = await self._bundled(effects.out, self.run.ver)
            effects = dataclasses.replace(effects, out=out)
            tok = self._tok("commit")
            known = {**self.head.slots, **self._backlog.in_head}
            shipped_from = {item_of(entry) for entry in effects.out.values()}
            over = (*self._backlog.segments, *self._answers, self.run.input_item)
            items = [name for name in over if name and name not in shipped_from]
            owned = _with_slots(self.head, known)
            trim = self._request.trim if self._request.mode == "resume" else NO_TRIM
            write = final_commit(self.lane, owned, effects, tok, self._env.nonce, trim=trim)
            self._settle(await self._write(write, tok), Step.COMMITTED, "commit")
            await self._forget(items)

    async def renew(self) -> None:
        """Begin with the next event of the activation, from the head that the commit left."""
        await self.close()
        self.phase = advance(self.phase, Step.CONTINUED)
        self._secret = None
        self._answers.clear()
        self._request = replace(self._request, trim=NO_TRIM)

    async def commit_speculation(self, effects: Effects) -> None:
        """Write 1, by a function that has written already. Raises FencedError when the lane has moved on."""
        async with self._writing:
            self._require(Phase.SPECULATING)
            tok = self._tok("spec")
            drain = self._request.mode == "drain"
            write = spec_commit(self.lane, self.head, effects, tok, drain=drain)
            self._settle(await self._write(write, tok), Step.COMMITTED, "commit")

    async def close(self) -> None:
        """Wait for a flush that is under way; none starts afterwards."""
        if self._flush_due is not None:
            self._flush_due.cancel()
            self._flush_due = None
        if self._flushing is not None:
            await asyncio.wait([self._flushing])

    # --- parts of writes --------------------------------------------------------------------------------------------

    def _start_flush(self) -> None:
        self._flush_due = None
        self._flushing = asyncio.ensure_future(self._flush_quietly())

    async def _flush_quietly(self) -> None:
        # Whoever waits for durability next meets the same trouble and reports it; here nobody is listening.
        try:
            async with self._writing:
                if self.owning:
                    await self._checkpoint(NO_MESSAGES)
        except (FencedError, TableUnavailableError, TableRefusedError):
            return

    async def _checkpoint(self, out: Messages) -> None:
        self._require(Phase.OWNING)
        self._backlog.arrive()
        if self._backlog.empty and not out:
            return
        progress = await self._prepared(out)
        write = checkpoint(self.lane, self.head.ver, self.run, progress, self._env.nonce)
        self._settle(await self._write(write), Step.CHECKPOINTED, "checkpoint")
        self._backlog.written(progress)
        await self._learn(self.head)

    async def _prepared(self, out: Messages) -> Progress:
        """What the next write of the head makes durable, with what goes into items of its own put there already."""
        self._backlog.arrive()
        batch = self._backlog.batch(out)
        names: list[str] = []
        for part in (batch.rolls, *_parts(batch.apart)):
            if part:
                name = segment_name(self.run, self.head.ver, self._number(), self._env.nonce)
                await self._write(segment_put(self.lane, name, part))
                names.append(name)
        segments = (*self._backlog.segments, *names) if names else None
        entries = await self._bundled(batch.out, self.run.ver)
        return Progress(batch.slots, entries, tuple(batch.rolls), segments, batch.apart, batch.took)

    def _put_for(self, progress: Progress) -> list[str]:
        """The items that were put for a write of the head."""
        segments = set(progress.segments or ()) - set(self._backlog.segments)
        return [*segments, *(entry.item for entry in progress.out.values() if isinstance(entry, BundleOut))]

    async def _bundled(self, out: Mapping[int, Out], ver: int) -> dict[int, Out]:
        """Outgoing entries as the head takes them: as they are, or in items of their own."""
        if not out:
            return {}
        waiting = sum(len(pack(entry)) for entry in self.head.out.values())
        if len(out) <= OUT_PER_WRITE_MAX and waiting + sum(len(pack(e)) for e in out.values()) <= OUT_BYTES_MAX:
            return dict(out)
        bundled: dict[int, Out] = {}
        for part in bundles(out):
            name = bundle_name(ver, self._number(), self._env.nonce)
            await self._write(bundle_put(self.lane, name, part))
            bundled[part.entries[0][0]] = BundleOut(name)
        return bundled

    def _number(self) -> int:
        """Counts items that this activation puts, so that each has a name of its own."""
        self._puts += 1
        return self._puts

    async def _learn(self, head: Head) -> None:
        """Take over what a head says that this side did not write."""
        self.head = head
        for name, slot in self._backlog.learn(head.slots, head.segments):
            self._news.append((name, await self._whole(slot)))

    async def _whole(self, slot: Slot) -> Slot:
        """A slot with its content, should that be in an item of its own."""
        if not isinstance(slot, ElsewhereSlot):
            return slot
        item = await self._env.table.get(Key(self.lane.pk, slot.item)) or {}
        data = item.get("slot")
        if not isinstance(data, bytes):
            raise FencedError("the result of an awakeable is gone: the run is over")
        self._answers.add(slot.item)
        return unpack_slot(data)

    async def _put_guard(self, event: Event) -> None:
        due_ms, now_ms = self._env.deadline_ms + GUARD_MARGIN_MS, self._env.now_ms()
        holder = self._request.holder
        guard = GuardTimer(self.lane, event.nonce, due_ms, holder, ver=self.head.ver, since_ms=now_ms)
        await self._write(timer_put(guard))

    async def _put_input(self, event: Event) -> tuple[Event, str | None]:
        """The event as a run holds it; what of it is large goes into an item, whose name is the other part.

        Raises StateTooLargeError.
        """
        large, carried = event.input, carried_of(event)
        if len(large or b"") <= INLINE_BYTES_MAX:
            large = None
        if large is None and carried is None:
            return event, None
        size = len(large or b"") + (0 if carried is None else len(pack(carried)))
        if size > VALUE_BYTES_MAX:
            what = "what comes with an event (input, headers, key) whose handler takes durable steps"
            raise StateTooLargeError(what, size, VALUE_BYTES_MAX)
        name = input_name(event.nonce, self._request.holder)
        await self._write(input_put(self.lane, name, large, carried))
        return _without(event, input_too=large is not None, carried=carried is not None), name

    async def _forget(self, items: Sequence[str]) -> None:
        if not items:
            return
        # An item that stays because this fails is never read again: its name left the head with the commit.
        try:
            await self._env.table.delete_all([Delete(Key(self.lane.pk, name)) for name in items])
        except TableUnavailableError:
            return

    async def _write(self, write: Write, tok: str | None = None) -> Answer:
        """Apply a write, again after a lost response.

        An item that bears `tok` then tells that it was applied. Writes without one may be applied twice: they set what
        they set before, under the same conditions.
        """
        lost: TableUnavailableError | None = None
        for pause_ms in (*WRITE_PAUSES_MS, None):
            self.writes += 1
            try:
                answer = await self._env.table.write(write)
            except TableUnavailableError as e:
                lost = e
                if pause_ms is None or self._env.remaining_ms() <= pause_ms:
                    raise
                await asyncio.sleep(pause_ms / 1000)
                continue
            if lost is not None and tok is not None and _bears(answer, tok):
                return Applied(answer.item)
            return answer
        raise AssertionError("unreachable: the last pause is None")

    def _settle(self, answer: Answer, step: Step, what: str) -> None:
        if isinstance(answer, Refused):
            self.phase = advance(self.phase, Step.REFUSED)
            raise FencedError(f"{what} refused: the lane has moved on")
        self.phase = advance(self.phase, step)
        self.head = parse_head(_present(answer.item))

    def _tok(self, what: str) -> str:
        """A name that no other write has, not even a twin's of this one."""
        return f"{self._request.holder}.{self._env.nonce}.{what}.{self.head.ver}"

    def _require(self, phase: Phase) -> None:
        if self.phase is not phase:
            raise FencedError(f"the lease is {self.phase.value}")


def carried_of(event: Event) -> Carried | None:
    """Headers and raw key of an event that are too large to be with it in a head."""
    raw_key = event.source.raw_key if isinstance(event.source, KafkaSource) else None
    carried = Carried(event.headers, raw_key)
    return carried if len(pack(carried)) > INLINE_BYTES_MAX else None


def _without(event: Event, *, input_too: bool, carried: bool) -> Event:
    if input_too:
        event = replace(event, input=None)
    if carried:
        event = replace(event, headers=())
        if isinstance(event.source, KafkaSource):
            event = replace(event, source=replace(event.source, raw_key=None))
    return event


def _with_item(event: Event, item: Item) -> Event:
    """An event with what its item holds of it."""
    data, packed = item.get("input"), item.get("carried")
    if isinstance(data, bytes):
        event = replace(event, input=data)
    if isinstance(packed, bytes):
        carried = unpack_carried(packed)
        event = replace(event, headers=carried.headers)
        if isinstance(event.source, KafkaSource):
            event = replace(event, source=replace(event.source, raw_key=carried.raw_key))
    return event


def bundles(out: Mapping[int, Out]) -> Iterator[Bundle]:
    """Outgoing entries, in order, in as many bundles as their size asks for. A bundle in a bundle there is not."""
    part: list[tuple[int, Entry]] = []
    size = 0
    for position, entry in sorted(out.items()):
        if isinstance(entry, BundleOut):
            raise TypeError("a bundle is made of entries")
        weight = len(pack(entry))
        if part and size + weight > BUNDLE_BYTES_MAX:
            yield Bundle(tuple(part))
            part, size = [], 0
        part.append((position, entry))
        size += weight
    if part:
        yield Bundle(tuple(part))


def _parts(slots: Mapping[str, bytes]) -> Iterator[dict[str, bytes]]:
    """Slots in as many items as their size asks for."""
    part: dict[str, bytes] = {}
    for name, data in slots.items():
        if part and sum(map(len, part.values())) + len(data) > BUNDLE_BYTES_MAX:
            yield part
            part = {}
        part[name] = data
    if part:
        yield part


def _bears(answer: Answer, tok: str) -> bool:
    return isinstance(answer, Refused) and answer.item is not None and answer.item.get("tok") == tok


def _present(item: Item | None) -> Item:
    if item is None:
        raise AssertionError("an update always leaves an item")
    return item


def _with_slots(head: Head, slots: Mapping[str, bytes]) -> Head:
    return Head(
        ver=head.ver, tok=head.tok, pend=head.pend, base=head.base, run=head.run, slots=dict(slots), stray=head.stray
    )
