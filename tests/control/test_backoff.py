"""Pauses between attempts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.protocol.messages import RetryPolicy
from tenuto_control.core.backoff import pause_ms

POLICY = RetryPolicy()


@pytest.mark.parametrize(
    ("attempt", "pause"),
    [(0, 0), (1, 0), (2, 50), (3, 100), (4, 200), (12, 51_200), (13, 60_000), (10**6, 60_000)],
)
def test_the_longest_pauses_grow_to_the_ceiling(attempt: int, pause: int) -> None:
    assert pause_ms(POLICY, attempt, 0.0) == pause


@given(st.integers(2, 10_000), st.floats(0, 1, exclude_max=True))
def test_chance_takes_away_up_to_half(attempt: int, fraction: float) -> None:
    longest = pause_ms(POLICY, attempt, 0.0)
    assert longest / 2 <= pause_ms(POLICY, attempt, fraction) <= longest


def test_a_factor_of_one_keeps_the_pause() -> None:
    policy = RetryPolicy(initial_ms=10, factor=1.0)
    assert {pause_ms(policy, attempt, 0.0) for attempt in range(2, 50)} == {10}
