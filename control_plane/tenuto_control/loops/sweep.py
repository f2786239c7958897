"""The sweep: looks at due timers, so that whatever process died, someone comes by.

Owns the walk over timer buckets and when a timer may go (18). Does not own waking or running lanes (the dispatcher).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias, assert_never

from tenuto.lane.head import head_key, parse_head
from tenuto.lane.items import BESIDE_HIGH, BESIDE_LOW, is_over, leftover_delete
from tenuto.lane.timers import (
    SWEEP_CURSOR,
    WIDE_MARK_SK,
    GuardTimer,
    SendTimer,
    SleepTimer,
    Timer,
    cursor_put,
    cursor_reset,
    parse_timer,
    timer_bucket,
    timer_put,
    wide_mark_delete,
)
from tenuto.lane.tombstones import is_tombstone
from tenuto.lane.transitions import INBOX_LOW
from tenuto.lane.writes import Delete, Item, Key, Put
from tenuto.protocol.ids import Lane, digest
from tenuto.protocol.limits import GUARDED_WRITE_MS_MAX, TIMER_BUCKET_MS, TIMER_SHARDS, TIMER_SHARDS_WIDE
from tenuto.protocol.messages import Head
from tenuto.store.memory import SORT_KEY_BYTES_MAX
from tenuto.store.port import TableRefusedError, TableUnavailableError, UnstorableError
from tenuto_control.core.clocks import certain_ms, differs, passed_ms
from tenuto_control.dispatcher.parts import Wiring
from tenuto_control.dispatcher.unreadable_items import UnreadableItems
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.limits import SWEEP_CURSOR_LAG_MINUTES, SWEEP_CURSOR_RECOVERED_MINUTES, near_lookback_ms
from tenuto_control.ports import Waking
from tenuto_control.tasks import all_of

log = logging.getLogger("tenuto.sweep")

POSTPONE_MS_MAX = 3_600_000

ROOM_LOOK_S = 0.1
ROOM_LOOKS_MAX = 20
"""How often, and how many times, to look whether there is room for more lanes at work, before a page of timers."""

PAGE_PAUSE_S = 0.005
"""Between two pages of timers. A walk asks for hundreds: as fast as they come, all else that is in progress would be
late for a tenth of a second at a time."""

ASKED_AT_ONCE = 16
"""Timers whose lanes are read at the same time."""

BESIDE_ITEMS = 100
BESIDE_PAGES_MAX = 1_000
"""Items of a page of those beside a head, and such pages gone through, before a guard is left for another time."""


GoingOn: TypeAlias = Callable[[], Awaitable[bool]]
"""Whether a walk may continue. It may take its time to answer, until there is room for more lanes at work."""

LaneTimer: TypeAlias = SleepTimer | GuardTimer
"""A timer that is for a lane, whose head says whether it is unneeded."""

Question: TypeAlias = tuple[type[LaneTimer], Lane, str, int | None]
"""What decides whether a timer is unneeded: kind, lane, invocation, the `ver` that a guarded write expects.

The kind as well: an ended sleep says nothing about the inbox, which the guard of the same invocation is for.
"""


class Sweeper:
    """Sweeps timers until cancelled.

    Three walks bound how long a due timer may go unseen; each is cheap where the next one is not:

    - *Near*, each `sweep_interval_ms`: the buckets since the last walk that came to its end, and `near_lookback_ms`
      before. No timer that is put by a clock that is right, or behind by less than that, comes to lie before them
      unseen, and a due timer that is kept has moved on before its bucket leaves them.
    - *Wide*, each `sweep_wide_interval_ms`: those of `sweep_lookback_ms`, for a clock further behind and for a write
      that was tried for minutes. A process begins with one, whatever was before it.
    - *Deep*, each `sweep_deep_interval_ms`: from the stored cursor on, for timers that nobody was there for.
    """

    def __init__(self, wiring: Wiring, waking: Waking) -> None:
        self._table = wiring.table
        self._waking = waking
        self._clock = wiring.clock
        self._table_clock = wiring.table_clock
        self._rng = wiring.rng
        self._limits = wiring.limits
        self._writer = Writer(wiring.table, wiring.limits, wiring.metrics)
        # When the last walk over recent buckets began that came to its end.
        self._walked_ms = 0
        self._going_on: GoingOn = _always
        self._unreadable = UnreadableItems(wiring.metrics)
        self._left_behind = 0
        # Whether the bucket that was looked at last is marked.
        self._wide = False

    async def run(self) -> None:
        """Sweep indefinitely, at intervals with jitter so that several control planes take turns."""
        wide_ms = deep_ms = 0
        while True:
            try:
                if self._clock.now_ms() >= wide_ms:
                    await self.sweep(_unhurried)
                    wide_ms = self._walked_ms + self._limits.sweep_wide_interval_ms
                else:
                    await self.sweep_near()
                if self._clock.now_ms() >= deep_ms:
                    await self.sweep_deep()
                    deep_ms = self._clock.now_ms() + self._limits.sweep_deep_interval_ms
            except TableUnavailableError:
                # It is said elsewhere, once for the whole process. The sweep starts again soon.
                pass
            except TableRefusedError as e:
                self._unreadable.met("the place that the sweep has got to", e)
            await asyncio.sleep(self._limits.sweep_interval_ms * (0.5 + self._rng.random()) / 1000)

    async def sweep(self, going_on: GoingOn | None = None) -> bool:
        """Look at the timers of recent buckets, and arm those that are due soon.

        `going_on` is asked between some of them. False when the sweep ended before all were looked at.
        """
        now_ms = self._clock.now_ms()
        self._going_on = going_on or _always
        return await self._walk(now_ms, now_ms - self._limits.sweep_lookback_ms)

    async def sweep_near(self) -> None:
        """The same for the buckets in which timers can have come to lie since the last walk, but for wrong clocks."""
        now_ms = self._clock.now_ms()
        since_ms = min(now_ms, self._walked_ms) - near_lookback_ms(self._limits)
        await self._walk(now_ms, max(since_ms, now_ms - self._limits.sweep_lookback_ms))

    async def _walk(self, now_ms: int, from_ms: int) -> bool:
        last = (now_ms + self._limits.sweep_interval_ms * 2) // TIMER_BUCKET_MS
        for minute in range(from_ms // TIMER_BUCKET_MS, last + 1):
            if not await self._going_on():
                return False
            await self._bucket(minute)
        if not await self._going_on():
            # The last bucket may have been left in the middle.
            return False
        self._walked_ms = now_ms
        return True

    async def sweep_deep(self) -> None:
        """Look at older buckets from the stored cursor on, and move the cursor past those that are empty.

        That is left to others while this machine's clock is known to be wrong: buckets that it takes for old have not
        had their timers yet.
        """
        if differs(self._table_clock.check, self._limits.lease_margin_ms):
            return
        now = self._clock.now_ms() // TIMER_BUCKET_MS
        item = await self._table.get(SWEEP_CURSOR)
        stored = item.get("minute") if item else None
        if item is not None and (not isinstance(stored, int) or not 0 <= stored <= now):
            log.warning("the sweep's cursor was in the future; it looks for older timers again")
            stored = now - SWEEP_CURSOR_RECOVERED_MINUTES
            await self._table.write(cursor_reset(stored))
        cursor = stored if isinstance(stored, int) else now - SWEEP_CURSOR_LAG_MINUTES
        recent = now - self._limits.sweep_lookback_ms // TIMER_BUCKET_MS
        empty = True
        for minute in range(cursor, min(recent, cursor + self._limits.sweep_deep_buckets_max)):
            found = await self._bucket(minute)
            if not await self._going_on():
                # This bucket may have been left in the middle.
                break
            empty = empty and not found
            if empty and minute < now - SWEEP_CURSOR_LAG_MINUTES:
                if self._wide:
                    await self._writer.write(wide_mark_delete(minute))
                cursor = minute + 1
        if cursor != stored:
            await self._table.write(cursor_put(cursor))

    async def _bucket(self, minute: int) -> bool:
        """Treat the timers of one minute. True when there were any, or may have been."""
        found, shards, shard = False, TIMER_SHARDS, 0
        while shard < shards:
            after: str | None = None
            while await self._going_on():
                bucket = timer_bucket(minute, shard)
                try:
                    page = await self._table.query(bucket, WIDE_MARK_SK, "9~", after=after)
                except TableRefusedError as e:
                    # It refuses this page to everybody. The next one is looked at all the same.
                    self._unreadable.met(f"the timers of {bucket}", e)
                    found = True
                    if shard == 0:
                        # The mark of the minute is on this page, should it have one.
                        shards = TIMER_SHARDS_WIDE
                    break
                items = [item for item in page.items if item["sk"] != WIDE_MARK_SK]
                if len(items) < len(page.items):
                    shards = TIMER_SHARDS_WIDE
                left_behind = await self._treat(items)
                found = found or len(items) > left_behind
                after = page.last
                if after is None:
                    break
            shard += 1
        self._wide = shards == TIMER_SHARDS_WIDE
        return found

    async def _treat(self, items: Iterable[Item]) -> int:
        """Arm what is due soon, deliver or judge what is due, set aside what is no timer: each on its own.

        How many of them the table takes nowhere else, so that the walk has to get past them.
        """
        await self._room()
        self._left_behind = 0
        due: list[_Found] = []
        sends: list[_Found] = []
        others: list[Coroutine[Any, Any, None]] = []
        for item in items:
            found = self._read(item)
            if isinstance(found, Key):
                others.append(self._alone(found, partial(self._set_aside, item, found)))
                continue
            if found.timer.due_ms > self._clock.now_ms():
                others.append(self._alone(found, partial(self._arm, found)))
                continue
            match found.timer:
                case SendTimer():
                    sends.append(found)
                case SleepTimer() | GuardTimer():
                    due.append(found)
                case _:
                    assert_never(found.timer)
        await self._several(others)
        await self._deliver_all(sends)
        await self._judge(due)
        return self._left_behind

    async def _several(self, works: Sequence[Coroutine[Any, Any, None]]) -> None:
        """Do something about several items, some of them at a time: thousands must not delay those behind them."""
        for at in range(0, len(works), ASKED_AT_ONCE):
            try:
                await all_of(works[at : at + ASKED_AT_ONCE], "item")
            except BaseException:
                for work in works[at + ASKED_AT_ONCE :]:
                    work.close()
                raise

    async def _room(self) -> None:
        """Wait while very many lanes are at work. Not without end: those may wait for what a later timer brings."""
        for _ in range(ROOM_LOOKS_MAX):
            if self._waking.active < self._limits.sweep_lanes_max:
                return
            await asyncio.sleep(ROOM_LOOK_S)

    def _read(self, item: Item) -> _Found | Key:
        """The timer in an item; its key alone when it is none."""
        key = Key(str(item["pk"]), str(item["sk"]))
        try:
            return _Found(parse_timer(item), key)
        except Exception as e:  # noqa: BLE001 - whatever it is, the item has others beside it
            self._unreadable.met(f"the item {key.pk} {key.sk}, which is among the timers and is none,", e)
        return key

    async def _alone(self, what: _Found | Key, work: Callable[[], Awaitable[None]]) -> None:
        """Do something about one item. Whatever goes wrong with it concerns no other one."""
        try:
            await work()
        except TableUnavailableError:
            raise
        except Exception as e:  # noqa: BLE001 - as in `_read`
            # Refused for its size, it would be refused again. Anything else may pass.
            self._left_behind += isinstance(e, UnstorableError)
            key = what.key if isinstance(what, _Found) else what
            self._unreadable.met(f"the timer {key.pk} {key.sk}", e)

    async def _arm(self, found: _Found) -> None:
        """Fire a timer that is not due yet, if that is soon. One that lies elsewhere than its time says is put there.

        Its bucket would never become empty, and the deep walk never get past it.
        """
        if found.key != found.timer.key:
            await self._writer.write(timer_put(_narrow(found.timer)))
            await self._writer.write(Delete(found.key))
        self._waking.arm(found.timer)

    async def _judge(self, due: Sequence[_Found]) -> None:
        """Delete the timers that are unneeded, and have the lanes of the others looked at."""
        unneeded = await self._verdicts(due)
        over: list[_Found] = []
        kept: list[Coroutine[Any, Any, None]] = []
        looked: set[Lane] = set()
        for found in due:
            verdict = unneeded[_question(found.timer)]
            if verdict is None:
                # It moves on at once: its lane is looked at again, and would not be read any sooner.
                postponed = partial(self._move, found, 1 << self._limits.timer_postpone_ms.bit_length())
                kept.append(self._alone(found, postponed))
                continue
            if verdict:
                over.append(found)
                continue
            # Before the timer moves on: should this process end in between, nobody would come by until it is due again.
            # Once for all timers of a lane: each look makes it read its head again.
            if found.timer.lane not in looked:
                looked.add(found.timer.lane)
                self._waking.look(found.timer.lane)
            kept.append(self._alone(found, partial(self._keep, found)))
        await self._several(kept)
        if over:
            await self._writer.patiently(lambda: self._table.delete_all([Delete(one.key) for one in over]))

    async def _verdicts(self, due: Iterable[_Found]) -> dict[Question, bool | None]:
        """Which timers are unneeded, several lanes asked about at a time: one by one, a busy table outpaces a sweep.

        None for one that cannot be judged, because what its lane holds cannot be read.
        """
        lanes: dict[Lane, dict[Question, LaneTimer]] = {}
        for found in due:
            if not isinstance(found.timer, SendTimer):
                lanes.setdefault(found.timer.lane, {})[_question(found.timer)] = found.timer
        verdicts: dict[Question, bool | None] = {}
        left = iter(lanes.items())
        while some := list(itertools.islice(left, ASKED_AT_ONCE)):
            answers = await asyncio.gather(
                *(self._unneeded(lane, timers) for lane, timers in some), return_exceptions=True
            )
            for (lane, timers), answer in zip(some, answers, strict=True):
                if not isinstance(answer, BaseException):
                    verdicts.update(answer)
                elif isinstance(answer, Exception) and not isinstance(answer, TableUnavailableError):
                    self._unreadable.met(f"the lane {lane.pk}", answer)
                    verdicts.update(dict.fromkeys(timers))
                else:
                    raise answer
        return verdicts

    async def _deliver_all(self, due: Sequence[_Found]) -> None:
        """Several at a time, in the order of their times; those of one lane one after the other."""
        for at in range(0, len(due), ASKED_AT_ONCE):
            if not await self._going_on():
                return
            lanes: dict[Lane, list[_Found]] = {}
            for found in due[at : at + ASKED_AT_ONCE]:
                lanes.setdefault(found.timer.lane, []).append(found)
            await all_of((self._deliver_in_order(some) for some in lanes.values()), "deliver")

    async def _deliver_in_order(self, due: Sequence[_Found]) -> None:
        for found in due:
            await self._deliver(found)

    async def _deliver(self, found: _Found) -> None:
        assert isinstance(found.timer, SendTimer)
        try:
            await self._waking.deliver_delayed(found.timer)
            if found.key != found.timer.key:
                await self._writer.write(Delete(found.key))
        except TableUnavailableError:
            raise
        except Exception as e:  # noqa: BLE001 - it must not keep the sweep from the timers behind it
            # It stays, visible. Soon it would fail alike.
            self._unreadable.met(f"the delayed message for {found.timer.lane.pk}", e)
            await self._alone(found, partial(self._move, found, POSTPONE_MS_MAX))

    async def _unneeded(self, lane: Lane, timers: Mapping[Question, LaneTimer]) -> dict[Question, bool]:
        """Whether nothing is left for each of a lane's timers to drive.

        That is: its due time had passed before the head was read, no live item waits, its invocation is over, the
        outbox is empty, the write it was put for can come no more, and the head has not changed since. What the lane
        holds is looked up once for all of them: a lane that is handed over under load has a guard for each hand-over.
        """
        before = parse_head(await self._table.get(head_key(lane)))
        verdicts = {question: self._may_go(timer, before) for question, timer in timers.items()}
        guards = {
            question: timer
            for question, timer in timers.items()
            if verdicts[question] and isinstance(timer, GuardTimer)
        }
        if guards and not await self._untouched(lane, before, list(guards.values())):
            verdicts.update(dict.fromkeys(guards, False))
        return verdicts

    def _may_go(self, timer: LaneTimer, head: Head) -> bool:
        """Whether a head says that a timer is unneeded. That the inbox needs no guard is to be seen there."""
        if head.out or (head.run is not None and head.run.event.nonce == timer.invocation):
            return False
        match timer:
            case SleepTimer():
                # It was put after its invocation's claim, so an invocation that is not there any more is over.
                return True
            case GuardTimer(ver=None, since_ms=int(), due_ms=due_ms):
                # More may be put under its protection until it is due by the clock of whoever put it.
                return certain_ms(self._table_clock.check, self._clock.now_ms()) >= due_ms
            case GuardTimer(ver=ver, since_ms=since_ms):
                # The write it was put for is late, or this clock is ahead of its writer's: the table's clock decides.
                return ver != head.ver or self._passed_ms() - (since_ms or 0) >= GUARDED_WRITE_MS_MAX
            case _:
                assert_never(timer)

    async def _untouched(self, lane: Lane, before: Head, guards: Sequence[GuardTimer]) -> bool:
        """Whether nothing waits in the inbox of a lane, whose head is as it was before that was looked at.

        What attempts have left beside the head, and nobody needs, is deleted then.
        """
        over = await self._beside(lane, before, guards)
        if over is None:
            return False
        after = parse_head(await self._table.get(head_key(lane)))
        if after.ver != before.ver or after.out:
            return False
        if over:
            await self._writer.patiently(lambda: self._table.delete_all(over))
        return True

    async def _beside(self, lane: Lane, head: Head, guards: Sequence[GuardTimer]) -> list[Delete] | None:
        """Deletes of what attempts have left beside a head and nobody needs; None when something waits in the inbox."""
        over: list[Delete] = []
        after: str | None = None
        for _ in range(BESIDE_PAGES_MAX):
            page = await self._table.query(lane.pk, BESIDE_LOW, BESIDE_HIGH, limit=BESIDE_ITEMS, after=after)
            for item in page.items:
                if str(item["sk"]).startswith(INBOX_LOW):
                    if not is_tombstone(item):
                        return None
                elif any(is_over(item, head, guard, self._passed_ms()) for guard in guards):
                    over.append(leftover_delete(lane, str(item["sk"])))
            after = page.last
            if after is None:
                return over
        return None

    def _passed_ms(self) -> int:
        """See `core.clocks.passed_ms`."""
        return passed_ms(self._table_clock.check, self._clock.now_ms())

    async def _set_aside(self, item: Item, key: Key) -> None:
        """Move an item that is no timer an hour or two on: it is kept, and old buckets become empty all the same."""
        # On a grid, as in `_keep`: several control planes make one copy.
        due_ms = (self._clock.now_ms() // POSTPONE_MS_MAX + 2) * POSTPONE_MS_MAX
        rest = key.sk.partition("#")[2] or key.sk
        prefix = f"{due_ms:015d}#"
        if len((prefix + rest).encode()) > SORT_KEY_BYTES_MAX:
            rest = digest(rest)
        later = Key(timer_bucket(due_ms // TIMER_BUCKET_MS, 0), prefix + rest)
        attributes = {name: value for name, value in item.items() if name not in ("pk", "sk")}
        # Where it was first: an encrypted value opens under the name of its place only.
        attributes.setdefault("was", [key.pk, key.sk])
        await self._writer.write(Put(later, attributes))
        await self._writer.write(Delete(key))

    async def _keep(self, found: _Found) -> None:
        """A timer that stays needed moves on, so that old buckets become empty."""
        late_ms = self._clock.now_ms() - found.timer.due_ms
        if late_ms < self._limits.timer_postpone_ms:
            return
        await self._move(found, 1 << min(late_ms, POSTPONE_MS_MAX).bit_length())

    async def _move(self, found: _Found, grid_ms: int) -> None:
        """Put a timer off, to the next but one of the times that are multiples of `grid_ms`.

        Several control planes do so at slightly different times: on a common grid their copies are the same item, where
        they would otherwise double each time.
        """
        due_ms = (self._clock.now_ms() // grid_ms + 2) * grid_ms
        moved = _narrow(replace(found.timer, due_ms=due_ms))
        await self._writer.write(timer_put(moved))
        await self._writer.write(Delete(found.key))


@dataclass(frozen=True, slots=True)
class _Found:
    """A timer, and where its item is: what another process has put may lie elsewhere than its attributes say."""

    timer: Timer
    key: Key


async def _always() -> bool:
    return True


async def _unhurried() -> bool:
    """As `_always`, a moment later."""
    await asyncio.sleep(PAGE_PAUSE_S)
    return True


def _narrow(timer: Timer) -> Timer:
    """A timer for a minute of which nobody knows whether it is marked."""
    return timer if isinstance(timer, SendTimer) else replace(timer, wide=False)


def _question(timer: Timer) -> Question:
    assert not isinstance(timer, SendTimer), "a message is delivered, not judged"
    return type(timer), timer.lane, timer.invocation, timer.ver if isinstance(timer, GuardTimer) else None
