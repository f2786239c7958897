"""The fields of log lines: which key, invocation and attempt a line is about; and which of many equal lines are said.

Owns their names, which are those that `tenuto.logs` gives to the lines of functions, so that one query finds both.
Nothing that a field holds is payload. Does not own how a line looks (`drivers.log_lines`).
"""

from __future__ import annotations

from typing import TypeAlias

from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.records import Event
from tenuto.protocol.texts import SHOWN_CHARACTERS_MAX, shown

__all__ = [
    "SHOWN_CHARACTERS_MAX",
    "Fields",
    "of_event",
    "of_invocation",
    "of_lane",
    "said_again",
    "shown",
    "shown_reason",
]

Fields: TypeAlias = dict[str, str | int]
"""What goes into `extra` of a log call."""


def shown_reason(text: str, *, foreign: bool) -> str:
    """Why something failed, as it may stand in a line; a `foreign` text is payload (see `Failure`)."""
    return "the text of a rejection, which is not shown" if foreign else shown(text)


def said_again(times: int) -> bool:
    """Whether what has happened so often in a row is logged: at the first, second, fourth, eighth … time."""
    return times & (times - 1) == 0


def of_lane(lane: Lane) -> Fields:
    """A line about a key."""
    return {"service": lane.service, "key": lane.key}


def of_event(lane: Lane, event: Event, attempt: int | None = None) -> Fields:
    """A line about an invocation, or about one attempt at it."""
    fields: Fields = of_lane(lane) | {"invocation_id": event.id, "handler": event.handler}
    return fields if attempt is None else fields | {"attempt": attempt}


def of_invocation(invocation: InvocationId) -> Fields:
    """A line about an invocation of which only the id is known."""
    return of_lane(invocation.lane) | {"invocation_id": str(invocation)}
