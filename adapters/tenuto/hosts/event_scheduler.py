"""Payloads of EventBridge: the wake-ups that EventBridge Scheduler delivers, and the tick of the sweeper's rule.

Owns their shape, in both directions: whoever schedules a wake-up encodes it here. Does not own when a lane is woken.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from tenuto.errors import ProtocolError
from tenuto.lane.writes import Key
from tenuto.protocol.ids import Lane
from tenuto.serde import problem_of


class WakeUp(Struct, frozen=True, tag_field="tenuto", tag="wake"):
    """Look at a lane, named by its partition key; a delayed message is also named by its timer's key."""

    lane: str
    pk: str | None = None
    sk: str | None = None

    @property
    def timer(self) -> Key | None:
        """The item of the delayed message, if it is one that is due."""
        return Key(self.pk, self.sk) if self.pk is not None and self.sk is not None else None


class SweepTick(Struct, frozen=True, tag_field="tenuto", tag="sweep"):
    """Look at the timers that are due."""


Payload: TypeAlias = WakeUp | SweepTick


def is_payload(event: Any) -> bool:
    """Whether a payload is one of these."""
    return isinstance(event, dict) and "tenuto" in event


def read(event: Any) -> Payload:
    """The payload as parsed from JSON. Raises ProtocolError."""
    try:
        payload: Payload = msgspec.convert(event, Payload)
        if isinstance(payload, WakeUp):
            Lane.from_pk(payload.lane)
    except msgspec.ValidationError as e:
        raise ProtocolError(f"this is no wake-up of tenuto: {problem_of(e)}") from None
    except ValueError as e:
        raise ProtocolError(f"this is no wake-up of tenuto: {e}") from None
    return payload


def decode(data: bytes) -> Payload:
    """The payload in its JSON form. Raises ProtocolError."""
    try:
        return read(msgspec.json.decode(data))
    except msgspec.DecodeError as e:
        raise ProtocolError(f"this is no wake-up of tenuto: {problem_of(e)}") from None


def wake_up(lane: Lane, timer: Key | None = None) -> bytes:
    """The payload that wakes a lane; `timer` names the delayed message that is due for it."""
    return msgspec.json.encode(WakeUp(lane.pk) if timer is None else WakeUp(lane.pk, timer.pk, timer.sk))
