"""How long to wait before the next attempt.

Owns the formula (exponential with jitter, between the policy's bounds) and the floor and the ceiling of every pause
between attempts. Does not own a clock or randomness. Standard library only at run time: `tenuto.errors` imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenuto.protocol.limits import PAUSE_MS_MAX, PAUSE_MS_MIN

if TYPE_CHECKING:
    from tenuto.protocol.messages import RetryPolicy

EXPONENT_MAX = 64
"""Failures after which a pause grows no more: by then any factor above 1.2 has reached its ceiling."""


def pause_ms(policy: RetryPolicy, failures: int, jitter: float) -> int:
    """The pause after the given number of failures (from 1); `jitter` in [0, 1) takes up to half of it away.

    From PAUSE_MS_MIN to PAUSE_MS_MAX, whatever the policy says: it may come from a function of another version.
    """
    exponent = min(max(failures, 1) - 1, EXPONENT_MAX)
    try:
        grown = policy.initial_ms * policy.factor**exponent
    except OverflowError:
        grown = policy.max_ms
    # In this order `min` does not pass nan on.
    full = min(PAUSE_MS_MAX, policy.max_ms, grown)
    return bounded_ms(full * (1 - jitter / 2))


def bounded_ms(pause: float) -> int:
    """A pause between attempts, in milliseconds, brought between the floor and the ceiling."""
    return round(min(max(pause, PAUSE_MS_MIN), PAUSE_MS_MAX))


def asked_pause_ms(asked_ms: int | None) -> int | None:
    """The pause that a failure asked for, within the bounds; None leaves it to the retry policy.

    A pause of zero or less comes from a time that has passed (an HTTP Retry-After), and asks for nothing.
    """
    return None if asked_ms is None or asked_ms <= 0 else bounded_ms(asked_ms)
