"""The alarm of the second thread: it goes off in time, and only then."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Iterator

import pytest

from tenuto.runtime.alarm import Alarm, open_alarm

SOON_S = 0.02
LATE_S = 60.0
WAIT_S = 20.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="timerfd is Linux's")


@pytest.fixture
def alarm() -> Iterator[Alarm]:
    made = open_alarm()
    assert made is not None
    yield made
    made.close()


def rings(alarm: Alarm, within_s: float) -> bool:
    """Whether it goes off within so long."""
    return bool(select.select([alarm.descriptor], [], [], within_s)[0])


def test_it_goes_off_once_and_never_early(alarm: Alarm) -> None:
    for _ in range(2):
        began_s = time.monotonic()
        alarm.set(SOON_S)
        assert rings(alarm, WAIT_S)
        assert time.monotonic() - began_s >= SOON_S
        alarm.quiet()
        assert not rings(alarm, 2 * SOON_S)


def test_the_last_time_counts(alarm: Alarm) -> None:
    alarm.set(LATE_S)
    alarm.set(SOON_S)
    assert rings(alarm, WAIT_S)
    alarm.set(LATE_S)
    assert not rings(alarm, 2 * SOON_S)


def test_one_that_is_cleared_stays_silent_even_after_it_went_off(alarm: Alarm) -> None:
    alarm.set(SOON_S)
    assert rings(alarm, WAIT_S)
    alarm.clear()
    assert not rings(alarm, 0)
    alarm.quiet()
    alarm.set(SOON_S)
    alarm.clear()
    assert not rings(alarm, 2 * SOON_S)


def test_no_delay_at_all_goes_off_at_once(alarm: Alarm) -> None:
    alarm.set(0)
    assert rings(alarm, WAIT_S)
