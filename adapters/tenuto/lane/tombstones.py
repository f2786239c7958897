"""Tombstones: what stays in the place of an item whose work is over, so that a late duplicate is refused.

Owns their form, for inbox items and for the table's dead letters alike. Does not own which places get one.
"""

from __future__ import annotations

from collections.abc import Mapping

from tenuto.lane.writes import Key, Put, Value
from tenuto.protocol.limits import TOMBSTONE_TTL_S

DONE = "done"
TTL = "ttl"
"""The attributes of one: that it is one, and when the table may remove it (seconds since the epoch)."""


def tombstone_at(place: Key, now_ms: int) -> Put:
    """The tombstone for a place."""
    return Put(place, {DONE: 1, TTL: now_ms // 1000 + TOMBSTONE_TTL_S})


def is_tombstone(item: Mapping[str, Value]) -> bool:
    """Whether an item is one."""
    return DONE in item


def ttl_of(tombstone: Mapping[str, Value]) -> int | None:
    """When the table may remove it (seconds since the epoch); None when it does not say."""
    ttl = tombstone.get(TTL)
    return ttl if isinstance(ttl, int) else None
