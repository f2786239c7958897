"""The wheel: timers in memory, precise and allowed to be lost, and their schedules outside this process.

Owns which timers are armed, and the requests to the outside scheduler. Does not own what follows when one is due.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TypeAlias, assert_never

from tenuto.hosts import event_scheduler
from tenuto.lane.timers import SendTimer, SleepTimer, Timer
from tenuto.lane.writes import Key
from tenuto.protocol.ids import digest
from tenuto_control.core import log_fields
from tenuto_control.core.log_fields import shown
from tenuto_control.dispatcher.background import Background, Kind
from tenuto_control.limits import Limits
from tenuto_control.ports import Clock, Errand, SchedulerUnavailableError, WakeScheduler

log = logging.getLogger("tenuto.dispatcher")

STARTED_AT_ONCE = 64
STARTS_PAUSE_S = 0.01
"""Timers that are passed on in one turn, and how long a turn lasts: at most 6,400 lanes a second begin to work, each
by a read of the table."""

TIMER_BYTES = 1_500
"""What an armed timer takes in memory besides its message: its names, its key and its handle in the event loop."""

Reminder: TypeAlias = SleepTimer | SendTimer
"""A timer that should fire in time. A guard is for whoever comes by."""


class Wheel:
    """The armed timers of one process. `due` is called with each when its time has come."""

    def __init__(
        self,
        scheduler: WakeScheduler,
        clock: Clock,
        limits: Limits,
        background: Background,
        due: Callable[[Timer], None],
    ) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._limits = limits
        self._background = background
        self._due = due
        self._armed: dict[Key, tuple[Timer, asyncio.TimerHandle]] = {}
        self._over: deque[Timer] = deque()
        self._started = 0
        self._turn: asyncio.TimerHandle | None = None
        self._bytes = 0

    def arm(self, timer: Timer) -> None:
        """Fire a timer here when it is due, if that is soon and there is room; the sweep finds it in any case."""
        delay_ms = timer.due_ms - self._clock.now_ms()
        if delay_ms > self._limits.wheel_horizon_ms or timer.key in self._armed:
            return
        # Half of the room is for those that no sweep comes by any more before they are due.
        soon = delay_ms <= 2 * self._limits.sweep_interval_ms
        if self._bytes + _weight(timer) > self._limits.wheel_bytes_max // (1 if soon else 2):
            return
        loop = asyncio.get_running_loop()
        self._armed[timer.key] = timer, loop.call_later(max(0, delay_ms) / 1000, self._fire, timer)
        self._bytes += _weight(timer)

    def remind(self, timer: Reminder) -> None:
        """Fire a timer when it is due: here if this process lives until then, and from outside if that is far off."""
        self.arm(timer)
        if self._is_far(timer):
            self._background.spawn(self._schedule(timer), Kind.SCHEDULER)

    def forget(self, timer: SleepTimer) -> None:
        """A sleep is over before its time: its wake-up from outside, if there is one, need not come any more."""
        if self._is_far(timer):
            self._background.spawn(self._unschedule(timer), Kind.SCHEDULER)

    def due_before(self, time_ms: int) -> list[Timer]:
        """The armed timers that fire by then."""
        near_s = asyncio.get_running_loop().time() + (time_ms - self._clock.now_ms()) / 1000
        return [*self._over, *(timer for timer, handle in self._armed.values() if handle.when() <= near_s)]

    def clear(self) -> None:
        """Disarm all timers. Nothing durable depends on them."""
        for _, handle in self._armed.values():
            handle.cancel()
        self._armed.clear()
        self._bytes = 0
        self._over.clear()
        if self._turn is not None:
            self._turn.cancel()
        self._turn, self._started = None, 0

    def _fire(self, timer: Timer) -> None:
        self._armed.pop(timer.key, None)
        self._over.append(timer)
        self._start()

    def _start(self) -> None:
        """Pass on timers whose time has come, but for those that have to wait for the next turn."""
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_later(STARTS_PAUSE_S, self._next_turn)
        while self._over and self._started < STARTED_AT_ONCE:
            self._started += 1
            timer = self._over.popleft()
            self._bytes -= _weight(timer)
            self._due(timer)

    def _next_turn(self) -> None:
        self._turn, self._started = None, 0
        if self._over:
            self._start()

    def _is_far(self, timer: Reminder) -> bool:
        return timer.due_ms - self._clock.now_ms() >= self._limits.scheduler_threshold_ms

    async def schedule(self, errand: Errand, at_ms: int, name: str, owner: str | None = None) -> None:
        """Have somebody woken from outside at a time. It may fail: a timer item is behind every lane."""
        payload = event_scheduler.wake_up(errand.lane, errand.timer, owner)
        try:
            await self._scheduler.schedule(name, at_ms, payload)
        except SchedulerUnavailableError as e:
            fields = log_fields.of_lane(errand.lane)
            log.warning(
                "%s: an external wake-up could not be scheduled: %s", errand.lane.pk, shown(str(e)), extra=fields
            )

    async def _schedule(self, timer: Reminder) -> None:
        # The outside is only precise to a minute. Woken early, this process waits for the rest.
        at_ms = timer.due_ms - self._limits.scheduler_lead_ms
        errand = Errand(timer.lane, timer.key if isinstance(timer, SendTimer) else None)
        await self.schedule(errand, at_ms, _schedule_name(timer))

    async def _unschedule(self, timer: SleepTimer) -> None:
        try:
            await self._scheduler.cancel(_schedule_name(timer))
        except SchedulerUnavailableError as e:
            # It will fire, and find nothing to do.
            fields = log_fields.of_lane(timer.lane)
            log.info("%s: an external wake-up could not be cancelled: %s", timer.lane.pk, shown(str(e)), extra=fields)


def _weight(timer: Timer) -> int:
    """What an armed timer takes in memory, roughly."""
    held = len(timer.message) if isinstance(timer, SendTimer) else 0
    return TIMER_BYTES + 2 * len(timer.lane.key) + held


def _schedule_name(timer: Reminder) -> str:
    """Equal for the same wake-up in every process: a sleep is known by its lane and end, a message by its timer."""
    match timer:
        case SleepTimer():
            return digest(timer.lane.pk, str(timer.due_ms))
        case SendTimer():
            return digest(timer.key.pk, timer.key.sk)
        case _:
            assert_never(timer)
