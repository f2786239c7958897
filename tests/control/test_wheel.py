"""The wheel: timers in memory fire in time, and are scheduled outside when that is far off.

Owns what is armed and what is scheduled. Does not own what follows when a timer is due (`test_schedules.py`).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

import pytest

from tenuto.hosts import event_scheduler
from tenuto.hosts.event_scheduler import WakeUp
from tenuto.lane.timers import GuardTimer, SendTimer, SleepTimer, Timer
from tenuto.protocol.ids import Lane
from tenuto_control.dispatcher.background import Background
from tenuto_control.dispatcher.wheel import STARTED_AT_ONCE, STARTS_PAUSE_S, Wheel
from tenuto_control.limits import Limits
from tenuto_control.ports import SchedulerUnavailableError
from tests.support.virtual_time import VirtualClock, run_virtual

LIMITS = Limits()
LANE = Lane("box", "k")
FAR_MS = LIMITS.scheduler_threshold_ms


@dataclass
class Turning:
    """A wheel, what it has fired, and what the scheduler outside was asked for."""

    fired: list[Timer] = field(default_factory=list)
    schedules: dict[str, tuple[int, WakeUp]] = field(default_factory=dict)
    away: bool = False

    def __post_init__(self) -> None:
        self.clock = VirtualClock()
        self.background = Background()
        self.wheel = Wheel(self, self.clock, LIMITS, self.background, self.fired.append)

    async def schedule(self, name: str, at_ms: int, payload: bytes) -> None:
        if self.away:
            raise SchedulerUnavailableError("no answer")
        wake = event_scheduler.decode(payload)
        assert isinstance(wake, WakeUp)
        self.schedules[name] = (at_ms, wake)

    async def cancel(self, name: str) -> None:
        if self.away:
            raise SchedulerUnavailableError("no answer")
        del self.schedules[name]

    def sleep(self, in_ms: int, nonce: str = "n.1") -> SleepTimer:
        return SleepTimer(LANE, "i", self.clock.now_ms() + in_ms, nonce)

    def message(self, in_ms: int) -> SendTimer:
        return SendTimer(LANE, "m", self.clock.now_ms() + in_ms, "m", b"packed", "s/a", "1.0")


def test_a_timer_fires_once_and_never_early() -> None:
    async def scenario() -> None:
        turning = Turning()
        timers: list[Timer] = [
            turning.sleep(2_000),
            GuardTimer(LANE, "i", turning.clock.now_ms() + 1_000, "g"),
            turning.message(-500),
        ]
        for timer in (*timers, *timers):
            turning.wheel.arm(timer)
        await asyncio.sleep(0.9)
        assert turning.fired == timers[2:]
        await asyncio.sleep(0.2)
        assert turning.fired == [timers[2], timers[1]]
        await asyncio.sleep(10)
        assert turning.fired == [timers[2], timers[1], timers[0]]

    run_virtual(scenario())


def test_what_is_due_soon_is_told_and_what_is_far_is_left_to_the_sweep() -> None:
    async def scenario() -> None:
        turning = Turning()
        near, later = turning.sleep(1_000), turning.sleep(5_000, "n.2")
        for timer in (near, later, turning.sleep(LIMITS.wheel_horizon_ms + 1, "n.3")):
            turning.wheel.arm(timer)
        now_ms = turning.clock.now_ms()
        assert turning.wheel.due_before(now_ms + 999) == []
        assert turning.wheel.due_before(now_ms + 1_000) == [near]
        assert turning.wheel.due_before(now_ms + 10**9) == [near, later]
        turning.wheel.clear()
        assert turning.wheel.due_before(now_ms + 10**9) == []
        await asyncio.sleep(60)
        assert turning.fired == []

    run_virtual(scenario())


def test_a_reminder_that_is_far_off_is_scheduled_outside_until_it_is_forgotten() -> None:
    async def scenario() -> None:
        turning = Turning()
        near, far, message = turning.sleep(FAR_MS - 1), turning.sleep(FAR_MS), turning.message(FAR_MS)
        for timer in (near, far, message):
            turning.wheel.remind(timer)
        await turning.background.ended(1)
        at_ms = far.due_ms - LIMITS.scheduler_lead_ms
        wakes = [(at_ms, WakeUp(LANE.pk)), (at_ms, WakeUp(LANE.pk, message.key.pk, message.key.sk))]
        assert list(turning.schedules.values()) == wakes
        # The process in which a sleep ends knows its lane and its end, and not the timer that was put for it.
        turning.wheel.forget(SleepTimer(LANE, "i", far.due_ms, "over"))
        await turning.background.ended(1)
        assert list(turning.schedules.values()) == wakes[1:]

    run_virtual(scenario())


def test_a_scheduler_that_is_away_is_told_of_and_costs_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        turning = Turning(away=True)
        timer = turning.sleep(FAR_MS)
        turning.wheel.remind(timer)
        turning.wheel.forget(timer)
        await turning.background.ended(1)
        assert turning.background.tasks == ()

    with caplog.at_level(logging.INFO, "tenuto.dispatcher"):
        run_virtual(scenario())
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "box/k: an external wake-up could not be scheduled: no answer"),
        ("INFO", "box/k: an external wake-up could not be cancelled: no answer"),
    ]


def test_many_timers_that_are_due_together_start_some_at_a_time() -> None:
    async def scenario() -> None:
        turning = Turning()
        timers = [turning.sleep(5_000 + number % 2, f"n.{number}") for number in range(5_000)]
        for timer in timers:
            turning.wheel.arm(timer)
        await asyncio.sleep(5.0015)
        assert 0 < len(turning.fired) <= STARTED_AT_ONCE
        assert len(turning.wheel.due_before(turning.clock.now_ms())) == len(timers) - len(turning.fired)
        for _ in range(100):
            before = len(turning.fired)
            await asyncio.sleep(STARTS_PAUSE_S)
            assert len(turning.fired) - before <= 2 * STARTED_AT_ONCE
        assert sorted(timer.nonce for timer in turning.fired) == sorted(timer.nonce for timer in timers)
        turning.wheel.arm(turning.sleep(1_000, "late"))
        await asyncio.sleep(1.001)
        assert turning.fired[-1].nonce == "late"

    run_virtual(scenario())


def test_what_waits_for_its_turn_is_disarmed_as_well() -> None:
    async def scenario() -> None:
        turning = Turning()
        for number in range(1_000):
            turning.wheel.arm(turning.sleep(10, f"n.{number}"))
        await asyncio.sleep(0.011)
        turning.wheel.clear()
        before = len(turning.fired)
        await asyncio.sleep(5)
        assert len(turning.fired) == before < 1_000
        assert turning.wheel.due_before(turning.clock.now_ms()) == []

    run_virtual(scenario())
