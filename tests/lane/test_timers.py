"""Timers: each comes back from its item, which has the form that it always had.

Owns the form of the items and its reading. Does not own when one is put or goes (`tests/control/test_sweep.py`).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.lane.timers import (
    HTTP_SENDER,
    GuardTimer,
    SendTimer,
    SleepTimer,
    Timer,
    parse_timer,
    timer_delete,
    timer_put,
    timer_put_again,
)
from tenuto.lane.writes import Absent, Item, Key, Value
from tenuto.protocol.ids import Lane
from tests.lane.samples import LANE, applied

AT = (Lane("profile", "a/n"), "i", 90_000, "n.1")
PK, SK = "T#1#0", "000000000090000#33141024f3029cabc9c7fd33"
COMMON: dict[str, Value] = {"lane": "profile/a%2Fn", "inv": "i", "due": 90_000, "nonce": "n.1"}

names = st.text(min_size=1, max_size=8)
places = (st.builds(Lane, names, names), names, st.integers(0, 10**14), names)
numbers = st.none() | st.integers(0, 10**14)
timers: st.SearchStrategy[Timer] = st.one_of(
    st.builds(SleepTimer, *places),
    st.builds(GuardTimer, *places, numbers, numbers),
    st.builds(SendTimer, *places, st.binary(max_size=8), names, names),
)


@pytest.mark.parametrize(
    ("timer", "kind", "beside"),
    [
        (SleepTimer(*AT), "sleep", {}),
        (GuardTimer(*AT), "guard", {}),
        (GuardTimer(*AT, since_ms=30_000), "guard", {"since": 30_000}),
        (GuardTimer(*AT, ver=4, since_ms=30_000), "guard", {"ver": 4, "since": 30_000}),
        (SendTimer(*AT, b"packed", "s/a", "1.0"), "send", {"msg": b"packed", "sender": "s/a", "seq": "1.0"}),
    ],
)
def test_an_item_has_the_form_that_processes_of_other_versions_read(
    timer: Timer, kind: str, beside: dict[str, Value]
) -> None:
    put = timer_put(timer)
    assert put.key == Key(PK, f"{SK}#{kind}#n.1")
    assert put.attributes == {**COMMON, "kind": kind, **beside}
    assert put.conditions == ()


def test_a_delayed_message_that_is_put_again_leaves_the_first_one() -> None:
    timer = SendTimer(*AT, b"packed", "s/a", "1.0")
    once, again = timer_put(timer), timer_put_again(timer)
    assert (again.key, again.attributes) == (once.key, once.attributes)
    assert again.conditions == (Absent("timer.absent", "pk"),)


@given(timers)
def test_a_timer_comes_back_from_its_item(timer: Timer) -> None:
    assert parse_timer(applied(timer_put(timer), None)) == timer
    assert timer_delete(timer).key == timer.key


@given(timers, st.integers(0, 10**14))
def test_timers_of_a_bucket_are_in_order_of_time(timer: Timer, due_ms: int) -> None:
    later = replace(timer, due_ms=due_ms)
    if later.key.pk == timer.key.pk:
        assert (later.key.sk < timer.key.sk) == (due_ms < timer.due_ms)


def test_timers_of_different_kinds_have_places_of_their_own() -> None:
    kinds: list[Timer] = [SleepTimer(*AT), GuardTimer(*AT), SendTimer(*AT, b"", "s/a", "1.0")]
    assert len({timer.key for timer in kinds}) == len(kinds)


@pytest.mark.parametrize("missing", ["lane", "kind", "inv", "due", "nonce"])
def test_an_item_that_is_no_timer_is_refused(missing: str) -> None:
    item = applied(timer_put(GuardTimer(LANE, "i", 1, "n")), None)
    del item[missing]
    with pytest.raises(ValueError, match="not a timer"):
        parse_timer(item)


@pytest.mark.parametrize("changes", [{"kind": "alarm"}, {"kind": "send"}, {"kind": 7}, {"kind": "send", "msg": "text"}])
def test_a_kind_that_is_unknown_or_lacks_its_message_is_refused(changes: Item) -> None:
    item = applied(timer_put(SleepTimer(LANE, "i", 1, "n")), None)
    with pytest.raises(ValueError, match="not a timer"):
        parse_timer({**item, **changes})


def test_a_message_without_a_sender_came_over_http() -> None:
    item = applied(timer_put(SendTimer(*AT, b"packed", "s/a", "1.0")), None)
    del item["sender"], item["seq"]
    assert parse_timer(item) == SendTimer(*AT, b"packed", HTTP_SENDER, "")
