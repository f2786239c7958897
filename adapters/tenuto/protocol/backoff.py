"""How long to wait before the next attempt.

Owns the formula: exponential with jitter, between the policy's bounds. Does not own a clock or randomness.
"""

from __future__ import annotations

from tenuto.protocol.messages import RetryPolicy


def pause_ms(policy: RetryPolicy, failures: int, jitter: float) -> int:
    """The pause after the given number of failures (from 1); `jitter` in [0, 1) takes up to half of it away."""
    exponent = min(max(failures, 1) - 1, 64)
    full = min(policy.max_ms, policy.initial_ms * policy.factor**exponent)
    return max(1, round(full * (1 - jitter / 2)))
