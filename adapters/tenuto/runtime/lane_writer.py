"""The writes of one activation to its lane: claim, checkpoint, suspend, commit, each under the fencing token.

Owns what is stored of the lane as this process knows it (head, phase, backlog), the order of writes and their
repetition after a lost response. Everything here runs on the write loop, in whichever thread that has it run: one at a
time. It shares two queues with the handler's side (`lease`) and no more: slots that have finished come in, news of what
is stored goes out. Arguments and results are values. Does not own what a write looks like (`tenuto.lane`), nor when a
handler needs one (`lease`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeAlias

from msgspec import structs

from tenuto.errors import FencedError, StateTooLargeError
from tenuto.lane.dead_letters import item_of
from tenuto.lane.head import OWN, head_key, parse_head
from tenuto.lane.items import (
    bundle_name,
    bundle_put,
    bundles,
    carried_of,
    input_name,
    input_put,
    parts,
    segment_name,
    segment_put,
    with_item,
    without,
)
from tenuto.lane.joins import commit_and_claim, may_continue
from tenuto.lane.naps import Nap, nap
from tenuto.lane.timers import GuardTimer, SleepTimer, spread, timer_put
from tenuto.lane.transitions import (
    NO_TRIM,
    Effects,
    Progress,
    WakeCondition,
    checkpoint,
    claim,
    final_commit,
    spec_commit,
    suspend,
)
from tenuto.lane.writes import Answer, Applied, Delete, Item, Key, Refused, Update, Write
from tenuto.machine.backlog import Backlog
from tenuto.machine.journal import Finished, completion_order
from tenuto.machine.phases import Phase, PhaseChange, advance
from tenuto.protocol.ids import Lane
from tenuto.protocol.limits import (
    FLUSH_RETRY_MS,
    GUARD_MARGIN_MS,
    INLINE_BYTES_MAX,
    OUT_BYTES_MAX,
    OUT_PER_WRITE_MAX,
    VALUE_BYTES_MAX,
)
from tenuto.protocol.messages import Activation, ClaimedRun, Head
from tenuto.protocol.records import (
    BundleOut,
    CallSource,
    ElsewhereSlot,
    Entry,
    Event,
    Out,
    Slot,
    pack,
    unpack_slot,
)
from tenuto.runtime.environment import Environment
from tenuto.runtime.lane_news import Found, Left, Loaded, NewRun, News, Stored
from tenuto.store.port import TableRefusedError, TableUnavailableError

Messages: TypeAlias = Mapping[int, tuple[int, str, Entry]]
"""Messages of a handler: position in the outbox → command, target, entry."""

NO_MESSAGES: Final[Messages] = MappingProxyType({})

WRITE_PAUSES_MS = (20, 50, 100, 200, 400, 800, 1_600)
"""Pauses between repetitions of a write whose response was lost; after the last one the attempt gives up."""


class LaneWriter:
    """One activation's writes to its lane: at first it owns nothing, after a claim it writes under a fencing token.

    Made by the handler's side; from then on only the write loop touches it.
    """

    def __init__(self, request: Activation, env: Environment, news: deque[News]) -> None:
        self._lane = Lane(request.service, request.key)
        self._head = request.head
        self._phase = Phase.OWNING if request.mode == "resume" else Phase.SPECULATING
        self._drains = request.mode == "drain"
        self._holder = request.holder
        self._trim = request.trim
        self._env = env
        self._news = news
        self._found = 0
        # Found slots whose contents are still to be fetched.
        self._untold: deque[tuple[str, Slot]] = deque()
        self._backlog = Backlog()
        self._answers: set[str] = set()
        self._puts = 0
        self._writes = 0
        # What this process is called in the head, and whether a write may still come whose response was lost.
        self._own = env.nonce
        self._late = False
        self._renamed: str | None = None
        self._writing = asyncio.Lock()
        self._closed = False

    # --- the writes -------------------------------------------------------------------------------------------------

    async def load(self, finished: Finished) -> Loaded:
        """Read what of a resumed run did not come with the request: segments, results, a large event.

        What finishes from now on comes through `finished`. Raises FencedError when something is gone, because the run
        is over.
        """
        rolled: dict[str, bytes] = {}
        for name in self._head.segments:
            item = await self._env.table.get(Key(self._lane.pk, name))
            if item is None:
                raise FencedError("a journal segment is gone: the run is over")
            rolled |= {slot: data for slot, data in item.items() if isinstance(data, bytes)}
        # A rolled slot wins over one put again later.
        packed = {name: unpack_slot(data) for name, data in {**self._head.slots, **rolled}.items()}
        slots = {name: await self._whole(slot) for name, slot in packed.items()}
        self._backlog = Backlog.load(
            finished,
            self._head.slots,
            rolled,
            len(completion_order(slots)),
            segments=self._head.segments,
            took=self._head.took,
        )
        run = self._run
        if run.input_item is None:
            return Loaded(run.event, slots)
        item = await self._env.table.get(Key(self._lane.pk, run.input_item))
        if item is None:
            # Only the end of a run deletes its input, so another attempt has ended it.
            raise FencedError("the run's input is gone: the run is over")
        return Loaded(with_item(run.event, item), slots)

    async def claim(self, new: NewRun, before: Effects) -> ClaimedRun:
        """Take the lane for a run, together with the effects of the events before it. Raises FencedError."""
        async with self._writing:
            if self._phase is Phase.OWNING:
                return self._run
            self._begin()
            event = new.event
            if isinstance(event.source, CallSource) and not self._drains:
                await self._put_guard(event)
            run, trim = self._run_of(new, *await self._put_input(event)), self._trim
            self._turn_to(new)
            self._backlog.arrive()
            unstored = self._backlog.unstored(NO_MESSAGES)
            progress = Progress(unstored.slots) if not unstored.apart else Progress()
            tok = self._tok("claim")
            # Where it changes nothing but the run, and refuses a mark in between, the head is known without an answer.
            quiet = not before and trim == NO_TRIM and not self._drains
            write = claim(
                self._lane,
                self._head,
                before,
                run,
                tok,
                drain=self._drains,
                trim=trim,
                slots=progress.slots,
                quiet=quiet,
            )
            answer = await self._write(write, tok)
            if quiet and answer == Applied(None):
                self._phase = advance(self._phase, PhaseChange.CLAIMED)
                self._head = structs.replace(self._head, ver=run.ver, tok=tok, run=run, slots=dict(progress.slots))
            else:
                self._settle(answer, PhaseChange.CLAIMED, "claim")
            self._backlog.written(progress)
            self._news.append(Stored(self._backlog.durable))
            return self._run

    async def flush(self, out: Messages = NO_MESSAGES, *, learns: bool = True) -> None:
        """Make every finished step, and these messages, durable.

        With `learns`, answers of awakeables that have come are told as well. Raises FencedError when another attempt
        owns the lane.
        """
        async with self._writing:
            await self._checkpoint(out, learns=learns)

    async def flush_quietly(self) -> None:
        """Flush what has finished, if the lane is still held. Whoever waits next for durability reports what fails.

        Nobody may wait for long, while a handler computes. So what the table did not answer is tried again meanwhile.
        """
        try:
            async with self._writing:
                if self._phase is Phase.OWNING and not self._closed:
                    await self._checkpoint(NO_MESSAGES, learns=True)
        except TableUnavailableError:
            self._env.writes.flush_within(FLUSH_RETRY_MS, self.flush_quietly)
        except (FencedError, TableRefusedError):
            return

    async def look(self) -> None:
        """Look whether results of awakeables have come. Raises FencedError when another attempt owns the lane."""
        async with self._writing:
            head = parse_head(await self._env.table.get(head_key(self._lane)))
            if head.run is None or head.ver != self._head.ver:
                self._phase = advance(self._phase, PhaseChange.REFUSED)
                raise FencedError("the lane has moved on")
            await self._learn(head)

    async def suspend(
        self,
        state: Mapping[str, bytes | None],
        initial: Mapping[str, bytes | None],
        wakes: WakeCondition,
        out: Messages,
        heard: int,
    ) -> Left | None:
        """Let the invocation wait. None when a result has come that it has not heard of: then it continues with that.

        `initial` is what the run's first attempt found of each name in `state`; `heard` is how many slots the handler's
        side has heard of. Raises FencedError when another attempt owns the lane.
        """
        async with self._writing:
            self._require(Phase.OWNING)
            if heard < self._found and wakes.slots:
                # The flush that this has waited for has met them. With them unheard, they would leave the head for a
                # segment while the run waits for them there.
                await self._tell_found()
                return None
            run = self._run
            if wakes.wake_ms is not None:
                nonce = f"{run.event.nonce}.{run.attempt}.{wakes.failures}"
                timer = SleepTimer(self._lane, run.event.nonce, wakes.wake_ms, nonce)
                await self._write(timer_put(spread(timer, self._env.spread)))
            progress = await self._prepared(out)
            base = {name: value for name, value in initial.items() if name not in self._head.base}
            wakes = structs.replace(wakes, seen=self._head.ans)
            ver = self._head.ver
            answer = await self._write_owned(
                lambda own, then: suspend(self._lane, ver, run, progress, state, base, wakes, own, then)
            )
            own = self._own
            if isinstance(answer, Refused):
                seen = parse_head(answer.item)
                if seen.ver == self._head.ver and seen.run is not None and _present(answer.item).get(OWN, own) == own:
                    if not seen.run.suspended:
                        # No try of it was applied, so nothing names what was put for it.
                        await self._forget(self._put_for(progress))
                        await self._learn(seen)
                        return None
                    # An earlier try of this write was applied and its response lost: the invocation waits.
                    answer = Applied(answer.item)
            self._settle(answer, PhaseChange.SUSPENDED, "suspend")
            return self._left

    async def nap(
        self,
        state: Mapping[str, bytes | None],
        initial: Mapping[str, bytes | None],
        sleep: Nap,
        out: Messages,
    ) -> Left:
        """Let the invocation sleep while the control plane keeps the lease. `initial` is as in `suspend`.

        Raises FencedError when another attempt owns the lane.
        """
        async with self._writing:
            self._require(Phase.OWNING)
            run, ver, tok = self._run, self._head.ver, self._tok("nap")
            progress = await self._prepared(out)
            base = {name: value for name, value in initial.items() if name not in self._head.base}
            write = nap(self._lane, ver, run, progress, state, base, sleep, tok, self._own)
            answer = await self._write(write, tok)
            stands = isinstance(answer, Refused) and self._sleeps_already(answer.item)
            self._settle(Applied(answer.item) if stands else answer, PhaseChange.SUSPENDED, "nap")
            return self._left

    async def commit(self, effects: Effects, following: NewRun | None = None) -> Left:
        """End the invocation, and claim the lane for the one that follows if that can be in the same write.

        Raises FencedError when another attempt owns the lane.
        """
        async with self._writing:
            self._require(Phase.OWNING)
            run = self._run
            out = await self._bundled(effects.out, run.ver)
            effects = structs.replace(effects, out=out)
            tok = self._tok("commit")
            known = {**self._head.slots, **self._backlog.in_head}
            shipped_from = {item_of(entry) for entry in effects.out.values()}
            over = (*self._backlog.segments, *self._answers, run.input_item)
            items = [name for name in over if name and name not in shipped_from]
            owned = structs.replace(self._head, slots=known)
            if following is None or not await self._joined(owned, effects, tok, following):
                write = final_commit(self._lane, owned, effects, tok, self._own, trim=self._trim)
                self._settle(await self._write(write, tok), PhaseChange.COMMITTED, "commit")
            await self._forget(items)
            return self._left

    async def commit_speculation(self, effects: Effects) -> Left:
        """Write 1, by a function that has written already. Raises FencedError when the lane has moved on."""
        async with self._writing:
            self._begin()
            tok = self._tok("spec")
            write = spec_commit(self._lane, self._head, effects, tok, drain=self._drains)
            self._settle(await self._write(write, tok), PhaseChange.COMMITTED, "commit")
            return self._left

    async def close(self) -> Left:
        """The end of the activation, after a flush that is in progress; none writes afterwards."""
        async with self._writing:
            self._closed = True
            return self._left

    async def _joined(self, owned: Head, effects: Effects, tok: str, new: NewRun) -> bool:
        """End the run that is owned and claim the next in one write. False when it has to end by itself."""
        event = new.event
        large = len(event.input or b"") > INLINE_BYTES_MAX or carried_of(event) is not None
        free = may_continue(self._head, drains=self._drains) and not effects.out
        if large or not free or isinstance(event.source, CallSource):
            return False
        run = self._run_of(new, event, None)
        write = commit_and_claim(self._lane, owned, effects, run, tok, self._own, drain=self._drains, trim=self._trim)
        answer = await self._write(write, tok)
        if isinstance(answer, Refused):
            return False
        self._phase = advance(advance(self._phase, PhaseChange.COMMITTED), PhaseChange.CONTINUED)
        self._settle(answer, PhaseChange.CLAIMED, "claim")
        self._answers.clear()
        self._turn_to(new)
        return True

    # --- parts of writes --------------------------------------------------------------------------------------------

    @property
    def _run(self) -> ClaimedRun:
        """The invocation that the lane is held for."""
        if self._head.run is None:
            raise FencedError("no run is owned")
        return self._head.run

    @property
    def _left(self) -> Left:
        return Left(self._head, self._writes)

    def _run_of(self, new: NewRun, stored: Event, input_item: str | None) -> ClaimedRun:
        return ClaimedRun(
            event=stored,
            ver=self._head.ver + 1,
            start_ms=new.start_ms,
            first_out=new.first_out,
            input_item=input_item,
            attempt=1,
            holder=self._holder,
            lease_ms=self._env.deadline_ms,
            secret=new.secret,
        )

    def _turn_to(self, new: NewRun) -> None:
        """Keep the journal of a run that is claimed."""
        # Of the run before, whose handler has ended without them.
        self._found -= len(self._untold)
        self._untold.clear()
        self._trim = NO_TRIM
        self._backlog = Backlog(new.finished)

    def _begin(self) -> None:
        """Turn to the next event of the activation, should one have been committed. Raises FencedError."""
        if self._phase is Phase.COMMITTED:
            self._phase = advance(self._phase, PhaseChange.CONTINUED)
            self._answers.clear()
        self._require(Phase.SPECULATING)

    def _sleeps_already(self, item: Item | None) -> bool:
        """Whether an earlier write of this attempt has suspended it, whose response was lost."""
        seen = parse_head(item)
        mine = seen.ver == self._head.ver and _present(item).get(OWN) in (self._own, self._renamed or self._own)
        return mine and seen.run is not None and seen.run.suspended

    async def _checkpoint(self, out: Messages, *, learns: bool) -> None:
        self._require(Phase.OWNING)
        self._backlog.arrive()
        if self._backlog.empty and not out:
            return
        progress = await self._prepared(out)
        ver, run = self._head.ver, self._run
        # Where all that it changes are slots, the head is known without an answer that repeats it, the event included.
        quiet = not learns and progress == Progress(progress.slots)
        answer = await self._write_owned(
            lambda own, then: checkpoint(self._lane, ver, run, progress, own, then, quiet=quiet)
        )
        if quiet and answer == Applied(None):
            self._phase = advance(self._phase, PhaseChange.CHECKPOINTED)
            head = structs.replace(self._head, slots={**self._head.slots, **progress.slots})
        else:
            self._settle(answer, PhaseChange.CHECKPOINTED, "checkpoint")
            head = self._head
        self._backlog.written(progress)
        await self._learn(head)

    async def _prepared(self, out: Messages) -> Progress:
        """What the next write of the head makes durable, with what goes into items of its own put there already."""
        self._backlog.arrive()
        unstored = self._backlog.unstored(out)
        names: list[str] = []
        for part in (unstored.rolls, *parts(unstored.apart)):
            if part:
                name = segment_name(self._run, self._head.ver, self._number(), self._env.nonce)
                await self._write(segment_put(self._lane, name, part))
                names.append(name)
        segments = (*self._backlog.segments, *names) if names else None
        entries = await self._bundled(unstored.out, self._run.ver)
        return Progress(unstored.slots, entries, tuple(unstored.rolls), segments, unstored.apart, unstored.took)

    def _put_for(self, progress: Progress) -> list[str]:
        """The items that were put for a write of the head."""
        segments = set(progress.segments or ()) - set(self._backlog.segments)
        return [*segments, *(entry.item for entry in progress.out.values() if isinstance(entry, BundleOut))]

    async def _bundled(self, out: Mapping[int, Out], ver: int) -> dict[int, Out]:
        """Outgoing entries as the head takes them: as they are, or in items of their own."""
        if not out:
            return {}
        waiting = sum(len(pack(entry)) for entry in self._head.out.values())
        if len(out) <= OUT_PER_WRITE_MAX and waiting + sum(len(pack(e)) for e in out.values()) <= OUT_BYTES_MAX:
            return dict(out)
        bundled: dict[int, Out] = {}
        for part in bundles(out):
            name = bundle_name(ver, self._number(), self._env.nonce)
            await self._write(bundle_put(self._lane, name, part))
            bundled[part.entries[0][0]] = BundleOut(name)
        return bundled

    def _number(self) -> int:
        """Counts items that this activation puts, so that each has its own name."""
        self._puts += 1
        return self._puts

    async def _learn(self, head: Head) -> None:
        """Take over what a head says that this side did not write."""
        self._head = head
        learned = list(self._backlog.learn(head.slots, head.segments))
        # Counted before their contents are fetched: should that fail, no suspension takes them for heard.
        self._found += len(learned)
        self._untold.extend(learned)
        self._news.append(Stored(self._backlog.durable))
        await self._tell_found()

    async def _tell_found(self) -> None:
        """Tell the handler's side of slots that were found. What cannot be fetched now is told with the next write."""
        while self._untold:
            name, slot = self._untold[0]
            self._news.append(Found(name, await self._whole(slot)))
            self._untold.popleft()

    async def _whole(self, slot: Slot) -> Slot:
        """A slot with its content, should that be in its own item."""
        if not isinstance(slot, ElsewhereSlot):
            return slot
        item = await self._env.table.get(Key(self._lane.pk, slot.item)) or {}
        data = item.get("slot")
        if not isinstance(data, bytes):
            raise FencedError("the result of an awakeable is gone: the run is over")
        self._answers.add(slot.item)
        return unpack_slot(data)

    async def _put_guard(self, event: Event) -> None:
        due_ms, now_ms = self._env.deadline_ms + GUARD_MARGIN_MS, self._env.now_ms()
        holder = self._holder
        guard = GuardTimer(self._lane, event.nonce, due_ms, holder, ver=self._head.ver, since_ms=now_ms)
        await self._write(timer_put(spread(guard, self._env.spread)))

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
        name = input_name(event.nonce, self._holder)
        await self._write(input_put(self._lane, name, large, carried, self._env.now_ms()))
        return without(event, input_too=large is not None, carried=carried is not None), name

    async def _forget(self, items: Sequence[str]) -> None:
        if not items:
            return
        # An item that stays because this fails is never read again: its name left the head with the commit.
        try:
            await self._env.table.delete_all([Delete(Key(self._lane.pk, name)) for name in items])
        except TableUnavailableError:
            return

    async def _write(self, write: Write, tok: str | None = None) -> Answer:
        """Apply a write, again after a lost response.

        An item that bears `tok` then tells that it was applied. Writes without one may be applied twice: they set what
        they set before, under the same conditions.
        """
        lost: TableUnavailableError | None = None
        for pause_ms in (*WRITE_PAUSES_MS, None):
            self._writes += 1
            try:
                answer = await self._env.table.write(write)
            except TableUnavailableError as e:
                lost = e
                self._late = True
                if pause_ms is None or self._env.remaining_ms() <= pause_ms:
                    raise
                await asyncio.sleep(pause_ms / 1000)
                continue
            if lost is not None and tok is not None and _bears(answer, tok):
                return Applied(answer.item)
            return answer
        raise AssertionError("unreachable: the last pause is None")

    async def _write_owned(self, make: Callable[[str, str], Update]) -> Answer:
        """Apply a write that leaves `ver` as it is; `make` takes what this process is called before and after it.

        Such a write whose response was lost may come after the next one, and would put older lists over newer ones: so
        the next one changes the name, which both are made for.
        """
        if self._late and self._renamed is None:
            self._renamed = f"{self._env.nonce}.{self._number()}"
        then = self._renamed or self._own
        answer = await self._write(make(self._own, then))
        if then != self._own and isinstance(answer, Refused) and (answer.item or {}).get(OWN) == then:
            # A try of it was applied, or one of the write before it.
            self._own, self._renamed = then, None
            return await self._write(make(then, then))
        if isinstance(answer, Applied) and then != self._own:
            self._own, self._renamed, self._late = then, None, False
        return answer

    def _settle(self, answer: Answer, change: PhaseChange, what: str) -> None:
        if isinstance(answer, Refused):
            self._phase = advance(self._phase, PhaseChange.REFUSED)
            raise FencedError(f"{what} refused: the lane has moved on")
        self._phase = advance(self._phase, change)
        self._head = parse_head(_present(answer.item))

    def _tok(self, what: str) -> str:
        """A name that no other write has, not even a twin's of this one."""
        return f"{self._holder}.{self._env.nonce}.{what}.{self._head.ver}"

    def _require(self, phase: Phase) -> None:
        if self._phase is not phase:
            raise FencedError(f"the lease is {self._phase.value}")


def _bears(answer: Answer, tok: str) -> bool:
    return isinstance(answer, Refused) and answer.item is not None and answer.item.get("tok") == tok


def _present(item: Item | None) -> Item:
    if item is None:
        raise AssertionError("an update always leaves an item")
    return item
