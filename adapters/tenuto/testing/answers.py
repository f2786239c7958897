"""What results, journals and headers look like to a test.

Owns reading a result as its handler's type hint says, and the entries of a journal. Does not own finding them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tenuto.errors import TerminalError
from tenuto.handler import Handler
from tenuto.protocol.ids import InvocationId, awakeable_slot
from tenuto.protocol.records import AwakeableSlot, Failed, Result, RunSlot, SleptSlot, Slot
from tenuto.testing.errors import HarnessError
from tenuto.testing.views import Invocation, JournalEntry
from tenuto.testing.world import World


def output_of(handler: Handler[Any, Any] | None, result: Result, place: str | None = None) -> Any:
    """What a handler returned, as its type hint reads it.

    Raises TerminalError, as a caller sees it. A test also sees the `place` in the handler, as a note of the error.
    """
    if isinstance(result, Failed):
        failure = result.failure
        error = TerminalError(failure.message, failure.status_code, failure.metadata)
        if place is not None:
            error.add_note(f"raised at {place}")
        raise error
    if result.value is None:
        return None
    return plain(result.value) if handler is None else handler.spec.output.deserialize(result.value)


def plain(data: bytes | None) -> Any:
    """A value decoded from JSON, or its bytes if it is not JSON."""
    if data is None:
        return None
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return data


def header_pairs(headers: Mapping[str, str | bytes] | None) -> tuple[tuple[str, bytes], ...]:
    """Headers as events have them."""
    pairs = (headers or {}).items()
    return tuple((name, value if isinstance(value, bytes) else value.encode()) for name, value in pairs)


def require_invocation(named: Invocation[Any] | str) -> str:
    """The id of an invocation. Raises HarnessError for other text."""
    name = named.id if isinstance(named, Invocation) else named
    try:
        InvocationId.parse(name)
    except ValueError as e:
        raise HarnessError("the id of an invocation begins with inv_; this text is not such an id") from e
    return name


def journal_of(world: World, invocation: str) -> list[JournalEntry]:
    """The commands of an invocation. Raises HarnessError for one that has not begun."""
    course = world.watched.courses.get(invocation)
    if course is None:
        raise HarnessError(f"invocation {invocation} has not begun")
    return [_entry(index, command, course.slots) for index, command in sorted(course.commands.items())]


def _entry(index: int, command: str, slots: Mapping[str, Slot]) -> JournalEntry:
    slot = slots.get(str(index)) or slots.get(awakeable_slot(index))
    match slot:
        case RunSlot(result=result) | AwakeableSlot(result=result):
            return _ended(index, command, result)
        case SleptSlot():
            return JournalEntry(index, command, done=True)
        case _:
            # What is handed out, or read off a clock, is done at once.
            return JournalEntry(index, command, done=command.startswith("send ") or command == "time")


def _ended(index: int, command: str, result: Result) -> JournalEntry:
    if isinstance(result, Failed):
        return JournalEntry(index, command, done=True, result=result.failure.message, failed=True)
    return JournalEntry(index, command, done=True, result=plain(result.value))
