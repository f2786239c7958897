"""What the two sides of a function tell each other: requests for writes, and news of what is stored.

Owns the values. Does not own the queues they go through (`lease`), nor what is done with them (`lane_writer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from msgspec import Struct

from tenuto.machine.journal import Finished
from tenuto.protocol.messages import Head
from tenuto.protocol.records import Event, Slot


class Found(Struct, frozen=True):
    """A slot that another process has put, or a write whose response was lost."""

    name: str
    slot: Slot


class Stored(Struct, frozen=True):
    """So many of the slots that came in are stored."""

    count: int


News: TypeAlias = Found | Stored
"""What the handler's side is told."""


class NewRun(Struct, frozen=True):
    """A run that is to be claimed. `secret` is what no other run knows, `first_out` its first place in the outbox.

    What has finished of it, and what will, comes through `finished`.
    """

    event: Event
    start_ms: int
    first_out: int
    secret: bytes
    finished: Finished


class Loaded(Struct, frozen=True):
    """What was stored of a resumed run: its event and its journal."""

    event: Event
    slots: Mapping[str, Slot]


class Left(Struct, frozen=True):
    """What an activation leaves of the lane: the head after its last write, and how many requests to write it made."""

    head: Head
    writes: int
