"""How long a handler's runs last, by those that have been seen, and what is not believed."""

from __future__ import annotations

import pytest

from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.messages import ClaimedRun, Head
from tenuto.protocol.records import Event, KafkaSource
from tenuto_control.core.paces import DIFFER_MS_MAX, RECENT, UNKNOWN, Pace, Paces
from tenuto_control.core.sightings import KNOWN_WITHIN_MS, Sighting

NOW = 100_000
LANE = Lane("s", "k")
HANDLER = ("s", "h")


def record(offset: int, handler: str = "h") -> Event:
    return Event(str(InvocationId(LANE, f"k{offset}")), handler, KafkaSource("0", "t", 0, offset, 0))


def taken(ver: int, start_ms: int, *, asleep: bool = False) -> Head:
    awaits = ("0",) if asleep else None
    run = ClaimedRun(record(ver), ver, start_ms, 0, 1, "there.1", NOW + 60_000, awaits=awaits)
    return Head(ver=ver, run=run)


@pytest.mark.parametrize(
    ("recent", "usual_ms", "varies"),
    [
        ((), None, False),
        ((900,), None, False),
        ((900,) * (RECENT - 1), None, False),
        ((900, 1_000, 950, 960), 1_000, False),
        ((10, 20, 90, 100), 100, False),
        ((10, 20, 30, 111), None, True),
        ((3_000, 3_000, 3_000, 3_000 + DIFFER_MS_MAX), 3_000 + DIFFER_MS_MAX, False),
        ((3_000, 3_000, 3_000, 3_001 + DIFFER_MS_MAX), None, True),
        ((10, 900), None, True),
    ],
)
def test_runs_that_are_alike_tell_how_long_the_next_one_lasts(
    recent: tuple[int, ...], usual_ms: int | None, varies: bool
) -> None:
    pace = Pace(recent)
    assert (pace.usual_ms, pace.varies) == (usual_ms, varies)


def test_one_run_that_was_unlike_is_forgotten() -> None:
    paces = Paces()
    for lasted_ms in (9_000, *(500,) * RECENT):
        paces.told(HANDLER, lasted_ms)
    assert paces.of(HANDLER) == Pace((500,) * RECENT)
    assert paces.of(("s", "other")) is UNKNOWN


@pytest.mark.parametrize(
    ("events", "left", "told"),
    [
        ((record(1),), Head(ver=7), (600,)),
        ((record(1), record(2)), Head(ver=8), (300,)),
        ((record(1),), Head(ver=6), ()),
        ((record(1), record(2)), Head(ver=7), ()),
        ((record(1), record(2, "other")), Head(ver=8), ()),
        ((record(1),), None, ()),
        ((), Head(ver=6), ()),
    ],
)
def test_runs_of_this_process_count_where_each_was_claimed(
    events: tuple[Event, ...], left: Head | None, told: tuple[int, ...]
) -> None:
    paces = Paces()
    paces.told_of_all(events, Head(ver=5), left, 600)
    assert paces.of(HANDLER).recent == told


def seen_at_work(start_ms: int = NOW - 50) -> Sighting:
    """A run was seen at work at NOW, which had begun a moment before."""
    return Sighting(read_ms=NOW - 60).again(taken(5, start_ms), NOW)


@pytest.mark.parametrize(
    ("head", "at_ms", "lasted_ms"),
    [
        (taken(7, NOW + 500), NOW + 900, 550),
        (taken(6, NOW + 500), NOW + 900, 550),
        (Head(ver=6), NOW + KNOWN_WITHIN_MS, KNOWN_WITHIN_MS + 50),
        (Head(ver=6), NOW + KNOWN_WITHIN_MS + 1, None),
        (taken(6, NOW, asleep=True), NOW + 900, None),
        (taken(8, NOW + 500), NOW + 900, None),
        (taken(5, NOW - 50), NOW + 900, None),
    ],
)
def test_a_run_of_another_process_counts_where_its_end_is_known(head: Head, at_ms: int, lasted_ms: int | None) -> None:
    assert seen_at_work().over(head, at_ms) == (None if lasted_ms is None else ("h", lasted_ms))


def test_without_a_run_at_work_none_can_be_over() -> None:
    assert Sighting().again(Head(ver=4), NOW).over(Head(ver=5), NOW + 1) is None
