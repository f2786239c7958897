"""Answers to awakeables, on their way into the heads of the runs that wait for them.

Owns write 8: which answers go into one write, whether a head has room for them, and what an answer finds that came
before. Does not own who answers.

Every answer changes the same item, the head of its lane, and each write expects to come next. So the answers that one
process has for a lane go one write after the other, as many in each as there are.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tenuto.lane.head import ANS, UnreadableHeadError, head_key, parse_head
from tenuto.lane.items import answer_name, answer_put
from tenuto.lane.transitions import slots_put
from tenuto.lane.writes import Applied, Delete, Item, Key, Value
from tenuto.protocol.ids import AwakeableId, Lane, awakeable_token, command_of_awakeable
from tenuto.protocol.limits import (
    ANSWER_PUTS_MAX,
    AWAKEABLES_BYTES_MAX,
    AWAKEABLES_INLINE_BYTES_MAX,
    SLOTS_PER_WRITE_MAX,
)
from tenuto.protocol.messages import Head
from tenuto.protocol.records import AwakeableSlot, ElsewhereSlot, Result, pack, unpack_slot
from tenuto_control.dispatcher.guards import Guards
from tenuto_control.dispatcher.hints import Hints
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.limits import Limits
from tenuto_control.ports import Clock, OverloadedError, Resolution


@dataclass(slots=True, eq=False)
class _Answer:
    """One answer, and what becomes of it; None while that is open."""

    name: AwakeableId
    result: Result
    resolution: Resolution | OverloadedError | None = None


@dataclass(slots=True)
class _Line:
    """The answers for one lane that this process has at hand."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: deque[_Answer] = field(default_factory=deque)


class Answers:
    """Gives answers. `token` gives a name that no other process uses."""

    def __init__(
        self,
        writer: Writer,
        clock: Clock,
        limits: Limits,
        token: Callable[[], str],
        guards: Guards,
        hints: Hints,
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._limits = limits
        self._token = token
        self._guards = guards
        self._hints = hints
        self._lines: dict[Lane, _Line] = {}

    async def give(self, awakeable: str, result: Result) -> Resolution:
        """Give an answer. Raises OverloadedError when it cannot be taken now."""
        try:
            name = AwakeableId.parse(awakeable)
        except ValueError:
            return Resolution.UNKNOWN
        if command_of_awakeable(name.slot) is None:
            return Resolution.UNKNOWN
        lane, answer = name.invocation.lane, _Answer(name, result)
        line = self._lines.setdefault(lane, _Line())
        line.waiting.append(answer)
        try:
            async with line.turn:
                # Whoever has the turn gives what all have brought by then.
                while answer.resolution is None:
                    await self._give_some(lane, line)
        finally:
            if answer in line.waiting:
                line.waiting.remove(answer)
            if not line.waiting and self._lines.get(lane) is line:
                del self._lines[lane]
        if isinstance(answer.resolution, OverloadedError):
            raise answer.resolution
        return answer.resolution

    async def _give_some(self, lane: Lane, line: _Line) -> None:
        """Decide about the answers that wait, as many as one write takes."""
        batch = list(line.waiting)[:SLOTS_PER_WRITE_MAX]
        guarded: set[str] = set()
        for _ in range(ANSWER_PUTS_MAX):
            try:
                head = parse_head(await self._read(head_key(lane)))
            except UnreadableHeadError:
                # It is told where it is found out first. Whoever sends from a lane must not wait for another one.
                return self._refuse(line, batch, "the record of this invocation cannot be read at present")
            open_ = [answer for answer in batch if await self._is_open(lane, head, answer)]
            if not open_:
                break
            nonce = open_[0].name.invocation.nonce
            if nonce not in guarded:
                await self._guards.put(lane, nonce, self._limits.guard_delay_ms)
                guarded.add(nonce)
            if await self._put(lane, head, open_):
                self._hints.look(lane)
        return self._refuse(line, batch, "too many results come in for this invocation")

    def _refuse(self, line: _Line, batch: Sequence[_Answer], reason: str) -> None:
        """End with these answers: those that are undecided may come again."""
        for answer in batch:
            if answer.resolution is None:
                answer.resolution = OverloadedError(f"{reason}; try again later")
            if answer in line.waiting:
                line.waiting.remove(answer)

    async def _is_open(self, lane: Lane, head: Head, answer: _Answer) -> bool:
        """Whether an answer can be put; otherwise it is decided here."""
        if answer.resolution is not None:
            return False
        name, run = answer.name, head.run
        if run is None or run.event.nonce != name.invocation.nonce or not _is_token(name, run.secret):
            answer.resolution = Resolution.UNKNOWN
        else:
            given = await self._given(lane, head, name.slot)
            if given is None:
                return True
            answer.resolution = Resolution.REPEATED if given == answer.result else Resolution.CONFLICT
        return False

    async def _put(self, lane: Lane, head: Head, answers: Sequence[_Answer]) -> bool:
        """Put answers: into the head, or into items that the head names. Whether the write took place."""
        run, mark, now_ms = head.run, self._token(), self._clock.now_ms()
        if run is None:
            raise AssertionError("nothing waits without a run")
        size = sum(len(data) for slot, data in head.slots.items() if command_of_awakeable(slot) is not None)
        slots: dict[str, bytes] = {}
        items: list[str] = []
        putting: list[_Answer] = []
        for answer in answers:
            slot = answer.name.slot
            if slot in slots:
                # Two answers to one awakeable: the next look tells whether they are the same.
                continue
            data = pack(AwakeableSlot(answer.result, now_ms))
            if size + len(data) > AWAKEABLES_INLINE_BYTES_MAX:
                item, whole = answer_name(run, slot, mark), data
                data = pack(ElsewhereSlot(item, now_ms))
                if size + len(data) > AWAKEABLES_BYTES_MAX:
                    answer.resolution = OverloadedError(
                        "as many results as the invocation can hold wait for it already"
                    )
                    continue
                await self._writer.write(answer_put(lane, item, whole))
                items.append(item)
            slots[slot] = data
            size += len(data)
            putting.append(answer)
        if not slots:
            return False
        written = await self._writer.write(slots_put(lane, head, slots, mark))
        if isinstance(written.answer, Applied) or (written.answer.item or {}).get(ANS) == mark:
            for answer in putting:
                answer.resolution = Resolution.ACCEPTED
            return True
        if not written.lost:
            for item in items:
                await self._writer.write(Delete(Key(lane.pk, item)))
        return False

    async def _given(self, lane: Lane, head: Head, slot: str) -> Result | None:
        """The result that a slot has already, in the head or wherever it has gone since."""
        packed: Value = head.slots.get(slot)
        if packed is None and command_of_awakeable(slot) in head.took:
            for segment in head.segments:
                packed = (await self._read(Key(lane.pk, segment)) or {}).get(slot)
                if packed is not None:
                    break
        found = unpack_slot(packed) if isinstance(packed, bytes) else None
        if isinstance(found, ElsewhereSlot):
            packed = (await self._read(Key(lane.pk, found.item)) or {}).get("slot")
            found = unpack_slot(packed) if isinstance(packed, bytes) else None
        return found.result if isinstance(found, AwakeableSlot) else None

    async def _read(self, key: Key) -> Item | None:
        return await self._writer.patiently(functools.partial(self._writer.table.get, key))


def _is_token(name: AwakeableId, secret: bytes) -> bool:
    """Whether an id was made by the run that holds this secret."""
    return hmac.compare_digest(awakeable_token(secret, name.slot).encode(), name.token.encode())
