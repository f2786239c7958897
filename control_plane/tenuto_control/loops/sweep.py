"""The sweep: looks at due timers, so that whatever process died, someone comes by.

Owns the walk over timer buckets and when a timer may go (18). Does not own waking or running lanes (the dispatcher).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias, assert_never

from tenuto.lane.head import head_key, parse_head
from tenuto.lane.timers import (
    SWEEP_CURSOR,
    GuardTimer,
    SendTimer,
    SleepTimer,
    Timer,
    cursor_put,
    parse_timer,
    timer_bucket,
    timer_delete,
    timer_put,
)
from tenuto.lane.writes import Delete, Item, Key, Put
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.limits import TIMER_BUCKET_MS, TIMER_SHARDS
from tenuto.store.port import TableUnavailableError
from tenuto_control.core import log_fields
from tenuto_control.core.log_fields import shown
from tenuto_control.dispatcher.inbox import Inbox
from tenuto_control.dispatcher.parts import Wiring
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.limits import SWEEP_CURSOR_LAG_MINUTES, near_lookback_ms
from tenuto_control.ports import Waking
from tenuto_control.tasks import all_of

log = logging.getLogger("tenuto.sweep")

POSTPONE_MS_MAX = 3_600_000

COMPLAINTS_MAX = 1_000
"""Different things that are remembered to have been said."""

ASKED_AT_ONCE = 16
"""Timers whose lanes are read at the same time."""

GUARDED_WRITE_MS_MAX = 3_600_000
"""How long after its guard a write may still come: longer than a function lives (900 s) and clocks are apart."""


GoingOn: TypeAlias = Callable[[], Awaitable[bool]]
"""Whether a walk may go on. It may take its time to answer, until there is room for more lanes at work."""

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
        self._rng = wiring.rng
        self._limits = wiring.limits
        self._writer = Writer(wiring.table, wiring.limits, wiring.metrics)
        # When the last walk over recent buckets began that came to its end.
        self._walked_ms = 0
        self._going_on: GoingOn = _always
        self._complaints: Counter[str] = Counter()

    async def run(self) -> None:
        """Sweep for ever, at intervals with jitter so that several control planes take turns."""
        wide_ms = deep_ms = 0
        while True:
            try:
                if self._clock.now_ms() >= wide_ms:
                    await self.sweep()
                    wide_ms = self._walked_ms + self._limits.sweep_wide_interval_ms
                else:
                    await self.sweep_near()
                if self._clock.now_ms() >= deep_ms:
                    await self.sweep_deep()
                    deep_ms = self._clock.now_ms() + self._limits.sweep_deep_interval_ms
            except TableUnavailableError:
                # It is said elsewhere, once for the whole process. The sweep starts again soon.
                pass
            except Exception:
                # Whatever it met: without a sweep, no timer of this deployment would be looked after.
                log.exception("the sweep failed, it starts again soon")
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
            await self._bucket_or_not(minute)
        if not await self._going_on():
            # The last bucket may have been left in the middle.
            return False
        self._walked_ms = now_ms
        return True

    async def sweep_deep(self) -> None:
        """Look at older buckets from the stored cursor on, and move the cursor past those that are empty."""
        now = self._clock.now_ms() // TIMER_BUCKET_MS
        item = await self._table.get(SWEEP_CURSOR)
        stored = item.get("minute") if item else None
        cursor = stored if isinstance(stored, int) else now - SWEEP_CURSOR_LAG_MINUTES
        recent = now - self._limits.sweep_lookback_ms // TIMER_BUCKET_MS
        empty = True
        for minute in range(cursor, min(recent, cursor + self._limits.sweep_deep_buckets_max)):
            found = await self._bucket_or_not(minute)
            if not await self._going_on():
                # This bucket may have been left in the middle.
                break
            empty = empty and not found
            if empty and minute < now - SWEEP_CURSOR_LAG_MINUTES:
                cursor = minute + 1
        if cursor != stored:
            await self._table.write(cursor_put(cursor))

    async def _bucket_or_not(self, minute: int) -> bool:
        """The same as `_bucket`, for a bucket that may hold what cannot be read: the next one is looked at as well."""
        try:
            return await self._bucket(minute)
        except TableUnavailableError:
            raise
        except Exception as e:  # noqa: BLE001 - no item may keep the sweep from those behind it
            self._complain(f"the timers of minute {minute}", e)
            return True

    def _complain(self, what: str, error: BaseException) -> None:
        """Say what cannot be treated, at the first, second, fourth, eighth ... time."""
        if len(self._complaints) >= COMPLAINTS_MAX:
            self._complaints.clear()
        self._complaints[what] += 1
        times = self._complaints[what]
        if times & (times - 1) == 0:
            again = f" ({times} times)" if times > 1 else ""
            log.error("%s cannot be treated, the others go on%s: %s", what, again, _described(error))

    async def _bucket(self, minute: int) -> bool:
        """Treat the timers of one minute. True when there were any."""
        found = False
        for shard in range(TIMER_SHARDS):
            after: str | None = None
            while await self._going_on():
                page = await self._table.query(timer_bucket(minute, shard), "0", "9~", after=after)
                timers: list[Timer] = []
                for item in page.items:
                    timer = _readable(item)
                    if timer is None:
                        await self._set_aside(item)
                    else:
                        timers.append(timer)
                found = found or bool(page.items)
                await self._treat(timers)
                after = page.last
                if after is None:
                    break
        return found

    async def _treat(self, timers: Iterable[Timer]) -> None:
        due: list[LaneTimer] = []
        sends: list[SendTimer] = []
        for timer in timers:
            if timer.due_ms > self._clock.now_ms():
                self._waking.arm(timer)
                continue
            match timer:
                case SendTimer():
                    sends.append(timer)
                case SleepTimer() | GuardTimer():
                    due.append(timer)
                case _:
                    assert_never(timer)
        await self._deliver_all(sends)
        await self._judge(due)

    async def _judge(self, due: Sequence[LaneTimer]) -> None:
        """Delete the timers that are unneeded, and have the lanes of the others looked at."""
        unneeded = await self._verdicts(due)
        over: list[LaneTimer] = []
        looked: set[Lane] = set()
        for timer in due:
            verdict = unneeded[_question(timer)]
            if verdict is None:
                # It moves on like one that is needed: its bucket becomes empty, and its lane is looked at again.
                await self._keep(timer)
                continue
            if verdict:
                over.append(timer)
                continue
            # Before the timer moves on: should this process end in between, nobody would come by until it is due again.
            # Once for all timers of a lane: each look makes it read its head anew.
            if timer.lane not in looked:
                looked.add(timer.lane)
                self._waking.look(timer.lane)
            await self._keep(timer)
        if over:
            await self._writer.patiently(lambda: self._table.delete_all([timer_delete(t) for t in over]))

    async def _verdicts(self, timers: Iterable[LaneTimer]) -> dict[Question, bool | None]:
        """Which timers are unneeded, several asked about at a time: one by one, a busy table outpaces a sweep.

        None for one that cannot be judged, because what its lane holds cannot be read.
        """
        questions = {_question(timer): timer for timer in timers}
        verdicts: dict[Question, bool | None] = {}
        left = iter(questions.items())
        while some := list(itertools.islice(left, ASKED_AT_ONCE)):
            answers = await asyncio.gather(*(self._unneeded(t) for _, t in some), return_exceptions=True)
            for (question, timer), answer in zip(some, answers, strict=True):
                if not isinstance(answer, BaseException):
                    verdicts[question] = answer
                elif isinstance(answer, Exception) and not isinstance(answer, TableUnavailableError):
                    self._complain(f"the lane {shown(timer.lane.pk)}", answer)
                    verdicts[question] = None
                else:
                    raise answer
        return verdicts

    async def _deliver_all(self, timers: Sequence[SendTimer]) -> None:
        """Several at a time, in the order of their times; those of one lane one after the other."""
        for at in range(0, len(timers), ASKED_AT_ONCE):
            if not await self._going_on():
                return
            lanes: dict[Lane, list[SendTimer]] = {}
            for timer in timers[at : at + ASKED_AT_ONCE]:
                lanes.setdefault(timer.lane, []).append(timer)
            await all_of((self._deliver_in_order(some) for some in lanes.values()), "deliver")

    async def _deliver_in_order(self, timers: Sequence[SendTimer]) -> None:
        for timer in timers:
            await self._deliver(timer)

    async def _deliver(self, timer: SendTimer) -> None:
        try:
            await self._waking.deliver_delayed(timer)
        except TableUnavailableError:
            raise
        except Exception:
            # It stays, visible, and must not keep the sweep from the timers behind it. Soon it would fail alike.
            fields = log_fields.of_invocation(InvocationId(timer.lane, timer.invocation))
            log.exception("a delayed message for %s cannot be delivered", shown(timer.lane.pk), extra=fields)
            await self._move(timer, POSTPONE_MS_MAX)

    async def _unneeded(self, timer: LaneTimer) -> bool:
        """Whether nothing is left for a timer to drive.

        That is: its due time had passed before the head was read, no live item waits, its invocation is over, the
        outbox is empty, the write it was put for can come no more, and the head has not changed since.
        """
        before = parse_head(await self._table.get(head_key(timer.lane)))
        if before.out or (before.run is not None and before.run.event.nonce == timer.invocation):
            return False
        match timer:
            case SleepTimer():
                # It was put after its invocation's claim, so an invocation that is not there any more is over.
                return True
            case GuardTimer(ver=ver, since_ms=since_ms):
                # The write it was put for is late, or this clock is ahead of its writer's. No clock may decide that.
                if ver == before.ver and self._clock.now_ms() - (since_ms or 0) < GUARDED_WRITE_MS_MAX:
                    return False
                if await Inbox(timer.lane, self._writer).any_live():
                    return False
                after = parse_head(await self._table.get(head_key(timer.lane)))
                return after.ver == before.ver and not after.out
            case _:
                assert_never(timer)

    async def _set_aside(self, item: Item) -> None:
        """Move an item that is no timer an hour or two on: it is kept, and old buckets become empty all the same."""
        pk, sk = item["pk"], item["sk"]
        assert isinstance(pk, str)
        assert isinstance(sk, str)
        # On a grid, as in `_keep`: several control planes make one copy.
        due_ms = (self._clock.now_ms() // POSTPONE_MS_MAX + 2) * POSTPONE_MS_MAX
        rest = sk.partition("#")[2] or sk
        later = Key(timer_bucket(due_ms // TIMER_BUCKET_MS, 0), f"{due_ms:015d}#{rest}")
        attributes = {name: value for name, value in item.items() if name not in ("pk", "sk")}
        await self._writer.write(Put(later, attributes))
        await self._writer.write(Delete(Key(pk, sk)))

    async def _keep(self, timer: Timer) -> None:
        """A timer that stays needed moves on, so that old buckets become empty."""
        late_ms = self._clock.now_ms() - timer.due_ms
        if late_ms < self._limits.timer_postpone_ms:
            return
        await self._move(timer, 1 << min(late_ms, POSTPONE_MS_MAX).bit_length())

    async def _move(self, timer: Timer, grid_ms: int) -> None:
        """Put a timer off, to the next but one of the times that are multiples of `grid_ms`.

        Several control planes do so at slightly different times: on a common grid their copies are the same item, where
        they would otherwise double each time.
        """
        due_ms = (self._clock.now_ms() // grid_ms + 2) * grid_ms
        moved = replace(timer, due_ms=due_ms)
        await self._writer.write(timer_put(moved))
        await self._writer.write(timer_delete(timer))


async def _always() -> bool:
    return True


def _readable(item: Item) -> Timer | None:
    try:
        return parse_timer(item)
    except ValueError:
        log.exception("an item among the timers is none")
        return None


def _described(error: BaseException) -> str:
    return shown(f"{type(error).__name__}: {error}")


def _question(timer: LaneTimer) -> Question:
    return type(timer), timer.lane, timer.invocation, timer.ver if isinstance(timer, GuardTimer) else None
