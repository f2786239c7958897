"""The durable writes of one activation: claim, checkpoint, suspend, commit, each under the fencing token.

Owns the order of an activation's writes, their repetition after a lost response, and the flush that follows a finished
step within `FLUSH_DELAY_MS_MAX`. Everything `async` here runs on the write loop; the journal is shared with the
handler's side under `guard`. Does not own what is written (`tenuto.lane`) nor when a handler needs it (`attempt`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from tenuto.errors import FencedError, StateTooLargeError
from tenuto.lane.head import OWN, parse_head
from tenuto.lane.transitions import (
    NO_TRIM,
    Effects,
    Progress,
    Timer,
    Wait,
    checkpoint,
    claim,
    final_commit,
    input_name,
    input_put,
    segment_name,
    segment_put,
    spec_commit,
    suspend,
    timer_put,
)
from tenuto.lane.writes import Answer, Applied, Delete, Item, Key, Refused, Write
from tenuto.machine.journal import Journal
from tenuto.machine.phases import Phase, Step, advance
from tenuto.protocol.dead_letters import item_of
from tenuto.protocol.ids import Lane
from tenuto.protocol.limits import (
    FLUSH_DELAY_MS_MAX,
    GUARD_MARGIN_MS,
    INLINE_BYTES_MAX,
    OUT_PER_WRITE_MAX,
    SLOTS_PER_WRITE_MAX,
    VALUE_BYTES_MAX,
)
from tenuto.protocol.messages import Activation, Head, Run
from tenuto.protocol.records import CallSource, Event
from tenuto.runtime.environment import Environment
from tenuto.store.port import TableUnavailableError

WRITE_PAUSES_MS = (20, 50, 100, 200, 400, 800, 1_600)
"""Pauses between repetitions of a write whose response was lost; after the last one the attempt gives up."""


class Lease:
    """One activation's hold on its lane: first none, then a claim under a fencing token, until it ends."""

    def __init__(self, request: Activation, env: Environment) -> None:
        self.lane = Lane(request.service, request.key)
        self.head = request.head
        self.journal = Journal()
        self.phase = Phase.SPECULATING
        self.guard = threading.Lock()
        self.writes = 0
        self._env = env
        self._request = request
        self._writing = asyncio.Lock()
        self._flush_due: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None
        if request.mode == "resume":
            self.phase = Phase.OWNING

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

    async def load(self) -> Event:
        """Read what of a resumed run did not come with the request: journal segments and a large input.

        Returns its event. Raises FencedError when they are gone, because the run is over.
        """
        rolled: dict[str, bytes] = {}
        for name in self.head.segments:
            item = await self._env.table.get(Key(self.lane.pk, name))
            if item is None:
                raise FencedError("a journal segment is gone: the run is over")
            rolled |= {slot: data for slot, data in item.items() if isinstance(data, bytes)}
        self.journal = Journal.load(self.head.slots, rolled, self.head.segments, self.run.first_out)
        if self.run.input_item is None:
            return self.run.event
        item = await self._env.table.get(Key(self.lane.pk, self.run.input_item)) or {}
        data = item.get("input")
        if not isinstance(data, bytes):
            # Only the end of a run deletes its input, so another attempt has ended it.
            raise FencedError("the run's input is gone: the run is over")
        return replace(self.run.event, input=data)

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
            )
            tok = self._tok("claim")
            drain = self._request.mode == "drain"
            write = claim(self.lane, self.head, before, run, tok, drain=drain, trim=self._request.trim)
            self._settle(await self._write(write, tok), Step.CLAIMED, "claim")

    async def flush(self) -> None:
        """Make every finished step durable. Raises FencedError when another attempt owns the lane.

        Messages wait for the next commit or suspension, unless there are more than one write can take.
        """
        async with self._writing:
            await self._drain_journal()

    def flush_soon(self) -> None:
        """Flush within FLUSH_DELAY_MS_MAX, whatever the handler does meanwhile."""
        if self._flush_due is None and self.owning:
            loop = asyncio.get_running_loop()
            self._flush_due = loop.call_later(FLUSH_DELAY_MS_MAX / 1000, self._start_flush)

    async def suspend(
        self,
        state: Mapping[str, bytes | None],
        base: Mapping[str, bytes | None],
        wait: Wait,
    ) -> bool:
        """Let the invocation wait. False when an awaited slot is there already: then it goes on with that.

        Raises FencedError when another attempt owns the lane.
        """
        async with self._writing:
            self._require(Phase.OWNING)
            if wait.wake_ms is not None:
                nonce = f"{self.run.event.nonce}.{self.run.attempt}.{wait.failures}"
                timer = Timer(self.lane, "sleep", self.run.event.nonce, wait.wake_ms, nonce)
                await self._write(timer_put(timer))
            await self._drain_journal(SLOTS_PER_WRITE_MAX)
            with self.guard:
                progress = self.journal.progress(publish=True)
            progress = await self._roll(progress, {})
            own = self._env.nonce
            answer = await self._write(suspend(self.lane, self.head.ver, self.run, progress, state, base, wait, own))
            if isinstance(answer, Refused):
                seen = parse_head(answer.item)
                if seen.ver == self.head.ver and seen.run is not None and _present(answer.item).get(OWN, own) == own:
                    # An earlier try of this write may have been applied and its response lost: then the head holds
                    # published state and first-seen values that have to be known from here on.
                    self.head = seen
                    with self.guard:
                        self.journal.learn(seen.slots)
                    return False
            self._settle(answer, Step.SUSPENDED, "suspend")
            return True

    async def commit(self, effects: Effects) -> None:
        """End the invocation. Raises FencedError when another attempt owns the lane.

        Messages beyond what one write can take leave with checkpoints before.
        """
        async with self._writing:
            self._require(Phase.OWNING)
            if len(self.journal.out) > OUT_PER_WRITE_MAX:
                waiting = set(self.journal.out)
                await self._drain_journal(SLOTS_PER_WRITE_MAX)
                gone = waiting - self.journal.out.keys()
                effects = dataclasses.replace(effects, out={p: e for p, e in effects.out.items() if p not in gone})
            tok = self._tok("commit")
            with self.guard:
                known = {**self.head.slots, **self.journal.in_head}
            shipped_from = {item_of(entry) for entry in effects.out.values()}
            items = [
                name for name in (*self.journal.segments, self.run.input_item) if name and name not in shipped_from
            ]
            owned = _with_slots(self.head, known)
            trim = self._request.trim if self._request.mode == "resume" else NO_TRIM
            write = final_commit(self.lane, owned, effects, tok, self._env.nonce, trim=trim)
            self._settle(await self._write(write, tok), Step.COMMITTED, "commit")
            if items:
                await self._forget(items)

    @property
    def may_continue(self) -> bool:
        """Whether the next event may follow a commit at once: nothing has to be shipped or drained before it."""
        head = self.head
        return not head.out and (head.pend is None or self._request.mode == "drain")

    async def renew(self) -> None:
        """Begin with the next event of the activation, from the head that the commit left."""
        await self.close()
        self.phase = advance(self.phase, Step.CONTINUED)
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

    def _start_flush(self) -> None:
        self._flush_due = None
        self._flushing = asyncio.ensure_future(self._flush_quietly())

    async def _flush_quietly(self) -> None:
        # Whoever waits for durability next meets the same trouble and reports it; here nobody is listening.
        try:
            async with self._writing:
                if self.owning:
                    await self._checkpoint(publish=False)
        except (FencedError, TableUnavailableError):
            return

    async def _drain_journal(self, slots_left: int = 0) -> None:
        """Checkpoint until at most so many slots are left; messages go along when there are too many for one write."""
        publish = len(self.journal.out) > OUT_PER_WRITE_MAX
        while len(self.journal.fresh) > slots_left or (publish and self.journal.out):
            await self._checkpoint(publish=publish)

    async def _checkpoint(self, *, publish: bool) -> None:
        self._require(Phase.OWNING)
        with self.guard:
            progress = self.journal.progress(publish=publish)
            rolls = dict(self.journal.rolls())
        if not progress:
            return
        progress = await self._roll(progress, rolls)
        write = checkpoint(self.lane, self.head.ver, self.run, progress, self._env.nonce)
        self._settle(await self._write(write), Step.CHECKPOINTED, "checkpoint")
        with self.guard:
            self.journal.written(progress)
            if progress.segments is not None:
                self.journal.rolled(progress.rolled, progress.segments)
            self.journal.learn(self.head.slots)

    async def _roll(self, progress: Progress, rolls: Mapping[str, bytes]) -> Progress:
        """Put slots of the head, and large fresh ones, into segment items; the progress that goes on from there."""
        large = {name: data for name, data in progress.slots.items() if len(data) > INLINE_BYTES_MAX}
        segments = list(self.journal.segments)
        for part in (rolls, *({name: data} for name, data in large.items())):
            if part:
                name = segment_name(self.run, self.head.ver, len(segments), self._env.nonce)
                await self._write(segment_put(self.lane, name, part))
                segments.append(name)
        if not rolls and not large:
            return progress
        small = {name: data for name, data in progress.slots.items() if name not in large}
        return Progress(small, progress.out, tuple(rolls), tuple(segments), large)

    async def _put_guard(self, event: Event) -> None:
        due_ms, now_ms = self._env.deadline_ms + GUARD_MARGIN_MS, self._env.now_ms()
        holder = self._request.holder
        guard = Timer(self.lane, "guard", event.nonce, due_ms, holder, ver=self.head.ver, since_ms=now_ms)
        await self._write(timer_put(guard))

    async def _put_input(self, event: Event) -> tuple[Event, str | None]:
        data = event.input or b""
        if len(data) <= INLINE_BYTES_MAX:
            return event, None
        if len(data) > VALUE_BYTES_MAX:
            raise StateTooLargeError("the input of a handler that takes durable steps", len(data), VALUE_BYTES_MAX)
        name = input_name(event.nonce, self._request.holder)
        await self._write(input_put(self.lane, name, data))
        return replace(event, input=None), name

    async def _forget(self, items: Sequence[str]) -> None:
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
