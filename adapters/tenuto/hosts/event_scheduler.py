"""Payloads that wake the dispatcher: of EventBridge Scheduler, of the sweep's rule, of one invocation to the next.

Owns their shape, in both directions: whoever schedules a wake-up encodes it here. Does not own when a lane is woken.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from tenuto.errors import ProtocolError
from tenuto.lane.writes import Key
from tenuto.protocol.decoding import bounded
from tenuto.protocol.ids import Lane
from tenuto.serde import problem_of


class HandedOn(Struct, frozen=True):
    """A lane to carry on with, named by its partition key; a delayed message also by its timer's key.

    `owner` is the name under which its continuation was handed on: who finds another one there leaves the lane alone.
    """

    lane: str
    pk: str | None = None
    sk: str | None = None
    owner: str | None = None

    @property
    def timer(self) -> Key | None:
        """The item of the delayed message, if it is one."""
        return Key(self.pk, self.sk) if self.pk is not None and self.sk is not None else None


class WakeUp(HandedOn, frozen=True, omit_defaults=True, tag_field="tenuto", tag="wake"):
    """Look at a lane; `owner` is there if the lane's continuation was left to this wake-up."""


class SweepTick(Struct, frozen=True, tag_field="tenuto", tag="sweep"):
    """Look at the timers that are due. One that carries on an unfinished sweep has `owner` and `hops`."""

    owner: str | None = None
    hops: int = 0


class Continue(Struct, frozen=True, tag_field="tenuto", tag="continue"):
    """Carry on with lanes that an invocation was in the middle of. `hops` counts the invocations before this one."""

    lanes: tuple[HandedOn, ...]
    hops: int = 1


Payload: TypeAlias = WakeUp | SweepTick | Continue

_decode = bounded(msgspec.json.Decoder())


def is_payload(event: Any) -> bool:
    """Whether a payload is one of these."""
    return isinstance(event, dict) and "tenuto" in event


def read(event: Any) -> Payload:
    """The payload as parsed from JSON. Raises ProtocolError."""
    try:
        payload: Payload = msgspec.convert(event, Payload)
        match payload:
            case WakeUp(lane):
                Lane.from_pk(lane)
            case Continue(lanes):
                for handed in lanes:
                    Lane.from_pk(handed.lane)
            case SweepTick():
                pass
    except msgspec.ValidationError as e:
        raise ProtocolError(f"this is not a tenuto wake-up: {problem_of(e)}") from None
    except ValueError as e:
        raise ProtocolError(f"this is not a tenuto wake-up: {e}") from None
    return payload


def decode(data: bytes) -> Payload:
    """The payload in its JSON form. Raises ProtocolError."""
    try:
        return read(_decode(data))
    except msgspec.DecodeError as e:
        raise ProtocolError(f"this is not a tenuto wake-up: {problem_of(e)}") from None


def wake_up(lane: Lane, timer: Key | None = None, owner: str | None = None) -> bytes:
    """The payload that wakes a lane; `timer` names the delayed message that is due for it."""
    woken = WakeUp(lane.pk, owner=owner) if timer is None else WakeUp(lane.pk, timer.pk, timer.sk, owner)
    return msgspec.json.encode(woken)


def encode(payload: Payload) -> bytes:
    """A payload in its JSON form."""
    return msgspec.json.encode(payload)
