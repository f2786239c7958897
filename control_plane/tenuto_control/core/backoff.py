"""How long to wait before trying again, by the number of the attempt; the curve is the one functions use, too.

Owns counting attempts from 1, the first of which waits for nothing. Does not own the curve (`tenuto.protocol.backoff`).
"""

from __future__ import annotations

from tenuto.protocol import backoff
from tenuto.protocol.messages import RetryPolicy


def pause_ms(policy: RetryPolicy, attempt: int, fraction: float) -> int:
    """Milliseconds to wait before `attempt`; a `fraction` of chance in [0, 1) takes up to half of a pause away."""
    return 0 if attempt <= 1 else backoff.pause_ms(policy, attempt - 1, fraction)
