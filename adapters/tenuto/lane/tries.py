"""How often an event has failed before anything of it was claimed: what its handler's `max_attempts` counts.

Owns the attribute of the head that says so, and the write. Does not own the failures of a claimed run, which its own
attributes count (`head`), nor when one is counted (`tenuto_control.dispatcher.tries`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tenuto.lane.head import OUT, TRIED, head_key
from tenuto.lane.writes import Update, Value
from tenuto.protocol.ids import Lane
from tenuto.protocol.limits import LANE_TTL_S
from tenuto.protocol.messages import Head, Trim
from tenuto.protocol.records import Event


def attempt_counted(
    lane: Lane, nonce: str, failures: int, shipped: Sequence[str] = (), expires_at_ms: int | None = None
) -> Update:
    """A failed attempt at an event that has not claimed, counted for the process that makes the next one.

    It needs no condition: it concerns one event alone. What is `shipped` is removed in the same write.
    `expires_at_ms` is the time now, where the lane belongs to this one invocation and nothing else may ever be
    written to it.
    """
    sets: dict[str, Value] = {TRIED: [nonce, failures]}
    if expires_at_ms is not None:
        sets["ttl"] = expires_at_ms // 1000 + LANE_TTL_S
    return Update(head_key(lane), sets, tuple(OUT + sequence for sequence in shipped))


def failures_of(head: Head, event: Event) -> int:
    """How many attempts at an event are known to have failed."""
    if head.tried is None or head.tried[0] != event.nonce:
        return 0
    return head.tried[1]


def with_tries(head: Head, first: Event, trim: Trim) -> Trim:
    """What the write that ends or claims the first event of a batch may remove: its count as well."""
    if head.tried is None or head.tried[0] != first.nonce:
        return trim
    return Trim(trim.out, trim.fin, (*trim.stray, TRIED))
